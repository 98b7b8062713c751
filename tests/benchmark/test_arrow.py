"""The arrow of the VLM protocol: its pixels, its side, what happens to large images and at borders."""

import io

import numpy as np
import pytest
from depthvlm.benchmark.systems.arrow import arrow_side, draw_arrow, fit_image, scale_points
from PIL import ExifTags, Image

RED = [255, 0, 0]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Without any pure red pixel."""
    return Image.fromarray(np.random.default_rng(seed).integers(1, 255, (height, width, 3), dtype=np.uint8))


def red_pixels(image: Image.Image) -> set[tuple[int, int]]:
    rows, columns = np.nonzero((np.asarray(image) == RED).all(-1))
    return set(zip(columns.tolist(), rows.tolist(), strict=True))


def test_five_pixels_as_released():
    # DepthLM's released evaluation: the shaft at x-1 to x-5, the head at (x-2, y+-1) and (x-3, y+-2).
    shaft = {(9, 10), (8, 10), (7, 10), (6, 10), (5, 10)}
    head = {(8, 9), (8, 11), (7, 8), (7, 12)}
    assert red_pixels(draw_arrow(noise(40, 40), (10, 10), 5)) == shaft | head


def test_twenty_pixels():
    red = red_pixels(draw_arrow(noise(100, 80), (50, 40)))
    assert red == (
        {(50 - i, 40) for i in range(1, 21)} | {(49 - i, 40 + i * up) for i in range(1, 11) for up in (-1, 1)}
    )
    assert len(red) == 40


@pytest.mark.parametrize("length", [3, 5, 8, 20])
@pytest.mark.parametrize("pixel", [(30, 30), (0, 30), (30, 0), (59, 30), (30, 59), (0, 0), (59, 0), (0, 59), (59, 59)])
def test_everywhere_it_is_whole_and_leaves_the_pixel_alone(pixel, length):
    image = noise(60, 60)
    drawn = draw_arrow(image, pixel, length)
    red = red_pixels(drawn)
    assert pixel not in red
    changed = np.nonzero((np.asarray(drawn) != np.asarray(image)).any(-1))
    assert {(c, r) for r, c in zip(*(axis.tolist() for axis in changed), strict=True)} == red
    assert np.array_equal(np.asarray(image), np.asarray(noise(60, 60)))  # the original is as it was
    # The same number of pixels from each straight side, and from each diagonal one: nothing is cut off.
    whole = draw_arrow(noise(200, 200), (100, 100), length)
    diagonal = arrow_side(pixel, (60, 60), length).count(" ")
    reach = round(length / 2**0.5)
    assert len(red) == (reach + 2 * (reach - 1) if diagonal else len(red_pixels(whole)))
    # It begins beside the pixel.
    assert any(max(abs(c - pixel[0]), abs(r - pixel[1])) == 1 for c, r in red)


@pytest.mark.parametrize(
    ("pixel", "side"),
    [
        ((50, 40), "left"),
        ((20, 10), "left"),  # the tail is in column 0, the head in row 0
        ((19, 40), "right"),
        ((50, 9), "below"),
        ((50, 70), "above"),
        ((79, 40), "left"),
        ((3, 3), "lower right"),
        ((98, 2), "lower left"),
        ((3, 77), "upper right"),
        ((98, 77), "upper left"),
        ((15, 9), "below"),
    ],
)
def test_side(pixel, side):
    assert arrow_side(pixel, (100, 80)) == side


def test_sides_mirror_each_other():
    left = {(50 - c, r - 50) for c, r in red_pixels(draw_arrow(noise(101, 101), (50, 50)))}
    right = {(c, r - 40) for c, r in red_pixels(draw_arrow(noise(100, 80), (0, 40)))}
    above = {(79 - r, c - 50) for c, r in red_pixels(draw_arrow(noise(100, 80), (50, 79)))}
    below = {(r, c - 50) for c, r in red_pixels(draw_arrow(noise(100, 80), (50, 0)))}
    assert left == right == above == below
    upper_left = {(99 - c, 79 - r) for c, r in red_pixels(draw_arrow(noise(100, 80), (99, 79)))}
    assert red_pixels(draw_arrow(noise(100, 80), (0, 0))) == upper_left
    assert {(c, c) for c in range(1, 15)} <= upper_left  # 14 pixels on the diagonal are 20 long


def test_too_small_or_outside():
    with pytest.raises(ValueError, match="12x12 is too small for an arrow of 20 pixels"):
        draw_arrow(noise(12, 12), (6, 6))
    with pytest.raises(ValueError, match=r"Pixel \(60, 3\) is outside the image of 60x40"):
        draw_arrow(noise(60, 40), (60, 3))
    with pytest.raises(ValueError, match="at least 3 pixels"):
        draw_arrow(noise(60, 40), (30, 20), 2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1920, 1440), (1024, 768)), ((900, 1600), (576, 1024)), ((1024, 700), (1024, 700)), ((640, 480), (640, 480))],
)
def test_larger_images_are_scaled_down(size, expected):
    image = noise(*size)
    fitted = fit_image(image)
    assert fitted.size == expected
    if expected == size:
        assert np.array_equal(np.asarray(fitted), np.asarray(image))
    assert fit_image(image, None).size == size


def test_points_follow_the_scale():
    # 1920 to 1024: factor 8/15. Pixel centres are whole: 959 covers 959.0 to 960.0 from the border, its centre 959.5.
    points = np.array([[0, 0], [959, 0], [1919, 1439], [-0.5, -0.5], [1919.5, 1439.5], [1.4, 1.3]])
    pixels = scale_points(points, (1920, 1440), (1024, 768))
    # 0.5 * 8/15 = 0.27; 959.5 * 8/15 = 511.7; 1919.5 * 8/15 = 1023.7; 1.9 * 8/15 = 1.01; 1.8 * 8/15 = 0.96
    assert pixels.tolist() == [[0, 0], [511, 0], [1023, 767], [0, 0], [1023, 767], [1, 0]]
    same = np.array([[3, 4], [3.4, 4.6], [639, 479]])
    assert scale_points(same, (640, 480), (640, 480)).tolist() == [[3, 4], [3, 5], [639, 479]]


def test_the_arrow_points_at_what_was_there():
    """A square of one colour keeps its place when a large image is scaled."""
    pixels = np.full((1440, 1920, 3), 40, dtype=np.uint8)
    pixels[1000:1030, 700:730] = (10, 200, 90)
    image = Image.fromarray(pixels)
    fitted = fit_image(image)
    [pixel] = scale_points(np.array([[714.5, 1014.5]]), image.size, fitted.size).tolist()
    drawn = draw_arrow(fitted, tuple(pixel))
    assert drawn.getpixel(tuple(pixel)) == (10, 200, 90)
    assert drawn.getpixel((pixel[0] - 1, pixel[1])) == (255, 0, 0)


def test_points_outside():
    with pytest.raises(ValueError, match=r"column 640, row 3 is outside the image of 640x480"):
        scale_points(np.array([[3, 3], [640, 3]]), (640, 480), (640, 480))
    with pytest.raises(ValueError, match="column nan"):
        scale_points(np.array([[np.nan, 3]]), (640, 480), (640, 480))
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        scale_points(np.array([3.0, 3.0]), (640, 480), (640, 480))
    assert scale_points(np.zeros((0, 2)), (640, 480), (640, 480)).shape == (0, 2)


def test_nothing_turns_the_image():
    """Points are pixels of the image as stored: its EXIF orientation must not reach a processor that follows it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stream = io.BytesIO()
    noise(60, 40).save(stream, "JPEG", exif=exif)
    image = Image.open(stream)
    assert image.getexif()[ExifTags.Base.Orientation] == 6
    for drawn in (draw_arrow(fit_image(image), (30, 20)), fit_image(image, 30)):
        assert not drawn.getexif()
    assert fit_image(Image.new("L", (4, 3), 7)).getpixel((0, 0)) == (7, 7, 7)
