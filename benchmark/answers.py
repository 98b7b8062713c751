"""What VLMs are asked, and metres read strictly from what they say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .predictor import PointAnswer

ARROW_PROMPT = (
    "Given this image, how far is the point pointed by the red arrow from the camera? Output the thinking process in "
    "<think> </think> and final answer (the meter number only, without the unit) in <answer> </answer> tags."
)
"""DepthLM's question, which this paper asks all VLMs of its table 1."""

_UNITS = (
    (r"km|kilomet(?:er|re)s?", 1000.0),
    (r"cm|centimet(?:er|re)s?", 0.01),
    (r"mm|millimet(?:er|re)s?", 0.001),
    (r"m|met(?:er|re)s?", 1.0),
    (r"ft|foot|feet", 0.3048),
    (r"inch(?:es)?", 0.0254),
)
_UNIT = "|".join(words for words, _ in _UNITS)
# A number is a whole run of digits, points and commas, so that "1,000" or "1.2.3" is seen, and refused, as one.
_MEASURE = re.compile(
    r"(?P<minus>[-\u2212\u2013]\s*|\bminus\s+)?"
    r"(?<![\w.,])(?P<number>\d[\d.,]*(?<![.,])|\.\d+)(?P<exponent>e[-+]?\d+)?"
    rf"(?:[\s-]*(?P<unit>{_UNIT})(?![\w/^\u00b2\u00b3]))?",
    re.IGNORECASE,
)
_PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
# What makes of the number before and the one after it a range, a tolerance, a list, a product or feet with inches.
_JOINED = re.compile(
    rf"\d(?:[\s-]*(?:{_UNIT}))?\s*(?:[-\u2212\u2013\u2014~/,x\u00d7\u00b1]|\+/-|\+-|\bto\b|\band\b|\bor\b)?\s*$",
    re.IGNORECASE,
)
_ABOUT = re.compile(r"about|around|approximately|approx|roughly|circa|[~\u2248=:.\s]", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)


def parse_metres(text: str) -> float:
    """
    Metres from a reply, or NaN where they cannot be read without guessing.

    1. Thoughts do not count: what is between `<think>` and `</think>`, before a lone `</think>` (templates that open it
       in the prompt), and after a `<think>` that never ends (a reply cut short).
    2. If there is an `<answer>...</answer>`, the last one decides and nothing else is looked at. It must hold one
       number: alone (metres; "about", "~" and the like may stand before it), or with a unit, in words or not.
    3. Otherwise the last number with a unit decides. A bare number is never taken from running text.

    Units: m, cm, mm, km, ft and feet, inches, written out in American or British spelling, in any case, and converted.

    NaN too: zero and negative numbers ("-2 m", "- 2 m", "minus 2 m"); inf and nan; a comma in a number ("1,000" and
    "1,5" read differently in different countries); ranges, tolerances, lists, fractions and compounds ("2-3 m",
    "between 2 and 3 meters", "2 m +/- 0.5 m", "1/2 m", "5 feet 6 inches"); two numbers in an answer tag; other units
    (yards, m/s).
    """
    text = _THOUGHT.sub(" ", text)
    text = re.split(r"</think>", text, flags=re.IGNORECASE)[-1]
    text = re.split(r"<think>", text, flags=re.IGNORECASE)[0]
    text = re.sub(r"[*`]", "", text)
    answers = _ANSWER.findall(text)
    if answers:
        found = list(_MEASURE.finditer(answers[-1]))
        if len(found) != 1 or not (found[0]["unit"] or _is_alone(answers[-1], found[0])):
            return math.nan
        return _metres(found[0])
    found = [match for match in _MEASURE.finditer(text) if match["unit"]]
    if not found or _JOINED.search(text[: found[-1].start()]):
        return math.nan
    return _metres(found[-1])


def parse_rate(answers: Sequence[Sequence[PointAnswer]]) -> float:
    """
    Share of answers from which metres could be read; of what `predict` of a `PointPredictor` returns.

    Raises:
        ValueError: there is no answer.
    """
    metres = [answer.metres for of_image in answers for answer in of_image]
    if not metres:
        raise ValueError("There is no answer to take a parse rate of.")
    return sum(not math.isnan(value) for value in metres) / len(metres)


def _is_alone(text: str, match: re.Match[str]) -> bool:
    """Whether nothing but "about" and the like stands before a bare number, and nothing but a full stop after it."""
    return not _ABOUT.sub("", text[: match.start()]) and not text[match.end() :].strip(" \t\r\n.")


def _metres(match: re.Match[str]) -> float:
    """A measure in metres, NaN if it is no plain positive finite number."""
    if match["minus"] or not _PLAIN_NUMBER.fullmatch(match["number"]):
        return math.nan
    metres = float(match["number"] + (match["exponent"] or ""))
    if match["unit"]:
        metres *= next(factor for words, factor in _UNITS if re.fullmatch(words, match["unit"], re.IGNORECASE))
    return metres if 0 < metres < math.inf else math.nan
