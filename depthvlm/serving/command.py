"""The command line that starts vLLM for a checkpoint."""

import json
import sys
from collections.abc import Sequence

from ..checkpoint import resolve_model_path, split_revision

TESTED_VLLM = "0.32"


def vllm_command(model: str, words: bool, options: Sequence[str] = ()) -> list[str]:
    """Return the command that serves a checkpoint: its depth, or its text.

    Args:
        model: Folder or Hub name, optionally with `@REVISION`.
        words: True for text from the OpenAI-compatible endpoints, False for depth from `POST /pooling`.
        options: Options of `vllm serve`, appended last so that they override ours.
    """
    path, revision = split_revision(resolve_model_path(model))
    # Not `vllm serve`, which fails with the CPU wheel: it looks for the metadata of a package called vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
    command += ["--served-model-name", model]
    command += ["--revision", revision] if revision else []
    if not words:
        overrides = {"architectures": ["DepthVLMForDepthEstimation"]}
        command += ["--runner", "pooling", "--io-processor-plugin", "depthvlm"]
        command += ["--hf-overrides", json.dumps(overrides), "--enable-chunked-prefill"]
    return [*command, *options]
