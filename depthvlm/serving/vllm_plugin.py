"""Entry points of the vLLM plugin, which vLLM calls in each of its processes."""

import logging

from .command import SUPPORTED_VLLM, TESTED_VLLM

logger = logging.getLogger("vllm.depthvlm")  # below vLLM's own, which shows what the root logger does not

ARCHITECTURES = ("DepthVLMForConditionalGeneration", "DepthVLMForDepthEstimation")


def register() -> None:
    """Register a text and a depth architecture with transformers and vLLM (`vllm.general_plugins`)."""
    import vllm
    from packaging.specifiers import SpecifierSet
    from vllm import ModelRegistry

    import depthvlm

    supported = SpecifierSet(SUPPORTED_VLLM, prereleases=True)
    logger.log(
        logging.INFO if vllm.__version__ in supported else logging.WARNING,
        "DepthVLM's plugin supports vLLM %s and is tested with %s; %s is installed.",
        SUPPORTED_VLLM,
        TESTED_VLLM,
        vllm.__version__,
    )
    depthvlm.register()
    for name in ARCHITECTURES:
        if name not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(name, f"depthvlm.serving.vllm_model:{name}")


def depth_requests() -> str:
    """Return the name of the class that handles depth requests (`vllm.io_processor_plugins`)."""
    return "depthvlm.serving.vllm_requests.DepthRequests"
