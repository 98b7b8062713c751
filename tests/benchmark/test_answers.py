"""Metres from replies, strictly."""

import math

import pytest
from depthvlm.benchmark.systems.answers import ARROW_PROMPT, parse_metres, parse_rate
from depthvlm.benchmark.systems.interface import PointAnswer


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


def test_parse_rate():
    answers = [[PointAnswer(1.0, "1 m"), PointAnswer(math.nan, "?")], [], [PointAnswer(2.0), PointAnswer(3.0)]]
    assert parse_rate(answers) == 0.75
    with pytest.raises(ValueError, match="no answer"):
        parse_rate([[]])
