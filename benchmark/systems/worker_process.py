"""A model in an environment of its own: another Python, asked and answering in one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dense import PredictorError


class WorkerProcess:
    """
    A script that says `{"ready": true}` when its model is loaded, and then answers each line with one.

    Args:
        python: of the environment that has the model's packages.
        script: which needs nothing of this package.
        arguments: of the script.
        name: of the model, for messages.
        install: how to make the environment, for messages.

    Raises:
        PredictorError: it cannot be started, or ends before it is ready.
    """

    def __init__(self, python: str | Path, script: Path, arguments: Sequence[str], *, name: str, install: str):
        self.name, self.install = name, install
        try:
            self._process = subprocess.Popen(
                [str(python), str(script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise PredictorError(f"{python} cannot be started ({error}). {install}.") from error
        self._receive()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """
        What it answers.

        Raises:
            PredictorError: it answers with an `error`, or has ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_receive` says that it has ended
            print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._receive()
        if "error" in answer:
            raise PredictorError(f"{self.name} failed: {answer['error']}")
        return answer

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait(timeout=30)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise PredictorError(
                f"The process of {self.name} ended with status {code}; what it printed says why. {self.install}."
            )
        return json.loads(line)
