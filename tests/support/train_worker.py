"""One process of a training run, for tests that start several, or kill one: arguments as JSON."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from toy_training import settings, toy_dataset, toy_row, toy_rows
from transformers import TrainerCallback

from depthvlm import DepthSFTTrainer


class KillAt(TrainerCallback):
    """Ends the process as a power cut would: after a step, or once a file of a checkpoint is there."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    args = settings(Path(options["out"]), **options["settings"])
    if args.fsdp:
        # accelerate leaves FSDP out on CPUs, without a word; the sharding itself works there.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    rows = toy_rows(options.get("rows", 8))
    if options.get("lone_depth"):
        # The second half, which is another rank's, has no depth at all.
        rows = [toy_row(i, depth=i < 2) for i in range(options.get("rows", 8))]
    if options.get("lone_image"):
        # The second half has no image either: its rank trains words alone.
        rows = [toy_row(i, image=i < 2) for i in range(options.get("rows", 8))]
    data = toy_dataset(rows)
    held_out = data
    if "eval_rows" in options:
        held_out = toy_dataset(toy_rows(options["eval_rows"]))
        if "shards" in options:
            held_out = held_out.to_iterable_dataset(num_shards=options["shards"])
    callbacks = [KillAt(options["kill_at"])] if "kill_at" in options else []
    trainer = DepthSFTTrainer(
        options["model"],
        args,
        train_dataset=data,
        eval_dataset=held_out,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=options.get("resume"))
    numbers = trainer.evaluate() if options.get("evaluate") else {}
    trainer.save_model()
    if trainer.is_world_process_zero():
        Path(options["out"], "log.json").write_text(json.dumps({"log": trainer.state.log_history, "eval": numbers}))
    trainer.end()  # a process that ends with its group alive may abort on the way out
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    # FSDP holds the group from Python, which lets go of its lock when it frees one; DDP's reducer does not.
    if "pt_gloo_runloop" in names and not args.fsdp:
        raise RuntimeError(f"Threads of the process group outlived trainer.end(): {names}.")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
