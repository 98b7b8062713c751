"""Shape of a map: every metric of planes, edges, order and grid that one image allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ..systems.interface import TokenGrid
from .edge_width import edge_width
from .edges import boundary_errors
from .grid_artefact import Direction, GridSpectrum, grid_spectrum, pooled_spectrum
from .metrics import Array, Mask
from .ordinal import ordinal_errors
from .planes import plane_errors
from .scene_masks import SceneMasks

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


def shape_metrics(
    prediction: Array, truth: Array, valid: Mask, camera: Sequence[float], masks: SceneMasks | None
) -> dict[str, float]:
    """Return the metrics of a dense map by name, NaN where undefined.

    Args:
        prediction: Z-depth in metres `(h, w)`, at the pixels of the truth.
        truth: Z-depth in metres `(h, w)`.
        valid: Mask `(h, w)`.
        camera: Fx, fy, cx, cy in pixels of the maps.
        masks: Planes and edges, where the source gives them.
    """
    width = edge_width(prediction, truth, valid)
    found = {**ordinal_errors(prediction, truth, valid), "edge_width": width.width, "edge_shown": width.shown}
    if masks is not None:
        found["dbe_accuracy"], found["dbe_completeness"] = boundary_errors(prediction, masks.edges)
        planes = plane_errors(prediction, truth, camera, masks.planes, valid)
        found |= {"plane_flatness": planes.flatness, "plane_orientation": planes.orientation}
    return found


def grid_powers(prediction: NDArray[np.floating], tokens: TokenGrid | None) -> dict[str, list[float]]:
    """Return the powers of the grid artefact of a map at the size of the picture, by direction.

    Args:
        prediction: `(H, W)`.
        tokens: The model's token grid; without one, or with fewer than two tokens along a direction, nothing is there.
    """
    found: dict[str, list[float]] = {}
    if tokens is None:
        return found
    for direction, size, count in zip(DIRECTIONS, prediction.shape[::-1], (tokens.columns, tokens.rows), strict=True):
        if count >= 2 and size >= 2 * count:
            spectrum = grid_spectrum(prediction, size / count, direction, harmonics=tokens.stride // 2)
            found |= {direction: spectrum.power.tolist(), f"{direction}_around": spectrum.around.tolist()}
    return found


def pooled_grid(images: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Return the ratio of each harmonic over all images by direction, see [`pooled_spectrum`]."""
    found: dict[str, list[float]] = {}
    for direction in DIRECTIONS:
        spectra = spectra_of(images, direction)
        if any(spectrum.around.mean() > 0 for spectrum in spectra):
            found[direction] = pooled_spectrum(spectra).ratios.tolist()
    return found


def spectra_of(images: Sequence[dict[str, list[float]]], direction: str) -> list[GridSpectrum]:
    """Return the spectra of the images that have one along a direction; their periods are not kept."""
    return [
        GridSpectrum(0.0, np.array(powers[direction]), np.array(powers[f"{direction}_around"]))
        for powers in images
        if direction in powers
    ]
