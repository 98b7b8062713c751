"""Scenes whose pictures tell nothing about their camera but what they show: for training and scoring the camera head.

The width in pixels is drawn apart from the field of view. Otherwise the size of a picture, or how sharp it is once it
has the size of the model's input, would tell the answer.
"""

import math

import numpy as np
from depthvlm.benchmark.synthetic import render_scene
from depthvlm.benchmark.synthetic.samples import ASPECTS, change_light
from depthvlm.benchmark.synthetic.scenes import SyntheticScene

FIELDS_OF_VIEW = (45.0, 80.0)  # degrees across the width, uniform: those that nano was trained on
WIDTHS = (160, 400)  # pixels, with a uniform logarithm


def camera_scene(seed: int) -> tuple[SyntheticScene, np.ndarray, float]:
    """Return the scene of a seed, its picture in another light `(H, W, 3)` uint8, and its field of view in degrees."""
    rng = np.random.default_rng([77, seed])
    fov = rng.uniform(*FIELDS_OF_VIEW)
    width = round(math.exp(rng.uniform(*map(math.log, WIDTHS))))
    height = round(width / ASPECTS[rng.integers(len(ASPECTS))])
    scene = render_scene(seed, width=width, height=height, fov=fov)
    return scene, change_light(scene.image, rng), fov
