"""DepthVLM in vLLM: text as from stock Qwen3-VL, or the dense depth map of an image from the same prefill.

Weights are those of the checkpoint. For depth, the model's output per token is the head's input: the final LLM state,
the DeepStack levels of an image token, and its place, stored bit by bit, from which the pooler recovers the image's
grid.
"""

import logging
from collections.abc import Iterable, Set
from concurrent.futures import Future
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import PoolingParamsUpdate
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.pooler.special import DispatchPooler
from vllm.model_executor.layers.pooler.tokwise.methods import AllPool
from vllm.model_executor.models.interfaces_base import default_pooling_type
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import MultiModalDataItems
from vllm.v1.pool.metadata import PoolingMetadata

from ..modeling_depthvlm.depth_heads_depthvlm import DepthHead, build_depth_head
from ..modeling_depthvlm.modeling_depthvlm import run_depth_head
from ..processing import DepthVLMProcessor

logger = logging.getLogger(__name__)

PLACE = 2  # numbers that encode a token's place: row and column, int32


class DepthVLMProcessingInfo(Qwen3VLProcessingInfo):
    """Qwen3-VL's processing info with DepthVLM's processor, which resizes images to the canonical focal length."""

    def get_hf_processor(self, **kwargs: object) -> DepthVLMProcessor:
        """Return the checkpoint's processor."""
        return self.ctx.get_hf_processor(DepthVLMProcessor, **kwargs)

    def parse_mm_data(self, mm_data: Any, **kwargs: Any) -> MultiModalDataItems:
        """Wait for an image that is still being read (see `DepthRequests.pre_process`), and parse the data."""
        ready = {name: data.result()[0] if isinstance(data, Future) else data for name, data in mm_data.items()}
        return super().parse_mm_data(ready, **kwargs)


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=DepthVLMProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class DepthVLMForConditionalGeneration(Qwen3VLForConditionalGeneration):
    """Text model: vLLM's Qwen3-VL, without the depth head's weights."""

    lora_skip_prefixes: ClassVar[list[str]] = [
        "depth_head."
    ]  # trained whole beside an adapter: no LoRA, and no part of the text

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "model"):
        config = vllm_config.model_config.hf_config
        config.text_config.tie_word_embeddings = config.tie_word_embeddings  # where vLLM looks for it
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights that this model has."""
        own = hasattr(self, "depth_head")
        return super().load_weights(one for one in weights if own or not one[0].startswith("depth_head."))


@default_pooling_type(seq_pooling_type="CLS", tok_pooling_type="ALL")
@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=DepthVLMProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class DepthVLMForDepthEstimation(DepthVLMForConditionalGeneration):
    """Depth model, a pooling model of the task `plugin`: a request's output is its image's depth, `(h * w,)`."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "model"):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config: Any = self.config
        if config.head.feature_source not in ("vit+llm", "llm_final"):
            raise ValueError(
                f"feature_source={config.head.feature_source!r} is not served by vLLM: 'vit+llm' and 'llm_final' are."
            )
        if config.head.head_type == "dpt_sharp":
            raise ValueError(
                "head_type='dpt_sharp' is not served by vLLM, which keeps neither the ViT's states before the merger "
                "nor the pixels of a request. Use `depthvlm predict`, or serve a checkpoint with another head."
            )
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError("Depth needs the DeepStack levels and the final state in one process: no pipeline stages.")
        self.depth_head = build_depth_head(config.head, config.text_config.hidden_size, config.input_stride)
        if config.head.predict_fov:
            logger.warning("The camera head is not served: a camera that is neither given nor in EXIF data is assumed.")
        levels = sorted(config.vision_config.deepstack_visual_indexes)
        self.levels = [levels.index(layer) for layer in config.vision_layers] if config.reads_vision else []
        pooler = DepthPooler(self.depth_head, config.image_token_id, config.text_config.hidden_size)
        self.pooler = DispatchPooler({"plugin": pooler})

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Run ViT and LLM; return per token the final state, the DeepStack levels and the place, side by side."""
        count = positions.shape[-1]
        # Qwen3-VL clears its buffers after the forward.
        levels = [self.deepstack_input_embeds[level][:count].clone() for level in self.levels]
        states = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
        assert isinstance(states, Tensor)
        rows_and_columns = positions[-2:] if positions.ndim == 2 else positions.expand(2, -1)
        place = rows_and_columns.T.to(torch.int32).contiguous().view(states.dtype)
        return torch.cat([states, *(level.to(states.dtype) for level in levels), place], dim=-1)


class DepthPooler(Pooler):
    """The depth head, run on the output of [`DepthVLMForDepthEstimation.forward`] after a request's full prefill.

    Args:
        head: The depth head.
        image_token_id: The token of images.
        hidden_size: Width of the LLM.
    """

    def __init__(self, head: DepthHead, image_token_id: int, hidden_size: int):
        super().__init__()
        self.head = head
        self.image_token_id = image_token_id
        self.hidden_size = hidden_size
        self.collect = AllPool()  # collects the chunks of a prefill

    def get_supported_tasks(self) -> Set[Any]:
        """Return the one task."""
        return {"plugin"}

    def get_pooling_updates(self, task: Any) -> PoolingParamsUpdate:
        """Request the prompt's tokens, to find the image's among them."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> list[Tensor | None]:
        """Return per request its image's depth in metres of the canonical camera, `(h * w,)` float32."""
        depth: list[Tensor | None] = []
        images: dict[int, Tensor] = {}
        prompts = pooling_metadata.get_prompt_token_ids_cpu()
        for index, states in enumerate(self.collect(hidden_states, pooling_metadata)):
            # Zero is the depth of the dummy requests, without an image, with which vLLM measures memory.
            depth.append(None if states is None else states.new_zeros(1, dtype=torch.float32))
            where = np.flatnonzero(prompts[index].numpy() == self.image_token_id)
            if states is not None and len(where):
                images[index] = states[where[0] : where[-1] + 1]
        if not images:
            return depth

        columns = PLACE * 4 // hidden_states.element_size()
        ends = [end[-columns:] for image in images.values() for end in (image[0], image[-1])]
        places = torch.stack(ends).view(torch.int32).tolist()  # the only read from the GPU
        # One image after the other, so that memory is bounded by the largest.
        for (index, image), (top, left), (bottom, right) in zip(images.items(), places[::2], places[1::2], strict=True):
            final, *levels = image[:, :-columns].split(self.hidden_size, dim=-1)
            grid = (bottom - top + 1, right - left + 1)
            [metres] = run_depth_head(self.head, [[one] for one in (*levels, final)], [grid], None)
            depth[index] = metres.flatten()
        return depth
