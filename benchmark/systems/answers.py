"""What VLMs are asked, and metres read strictly from what they say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .interface import PointAnswer

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
_UNIT_OF_METRES = re.compile(_UNITS[3][0], re.IGNORECASE)
# A number is a whole run of digits and what may stand between them, so that "1,000", "1.2.3" or "12:30" is seen as one.
_MEASURE = re.compile(
    r"(?P<minus>[-\u2212\u2013]\s*|\bminus\s+)?"
    r"(?<![\w.,:'\u2019])(?P<number>\d[\d.,:'\u2019]*(?<![.,:'\u2019])|\.\d+)(?P<exponent>e[-+]?\d+)?"
    rf"(?:[\s-]*(?P<unit>{_UNIT})(?![\w/^\u00b2\u00b3]))?",
    re.IGNORECASE,
)
_PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
# Groups of thousands. After a comma they are read so in millimetres and centimetres alone, where 1.2 would be no depth.
_APOSTROPHES = re.compile(r"\d{1,3}(?:['\u2019]\d{3})+(?:\.\d+)?")
_COMMAS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SMALL_UNITS = re.compile(rf"{_UNITS[1][0]}|{_UNITS[2][0]}", re.IGNORECASE)
# What makes of the number before and the one after it a range, a tolerance, a list, a product or feet with inches.
_JOINED = re.compile(
    rf"\d(?:[\s-]*(?:{_UNIT}))?\s*(?:[-\u2212\u2013\u2014~/,x\u00d7\u00b1]|\+/-|\+-|\bto\b|\band\b|\bor\b)?\s*$",
    re.IGNORECASE,
)
_ABOUT = r"(?:(?:about|around|approximately|approx|roughly|circa)\b|[~\u2248.\s])*"
# What may stand before a bare number that is an answer: nothing, or words that lead to it.
_LEADS = re.compile(rf"(?:^|[:=]|\b(?:is|be|answer|depth|distance)\b){_ABOUT}$", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_THOUGHT = re.compile(r"<think>.*?</think>", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)


def parse_metres(text: str) -> float:
    """
    Metres from a reply, or NaN where they cannot be read without guessing.

    1. Thoughts do not count: what is between `<think>` and `</think>`, before a lone `</think>` (templates that open it
       in the prompt), and after a `<think>` that never ends (a reply cut short).
    2. If there is an `<answer>...</answer>`, the last one decides and nothing else is looked at; else the last
       `boxed{...}` of LaTeX; else all that is left.
    3. A number with a unit decides. There may be several only if all are the same length: repeated, or in another unit
       as far as its digits say ("2.5 m (8.2 ft)"; then the metres count).
    4. Without a unit, one bare number is an answer in metres where nothing but "about", "answer:", "it is" and the like
       leads to it and nothing follows: "3.2", "answer: 3.2", not "2 chairs" or "region 1".

    Units: m, cm, mm, km, ft and feet, inches, written out in American or British spelling, in any case, and converted.
    "1'200" is 1200, and so is "1,200" in millimetres and centimetres.

    NaN too: two different lengths; zero and negative numbers ("-2 m", "- 2 m", "minus 2 m"); inf and nan; any other
    comma in a number ("1,000" and "1,5" read differently in different countries); times ("12:30 m"); ranges,
    tolerances, lists, fractions and compounds ("2-3 m", "between 2 and 3 meters", "2 m +/- 0.5 m", "1/2 m", "5 feet 6
    inches"); other units (yards, m/s).
    """
    text = _THOUGHT.sub(" ", text)
    text = re.split(r"</think>", text, flags=re.IGNORECASE)[-1]
    text = re.split(r"<think>", text, flags=re.IGNORECASE)[0]
    answers = _ANSWER.findall(text) or _BOXED.findall(text)
    text = _LATEX.sub(r"\1", answers[-1] if answers else text)
    text = re.sub(r"\\[,;! ]", " ", re.sub(r"[*`$]", "", text))
    found = list(_MEASURE.finditer(text))
    lengths = [match for match in found if match["unit"]]
    if lengths:
        if any(_JOINED.search(text[: match.start()]) for match in lengths) or not _are_one(lengths):
            return math.nan
        return _metres(next((match for match in lengths if _UNIT_OF_METRES.fullmatch(match["unit"])), lengths[0]))
    if len(found) != 1 or not _is_alone(text, found[0]):
        return math.nan
    return _metres(found[0])


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
    """Whether a bare number is led to as an answer is, and nothing but a full stop follows it."""
    return bool(_LEADS.search(text[: match.start()])) and not text[match.end() :].strip(" \t\r\n.")


def _are_one(lengths: Sequence[re.Match[str]]) -> bool:
    """Whether all are one length: the same number in the same unit, or as near in another as their digits tell."""
    first = lengths[0]
    for other in lengths[1:]:
        difference = abs(_metres(first) - _metres(other))
        rounding = 0.0 if _factor(first) == _factor(other) else _half_a_digit(first) + _half_a_digit(other)
        if not difference <= rounding + 1e-9:
            return False
    return True


def _half_a_digit(match: re.Match[str]) -> float:
    """Metres by which a number that was rounded to its last digit may be off."""
    return 0.5 * 10.0 ** -len(match["number"].partition(".")[2]) * _factor(match)


def _factor(match: re.Match[str]) -> float:
    """Metres of its unit."""
    if not match["unit"]:
        return 1.0
    return next(factor for words, factor in _UNITS if re.fullmatch(words, match["unit"], re.IGNORECASE))


def _metres(match: re.Match[str]) -> float:
    """A measure in metres, NaN if it is no plain positive finite number."""
    number = match["number"]
    if _APOSTROPHES.fullmatch(number):
        number = re.sub(r"['\u2019]", "", number)
    elif _COMMAS.fullmatch(number) and match["unit"] and _SMALL_UNITS.fullmatch(match["unit"]):
        number = number.replace(",", "")
    if match["minus"] or not _PLAIN_NUMBER.fullmatch(number):
        return math.nan
    metres = float(number + (match["exponent"] or "")) * _factor(match)
    return metres if 0 < metres < math.inf else math.nan
