"""Pictures for the image processors, and what the processors make of them made visible again."""

import numpy as np
import torch
from depthvlm.processing import DepthVLMImageProcessor, DepthVLMImageProcessorPil
from transformers.utils import is_torchvision_available

BACKENDS = [DepthVLMImageProcessorPil, *([DepthVLMImageProcessor] if is_torchvision_available() else [])]


def noise(height: int = 96, width: int = 128, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A picture with structure at every scale, so that a wrong filter shows."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels)).repeat(8, 0).repeat(8, 1)
    fine = generator.integers(-20, 21, (height, width, channels))
    return np.clip(coarse[:height, :width] + fine, 0, 255).astype(np.uint8)


def to_picture(features, index: int = 0) -> np.ndarray:
    """Undoes patches and normalisation: `(H, W, 3)` grey levels, 0 to 255, of the first frame."""
    grids = torch.as_tensor(features["image_grid_thw"])
    start = int(grids[:index].prod(-1).sum())
    _, rows, columns = grids[index].tolist()
    patches = torch.as_tensor(features["pixel_values"])[start : start + rows * columns]
    patches = patches.view(rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)
    assert torch.equal(patches[..., 0, :, :], patches[..., 1, :, :])
    pixels = patches[..., 0, :, :].permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * 16, columns * 16, 3)
    return ((pixels + 1) * 127.5).numpy()


def picture_of(processor, image, **kwargs) -> np.ndarray:
    """The picture that the model sees, at the image's own size."""
    kwargs = {"focal_length": 1000.0} | kwargs
    return np.rint(to_picture(processor(image, return_tensors="pt", **kwargs))).astype(np.uint8)
