"""Answers of paid servers on disk: whole or not at all, and found again."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from depthvlm.benchmark.systems.api import answer_key
from depthvlm.benchmark.systems.chat import Answer, AnswerCache
from PIL import Image

KEY = "ab" + "0" * 62


def picture(value: int = 0, size: tuple[int, int] = (4, 3)) -> Image.Image:
    return Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8))


def test_round_trip(tmp_path):
    """The place and the fields are those of the answers that people have paid for."""
    cache = AnswerCache(tmp_path / "answers")
    assert cache.get(KEY) is None
    assert not cache.folder.exists()
    answer = Answer("<answer>2,5 \u00b1 1</answer>\n", 812, 40, "stop")
    cache.put(KEY, answer)
    assert cache.get(KEY) == AnswerCache(tmp_path / "answers").get(KEY) == answer
    cache.put(KEY, Answer("again"))
    assert cache.get(KEY) == Answer("again", None, None, "")
    kept = '{"text": "2 m", "input_tokens": 812, "output_tokens": 40, "finish_reason": "stop"}'
    (tmp_path / "answers" / "ab" / f"{KEY}.json").write_text(kept)
    assert cache.get(KEY) == Answer("2 m", 812, 40, "stop")
    key = answer_key("m", "p", picture(), {"temperature": 0.0, "max_tokens": 1024})
    assert key == "ec68478b264d802bbbe2c408cb9286022b2e38092ed88897551d9ca9c056f61f"
    for content in ('{"text": "2', '{"words": "2"}', "[]"):
        cache.path(KEY).write_text(content)
        with pytest.raises(ValueError, match=rf"{KEY}\.json does not hold an answer .* Delete it"):
            cache.get(KEY)


def test_every_part_of_a_question_counts():
    keys = [
        answer_key("m", "p", picture(), {"temperature": 0}),
        answer_key("n", "p", picture(), {"temperature": 0}),
        answer_key("m", "q", picture(), {"temperature": 0}),
        answer_key("m", "p", picture(1), {"temperature": 0}),
        answer_key("m", "p", picture(size=(3, 4)), {"temperature": 0}),
        answer_key("m", "p", picture(), {"temperature": 1}),
        answer_key("m", "p", picture(), {}),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 and int(key, 16) >= 0 for key in keys)
    assert answer_key("m", "p", picture(), {"a": 1, "b": [2]}) == answer_key("m", "p", picture(), {"b": [2], "a": 1})
    with pytest.raises(TypeError):
        answer_key("m", "p", picture(), {"a": object()})


def test_nothing_partial(tmp_path, monkeypatch):
    cache = AnswerCache(tmp_path)
    cache.put(KEY, Answer("first"))

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        cache.put(KEY, Answer("second"))
    assert cache.get(KEY) == Answer("first")
    assert [path.name for path in cache.path(KEY).parent.iterdir()] == [f"{KEY}.json"]


@pytest.mark.slow
def test_several_processes(tmp_path):
    """Four processes write the same 20 answers over and over, and read only whole ones."""
    script = (
        "import sys\n"
        "from depthvlm.benchmark.systems.chat import Answer, AnswerCache\n"
        "cache = AnswerCache(sys.argv[1])\n"
        "for turn in range(2):\n"
        "    for i in range(20):\n"
        "        key = f'{i:02x}' + 'f' * 62\n"
        "        cache.put(key, Answer(sys.argv[2] * 5000, i))\n"
        "        answer = cache.get(key)\n"
        "        assert len(answer.text) == 5000 and len(set(answer.text)) == 1 and answer.input_tokens == i\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), letter]) for letter in "abcd"]
    assert [worker.wait(200) for worker in workers] == [0] * 4
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 20
    assert all(json.loads(path.read_text())["text"][:2] in ("aa", "bb", "cc", "dd") for path in files)
