"""Keywords that are passed on: a misspelt one is refused before anything is loaded, with the nearest that exists."""

import inspect
from collections.abc import Iterable

from transformers import GenerationConfig, GenerationMixin

from .modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from .processing.image_processing_depthvlm import LOADING_KEYWORDS, check_keywords


def check_generation(given: Iterable[str], where: str, own: Iterable[str] = ()) -> None:
    """Raises TypeError for a keyword that neither `own` nor `generate` knows."""
    generate = {*inspect.signature(GenerationMixin.generate).parameters, *GenerationConfig().to_dict()}
    check_keywords(given, {*own, *generate} - {"images", "self", "kwargs"}, where)


def check_loading(given: Iterable[str], where: str) -> None:
    """Raises TypeError for a keyword that `from_pretrained` of the model does not take."""
    own = inspect.signature(DepthVLMForConditionalGeneration.from_pretrained).parameters
    known = {*own, *LOADING_KEYWORDS, *DepthVLMConfig().to_dict()}
    check_keywords(given, known - {"args", "kwargs"}, where)
