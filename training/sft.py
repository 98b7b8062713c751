"""The script behind `depthvlm sft`: it parses, loads, builds, trains and saves.

It takes every option and YAML key of `trl sft`, those of [`DepthSFTConfig`], and the few of [`DepthScriptArguments`].

```bash
depthvlm sft --model_name_or_path Qwen/Qwen3-VL-4B-Instruct --dataset_name rgbd.jsonl --trainable head --output_dir out
accelerate launch -m depthvlm.training.sft --config stage1.yaml  # the same without the command
```
"""

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from depthvlm.training.versions import check_versions, quiet_libraries

if __name__ == "__main__":
    quiet_libraries()  # before they are imported
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # datasets reads it on import: disables download counts
check_versions()  # before the first import from TRL

from depthvlm.training.config import DepthSFTConfig  # noqa: E402
from rich.console import Console  # noqa: E402
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser  # noqa: E402

from depthvlm.checkpoint import resolve_model_path  # noqa: E402

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
GENERATOR_FORM = "package.module:function"
DESCRIPTION = (
    "Fine-tune a DepthVLM, or a backbone that becomes one. --config FILE takes any of the options below from a YAML "
    "file. Options of `accelerate launch` (--num_processes, --accelerate_config FILE, ...) go to the launcher, from "
    "the command line or the YAML file."
)


class ArgumentError(ValueError):
    """A user request that cannot be fulfilled: reported in one line, without a traceback."""


@dataclass
class DepthScriptArguments(ScriptArguments):
    """TRL's [`~trl.ScriptArguments`], data made by a function, and the dry run.

    Raises:
        ValueError: If `dataset_generator_kwargs` is not a JSON object.
    """

    dataset_generator: str | None = field(
        default=None,
        metadata={
            "help": f"Function that makes the data, as '{GENERATOR_FORM}' (a module of the current folder will do). "
            "It is called with `split=` and the keywords of --dataset_generator_kwargs, once a split, and returns a "
            "datasets.Dataset or IterableDataset. In place of --dataset_name and `datasets`."
        },
    )
    dataset_generator_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Its keywords: a YAML mapping, or JSON such as '{\"rows\": 1000}'."}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Print what would be trained, the first batch and an estimate of memory. Train and write nothing."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.dataset_generator_kwargs, str):
            try:
                self.dataset_generator_kwargs = json.loads(self.dataset_generator_kwargs)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`dataset_generator_kwargs` is {self.dataset_generator_kwargs!r}, which is not JSON ({error}). "
                    "Write it as '{\"rows\": 1000}'."
                ) from None
        if not isinstance(self.dataset_generator_kwargs, dict | None):
            raise ValueError(
                f"`dataset_generator_kwargs` is {self.dataset_generator_kwargs!r}, expected names with their values, "
                "such as '{\"rows\": 1000}'."
            )


def make_parser(prog: str | None = None) -> TrlParser:
    """Return the parser of all options; `prog` is the command's name in its help."""
    types: Any = (DepthScriptArguments, DepthSFTConfig, ModelConfig, DatasetMixtureConfig)
    # The usage line would list some 250 options before each error.
    usage = "%(prog)s [--config FILE] [--accelerate_config FILE] [options]   (--help lists all)"
    return TrlParser(types, prog=prog, usage=usage, description=DESCRIPTION)


def check_arguments(script_args: DepthScriptArguments, model_args: ModelConfig, dataset_args: Any) -> None:
    """Check that model and data are named and, if they are files, exist.

    Raises:
        ArgumentError: If they do not, with what was given and what to do.
    """
    if not model_args.model_name_or_path:
        raise ArgumentError("No model is named: give `model_name_or_path`, a folder or a name on the Hub.")
    try:
        resolve_model_path(model_args.model_name_or_path)
    except FileNotFoundError as error:
        raise ArgumentError(f"`model_name_or_path`: {error}") from None
    if script_args.dataset_generator:
        if script_args.dataset_name or dataset_args.datasets:
            raise ArgumentError(
                "`dataset_generator` and `dataset_name` or `datasets` both name the data: give one of them "
                '(`--dataset_generator ""` removes that of a recipe).'
            )
        if not all(part.strip() for part in [*script_args.dataset_generator.partition(":")]):
            raise ArgumentError(
                f"`dataset_generator` is {script_args.dataset_generator!r}, expected '{GENERATOR_FORM}'."
            )
    elif not script_args.dataset_name and not dataset_args.datasets:
        raise ArgumentError("No data is named: give `dataset_name`, `datasets` (in the YAML) or `dataset_generator`.")
    names = [dataset.path for dataset in dataset_args.datasets] or [script_args.dataset_name]
    for name in filter(None, names):
        is_file_name = Path(name).suffix in BUILDERS
        is_path = is_file_name or name.startswith(("/", "./", "../", "~"))
        if is_path and not Path(name).expanduser().exists():
            raise ArgumentError(f"There is no data at {name}, looked for from {Path.cwd()}.")


def load_data(
    script_args: DepthScriptArguments, dataset_args: Any, splits: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Load the data that the arguments name.

    Args:
        script_args: Arguments with the data's name or generator.
        dataset_args: TRL's mixture of data sets.
        splits: Splits that will be used.
        seed: Seed of the rows that `test_split_size` holds out: the same on every rank and in a resumed run.

    Returns:
        A `datasets.Dataset` or `IterableDataset` for each split.

    Raises:
        ArgumentError: If the data has no such split, cannot be split, or the generator cannot be called.
    """
    if dataset_args.test_split_size is not None:
        return _held_out(script_args, dataset_args, splits, seed)
    if script_args.dataset_generator:
        return {split: generate(script_args.dataset_generator, script_args, split) for split in splits}
    if dataset_args.datasets:
        from trl import get_dataset

        if script_args.dataset_name:
            print("Both `datasets` and `dataset_name` are given: `dataset_name` is not used.")
        for dataset in dataset_args.datasets:
            if dataset.data_files is None and Path(dataset.path).suffix in BUILDERS:
                dataset.path, dataset.data_files = BUILDERS[Path(dataset.path).suffix], dataset.path
        found: Mapping[str, Any] = _named(lambda: get_dataset(dataset_args))
    else:
        found = _named(lambda: _load_named(script_args))
    for split in splits:
        if split not in found:
            option = "dataset_train_split" if split == script_args.dataset_train_split else "dataset_test_split"
            raise ArgumentError(
                f"The data has no split {split!r}, but {', '.join(map(repr, found))}: name one with `--{option}`"
                + (", or leave evaluation out with `--eval_strategy no`." if option == "dataset_test_split" else ".")
            )
    return {split: found[split] for split in splits}


def _named(load: Callable[[], Any]) -> Any:
    from datasets.exceptions import DatasetsError

    try:
        return load()
    except (OSError, ValueError, DatasetsError) as error:
        reason = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        raise ArgumentError(f"The data cannot be loaded: {reason}") from error


def _held_out(script_args: DepthScriptArguments, dataset_args: Any, splits: Sequence[str], seed: int) -> dict[str, Any]:
    """Split the training data in two; TRL splits only mixtures, and separately on every rank."""
    from datasets import Dataset

    share, train = dataset_args.test_split_size, script_args.dataset_train_split
    if not 0 < share < 1:
        raise ArgumentError(f"`test_split_size` is {share}, expected a share of the rows between 0 and 1.")
    [(_, rows)] = load_data(script_args, replace(dataset_args, test_split_size=None), [train]).items()
    if not isinstance(rows, Dataset):
        raise ArgumentError("`test_split_size` cannot split a stream: name a split with `--dataset_test_split`.")
    parts = rows.train_test_split(test_size=share, seed=seed)
    found = {train: parts["train"], script_args.dataset_test_split: parts["test"]}
    return {split: found[split] for split in splits}


def _load_named(script_args: DepthScriptArguments) -> Mapping[str, Any]:
    from datasets import Dataset, load_dataset, load_from_disk

    name = str(script_args.dataset_name)
    path = Path(name).expanduser()
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = load_from_disk(path)
        return {script_args.dataset_train_split: saved} if isinstance(saved, Dataset) else saved
    if any((path / name).is_dir() for name in ("depth", "depths")):  # `datasets` would treat depth maps as pictures
        raise ArgumentError(
            f"{path} is a folder of RGB-D files. Make rows of it first, and name these: depthvlm bench build folder "
            f"--root {path} --split {script_args.dataset_train_split} --out ROWS"
        )
    if path.is_file() and path.suffix in BUILDERS:
        return load_dataset(BUILDERS[path.suffix], data_files=str(path), streaming=script_args.dataset_streaming)
    name = str(path) if path.is_dir() else name
    return load_dataset(name, name=script_args.dataset_config, streaming=script_args.dataset_streaming)


def generate(generator: str, script_args: DepthScriptArguments, split: str) -> Any:
    """Call `package.module:function` for a split.

    Raises:
        ArgumentError: If there is no such function, or it did not return a data set.
    """
    from datasets import Dataset, IterableDataset

    module_name, _, function_name = generator.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, but one of its imports does not
        raise ArgumentError(
            f"`dataset_generator` {generator}: there is no module {error.name}, neither installed nor in {Path.cwd()}."
        ) from None
    function = vars(module).get(function_name)
    if not callable(function):
        raise ArgumentError(f"`dataset_generator` {generator}: {module_name} has no function {function_name}.")
    keywords: Any = script_args.dataset_generator_kwargs or {}
    try:
        inspect.signature(function).bind(**keywords, split=split)
    except TypeError as error:
        raise ArgumentError(
            f"`dataset_generator` {generator} does not take {keywords} and `split`: {error}. "
            f"It is {function_name}{inspect.signature(function)}."
        ) from None
    rows = function(**keywords, split=split)
    if not isinstance(rows, Dataset | IterableDataset):
        raise ArgumentError(
            f"`dataset_generator` {generator} returned a {type(rows).__name__}, expected a datasets.Dataset or "
            "IterableDataset (`Dataset.from_list(rows)` and `IterableDataset.from_generator(function)` make them)."
        )
    return rows


def main(
    script_args: DepthScriptArguments, training_args: DepthSFTConfig, model_args: ModelConfig, dataset_args: Any
) -> None:
    """Load, build, train and save; push to the Hub if requested. With `dry_run`, print and return."""
    if script_args.dry_run:
        dry_run(script_args, training_args, model_args, dataset_args)
        return
    trainer = build_trainer(script_args, training_args, model_args, dataset_args)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.accelerator.print("Training completed.")
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
        trainer.accelerator.print(f"Model pushed to the Hub as {trainer.hub_model_id}.")
    trainer.end()


def dry_run(
    script_args: DepthScriptArguments, training_args: DepthSFTConfig, model_args: ModelConfig, dataset_args: Any
) -> None:
    """Print what [`main`] would train. Nothing is trained, and nothing stays on disk or goes to the Hub."""
    from depthvlm.training.dry_run import describe

    with tempfile.TemporaryDirectory() as folder:
        # The trainer creates its output folder, trackers and Hub repository as soon as it is built.
        training_args.output_dir, training_args.push_to_hub, training_args.report_to = folder, False, []
        trainer = build_trainer(script_args, training_args, model_args, dataset_args)
        report = describe(trainer)
        if trainer.accelerator.is_main_process:
            Console(soft_wrap=True, highlight=False).print(report)
        trainer.end()


def build_trainer(
    script_args: DepthScriptArguments, training_args: DepthSFTConfig, model_args: ModelConfig, dataset_args: Any
) -> Any:
    """Build the trainer with the model and the data that the arguments name."""
    from depthvlm.modeling_depthvlm import DepthVLMConfig
    from depthvlm.training.card import name_data
    from depthvlm.training.trainer import DepthSFTTrainer
    from trl import get_peft_config, get_quantization_config

    from depthvlm.loading import hub_keywords

    if training_args.hub_token:
        # Used for model, data and push; as an argument it would be written to disk.
        os.environ["HF_TOKEN"], training_args.hub_token = training_args.hub_token, None
    if isinstance(model_args.lora_target_modules, str) and model_args.lora_target_modules.isidentifier():
        # TRL turns a single name into a pattern that matches no module's full path.
        model_args.lora_target_modules = [model_args.lora_target_modules]
    given = training_args.model_init_kwargs
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(given if isinstance(given, dict) else {}),
    }
    model = resolve_model_path(str(model_args.model_name_or_path))
    try:
        DepthVLMConfig.get_config_dict(model, **hub_keywords(model, training_args.model_init_kwargs))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"The model {model} cannot be loaded: {error}") from error
    train, test = script_args.dataset_train_split, script_args.dataset_test_split
    evaluates = training_args.eval_strategy != "no"
    data = load_data(script_args, dataset_args, [train, test] if evaluates else [train], training_args.seed)
    trainer = DepthSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=data[train],
        eval_dataset=data[test] if evaluates else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.data_names = name_data(script_args, dataset_args)
    return trainer


def run(args: Sequence[str] | None = None) -> None:
    """Parse, check and run [`main`]; exit with one line and code 2 for bad arguments, with 1 for a bad example."""
    from depthvlm.training.rows import BadSampleError

    try:
        try:
            # Unknown keys of a YAML file belong to the launcher.
            parsed = make_parser().parse_args_and_config(args, fail_with_unknown_args=False)
        except (OSError, ValueError) as error:
            raise ArgumentError(str(error)) from error
        script_args, training_args, model_args, dataset_args = parsed
        check_arguments(script_args, model_args, dataset_args)
        main(script_args, training_args, model_args, dataset_args)
    except (ArgumentError, BadSampleError) as error:
        print(f"\nError: {error}", file=sys.stderr)  # on a new line, below a progress bar
        raise SystemExit(2 if isinstance(error, ArgumentError) else 1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # the launcher reports what was kept


if __name__ == "__main__":
    run()
