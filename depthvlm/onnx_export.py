"""The depth head of a checkpoint as an ONNX file for any grid and batch size (paper, section 3.1).

The vision-language model in front of it stays in PyTorch: docs/onnx.md explains why, and how to use the file.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils.hub import cached_file, cached_files

from .checkpoint import BUNDLED_MODEL, resolve_model_path, split_revision
from .files import atomic_write
from .modeling_depthvlm import DepthVLMConfig
from .modeling_depthvlm.depth_heads_depthvlm import DepthHead, build_depth_head

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 20  # the first with Gelu, which the MLP head uses; onnxruntime reads it from 1.17 on
OUTPUT = "predicted_depth"
FOCAL_SCALE = "focal_scale"
TOLERANCE = 1e-4  # greatest allowed relative difference from PyTorch
CHECKED_GRIDS = ((1, 1, 1), (2, 3, 2), (1, 4, 9))  # images, then rows and columns of tokens
NEAREST = 1e-3  # metres: lower bound of the depth in a relative difference

_PREFIX = "depth_head."
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


class HeadExport(NamedTuple):
    """The exported file.

    Attributes:
        path: Path of the file.
        size: Size in bytes.
        metadata: ONNX metadata.
        largest_error: Greatest relative difference from PyTorch on random features of the `CHECKED_GRIDS`.
    """

    path: Path
    size: int
    metadata: dict[str, str]
    largest_error: float


class ExportableHead(nn.Module):
    """A depth head on feature maps whose shape includes the grid.

    Args:
        head: The head, used unchanged.
    """

    def __init__(self, head: DepthHead):
        super().__init__()
        self.head = head

    def forward(self, features: list[Tensor], focal_scale: Tensor) -> Tensor:
        """Return z-depth in metres.

        Args:
            features: One `(N, h, w, hidden_size)` per feature map; h and w in visual tokens.
            focal_scale: `(N,)`, effective over canonical focal length.

        Returns:
            `(N, h * stride, w * stride)`.
        """
        grid = (features[0].shape[1], features[0].shape[2])
        depth = self.head([feature.flatten(1, 2) for feature in features], grid)
        return depth * focal_scale[:, None, None]


def input_names(maps: int) -> list[str]:
    """Return the names of the ONNX file's inputs: `F1` to `F4` (equation 2), then `focal_scale`.

    A head that reads a single map has only the last of the four, `F4`.
    """
    return [*(["F4"] if maps == 1 else [f"F{level + 1}" for level in range(maps)]), FOCAL_SCALE]


def export_depth_head(model: str | PathLike[str], path: str | PathLike[str]) -> HeadExport:
    """Write the depth head of a checkpoint as ONNX, float32, and check it against PyTorch.

    Only the head's weights are read: a large checkpoint needs only the memory of its head, and only the files with the
    head are downloaded from the Hub. The file is written only if onnxruntime gives the same depth.

    Args:
        model: Folder or Hub name of a checkpoint in DepthVLM's own or in the published layout.
        path: The `.onnx` file to write.

    Raises:
        ImportError: The packages of the extra `onnx` are not installed.
        OSError: There is no such checkpoint, or its weights cannot be read.
        ValueError: The checkpoint has no depth head, or one that does not match its config.
        RuntimeError: onnxruntime's depth differs from PyTorch's by more than `TOLERANCE`.
    """
    require_onnx()
    config, head = load_depth_head(model)
    exported, metadata = ExportableHead(head).eval(), _metadata(model, config)
    content = to_onnx(exported, config.text.hidden_size, _maps(config), metadata)
    error = largest_error(content, exported, config.text.hidden_size, _maps(config))
    if not error <= TOLERANCE:
        raise RuntimeError(
            f"onnxruntime's depth differs from PyTorch's by {error:.1e} (relative), more than {TOLERANCE:g}: nothing "
            "is written. Please report this with the versions that `depthvlm info` prints."
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)
    return HeadExport(path, len(content), metadata, error)


def require_onnx() -> None:
    """Raise an ImportError that says what to install if a package of the extra is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(
                f'ONNX export needs the package {package} ({error}): pip install "depthvlm[onnx]"'
            ) from error


def load_depth_head(model: str | PathLike[str]) -> tuple[DepthVLMConfig, DepthHead]:
    """Return config and head of a checkpoint, in float32 and eval mode; the other weights are not read.

    Raises:
        OSError, ValueError: See `export_depth_head`.
    """
    path, revision = split_revision(resolve_model_path(str(model)))
    config = DepthVLMConfig.from_pretrained(path, revision=revision or "main")
    if config.head.head_type == "dpt_sharp":
        raise ValueError(
            f"{model} has a head of type dpt_sharp, which also reads the picture and the states before the merger: it "
            "cannot be exported to ONNX. Export a checkpoint with another head."
        )
    weights = _head_weights(path, revision)
    if not weights:
        raise ValueError(
            f"{model} has no depth head: none of its weights is called `depth_head.*`. A plain backbone gets a head "
            "from `depthvlm convert`, which must be trained before its depth means anything; adapters must be merged "
            "into a whole checkpoint first."
        )
    head = build_depth_head(config.head, config.text.hidden_size, config.input_stride)
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{model}: the weights of its depth head do not fit its config. {error}") from None
    return config, head.float().eval()


def to_onnx(exported: ExportableHead, hidden_size: int, maps: int, metadata: dict[str, str]) -> bytes:
    """Return the ONNX file's content for a head that reads `maps` maps of `hidden_size` channels.

    Raises:
        onnx.checker.ValidationError: The output is not valid ONNX.
    """
    import onnx

    # Sizes in the example differ, so that the exporter does not confuse them.
    inputs = _random_inputs(2, (3, 4), hidden_size, maps)
    axes = {0: "batch", 1: "height", 2: "width"}
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            exported,
            inputs,
            dynamo=True,
            dynamic_shapes=([axes] * maps, {0: "batch"}),
            input_names=input_names(maps),
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # None only for the old exporter
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata)
    proto.producer_name, proto.doc_string = "depthvlm", "Depth head of DepthVLM: visual tokens to metres."
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def largest_error(
    content: bytes,
    exported: ExportableHead,
    hidden_size: int,
    maps: int,
    grids: Sequence[tuple[int, int, int]] = CHECKED_GRIDS,
) -> float:
    """Return the greatest relative difference between onnxruntime's depth and PyTorch's, on random features.

    Args:
        content: Content of the ONNX file.
        exported: The head in PyTorch.
        hidden_size: Channels of the maps.
        maps: Number of maps.
        grids: `(images, rows, columns)` of tokens to try.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    errors = []
    for images, *grid in grids:
        features, focal_scale = _random_inputs(images, (grid[0], grid[1]), hidden_size, maps)
        arrays: list[NDArray[Any]] = [tensor.numpy() for tensor in (*features, focal_scale)]
        found = torch.from_numpy(session.run([OUTPUT], dict(zip(input_names(maps), arrays, strict=True)))[0])
        with torch.no_grad():
            expected = exported(features, focal_scale)
        errors.append(float(((found - expected).abs() / expected.clamp(min=NEAREST)).max()))
    return max(errors)


def _random_inputs(images: int, grid: tuple[int, int], hidden_size: int, maps: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(images, *grid, hidden_size, generator=generator) for _ in range(maps)]
    return features, 0.5 + torch.rand(images, generator=generator)


def _maps(config: DepthVLMConfig) -> int:
    return 1 if config.head.feature_source == "llm_final" else 4


def _metadata(model: str | PathLike[str], config: DepthVLMConfig) -> dict[str, str]:
    """Return the information that users of the file need, as ONNX metadata (strings)."""
    from . import __version__

    name, head = str(model), config.head
    source = name if name == BUNDLED_MODEL or not Path(name).is_dir() else Path(name).resolve().name
    return {
        "head_type": head.head_type,
        "feature_source": head.feature_source,
        "hidden_size": str(config.text.hidden_size),
        "canonical_focal_length": f"{config.canonical_focal_length:g}",
        "patch_size": str(config.vision.patch_size),
        "spatial_merge_size": str(config.vision.spatial_merge_size),
        "stride": str(config.input_stride),
        "backbone": config.backbone.model_type,
        "vision_layers": json.dumps(config.vision_layers if config.reads_vision else []),
        "unit": "metres; z-depth",
        "source": source,
        "license": _license(name) or "not stated by the checkpoint",
        "depthvlm_version": __version__,
    }


def _license(model: str) -> str | None:
    """Return the licence that a checkpoint's model card states, or None."""
    path, revision = split_revision(resolve_model_path(model))
    optional: Any = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    card = cached_file(path, "README.md", revision=revision, **optional)
    try:
        stated = None if card is None else ModelCard.load(card).data.get("license")
    except ValueError:  # the card's front matter is not YAML
        return None
    return None if stated is None else str(stated)


def _head_weights(path: str, revision: str | None) -> dict[str, Tensor]:
    """Return the `depth_head.*` weights without that prefix, from the safetensors files that hold them."""
    optional: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    if index := cached_file(path, _INDEX, revision=revision, **optional):
        weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({shard for name, shard in weight_map.items() if name.startswith(_PREFIX)})
    else:
        names = [_WEIGHTS]
    files = (cached_files(path, names, revision=revision) or []) if names else []
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found = [
                    name
                    for name in tensors.keys()  # noqa: SIM118 (not a mapping)
                    if name.startswith(_PREFIX) and not name.startswith(f"{_PREFIX}projectors.")  # before the maps
                ]
                weights |= {name.removeprefix(_PREFIX): tensors.get_tensor(name).float() for name in found}
        except SafetensorError as error:
            raise OSError(f"{file} is incomplete or damaged ({error}). Copy or download it again.") from error
    return weights


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress torch's messages during export: about its own parts, torchvision, and axes that share a name."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
