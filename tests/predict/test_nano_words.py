"""What the bundled model answers about scenes that it has not seen."""

import pytest
from depthvlm.benchmark.synthetic.dialogues import CLOSED_KINDS
from depthvlm.benchmark.synthetic.samples import held_out_questions
from nano_words import ask, share_right

import depthvlm


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 600_000])
def test_nano_answers_closed_questions(start: int) -> None:
    """Those of scripts/nano/nano_words.py, and of as many other held-out scenes."""
    asked = [(seed, question) for seed, question in held_out_questions(500, start=start) if question.closed]
    assert {question.kind for _, question in asked} == set(CLOSED_KINDS)
    assert len(asked) > 800
    # Measured: 0.803 and 0.831 (docs/benchmarks/nano.md).
    assert share_right(ask(depthvlm.load(dtype="float32"), asked, 24)) >= 0.8
