"""The model that a training run begins with."""

from typing import Any

from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.trainer.utils import create_model_from_path

from .._loading import hub_keywords
from ..modeling_depthvlm import DepthVLMForConditionalGeneration
from ..processing import DepthVLMProcessor
from .config import DepthSFTConfig


def load_model(
    name: str, args: DepthSFTConfig, quantization_config: Any = None
) -> tuple[DepthVLMForConditionalGeneration, DepthVLMProcessor]:
    """
    Load the model of that name with its depth head as `SFTTrainer` would (float32 unless `model_init_kwargs` say
    otherwise, on one device in distributed training), and its processor, from the same commit. A plain Qwen3-VL gets a
    new head, drawn by `args.seed`.

    Raises:
        ValueError: when the quantisation is given twice.
    """
    set_seed(args.seed)
    options = init_options(args)
    if quantization_config is not None:
        if "quantization_config" in options:
            raise ValueError(
                "`quantization_config` is given both as a trainer argument and in `model_init_kwargs`: give it once, "
                "as a trainer argument."
            )
        options["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None
    origin = hub_keywords(name, options)
    options |= origin
    options.pop("trust_remote_code", None)  # the class is at hand: no remote code is needed
    model: Any = create_model_from_path(name, architecture=DepthVLMForConditionalGeneration, **options)  # type: ignore
    if is_deepspeed_zero3_enabled():
        # There transformers (5.23) keeps renamings of old checkpoints that this one never needed, and saves by them.
        model._weight_conversions = []
    processor = DepthVLMProcessor.from_pretrained(name, **origin)
    # `model_init_kwargs` may name another canonical camera than the checkpoint's own (the paper's table 7).
    processor.image_processor.canonical_focal_length = model.config.canonical_focal_length
    return model, processor


def init_options(args: DepthSFTConfig) -> dict[str, Any]:
    """A copy of `model_init_kwargs`, which are parsed by now where they came as text."""
    options: Any = args.model_init_kwargs
    return dict(options or {})
