"""lmms-eval as its users start it, on nano and without network."""

import os
import subprocess
import sys
from pathlib import Path


def run_lmms(task: str, tasks: Path, out: Path, *arguments: str, model_args: str = "", plugin: str = "") -> tuple:
    """Run a task of the folder `tasks`. Returns the file of results, that of the samples, and what was printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hub"), "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("LMMS_EVAL_PLUGINS", None)
    environment |= {"LMMS_EVAL_PLUGINS": plugin} if plugin else {}
    command = [sys.executable, "-m", "lmms_eval", "--model", "depthvlm", "--device", "cpu", "--log_samples"]
    command += ["--model_args", f"pretrained=depthvlm-nano{model_args}", "--tasks", task, "--include_path", str(tasks)]
    command += ["--output_path", str(out), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    [result] = out.rglob("*_results.json")
    [samples] = out.rglob(f"*_samples_{task}.jsonl")
    return result, samples, done.stdout + done.stderr
