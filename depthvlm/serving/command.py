"""The command line that starts vLLM for a checkpoint."""

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from transformers.utils.hub import cached_file

from ..checkpoint import resolve_model_path, split_revision
from ..files import read_json

# The extra's bounds. 0.31 wants transformers below 5.18, our lowest, and 0.32.0 is the newest build for CPUs, so that
# it is both the lower and the upper end that `make test-vllm` runs.
SUPPORTED_VLLM = ">=0.32,<0.33"
TESTED_VLLM = "0.32.0"
# Groups of vLLM's plugins that are loaded unless `VLLM_PLUGINS` is set.
PLUGIN_GROUPS = ("general_plugins", "io_processor_plugins", "platform_plugins", "stat_logger_plugins")


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


def vllm_environment() -> dict[str, str]:
    """Return the environment for vLLM, whose `VLLM_PLUGINS` allows the route of `POST /v1/depth`.

    vLLM loads a plugin that adds routes only where this variable names it, and then no plugin that it does not name. So
    it names all that are loaded without it; a plugin that adds routes of its own is left to the user to name.
    """
    given = os.environ.get("VLLM_PLUGINS")
    names = set(given.split(",")) if given else set()
    if given is None:
        names = {point.name for group in PLUGIN_GROUPS for point in entry_points(group=f"vllm.{group}")}
        names -= {point.name for point in entry_points(group="vllm.endpoint_plugins")}
    return os.environ | {"VLLM_PLUGINS": ",".join(sorted(names | {"depthvlm"}))}
