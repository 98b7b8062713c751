"""Registration of DepthVLM's classes with transformers' Auto classes."""

import functools


@functools.cache
def register() -> None:
    """Make transformers' Auto classes know the model, configuration and processor classes. Idempotent."""
    from .modeling_depthvlm import DepthVLMConfig
    from .modeling_depthvlm import register_auto_classes as register_models
    from .processing import register_auto_classes as register_processors

    register_models()
    register_processors(DepthVLMConfig)
