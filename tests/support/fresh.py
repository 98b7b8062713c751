"""Fresh processes, as users start them, with none of this one's settings for the Hub. They can import this module."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HIDE_THE_PACKAGE = "import fresh; fresh.hide_the_package()\n"
QUESTION = "How far?"


def python(
    *command: object, code: int = 0, folder: Path | None = None, **variables: str
) -> subprocess.CompletedProcess:
    """Run Python with these arguments and variables. It must end with `code`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    known = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    given = [sys.executable, *map(str, command)]
    done = subprocess.run(given, cwd=folder, env=kept | known | variables, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def hide_the_package() -> None:
    """In a process where it is installed: the code that a checkpoint carries must do alone."""

    class Hidden:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.split(".")[0] == "depthvlm":
                raise ModuleNotFoundError(f"{name} is hidden", name=name)

    sys.meta_path.insert(0, Hidden())


def ask(processor: Any, image: Any, **camera: float) -> Any:
    """The inputs of a model for one image and a question about it."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(images=[image], text=[text], return_tensors="pt", **camera)


def depth_here(folder: Path, picture: Path, focal_length: float) -> Any:
    """The depth that the package gives in this process, on one thread as in the fresh ones."""
    import torch
    from PIL import Image

    from depthvlm import DepthVLMForConditionalGeneration, DepthVLMProcessor

    inputs = ask(DepthVLMProcessor.from_pretrained(folder), Image.open(picture), focal_length=focal_length)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return DepthVLMForConditionalGeneration.from_pretrained(folder).predict_depth(**inputs)[0].numpy()
    finally:
        torch.set_num_threads(threads)


def save_noise(path: Path) -> Path:
    """A picture of 120x90 random pixels."""
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    return path
