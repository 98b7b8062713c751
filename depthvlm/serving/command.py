"""The command line that starts vLLM for a checkpoint."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.hub import cached_file

from ..checkpoint import resolve_model_path, split_revision
from ..files import read_json

TESTED_VLLM = "0.32"


def vllm_command(model: str, words: bool, options: Sequence[str] = ()) -> list[str]:
    """Return the command that serves a checkpoint: its depth, or its text.

    Args:
        model: Folder or Hub name, optionally with `@REVISION`.
        words: True for text from the OpenAI-compatible endpoints, False for depth from `POST /pooling`.
        options: Options of `vllm serve`, appended last so that they override ours.

    Raises:
        ValueError: The checkpoint is not DepthVLM on Qwen3-VL.
        OSError: There is no such checkpoint.
    """
    path, revision = split_revision(resolve_model_path(model))
    config = cached_file(path, "config.json", revision=revision)
    model_type = None if config is None else read_json(Path(config)).get("model_type")
    if model_type != "depthvlm":
        raise ValueError(
            f"{model} has model_type={model_type!r}, and vLLM serves DepthVLM on Qwen3-VL alone, which has 'depthvlm'. "
            "A plain Qwen3-VL or a checkpoint in the published layout becomes one with `depthvlm convert`."
        )
    # Not `vllm serve`, which fails with the CPU wheel: it looks for the metadata of a package called vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
    command += ["--served-model-name", model]
    command += ["--revision", revision] if revision else []
    if not words:
        overrides = {"architectures": ["DepthVLMForDepthEstimation"]}
        command += ["--runner", "pooling", "--io-processor-plugin", "depthvlm"]
        command += ["--hf-overrides", json.dumps(overrides), "--enable-chunked-prefill"]
    return [*command, *options]
