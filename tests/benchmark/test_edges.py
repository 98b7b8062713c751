"""Depth boundaries: distances counted by hand, and edges that scikit-image 0.26 found."""

import math

import numpy as np
import pytest
from depthvlm.benchmark.scoring.edges import boundary_errors, canny

# `skimage.feature.canny(image, math.sqrt(2), 0.15, 0.3, mode="nearest")` of the image below, rows 2 to 21.
SCIKIT_IMAGE = """
.............................#..
.............................#..
............................#...
............................#...
.......#########...........#....
......##.......##..........#....
.....##.........##........#.....
.....#...........#........#.....
.....#...........#.......#......
.....#...........#.......#......
.....#...........#......#.......
.....#...........#......#.......
.....#...........#.....#........
.....#...........#.....#........
.....##.........##....#.........
......##.......##.....#.........
.......#########.....#..........
.....................#..........
....................#...........
....................#...........
"""


def test_canny_finds_what_scikit_image_finds():
    y, x = np.mgrid[:24, :32]
    slope = np.where(x + 0.5 * y > 30, 0.9, 0.5 + 0.002 * x)
    found = canny(np.where((x - 11) ** 2 + (y - 12) ** 2 < 49, 0.2, slope))
    assert ["".join(".#"[edge] for edge in row.tolist()) for row in found[2:22]] == SCIKIT_IMAGE.split()


def step(column: int, depth: float = 4.0) -> np.ndarray:
    """A map of 1 m, from a column on farther."""
    return np.where(np.arange(60) < column, 1.0, depth) * np.ones((20, 1))


def test_a_boundary_moved_by_three_pixels():
    """The edge between columns 22 and 23 is found in both, 2 and 3 pixels from the true one in column 20."""
    edges = np.zeros((20, 60), bool)
    edges[1:-1, 20] = True  # the detector leaves out the border
    assert boundary_errors(step(23), edges) == (pytest.approx(2.5), pytest.approx((2 + 3 + 2) / 3))
    # Of any scale, and where a part of the far side has no answer.
    holed = step(23)
    holed[5:9, 30:] = np.nan
    assert boundary_errors(7 * holed, edges) == boundary_errors(step(23), edges)


def test_boundaries_that_are_far_or_missing():
    edges = np.zeros((20, 60), bool)
    edges[1:-1, 20] = True
    assert boundary_errors(step(40), edges) == (10, 10)
    assert boundary_errors(np.full((20, 60), 2.0), edges) == (10, 10)
    assert boundary_errors(np.full((20, 60), np.nan), edges) == (10, 10)
    assert all(map(math.isnan, boundary_errors(step(23), np.zeros((20, 60), bool))))
    # A second edge of the prediction, out of reach of the true one: accuracy does not see it, completeness counts 10.
    both = np.where(np.arange(60) < 45, step(23), 9.0)
    assert boundary_errors(both, edges) == (pytest.approx(2.5), pytest.approx((2 + 3 + 2 + 10 + 10) / 5))
    with pytest.raises(ValueError, match="edges of its shape"):
        boundary_errors(step(3), edges[1:])
