"""Depth from compiled layers of fixed shapes, so that a GPU does not wait for the host: `depthvlm.load(compile=True)`.

A picture falls in a bucket by its number of visual tokens. Patches and prompt are padded to the bucket's lengths, which
changes no result: no patch attends to padding, and the prompt is padded on the right, where causal attention does not
look. Blocks of the vision tower and layers of the LLM are compiled once per bucket, as they all share one graph each;
on CUDA the whole way from pixels to the head's feature maps is then one CUDA graph, launched at once. The depth head
works on the picture's own grid, and is launched while the GPU still computes.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from .modeling_depthvlm import DepthVLMForConditionalGeneration, PredictedDepth
from .modeling_depthvlm.modeling_depthvlm import check_images, positions_of_call, recorded_states, run_depth_head

logger = logging.getLogger(__name__)

# Visual tokens: 300 of 480x640 pixels, 768 of 768x1024, 1302 of 992x1344, 3072 in the processor's largest picture.
BUCKETS = (64, 96, 128, 192, 256, 320, 448, 576, 768, 1024, 1344, 1728, 2304, 3072)
BATCHES = (1, 2, 4, 8)
_PREFIX = 32  # places for the prompt before the image; a longer prompt takes a larger bucket
_MASKED = -32768.0  # score of padding before scaling; exact in bfloat16 and float16
_MANY = 10_000  # recompilations
_INPUTS = {"input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"}


def compile_depth(
    network: DepthVLMForConditionalGeneration, buckets: Sequence[int] = BUCKETS, backend: Any = "inductor"
) -> "CompiledDepth":
    """Make a model's `predict_depth` run compiled layers; `forward` and `generate` stay as they are.

    Weights, device and dtype must not change afterwards.

    Args:
        network: A model of the Qwen3-VL family in eval mode, on its device.
        buckets: Numbers of visual tokens to which pictures are padded. A larger picture runs without compilation.
        backend: Backend of `torch.compile`.

    Returns:
        The compiled path, which is now the model's.

    Raises:
        ValueError: The model's family, attention or device is not supported.
    """
    _check_supported(network)
    compiled = CompiledDepth(network, sorted(set(buckets)), backend)
    network.run_backbone = compiled  # type: ignore[method-assign]  # the way of `predict_depth` through the model
    return compiled


def _check_supported(network: Any) -> None:
    family, attention = network.config.backbone.model_type, network.config.text._attn_implementation
    placed = set(getattr(network, "hf_device_map", {}).values())
    if family != "qwen3_vl":
        reason = f"it is written for Qwen3-VL, and this model is a {family}"
    elif attention != "sdpa":
        reason = f"it takes PyTorch's own attention (sdpa), and this model has attn_implementation={attention!r}"
    elif len(placed) > 1 or placed & {"cpu", "disk"}:
        reason = f"the whole model must be on one device, and it is on {', '.join(sorted(map(str, placed)))}"
    elif network.device.type not in ("cpu", "cuda"):
        reason = f"it runs on CUDA and on a CPU, and this model is on {network.device}"
    else:
        return
    raise ValueError(f"compile=True does not apply: {reason}. Load the model without `compile`.")


class _Picture(NamedTuple):
    """A picture of a call."""

    number: int
    ids: Tensor  # of its prompt, up to the last image token
    grid: tuple[int, int]  # in visual tokens
    first_patch: int  # where its pixels begin

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return self.grid[0] * self.grid[1]


class _Program:
    """The compiled way for one bucket; its inputs keep their addresses, which a CUDA graph reads."""

    def __init__(self, inputs: dict[str, Tensor], run: Callable[[dict[str, Tensor]], list[Tensor]]):
        self.inputs = inputs
        self._run = run
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: list[Tensor] = []

    def __call__(self) -> list[Tensor]:
        """Return the feature maps, `(size, tokens, hidden_size)` each; on CUDA valid until the next call."""
        if self._graph is None:
            return self._run(self.inputs)
        self._graph.replay()
        return self._outputs

    def capture(self, pool: Any) -> None:
        """Record all kernels of a run in one CUDA graph, with the intermediate results in a pool that graphs share."""
        device = self.inputs["pixels"].device
        with torch.cuda.device(device):
            aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):  # what libraries allocate at their first call must not be recorded
                for _ in range(2):
                    self._run(self.inputs)
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._outputs = self._run(self.inputs)
        self._graph = graph


class CompiledDepth:
    """The way of a model's pictures to depth, compiled for a bounded number of shapes.

    Threads may call it at once, on one CUDA stream: their pictures run one after the other.

    Args:
        network: See [`compile_depth`], as for the others.
        buckets: In ascending order.
        backend: See there.

    Attributes:
        programs: What was compiled, by number of pictures and visual tokens: at most `len(BATCHES) * len(buckets)`.
    """

    def __init__(self, network: Any, buckets: Sequence[int], backend: Any):
        self.network = network
        self.buckets = buckets
        self.programs: dict[tuple[int, int], _Program] = {}
        self._eager = network.run_backbone
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._layout_of = lru_cache(maxsize=64)(self._layout)
        self._pool = torch.cuda.graph_pool_handle() if network.device.type == "cuda" else None
        settings: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
        self._vision_block = torch.compile(vision_block, **settings)
        self._llm_layer = torch.compile(llm_layer, **settings)

    def __call__(
        self,
        output_depth: bool,
        focal_scale: Tensor | None = None,
        text: bool = True,
        prompt_states: Any = None,
        cameras: Tensor | None = None,
        **inputs: Any,
    ) -> tuple[Any, PredictedDepth | None]:
        """Run as [`DepthVLMMixin.run_backbone`]: depth alone from compiled layers, everything else as before."""
        as_before = partial(self._eager, output_depth, focal_scale, text, prompt_states, cameras, **inputs)
        if self.network.training or torch.is_grad_enabled():
            return as_before()
        pictures: list[_Picture] | str = "replies to a prompt, and other calls for words, run as without `compile`"
        if output_depth and not text:
            check_images(inputs.get("pixel_values"), inputs.get("image_grid_thw"), focal_scale, cameras)
            pictures = self._pictures(inputs)
        if isinstance(pictures, str):
            if pictures not in self._said:
                self._said.add(pictures)
                logger.warning("Not compiled: %s.", pictures)
            return as_before()
        found: dict[int, tuple[Tensor, ...]] = {}  # depth, and the camera's record if there are cameras
        # Compiled code is for one mode of autograd: the callers' modes would double it. torch allows 8 graphs of one
        # function in a process before it gives up; here the buckets are the limit.
        allowed = torch._dynamo.config.patch(recompile_limit=_MANY, accumulated_recompile_limit=_MANY)
        with self._lock, torch.inference_mode(False), torch.no_grad(), allowed:
            for tokens in sorted({self._bucket(picture) for picture in pictures}):
                group = [picture for picture in pictures if self._bucket(picture) == tokens]
                for start in range(0, len(group), BATCHES[-1]):
                    part = group[start : start + BATCHES[-1]]
                    scale, rows = (
                        None if one is None else torch.stack([one[p.number] for p in part])
                        for one in (focal_scale, cameras)
                    )
                    found |= self._depth(part, tokens, inputs["pixel_values"], scale, rows)
        depth, *records = zip(*(found[number] for number in range(len(pictures))), strict=True)
        return None, PredictedDepth(depth, torch.stack(records[0]) if records else None)

    def _bucket(self, picture: _Picture) -> int:
        """Return the bucket of a picture, by its visual tokens and the length of its prompt; 0 if it fits in none."""
        least = max(picture.tokens, len(picture.ids) - _PREFIX)
        return next((size for size in self.buckets if size >= least), 0)

    def _pictures(self, inputs: dict[str, Any]) -> list[_Picture] | str:
        """Return the pictures of a call, or why they cannot run in a bucket."""
        if other := sorted(name for name, value in inputs.items() if value is not None and name not in _INPUTS):
            return f"a call with {', '.join(f'`{name}`' for name in other)}"
        if inputs.get("input_ids") is None or inputs.get("mm_token_type_ids") is None:
            return "a call without `input_ids` or `mm_token_type_ids`"
        config = self.network.config
        ids, side = inputs["input_ids"].cpu(), config.vision.spatial_merge_size
        mask = None if inputs.get("attention_mask") is None else inputs["attention_mask"].cpu().bool()
        grids = inputs["image_grid_thw"].tolist()
        if len(grids) != len(ids):
            return "prompts with several images, or none"
        pictures, first_patch = [], 0
        for number, (row, (frames, height, width)) in enumerate(zip(ids, grids, strict=True)):
            row = row if mask is None else row[mask[number]]
            grid = (height // side, width // side)
            places = (row == config.image_token_id).nonzero()[:, 0]
            picture = _Picture(number, row[: int(places[-1]) + 1] if len(places) else row, grid, first_patch)
            # Tokens that do not match the image, or a video among them: the model itself handles or reports them.
            if frames != 1 or len(places) != picture.tokens or int(places[-1] - places[0]) + 1 != picture.tokens:
                return "prompts whose image tokens are not those of one image"
            if not self._bucket(picture):
                return f"pictures of more than {self.buckets[-1]} visual tokens, and prompts that are longer still"
            pictures.append(picture)
            first_patch += frames * height * width
        return pictures

    def _depth(
        self,
        pictures: list[_Picture],
        tokens: int,
        pixel_values: Tensor,
        scale: Tensor | None,
        cameras: Tensor | None,
    ) -> dict[int, tuple[Tensor, ...]]:
        """Return the depth, and the cameras, of pictures of one bucket, at most `BATCHES[-1]`, by their numbers."""
        size = next(batch for batch in BATCHES if batch >= len(pictures))
        started = time.perf_counter()
        program = self.programs.get((size, tokens))
        is_new = program is None
        if program is None:
            program = _Program(self._fill({}, pictures, size, tokens, pixel_values), self._features)
        else:
            self._fill(program.inputs, pictures, size, tokens, pixel_values)
        try:
            if is_new and self._pool is not None:
                program.capture(self._pool)
            maps = program()
        except Exception as error:
            raise RuntimeError(
                f"compile=True failed for a batch of {size} with up to {tokens} visual tokens. {type(error).__name__}: "
                f"{error} Load the model without `compile`; docs/predict.md says what it needs."
            ) from error
        if is_new:
            if self._pool is not None:
                torch.cuda.synchronize(self.network.device)
            self.programs[size, tokens] = program
            seconds = time.perf_counter() - started
            logger.warning("Compiled for a batch of %d with up to %d visual tokens, in %.1f s.", size, tokens, seconds)
        features = [  # rows per token: 1, of the finer maps of `dpt_sharp` more
            [states[i, : picture.tokens * rows] for i, picture in enumerate(pictures)]
            for states, (rows, _) in zip(maps, self.network.depth_head.inputs, strict=True)
        ]
        grids = [picture.grid for picture in pictures]
        depth = run_depth_head(self.network.depth_head, features, grids, scale, cameras)
        parts = [depth] if depth.cameras is None else [depth, depth.cameras]
        return {picture.number: tuple(one) for picture, *one in zip(pictures, *parts, strict=True)}

    def _fill(
        self, inputs: dict[str, Tensor], pictures: list[_Picture], size: int, tokens: int, pixel_values: Tensor
    ) -> dict[str, Tensor]:
        """Write pictures into the inputs of a program, or make them if there are none; return them."""
        visual, side = self.network.model.visual, self.network.config.vision.spatial_merge_size
        layouts = [self._layout_of(len(picture.ids), picture.grid, tokens) for picture in pictures]
        layouts += layouts[-1:] * (size - len(layouts))  # places without a picture: their results are not read
        for name in layouts[0]:
            inputs[name] = torch.stack([layout[name] for layout in layouts], out=inputs.get(name))
        ids = torch.zeros(size, tokens + _PREFIX, dtype=torch.long)
        for row, picture in zip(ids, pictures, strict=False):
            row[: len(picture.ids)] = picture.ids
        if "pixels" not in inputs:
            device, shape = self.network.device, (size, tokens * side**2, pixel_values.shape[1])
            inputs["ids"] = torch.empty_like(ids, device=device)
            inputs["pixels"] = torch.empty(shape, dtype=visual.dtype, device=device)
        inputs["ids"].copy_(ids)
        inputs["pixels"].zero_()
        for place, picture in zip(inputs["pixels"], pictures, strict=False):
            patches = picture.tokens * side**2
            place[:patches] = pixel_values[picture.first_patch : picture.first_patch + patches]
        return inputs

    def _layout(self, length: int, grid: tuple[int, int], tokens: int) -> dict[str, Tensor]:
        """Return what a program must know of a picture of this grid whose prompt has this length, besides both."""
        config, visual = self.network.config, self.network.model.visual
        side, count = config.vision.spatial_merge_size, grid[0] * grid[1]
        grid_thw = torch.tensor([[1, grid[0] * side, grid[1] * side]])
        taps, tap_weights = get_vision_interpolation_indices_and_weights(
            grid_thw,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=side,
        )
        before = length - count
        is_image = torch.arange(tokens + _PREFIX) - before
        is_image = (is_image >= 0) & (is_image < count)
        types = is_image[None, :length].int()
        words = torch.where(types.bool(), config.image_token_id, 0)
        found, _ = positions_of_call(
            self.network.model, words, image_grid_thw=grid_thw, mm_token_type_ids=types, attention_mask=None
        )
        assert found is not None
        patches, room = tokens * side**2, tokens + _PREFIX
        layout = {
            "taps": F.pad(taps, (0, 0, 0, patches - len(taps))),
            "tap_weights": F.pad(tap_weights, (0, 0, 0, patches - len(taps))),
            "patch_places": F.pad(get_vision_position_ids(grid_thw, side), (0, 0, 0, patches - len(taps))),
            "is_padding": torch.arange(patches) >= count * side**2,
            "positions": F.pad(found[-3:, 0], (0, room - length)),
            "is_image": is_image,
            "source": (torch.arange(room) - before).clamp(0, tokens - 1),  # position to visual token, and back
            "places": (torch.arange(tokens) + before).clamp(max=room - 1),
        }
        return {name: value.to(self.network.device) for name, value in layout.items()}

    def _features(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Return the head's feature maps (equations 1 and 2) of every place of a batch.

        A CUDA graph records this: nothing here may copy from the host or wait for the GPU, as `torch.where` with a
        number does.

        Returns:
            One `(size, tokens, hidden_size)` per map; of `dpt_sharp`'s finer maps `(size, patches, width)`.
        """
        config, model = self.network.config, self.network.model
        levels, pooled, patches = self._vision(inputs)
        fine = [patches, inputs["pixels"]] if config.head.head_type == "dpt_sharp" else []
        order = sorted(config.vision.deepstack_visual_indexes)
        maps = [levels[order.index(layer)] for layer in config.vision_layers] if config.reads_vision else []
        if config.head.feature_source == "vit":
            return [*maps, pooled, *fine]

        text = model.language_model
        rows = torch.arange(len(pooled), device=pooled.device)[:, None]
        is_image, is_word = inputs["is_image"][..., None], ~inputs["is_image"][..., None]
        hidden = torch.where(is_image, pooled[rows, inputs["source"]], text.embed_tokens(inputs["ids"]))
        cos, sin = text.rotary_emb(hidden, inputs["positions"].transpose(0, 1))
        recorded = recorded_states(config)
        states = []
        for number, layer in enumerate(text.layers, start=1):
            hidden = self._llm_layer(layer, hidden, cos, sin)
            if number in recorded:
                states.append(hidden)
            if number <= len(levels):  # DeepStack
                hidden = hidden + levels[number - 1][rows, inputs["source"]].masked_fill(is_word, 0)
        states.append(text.norm(hidden))
        return maps + [state[rows, inputs["places"]] for state in states] + fine

    def _vision(self, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return DeepStack's levels and the final output of the vision tower, `(size, tokens, hidden_size)` each.

        Last come the states before the merger, `(size, patches, width)`.
        """
        visual = self.network.model.visual
        size = len(inputs["pixels"])
        embed = visual.patch_embed.proj  # a convolution as large as a patch: a product of matrices
        hidden = F.linear(inputs["pixels"], embed.weight.flatten(1), embed.bias)
        learned = (visual.pos_embed(inputs["taps"]) * inputs["tap_weights"][..., None]).sum(-2)
        hidden = hidden + learned.to(hidden.dtype)
        angles = visual.rotary_pos_emb(hidden, inputs["patch_places"].flatten(0, 1))
        cos, sin = (values.unflatten(0, (size, -1)) for values in angles)
        score = inputs["is_padding"].to(hidden.dtype) * _MASKED
        levels = []
        for number, block in enumerate(visual.blocks):
            hidden = self._vision_block(block, hidden, cos, sin, score)
            if number in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
                levels.append(merger(hidden).unflatten(0, (size, -1)))
        return levels, visual.merger(hidden).unflatten(0, (size, -1)), hidden


def vision_block(block: Any, hidden: Tensor, cos: Tensor, sin: Tensor, score: Tensor) -> Tensor:
    """Run a block of the vision tower on pictures of one padded length.

    Attention takes no mask, for which its fast kernels would not run: queries have one more component, 1, and keys have
    the score there that they add to every product. (The kernels want a multiple of 8 components.)

    Args:
        block: `Qwen3VLVisionBlock`.
        hidden: `(pictures, patches, width)`.
        cos: `(pictures, patches, head_dim)`, of the rotary embedding.
        sin: Likewise.
        score: `(pictures, patches)`, 0, or a large negative number at padding.
    """
    attention = block.attn
    states = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    query, key, value = states.unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    query = F.pad(F.pad(query, (0, 1), value=1.0), (0, 7))
    key = F.pad(torch.cat([key, score[..., None, None].expand(*key.shape[:-1], 1)], dim=-1), (0, 7))
    query, key, value = (part.transpose(1, 2) for part in (query, key, F.pad(value, (0, 8))))
    mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)[..., : attention.head_dim]
    hidden = hidden + attention.proj(mixed.transpose(1, 2).flatten(2))
    return hidden + block.mlp(block.norm2(hidden))


def llm_layer(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Run a layer of the LLM, causal, without a cache.

    Args:
        layer: `Qwen3VLTextDecoderLayer`.
        hidden: `(rows, positions, hidden_size)`.
        cos: `(rows, positions, head_dim)`, of the rotary embedding.
        sin: Likewise.
    """
    # `forward`, as the hooks with which transformers records states for other callers cannot be compiled.
    mixed, _ = layer.self_attn.forward(
        layer.input_layernorm(hidden), position_embeddings=(cos, sin), attention_mask=None
    )
    hidden = hidden + mixed
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
