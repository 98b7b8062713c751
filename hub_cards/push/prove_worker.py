"""The work of `prove.py`'s fresh processes. Run as a file, it imports nothing of this package unless it is told to.

python -P prove_worker.py model FOLDER RESULT.npz [--with-package]
python -P prove_worker.py dataset FOLDER RESULT.json
python -P prove_worker.py metric FILE.py RESULT.json --with-package
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE = "depthvlm"
IMAGE_SIZE = (320, 240)


class Hidden:
    """An import finder that makes the package look as if it were not installed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name.split(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"No module named {name!r}: it is hidden here.", name=name)


def predict(folder: str, with_package: bool) -> dict[str, Any]:
    """Depth of one synthetic image, `(240, 320)` in metres, as a user of the checkpoint gets it."""
    import numpy as np
    from PIL import Image

    if with_package:
        __import__(PACKAGE)
    from transformers import AutoModel, AutoProcessor

    trust = {} if with_package else {"trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(folder, **trust)
    model, info = AutoModel.from_pretrained(folder, dtype="auto", output_loading_info=True, **trust)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(problem):
            names = ", ".join(sorted(map(str, info[problem]))[:5])
            raise SystemExit(f"The weights do not fit the configuration: {problem} {names}")
    where = type(model).__module__.split(".")[0]
    if where != (PACKAGE if with_package else "transformers_modules"):
        raise SystemExit(f"The model's class came from {type(model).__module__}.")
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(IMAGE_SIZE, Image.Resampling.BICUBIC)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "How far?"}]}]
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"focal_length": model.config.canonical_focal_length},
    )
    depth = processor.post_process_depth_estimation(model.eval().predict_depth(**inputs))[0]["predicted_depth"]
    found = depth.float().numpy()
    if found.shape != IMAGE_SIZE[::-1] or not np.isfinite(found).all() or not (found > 0).all():
        raise SystemExit("The depth of a test image is not finite and positive at every pixel: the weights are broken.")
    return {"depth": found}


def first_rows(folder: str) -> dict[str, Any]:
    """The columns of the first row of every configuration and split, as `load_dataset` reads them."""
    from datasets import get_dataset_config_names, load_dataset

    found = {}
    for name in get_dataset_config_names(folder):
        for split, rows in load_dataset(folder, name, streaming=True).items():
            found[f"{name}/{split}"] = sorted(next(iter(rows)))
    return found


def scores(module: str) -> dict[str, float]:
    """What the metric says of two points, at 1 and 4 metres, that are predicted at 1 and 2."""
    import evaluate

    found = evaluate.load(module).compute(predictions=[[1.0, 2.0]], references=[[1.0, 4.0]])
    return {name: found[name] for name in ("delta1", "abs_rel")}


def main(kind: str, source: str, result: str, *options: str) -> None:
    """Write what was found to `result`."""
    with_package = "--with-package" in options
    if not with_package:
        sys.meta_path.insert(0, Hidden)  # type: ignore[arg-type]
    if kind == "model":
        import numpy as np

        np.savez(result, **predict(source, with_package))
    else:
        found = scores(source) if kind == "metric" else first_rows(source)
        Path(result).write_text(json.dumps(found), encoding="utf-8")
    if not with_package and any(name.split(".")[0] == PACKAGE for name in sys.modules):
        raise SystemExit("The package was imported although it is hidden.")


if __name__ == "__main__":
    main(*sys.argv[1:])
