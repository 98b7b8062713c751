"""Small rows of training data: a picture, its depth in millimetres, its focal length."""

import io

import numpy as np
from depthvlm.processing import DepthVLMImageProcessor, DepthVLMProcessor
from PIL import Image
from toy_tokenizer import build_toy_tokenizer

FOCAL = 110.0


def toy_processor() -> DepthVLMProcessor:
    """Images become at most 128x128 pixels in it."""
    return DepthVLMProcessor(DepthVLMImageProcessor(min_pixels=64 * 64, max_pixels=128 * 128), build_toy_tokenizer())


def picture(seed: int = 0, size: tuple[int, int] = (128, 96)) -> Image.Image:
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def jpeg(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "JPEG")
    return stream.getvalue()


def millimetres(value: int = 2500) -> Image.Image:
    return Image.fromarray(np.full((96, 128), value, dtype=np.uint16))


def depth_row(**changes) -> dict:
    row = {"image": picture(), "depth": millimetres(), "depth_scale": 1000, "focal_length": FOCAL}
    return {**row, **changes}


def turn(role: str, content) -> dict:
    return {"role": role, "content": content}
