"""Results of `depthvlm bench eval` and of lmms-eval, made up."""

import json
from pathlib import Path

from depthvlm.benchmark.scoring.protocols import PROTOCOLS, Protocol
from depthvlm.benchmark.scoring.results import Result

NINE = ("argoverse2", "waymo", "ddad", "nuscenes", "eth3d", "scannetpp", "sunrgbd", "ibims1", "nyuv2")
HASH = PROTOCOLS["depthvlm"].hash()


def make(folder: Path, dataset: str, score: float, protocol: str | Protocol = "depthvlm", **changes) -> Path:
    """A result of 20 images and 200 points, `score` in both aggregations."""
    preset = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    values = {
        "row": "mine",
        "name": "Mine",
        "dataset": dataset,
        "split": "test",
        "data_hash": "a" * 64,
        "protocol": preset.to_dict() | {"hash": preset.hash()},
        "images": 20,
        "done": 20,
        "pixels": 200,
        "failures": 0,
        "metrics": {kind: {"delta1": score, "abs_rel": 0.25} for kind in ("images", "pixels")},
        "confidence": {"delta1": (score - 0.05, score + 0.05)},
        "parse_rate": None,
        "speed": {},
        "environment": {},
    }
    result = Result(**(values | changes))
    path = folder / f"{len(list(folder.rglob('*.json')))}.json"
    result.save(path)
    return path


def write_lmms(path: Path, **changes) -> Path:
    results = {
        "mmbench_en_dev": {"alias": "a", "gpt_eval_score,none": 83.14, "gpt_eval_score_stderr,none": "N/A"},
        "mmstar": {"average,none": 0.604, "average_stderr,none": "N/A", "math,none": 0.5},
        "ocrbench": {"ocrbench_accuracy,none": 0.832},
        "pope": {"pope_accuracy,none": 0.9, "pope_accuracy_stderr,none": 0.01, "pope_f1_score,none": 0.8},
        "blink": {"blink_acc,none": 0.63},
        "blink_a": {"blink_acc,none": 0.6},
        "blink_b": {"blink_acc,none": 0.66},
        "cv_bench": {"score,flexible-extract": 0.5, "score,none": 0.75, "submission,none": None},
    }
    samples = {"pope": (9000, 8), "blink_a": (10, 10), "blink_b": (12, 11), "mmstar": (1500, 1500)}
    values = {
        "results": results,
        "group_subtasks": {"blink": ["blink_groups"], "blink_groups": ["blink_a", "blink_b"]},
        "n-samples": {task: {"original": all_, "effective": some} for task, (all_, some) in samples.items()},
        "model_name": "Qwen/Qwen3-VL-4B-Instruct",
        "config": {"model": "qwen3_vl", "model_args": "pretrained=Qwen/Qwen3-VL-4B-Instruct"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values | changes))
    return path
