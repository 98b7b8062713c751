"""The command line that starts vLLM for a checkpoint."""

import json
import sys
from collections.abc import Sequence

from ..checkpoint import resolve_model_path, split_revision

TESTED_VLLM = "0.32"


def vllm_command(model: str, words: bool, options: Sequence[str] = ()) -> list[str]:
    """Return the command that serves a checkpoint: its depth, or its words.

    Args:
        model: Folder or Hub name, `@REVISION` after it if need be.
        words: True for words by the OpenAI-compatible endpoints, False for depth by `POST /pooling`.
        options: Options of `vllm serve`, which come after ours and so override them.
    """
    path, revision = split_revision(resolve_model_path(model))
    # Not `vllm serve`, which does not start from the CPU wheel: it looks for the metadata of a package called vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
    command += ["--served-model-name", model]
    command += ["--revision", revision] if revision else []
    if not words:
        overrides = {"architectures": ["DepthVLMForDepthEstimation"]}
        command += ["--runner", "pooling", "--io-processor-plugin", "depthvlm"]
        command += ["--hf-overrides", json.dumps(overrides), "--enable-chunked-prefill"]
    return [*command, *options]
