"""Planarity: planes and normals known by construction."""

import math

import numpy as np
import pytest
from depthvlm.benchmark.scoring.planes import fit_plane, plane_errors
from depthvlm.benchmark.synthetic.scenes import render_scene

CAMERA = (40.0, 40.0, 20.0, 15.0)
LABELS = np.zeros((30, 40), int)


def wall(angle: float, distance: float = 2.0) -> np.ndarray:
    """The z-depth of a plane at a distance from the camera, turned by an angle in degrees about the vertical."""
    x = (np.arange(40) + 0.5 - 20) / 40
    return distance / (math.sin(math.radians(angle)) * x + math.cos(math.radians(angle))) * np.ones((30, 1))


def test_a_turned_plane_is_flat():
    found = plane_errors(wall(10), wall(0), CAMERA, LABELS)
    assert found.flatness == pytest.approx(0, abs=1e-5)
    assert found.orientation == pytest.approx(10)
    assert plane_errors(wall(-25), wall(10), CAMERA, LABELS).orientation == pytest.approx(35)


def test_a_plane_that_waves_by_a_centimetre():
    """Half of the points 1 cm behind a plane that faces the camera, half 1 cm before it."""
    wave = np.where(np.indices(LABELS.shape).sum(axis=0) % 2, 1.99, 2.01)
    found = plane_errors(wave, wall(0), CAMERA, LABELS)
    assert found.flatness == pytest.approx(1, rel=1e-3)
    assert found.orientation == pytest.approx(0, abs=0.05)
    # Twice as far: the same after scaling, twice as much in metres as they are.
    assert plane_errors(2 * wave, wall(0), CAMERA, LABELS).flatness == pytest.approx(1, rel=1e-3)
    assert plane_errors(2 * wave, wall(0), CAMERA, LABELS, rescale=False).flatness == pytest.approx(2, rel=1e-3)


def test_means_over_planes_that_are_large_enough():
    labels = np.where(np.arange(40) < 20, 3, 7) * np.ones((30, 1), int)
    labels[:, 39] = 9  # 1/40 of the map
    prediction = np.where(labels == 3, wall(10), wall(20))
    found = plane_errors(prediction, wall(0), CAMERA, labels)
    assert found.planes == 2
    assert found.orientation == pytest.approx(15)
    failed = plane_errors(np.where(labels == 7, np.nan, prediction), wall(0), CAMERA, labels)
    assert (failed.planes, failed.orientation) == (1, pytest.approx(10))
    assert plane_errors(prediction, wall(0), CAMERA, labels, labels == 7).orientation == pytest.approx(20)
    none = plane_errors(prediction, wall(0), CAMERA, LABELS - 1)
    assert none.planes == 0
    assert math.isnan(none.flatness)
    with pytest.raises(ValueError, match="one shape"):
        plane_errors(prediction, wall(0), CAMERA, labels[1:])


def test_a_plane_is_fitted_as_by_a_singular_value_decomposition():
    points = np.random.default_rng(0).normal(size=(50, 3)) * (3, 2, 0.1)
    normal, spread = fit_plane(points)
    _, singular, vectors = np.linalg.svd(points - points.mean(axis=0))
    assert abs(normal @ vectors[2]) == pytest.approx(1)
    assert spread == pytest.approx(singular[2] / math.sqrt(50))


@pytest.mark.parametrize("kind", ["room", "street"])
def test_the_renderers_planes_are_planes(kind):
    for seed in range(3):
        scene = render_scene(seed, kind=kind, width=128, height=96)
        (f, _, cx), (_, _, cy), _ = scene.intrinsics.tolist()
        found = plane_errors(scene.depth, scene.depth, (f, f, cx, cy), scene.planes, scene.depth > 0)
        assert found.planes >= 2
        assert found.flatness < 1e-3
        assert (scene.planes[scene.depth == 0] == -1).all()
        for index, thing in enumerate(scene.objects):
            # Painted on a wall, and so of its plane; of a small one nothing else of the wall may be seen.
            if thing.name in ("door", "picture", "window") and thing.visible > 100:
                column, row = thing.pixel
                assert (scene.segments[scene.planes == scene.planes[row, column]] != index).any()
