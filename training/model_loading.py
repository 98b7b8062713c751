"""The initial model of a training run."""

import copy
from typing import Any

from accelerate.utils import is_peft_model
from transformers import AutoConfig, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.trainer.utils import create_model_from_path

from ..loading import hub_keywords
from ..modeling_depthvlm import DepthVLMForConditionalGeneration
from ..modeling_depthvlm.backbones_depthvlm import own_family
from ..processing import DepthVLMProcessor
from .config import DepthSFTConfig


def load_model(
    name: str, args: DepthSFTConfig, quantization_config: Any = None
) -> tuple[DepthVLMForConditionalGeneration, DepthVLMProcessor]:
    """Load a model with its depth head, and its processor, from the same commit.

    The model is loaded as `SFTTrainer` would: in float32 unless `model_init_kwargs` say otherwise, on one device in
    distributed training. A plain backbone gets a new head, initialised from `args.seed`.

    Raises:
        ValueError: If the quantisation is given twice.
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
    options.pop("trust_remote_code", None)  # the class is local: no remote code is needed
    model: Any = create_model_from_path(name, architecture=DepthVLMForConditionalGeneration, **options)  # type: ignore
    if is_deepspeed_zero3_enabled():
        # transformers (5.23) keeps renamings of old checkpoints there, which do not apply here, and uses them to save.
        model._weight_conversions = []
    processor = DepthVLMProcessor.from_pretrained(name, **origin)
    # `model_init_kwargs` may set another canonical camera than the checkpoint's (the paper's table 7).
    processor.image_processor.canonical_focal_length = model.config.canonical_focal_length
    return model, processor


def init_options(args: DepthSFTConfig) -> dict[str, Any]:
    """Return a copy of `model_init_kwargs`, already parsed if they were given as text."""
    options: Any = args.model_init_kwargs
    return dict(options or {})


def has_depth_head(model: Any, args: DepthSFTConfig) -> bool:
    """Return whether a model, or the checkpoint of that name, has a depth head."""
    if not isinstance(model, str):
        core = model.get_base_model() if is_peft_model(model) else model
        return hasattr(core, "depth_head")
    options = init_options(args)
    options.setdefault("trust_remote_code", args.trust_remote_code)
    config = AutoConfig.from_pretrained(model, **hub_keywords(model, options))
    return own_family(config.model_type) is not None


def adapter_with_head(peft_config: Any, commit: str | None) -> Any:
    """Return an adapter's configuration that also trains the depth head, saves it whole, and names the base's commit.

    Args:
        peft_config: Configuration of the adapter.
        commit: Commit of the base model, if it comes from the Hub.
    """
    config = copy.deepcopy(peft_config)
    modules = list(getattr(config, "modules_to_save", None) or [])
    config.modules_to_save = modules if "depth_head" in modules else [*modules, "depth_head"]
    config.revision = config.revision or commit
    return config
