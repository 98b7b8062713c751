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


def test_five_and_twenty_pixels():
    # DepthLM's released evaluation: the shaft at x-1 to x-5, the head at (x-2, y+-1) and (x-3, y+-2).
    shaft, head = {(9, 10), (8, 10), (7, 10), (6, 10), (5, 10)}, {(8, 9), (8, 11), (7, 8), (7, 12)}
    assert red_pixels(draw_arrow(noise(40, 40), (10, 10), 5)) == shaft | head
    shaft, head = {(50 - i, 40) for i in range(1, 21)}, {(49 - i, 40 + i * up) for i in range(1, 11) for up in (-1, 1)}
    assert red_pixels(draw_arrow(noise(100, 80), (50, 40))) == shaft | head
    assert len(shaft | head) == 40


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
    ("side", "pixels"),
    [
        ("left", [(50, 40), (20, 10), (79, 40)]),  # at (20, 10) the tail is in column 0, the head in row 0
        ("right", [(19, 40)]),
        ("below", [(50, 9), (15, 9)]),
        ("above", [(50, 70)]),
        ("lower right", [(3, 3)]),
        ("lower left", [(98, 2)]),
        ("upper right", [(3, 77)]),
        ("upper left", [(98, 77)]),
    ],
)
def test_side(side, pixels):
    assert {arrow_side(pixel, (100, 80)) for pixel in pixels} == {side}


def test_sides_mirror_each_other():
    left = {(50 - c, r - 50) for c, r in red_pixels(draw_arrow(noise(101, 101), (50, 50)))}
    right = {(c, r - 40) for c, r in red_pixels(draw_arrow(noise(100, 80), (0, 40)))}
    above = {(79 - r, c - 50) for c, r in red_pixels(draw_arrow(noise(100, 80), (50, 79)))}
    below = {(r, c - 50) for c, r in red_pixels(draw_arrow(noise(100, 80), (50, 0)))}
    assert left == right == above == below
    upper_left = {(99 - c, 79 - r) for c, r in red_pixels(draw_arrow(noise(100, 80), (99, 79)))}
    assert red_pixels(draw_arrow(noise(100, 80), (0, 0))) == upper_left
    assert {(c, c) for c in range(1, 15)} <= upper_left  # 14 pixels on the diagonal are 20 long


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        ((12, 12), ((6, 6),), "12x12 is too small for an arrow of 20 pixels"),
        ((60, 40), ((60, 3),), r"Pixel \(60, 3\) is outside the image of 60x40"),
        ((60, 40), ((30, 20), 2), "at least 3 pixels"),
    ],
)
def test_too_small_or_outside(size, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_arrow(noise(*size), *arguments)


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
    # A square of one colour keeps its place when a large image is scaled.
    pixels = np.full((1440, 1920, 3), 40, dtype=np.uint8)
    pixels[1000:1030, 700:730] = (10, 200, 90)
    fitted = fit_image(Image.fromarray(pixels))
    [(x, y)] = scale_points(np.array([[714.5, 1014.5]]), (1920, 1440), fitted.size).tolist()
    drawn = draw_arrow(fitted, (x, y))
    assert (drawn.getpixel((x, y)), drawn.getpixel((x - 1, y))) == ((10, 200, 90), (255, 0, 0))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[3, 3], [640, 3]], "column 640, row 3 is outside the image of 640x480"),
        ([[np.nan, 3]], "column nan"),
        ([3.0, 3.0], r"shape \(2,\)"),
    ],
)
def test_points_outside(points, message):
    with pytest.raises(ValueError, match=message):
        scale_points(np.array(points), (640, 480), (640, 480))
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
    ("metres", "texts"),
    [
        # in tags
        (3.21, ["<think> The point is around 3.21 meters away. </think><answer> 3.21 </answer>"]),
        (
            2.5,
            ["<answer>2.5</answer>", "<ANSWER>\n2.50\n</ANSWER>", "<answer>~2.5.</answer>", "<answer>2.5 m</answer>"],
        ),
        (2.5, ["<answer>approximately 2.5</answer>", "<answer>**2.5**</answer>", "<answer>250cm</answer>"]),
        (2.5, ["<answer>The distance is 2.5 meters.</answer>", "<answer>2.5 m (8.2 ft)</answer>"]),
        (0.5, ["<answer>.5</answer>"]),
        (5, ["<answer>5.</answer>"]),
        (10, ["<answer>1e1</answer>"]),
        (3, ["<answer>1</answer> or rather <answer>3</answer>", "<answer>3</answer> <think>or 4 m?</think>"]),
        (3, ["It is 9 m. <answer>3</answer> I mean 4 m.", "I think 2 m</think><answer>3</answer>"]),
        # in running text
        (2.5, ["It is 2.5 meters away.", "It is 2.5 metres away.", "about 2.5 M", "2.5m.", "a **2.5**-meter distance"]),
        (2.5, ["2.5 meters (8.2 feet)", "8.2 feet (2.5 meters)"]),
        (2.5, ["<answer>2.5 m"]),  # the tag never ends: running text, with its unit
        (2, ["2 m (6 ft)"]),  # 6 ft is 1.83 m, and 5.5 to 6.5 ft are 1.68 to 1.98 m
        (3.2, ["It is 3.2 m away, so: 3.2 meters."]),
        (2, ["Region 1 is 2 meters from the camera"]),
        (3, ["D2 = 3 m", "2 m</think> 3 m"]),
        # units
        (1, ["It is one 1 meter away."]),
        (3, ["300 cm", "300 centimetres"]),
        (1.5, ["1500 mm"]),
        (1.2, ["1,200 mm", "1'200 mm"]),
        (12, ["0.012 km", "1\u2019200 cm"]),
        (12000, ["12 kilometers"]),
        (3.048, ["10 ft", "10 feet"]),
        (0.3048, ["1 foot"]),
        (2.54, ["100 inches"]),
        (0.0254, ["1 inch"]),
        # one bare number, or a box
        (3.2, ["3.2", "3.2.", "~ 3.2", "answer: 3.2", "**Answer:** about 3.2", "It is 3.2", "\\boxed{3.2}"]),
        (3.2, ["The distance is approximately 3.2.", "So 2 m + 1.2 m is $\\boxed{3.2\\,\\text{m}}$"]),
    ],
)
def test_metres_in_replies(metres, texts):
    assert {text: parse_metres(text) for text in texts} == {text: pytest.approx(metres) for text in texts}


@pytest.mark.parametrize(
    "texts",
    [
        ["", "There is no red arrow in the image. Therefore, the distance cannot be determined."],
        ["<answer>2.5"],  # cut short, perhaps within the number
        ["There are 2", "Region 1", "3.2 or so chairs", "At 12:30 it is 3", "3.2 and 3.3"],
        ["<answer></answer> 3 m", "<answer>Region 1</answer> 3 m", "<answer>I see 2 chairs</answer>"],
        # two different lengths
        ["3.2 m (estimate from 2.0 m door height)", "3 m with an error of 10 cm", "2.5 m (9.2 ft)"],
        ["The chair is at 2 m and the point at 3 m, in room 4.", "<answer>2.5 m (9.2 ft)</answer>"],
        ["12:30 m", "12'30 m", "1,200 m", "1,20 mm", "<answer>2</answer><answer>unknown</answer>"],
        # thoughts only
        ["<think>It is 2.5 m.</think>", "<think>It is 2.5 m. <answer>2.5</answer>", "It is 2.5 m.</think>"],
        ["<think><answer>2.5</answer></think>"],
        # not positive, not finite
        ["<answer>0</answer>", "<answer>0.00 m</answer>", "<answer>-2.5</answer>", "<answer>- 2.5 m</answer>"],
        ["<answer>\u22122.5</answer>", "<answer>minus 2.5</answer>", "The depth is -2.5 meters."],
        ["It is 3 m from the wall, at -2 m.", "infinity meters"],
        ["<answer>inf</answer>", "<answer>nan</answer>", "<answer>1e400</answer>"],
        # numbers that are read differently in different countries
        ["<answer>1,000</answer>", "<answer>1,5</answer>", "It is 1,5 m away.", "It is 1.2.3 m away."],
        # two numbers
        ["<answer>2-3 meters</answer>", "<answer>2-3</answer>", "<answer>2 to 3</answer>", "2-3 meters", "2 - 3 m"],
        ["1.5\u20132.0 m", "1.5\u20142.0 m", "2m to 3m", "2~3 m", "between 2 and 3 meters", "2 or 3 meters"],
        ["3 m \u00b1 0.5 m", "3 m +/- 0.5 m", "2, 3 m", "2 x 3 m", "1/2 m", "3 1/2 feet", "5 feet 6 inches"],
        # other units
        ["5 yards", "2.5 m/s", "2.5 m\u00b2", "2.5 mph", "2.5 minutes"],
        ["<answer>5 yards</answer>", "<answer>2.5 m\u00b2</answer>"],
    ],
)
def test_replies_that_are_no_length(texts):
    assert [text for text in texts if not math.isnan(parse_metres(text))] == []


def test_long_text_is_read_at_once():
    assert math.isnan(parse_metres("1 " * 20_000 + "<think>" * 500 + "minus" * 5000))
    assert parse_metres("word " * 20_000 + "7 m") == 7
