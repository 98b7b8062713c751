"""The arrow protocol: the arrow's pixels and side, large images, and metres read strictly from replies."""

import io
import math

import numpy as np
import pytest
from depthvlm.benchmark.systems.arrow import ARROW_PROMPT, arrow_side, draw_arrow, fit_image, parse_metres, scale_points
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


def test_prompt():
    assert ARROW_PROMPT == (
        "Given this image, how far is the point pointed by the red arrow from the camera? Output the thinking process "
        "in <think> </think> and final answer (the meter number only, without the unit) in <answer> </answer> tags."
    )


@pytest.mark.parametrize(
    ("text", "metres"),
    [
        ("<think> The point is around 3.21 meters away. </think><answer> 3.21 </answer>", 3.21),
        ("<answer>2.5</answer>", 2.5),
        ("<ANSWER>\n2.50\n</ANSWER>", 2.5),
        ("<answer>.5</answer>", 0.5),
        ("<answer>5.</answer>", 5),
        ("<answer>1e1</answer>", 10),
        ("<answer>~2.5.</answer>", 2.5),
        ("<answer>approximately 2.5</answer>", 2.5),
        ("<answer>**2.5**</answer>", 2.5),
        ("<answer>2.5 m</answer>", 2.5),
        ("<answer>250cm</answer>", 2.5),
        ("<answer>The distance is 2.5 meters.</answer>", 2.5),
        ("<answer>1</answer> or rather <answer>3</answer>", 3),
        ("<answer>3</answer> <think>or 4 m?</think>", 3),
        ("It is 9 m. <answer>3</answer> I mean 4 m.", 3),
        ("I think 2 m</think><answer>3</answer>", 3),
    ],
)
def test_answer_tags(text, metres):
    assert parse_metres(text) == pytest.approx(metres)


@pytest.mark.parametrize(
    ("text", "metres"),
    [
        ("It is 2.5 meters away.", 2.5),
        ("It is 2.5 metres away.", 2.5),
        ("It is one 1 meter away.", 1),
        ("about 2.5 M", 2.5),
        ("2.5m.", 2.5),
        ("a **2.5**-meter distance", 2.5),
        ("300 cm", 3),
        ("300 centimetres", 3),
        ("1500 mm", 1.5),
        ("0.012 km", 12),
        ("12 kilometers", 12000),
        ("10 ft", 3.048),
        ("10 feet", 3.048),
        ("1 foot", 0.3048),
        ("100 inches", 2.54),
        ("1 inch", 0.0254),
        ("2.5 meters (8.2 feet)", 2.5),
        ("8.2 feet (2.5 meters)", 2.5),
        ("2 m (6 ft)", 2),  # 6 ft is 1.83 m, and 5.5 to 6.5 ft are 1.68 to 1.98 m
        ("It is 3.2 m away, so: 3.2 meters.", 3.2),
        ("1,200 mm", 1.2),
        ("1'200 mm", 1.2),
        ("1\u2019200 cm", 12),
        ("Region 1 is 2 meters from the camera", 2),
        ("D2 = 3 m", 3),
        ("2 m</think> 3 m", 3),
        ("<answer>2.5 m", 2.5),  # the tag never ends: running text, with its unit
    ],
)
def test_running_text(text, metres):
    assert parse_metres(text) == pytest.approx(metres)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There is no red arrow in the image. Therefore, the distance cannot be determined.",
        "<answer>2.5",  # cut short, perhaps within the number
        "There are 2",
        "Region 1",
        "3.2 or so chairs",
        "At 12:30 it is 3",
        "3.2 and 3.3",
        "<answer></answer> 3 m",
        "<answer>Region 1</answer> 3 m",
        "<answer>I see 2 chairs</answer>",
        # two different lengths
        "3.2 m (estimate from 2.0 m door height)",
        "3 m with an error of 10 cm",
        "The chair is at 2 m and the point at 3 m, in room 4.",
        "2.5 m (9.2 ft)",
        "<answer>2.5 m (9.2 ft)</answer>",
        "12:30 m",
        "12'30 m",
        "1,200 m",
        "1,20 mm",
        "<answer>2</answer><answer>unknown</answer>",
        # thoughts only
        "<think>It is 2.5 m.</think>",
        "<think>It is 2.5 m. <answer>2.5</answer>",
        "It is 2.5 m.</think>",
        "<think><answer>2.5</answer></think>",
        # not positive, not finite
        "<answer>0</answer>",
        "<answer>0.00 m</answer>",
        "<answer>-2.5</answer>",
        "<answer>- 2.5 m</answer>",
        "<answer>\u22122.5</answer>",
        "<answer>minus 2.5</answer>",
        "The depth is -2.5 meters.",
        "It is 3 m from the wall, at -2 m.",
        "<answer>inf</answer>",
        "<answer>nan</answer>",
        "<answer>1e400</answer>",
        "infinity meters",
        # numbers that are read differently in different countries
        "<answer>1,000</answer>",
        "<answer>1,5</answer>",
        "It is 1,5 m away.",
        "It is 1.2.3 m away.",
        # two numbers
        "<answer>2-3 meters</answer>",
        "<answer>2-3</answer>",
        "<answer>2 to 3</answer>",
        "2-3 meters",
        "2 - 3 m",
        "1.5\u20132.0 m",
        "1.5\u20142.0 m",
        "2m to 3m",
        "2~3 m",
        "between 2 and 3 meters",
        "2 or 3 meters",
        "3 m \u00b1 0.5 m",
        "3 m +/- 0.5 m",
        "2, 3 m",
        "2 x 3 m",
        "1/2 m",
        "3 1/2 feet",
        "5 feet 6 inches",
        # other units
        "5 yards",
        "2.5 m/s",
        "2.5 m\u00b2",
        "2.5 mph",
        "2.5 minutes",
        "<answer>5 yards</answer>",
        "<answer>2.5 m\u00b2</answer>",
    ],
)
def test_failures(text):
    assert math.isnan(parse_metres(text))


@pytest.mark.parametrize(
    ("text", "metres"),
    [
        ("3.2", 3.2),
        ("3.2.", 3.2),
        ("~ 3.2", 3.2),
        ("answer: 3.2", 3.2),
        ("**Answer:** about 3.2", 3.2),
        ("It is 3.2", 3.2),
        ("The distance is approximately 3.2.", 3.2),
        ("\\boxed{3.2}", 3.2),
        ("So 2 m + 1.2 m is $\\boxed{3.2\\,\\text{m}}$", 3.2),
        ("<answer>2.5 m (8.2 ft)</answer>", 2.5),
    ],
)
def test_one_bare_number_or_a_box(text, metres):
    assert parse_metres(text) == pytest.approx(metres)


def test_long_text_is_read_at_once():
    assert math.isnan(parse_metres("1 " * 20_000 + "<think>" * 500 + "minus" * 5000))
    assert parse_metres("word " * 20_000 + "7 m") == 7
