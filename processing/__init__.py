"""Images, cameras and depth maps in, metres out: the code that is saved to the Hub with the weights."""

from transformers import AutoImageProcessor, AutoProcessor
from transformers.utils import is_torchvision_available

from .camera_depthvlm import CAMERA_SOURCES, AssumedCameraWarning, Camera, resolve_camera, resolve_cameras
from .depth_maps_depthvlm import read_depth
from .image_processing_depthvlm import (
    DepthVLMBatchFeature,
    DepthVLMImageProcessor,
    DepthVLMImageProcessorPil,
    post_process_depth,
)
from .processing_depthvlm import (
    DEPTH_PROMPT,
    DEPTH_REPLY,
    DEPTH_SYSTEM_PROMPT,
    DepthProcessorMixin,
    DepthVLMGlm46VProcessor,
    DepthVLMProcessor,
    DepthVLMQwen2_5_VLProcessor,
)


def register_auto_classes(config_class: type, processor_class: str = "DepthVLMProcessor") -> None:
    """Register these processors with the Auto classes for checkpoints of `config_class`, without remote code."""
    image_processors: dict[str, type] = {"pil": DepthVLMImageProcessorPil}
    if is_torchvision_available():
        image_processors["torchvision"] = DepthVLMImageProcessor
    AutoImageProcessor.register(config_class, image_processor_classes=image_processors, exist_ok=True)
    AutoProcessor.register(config_class, globals()[processor_class], exist_ok=True)


__all__ = [
    "CAMERA_SOURCES",
    "DEPTH_PROMPT",
    "DEPTH_REPLY",
    "DEPTH_SYSTEM_PROMPT",
    "AssumedCameraWarning",
    "Camera",
    "DepthProcessorMixin",
    "DepthVLMBatchFeature",
    "DepthVLMGlm46VProcessor",
    "DepthVLMImageProcessor",
    "DepthVLMImageProcessorPil",
    "DepthVLMProcessor",
    "DepthVLMQwen2_5_VLProcessor",
    "post_process_depth",
    "read_depth",
    "register_auto_classes",
    "resolve_camera",
    "resolve_cameras",
]
