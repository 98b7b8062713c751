"""Colour pictures: near is blue, far is red, and the bar says how many metres."""

import numpy as np
import pytest

from depthvlm.visualize import DepthRange, color_picture, colorize, depth_range, scale_bar

RAMP = np.linspace(1, 5, 401)[None, :].repeat(40, axis=0)


def test_near_is_blue_far_is_red_and_between_is_neither():
    rgb = colorize(RAMP).astype(int)
    near, middle, far = rgb[0, 0], rgb[0, 200], rgb[0, -1]
    assert near[2] > 2 * near[0]
    assert far[0] > 2 * far[2]
    assert middle[1] > max(middle[0], middle[2])


def test_pixels_without_depth_are_grey():
    depth = RAMP.copy()
    depth[0, :4] = [0, -1, np.nan, np.inf]
    for red, green, blue in colorize(depth)[0, :4]:
        assert red == green == blue


def test_the_range_ignores_outliers_and_invalid_pixels():
    depth = RAMP.copy()
    depth[0, :3] = 1000.0, np.nan, 0.0
    assert depth_range(depth) == pytest.approx((1.04, 4.96), abs=0.01)  # percentiles 1 and 99 of 1 to 5
    assert depth_range(np.zeros((3, 3))) == (0.0, 1.0)


def test_maps_given_one_range_are_comparable():
    limits = depth_range(RAMP, RAMP + 5)
    assert limits.near < 2 < 9 < limits.far
    np.testing.assert_array_equal(colorize(RAMP, limits)[0, -1], colorize(RAMP + 4, limits)[0, 0])


@pytest.mark.parametrize("depth", [np.full((30, 40), 2.5), np.full((30, 40), np.nan), np.full((2, 2), 1e-4)])
def test_flat_and_empty_maps_have_a_picture(depth):
    assert color_picture(depth).height == 96  # room for a legible scale beside a tiny picture


def test_the_picture_keeps_every_pixel_and_has_the_bar_beside_it():
    depth = np.linspace(1, 5, 200)[:, None].repeat(300, axis=1)
    picture = np.asarray(color_picture(depth))
    np.testing.assert_array_equal(picture[:200, :300], colorize(depth))
    bar = np.asarray(scale_bar(200, depth_range(depth)))
    np.testing.assert_array_equal(picture[:, 300:], bar)


def test_the_bar_has_far_on_top_and_ticks_where_they_belong():
    bar = np.asarray(scale_bar(300, DepthRange(0.0, 10.0))).astype(int)
    colours = bar[:, (bar[150].max(axis=-1) - bar[150].min(axis=-1)).argmax()]
    coloured = np.flatnonzero(colours.max(axis=-1) - colours.min(axis=-1) > 40)
    top, bottom = colours[coloured[0]], colours[coloured[-1]]
    assert top[0] > 2 * top[2]
    assert bottom[2] > 2 * bottom[0]
    # six ticks, at 0, 2, ... 10 m: dark rows in the columns right of the frame
    frame = np.flatnonzero((bar == 0).all(axis=-1).sum(axis=0) > 200).max()
    ticks = np.flatnonzero((bar[:, frame + 2] == 0).all(axis=-1))
    assert len(ticks) == 6
    np.testing.assert_allclose(np.diff(ticks), (coloured[-1] - coloured[0]) / 5, atol=1.5)


def test_an_unknown_colour_map():
    with pytest.raises(ValueError, match=r"'nothing'.*matplotlib"):
        colorize(RAMP, colormap="nothing")
