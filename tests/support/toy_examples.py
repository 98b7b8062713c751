"""Images of the benchmark as a predictor sees them, with random pixels."""

import numpy as np
from depthvlm.benchmark.systems.interface import Example
from PIL import Image


def toy_example(
    width: int = 64,
    height: int = 48,
    intrinsics: tuple[float, float, float, float] = (60.0, 60.0, 32.0, 24.0),
    *,
    seed: int = 0,
    pixels: np.ndarray | None = None,
    truth: np.ndarray | None = None,
) -> Example:
    if pixels is None:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    count = 0 if truth is None else len(truth)
    points = np.column_stack([np.arange(count), np.arange(count)]).astype(np.float64)
    return Example(
        f"image-{seed}", Image.fromarray(pixels), intrinsics, points, np.zeros(0) if truth is None else truth
    )
