"""`depthvlm sft`: options of `accelerate launch` go to the launcher, the others to the training script."""

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from .failures import fail

TRAIN_PACKAGES = ("trl", "peft", "datasets", "accelerate")
_SECONDS_TO_END = 30.0
_FILE_OPTIONS = ("--config", "--accelerate_config")


def run(args: Sequence[str]) -> None:
    """Check the arguments, then launch the script.

    Raises:
        typer.Exit: With 2 for unusable arguments, and with the script's own exit code if it failed.
    """
    missing = [name for name in TRAIN_PACKAGES if find_spec(name) is None]
    if missing:
        raise fail(f'Training needs {", ".join(missing)}: pip install "depthvlm[train]"', code=2)
    from ..training.versions import check_versions, quiet_libraries

    quiet_libraries()
    try:
        check_versions()
    except ImportError as error:
        raise fail(error, code=2) from None
    try:
        launcher_args, script_args = split_arguments(args)
    except (OSError, ValueError) as error:
        raise fail(error, code=2) from None
    launch(launcher_args, script_args)


def split_arguments(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the launcher's arguments, including those from the YAML file, and the script's.

    Raises:
        OSError, ValueError: An option or a value is unusable, or a file is missing.
    """
    from ..training.sft import check_arguments, make_parser

    given = find_recipes(_apart(args))
    parser = make_parser(prog="depthvlm sft")
    # Typos first: other checks of values only make sense for options that exist.
    script_options = [*parser._option_string_actions, *_FILE_OPTIONS]
    keys = _keys(given[1]) if given[:1] == ["--config"] else {}
    _refuse_unknown([f"--{key}" for key in keys if key != "env"], script_options)
    _refuse_unknown([arg for arg in given if arg.startswith("--")], script_options)
    # `of_command_line` is an ordered part of `given`; with --help the parser prints and exits.
    script, _, model, data, of_yaml, of_command_line = _parse(parser, given)
    check_arguments(script, model, data)
    launcher_args = _without_accelerate_config([*_switches(of_yaml), *of_command_line])
    return launcher_args, _remove(given, of_command_line)


def launch(launcher_args: list[str], script_args: list[str]) -> None:
    """Run `accelerate launch LAUNCHER_ARGS sft.py SCRIPT_ARGS`. A signal ends all processes of the run.

    Raises:
        typer.Exit: The script failed, or was ended by a signal.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException

    script = str(resources.files("depthvlm.training") / "sft.py")
    try:
        with _signals_raise():
            launch_command(launch_command_parser().parse_args([*launcher_args, script, *script_args]))
    except subprocess.CalledProcessError as error:
        # The script has printed the reason; the launcher's traceback would push it off the screen.
        raise typer.Exit(error.returncode if error.returncode > 0 else 1) from None
    except (_Ended, SignalException) as error:  # the latter from torch's multi-process launcher
        ending = error.signal if isinstance(error, _Ended) else signal.Signals(error.sigval)
        _end_descendants()
        typer.secho(f"Stopped by {ending.name}. {_last_checkpoint(script_args)}", err=True)
        raise typer.Exit(128 + ending) from None


class _Ended(BaseException):
    """A signal that asks this program to terminate."""

    def __init__(self, number: int, frame: Any = None) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Make Ctrl-C, SIGTERM and a closing terminal raise, except signals that this program was started to ignore."""

    def end(number: int, frame: Any) -> None:
        raise _Ended(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_descendants() -> None:
    """Ask all descendant processes to terminate; kill those that are still running after a while."""
    import psutil

    def told(send: Callable[[Any], None], processes: list[Any], seconds: float) -> list[Any]:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                send(process)
        return psutil.wait_procs(processes, timeout=seconds)[1]

    started = psutil.Process().children(recursive=True)
    told(psutil.Process.kill, told(psutil.Process.terminate, started, _SECONDS_TO_END), _SECONDS_TO_END)


def _last_checkpoint(script_args: list[str]) -> str:
    from ..training.checkpoints import missing_in, numbered_checkpoints
    from ..training.sft import make_parser

    folder = make_parser().parse_args_and_config(script_args, return_remaining_strings=True)[1].output_dir
    whole = next((str(path) for path in numbered_checkpoints(folder) if missing_in(path) is None), None)
    if whole is None:
        return f"No checkpoint is in {folder}."
    return f"The last checkpoint is {whole}: the same command with --resume_from_checkpoint goes on from it."


def _parse(parser: Any, args: list[str]) -> tuple[Any, ...]:
    import yaml

    try:
        return parser.parse_args_and_config(args, return_remaining_strings=True, separate_remaining_strings=True)
    except yaml.YAMLError as error:
        raise ValueError(f"{args[args.index('--config') + 1]} is not YAML: {error}") from None


def _apart(args: Sequence[str]) -> list[str]:
    """Split `--config=FILE` in two, the only form that TRL reads; accelerate would take it for its own config.

    Raises:
        ValueError: An option that needs a file has none.
    """
    result: list[str] = []
    for arg in args:
        name, equals, value = arg.partition("=")
        result += [name, value] if equals and name in _FILE_OPTIONS else [arg]
    for option in _FILE_OPTIONS:
        if result and result[-1] == option:
            raise ValueError(f"`{option}` needs a file after it.")
    return result


def find_recipes(args: list[str]) -> list[str]:
    """Replace the name after `--config` by the path of the package's recipe, if no such file exists.

    TRL reads one file: the keys of further ones become options before the command line's own; the last one wins.

    Raises:
        OSError, ValueError: There is no such file or recipe, or one after the first has a key that is not an option.
    """
    files: list[str] = []
    rest = list(args)
    while "--config" in rest:
        place = rest.index("--config")
        files.append(_recipe(rest[place + 1]))
        rest[place : place + 2] = []
    options = [option for file in files[1:] for option in _as_options(file)]
    first = ["--config", files[0]] if files else []
    return [*first, *options, *rest]


def _recipe(name: str) -> str:
    if Path(name).is_file():
        return name
    recipe = _bundled("recipes", name)
    if recipe is None:
        raise ValueError(f"There is no file {name}, and no recipe of that name: {', '.join(_names('recipes'))}.")
    typer.echo(f"Recipe: {recipe}")
    return str(recipe)


def _as_options(file: str) -> list[str]:
    """Return the keys of a YAML file as command-line options."""
    options: list[str] = []
    for key, value in _keys(file).items():
        listed = isinstance(value, list)
        values = value if listed else [value]
        if key == "env" or None in values or (listed and any(isinstance(item, dict) for item in value)):
            raise ValueError(f"`{key}` in {file} cannot be said on a command line: put it into the first --config.")
        options += [f"--{key}", *(v if isinstance(v, str) else json.dumps(v) for v in values)]
    return options


def _keys(file: str) -> dict[str, Any]:
    """Return the keys of a YAML file with their values.

    Raises:
        OSError, ValueError: It cannot be read, is not YAML, or is not a mapping of options to values.
    """
    import yaml

    try:
        keys = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from None
    if not isinstance(keys or {}, dict):
        raise ValueError(f"{file} holds a {type(keys).__name__}, expected options with their values (`seed: 3`).")
    for key in keys or {}:
        if not isinstance(key, str):
            raise ValueError(f"The key {key!r} in {file} is no option: options are words, such as `learning_rate`.")
    return keys or {}


def _switches(args: list[str]) -> list[str]:
    """Convert the launcher's switches in a YAML file, which have values (`multi_gpu: true`), to its parser's form."""
    from accelerate.commands.launch import launch_command_parser

    actions = launch_command_parser()._option_string_actions
    result: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in actions and actions[arg].nargs == 0:
            value = next(rest).lower()
            if value not in ("true", "false"):
                raise ValueError(f"`{arg.removeprefix('--')}` in the YAML file is true or false, got {value!r}.")
            result += [arg] if value == "true" else []
        else:
            result.append(arg)
    return result


def _without_accelerate_config(args: list[str]) -> list[str]:
    """Replace `--accelerate_config X` by the launcher's own `--config_file`.

    X is a file, the name of a file in this package ("fsdp2_1node.yaml"; the suffix is optional), or
    one of TRL's names ("zero2"), which keep their meaning.
    """
    path = None
    while "--accelerate_config" in args:  # the command line's comes last and takes precedence over the YAML file's
        place = args.index("--accelerate_config")
        name, args = args[place + 1], args[:place] + args[place + 2 :]
        path = _accelerate_config(name)
    return args if path is None else ["--config_file", str(path), *args]


def _accelerate_config(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    trl_config = Path(str(resources.files("trl"))) / "accelerate_configs" / f"{name}.yaml"
    path = trl_config if trl_config.is_file() else _bundled("accelerate", name)
    if path is None:
        trl_names = sorted(file.stem for file in trl_config.parent.glob("*.yaml"))
        raise ValueError(
            f"`--accelerate_config {name}`: no such file, none in depthvlm ({', '.join(_names('accelerate'))}) "
            f"and none in TRL ({', '.join(trl_names)})."
        )
    typer.echo(f"Launcher: {path}")
    return path


def _bundled(folder: str, name: str) -> Path | None:
    name = name if Path(name).suffix else f"{name}.yaml"
    return _folder(folder) / name if name in _names(folder) else None


def _names(folder: str) -> list[str]:
    names = (path.relative_to(_folder(folder)).as_posix() for path in _folder(folder).rglob("*.yaml"))
    return sorted(names, key=lambda name: ("/" in name, name))


def _folder(name: str) -> Path:
    return Path(str(resources.files("depthvlm.training"))) / name


def _refuse_unknown(args: list[str], script_options: list[str]) -> None:
    """Raise ValueError for an unknown option: the launcher would take its value for the script."""
    from accelerate.commands.launch import launch_command_parser

    options = [*script_options, *launch_command_parser()._option_string_actions]
    for arg in args:
        name = arg.split("=")[0]
        if not any(option.startswith(name) for option in options):
            close = get_close_matches(name, options, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"`{name}` is an option neither of training nor of `accelerate launch`.{hint}")


def _remove(items: list[str], part: list[str]) -> list[str]:
    """Return `items` without `part`, a subsequence of them."""
    kept, rest = [], list(part)
    for item in items:
        if rest and item == rest[0]:
            rest.pop(0)
        else:
            kept.append(item)
    return kept
