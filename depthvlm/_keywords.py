"""Keywords that are passed on: a misspelt one is refused before anything is loaded, with the nearest that exists."""

import inspect
from collections.abc import Iterable

from transformers import GenerationConfig, GenerationMixin

from .modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from .processing.batch_depthvlm import LOADING_KEYWORDS, check_keywords

# Of transformers' `PreTrainedModel.from_pretrained`, whose signature does not name them.
_PLACEMENT = """
dtype torch_dtype device_map max_memory offload_folder offload_buffers quantization_config attn_implementation
experts_implementation tp_plan tp_size device_mesh distributed_config variant state_dict key_mapping gguf_file
generation_config use_kernels kernel_config adapter_name adapter_kwargs low_cpu_mem_usage output_loading_info
"""


def check_generation(given: Iterable[str], where: str, own: Iterable[str] = ()) -> None:
    """Raises TypeError for a keyword that neither `own` nor `generate` knows."""
    generate = {*inspect.signature(GenerationMixin.generate).parameters, *GenerationConfig().to_dict()}
    check_keywords(given, {*own, *generate} - {"images", "self", "kwargs"}, where)


def check_loading(given: Iterable[str], where: str) -> None:
    """Raises TypeError for a keyword that `from_pretrained` of the model does not take."""
    own = inspect.signature(DepthVLMForConditionalGeneration.from_pretrained).parameters
    known = {*own, *LOADING_KEYWORDS, *_PLACEMENT.split(), *DepthVLMConfig().to_dict()}
    check_keywords(given, known - {"args", "kwargs"}, where)
