"""Answers of paid servers on disk, one file each, so that no question is paid for twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...files import write_text


@dataclass(frozen=True)
class CachedAnswer:
    """
    A reply and what it took.

    Args:
        text: the system's own words.
        input_tokens, output_tokens: as the server counted them; None where it did not.
        finish_reason: as the server says: "stop", or "length" for a reply that was cut short.
    """

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str = ""


def answer_key(model: str, prompt: str, image: Image.Image, parameters: Mapping[str, Any]) -> str:
    """
    What two equal questions share: sha256 in hexadecimal of the model, the prompt, the image and all parameters.

    The image counts by its pixels, not by its encoded bytes, which change with the version of the encoder.

    Raises:
        TypeError: a parameter is not plain JSON data.
    """
    question = {"model": model, "prompt": prompt, "mode": image.mode, "size": image.size, "parameters": parameters}
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode())
    digest.update(b"\0")
    digest.update(image.tobytes())
    return digest.hexdigest()


class AnswerCache:
    """
    A folder of answers. Threads and processes, on one machine or on a shared disk, may use it at the same time: an
    answer appears whole, under its final name, or not at all.

    Args:
        folder: made when the first answer is kept.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """The file of an answer; there are 256 folders, for file systems that are slow with many files in one."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> CachedAnswer | None:
        """
        The answer, or None if it is not there.

        Raises:
            ValueError: its file does not hold an answer; the message names it.
        """
        path = self.path(key)
        try:
            return CachedAnswer(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} does not hold an answer ({error}). Delete it, and it is asked again.") from error

    def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep an answer, in the place of an earlier one."""
        path = self.path(key)
        write_text(path, json.dumps(asdict(answer), ensure_ascii=False), sync=True)

    def __len__(self) -> int:
        """How many answers it holds; this reads the folders."""
        return sum(1 for _ in self.folder.glob("??/*.json"))
