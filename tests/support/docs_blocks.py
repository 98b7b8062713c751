"""
The code blocks of the README and of docs/: found, classified, and run on nano and tiny data.

Every ```bash and ```python block is run, in the order of its page. A comment on the line before a block says otherwise,
and why:

    <!-- docs-test: not run: REASON -->   its `depthvlm` commands are parsed, its Python compiled, its imports looked up
    <!-- docs-test: not ours: REASON -->  another project's: Python is compiled, nothing else

A Python block that begins with `# NAME.py` is a file: it is written, and what comes after uses it. One that begins with
`# python NAME.py ARGUMENT ...` is run so.
"""

import ast
import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement
from typer.main import get_command
from typer.testing import CliRunner

from depthvlm.cli.app import app

PAGES = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")],
    key=lambda path: path.stem,
)
FENCE = re.compile(r"^ *```")
MARKER = re.compile(r"<!-- docs-test: (not run|not ours): (\S.*?) -->")
SHOWN = ("text", "yaml")  # languages of blocks that nobody runs

# What stands for a reader's own model, and the small one that takes its place: a key of `Workspace.models`.
MODELS = {
    r"\bCHECKPOINT\b": "nano",
    r"\bMODEL\b": "nano",
    r"\bJonnyYu828/DepthVLM-[48]B\b": "nano",
    r"\b(you|OWNER)/[\w.-]+\b": "nano",
    r"\bQwen/Qwen3(-VL-[48]B-Instruct|\.5-4B)\b": "qwen",
}
# A reader's own data, and the tiny data that the workspace holds.
DATA = {r"/data/bench/\w+": "bench", r"/data/scannetpp\b": ".", r"\bFOLDER\b": "rooms"}
# Sizes that only cost time.
SIZES = {
    "--num-images": "4",
    "--max-new-tokens": "4",
    "max_new_tokens=64": "max_new_tokens=4",
    'DepthSFTConfig("stage1",': 'DepthSFTConfig("stage1", **SMALL_RUN,',
}
# A new head of 35 M parameters on a model of 5 M would take most of the time.
SMALL_HEAD: dict[str, Any] = {"features": 8, "out_channels": [8, 8, 8, 8], "hidden_size": 8}
SMALL_RUN = {
    **{"use_cpu": True, "bf16": False, "max_steps": 1, "report_to": "none", "per_device_train_batch_size": 2},
    "model_init_kwargs": {"depth_config": SMALL_HEAD},
}
# One step on a CPU.
TRAIN_SETTINGS = [
    *("--use_cpu", "true", "--bf16", "false", "--dtype", "float32", "--report_to", "none"),
    *("--max_steps", "1", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"),
    *("--dataloader_num_workers", "0", "--dataloader_persistent_workers", "false", "--save_strategy", "no"),
    *("--test_split_size", "0.25"),
]
# These talk to the Hub or serve until they are stopped; they have their own tests, and here their options are parsed.
NOT_RUN_HERE = ("push", "demo")
RUN_PREDICTORS = ("nano", "always-2m", "oracle")


class DocsError(AssertionError):
    """A block that cannot be classified, or that does not work."""


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of code, `mark` is "not run", "not ours" or ""."""

    page: Path
    line: int
    language: str
    code: str
    mark: str = ""

    @property
    def where(self) -> str:
        """For messages: `docs/predict.md:12`."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    fences = iter([number for number, line in enumerate(lines) if FENCE.match(line)])
    for start in fences:
        before = lines[start - 1].strip() if start else ""
        mark = MARKER.fullmatch(before)
        if not mark and "docs-test" in before:
            raise DocsError(f"{page.name}:{start}: `{before}` is no mark that docs_blocks.py knows.")
        end = next(fences, None)
        if end is None or lines[end].strip() != "```":
            raise DocsError(f"{page.name}:{start + 1}: this block does not end.")
        language, code = lines[start].strip()[3:], "\n".join(lines[start + 1 : end])
        found.append(Block(page, start + 2, language, code, mark[1] if mark else ""))
    return found


def commands(code: str) -> list[list[str]]:
    """The commands of a bash block as words, without comments and line continuations."""
    whole = re.sub(r"\\\n\s*", " ", code)
    return [words for line in whole.splitlines() if (words := shlex.split(line, comments=True))]


@dataclass
class Workspace:
    """A folder with tiny data, in which the blocks of one page are run one after another."""

    folder: Path  # the current one while they run
    models: dict[str, Path]  # the small ones by name
    names: dict[str, Any] = field(default_factory=dict)  # what Python blocks have at hand, and leave to the next

    def fill_in(self, text: str) -> str:
        """The text with small models and tiny data in place of the reader's."""
        for pattern, model in MODELS.items():
            text = re.sub(pattern, str(self.models[model]), text)
        for pattern, data in DATA.items():
            text = re.sub(pattern, data, text)
        return text

    def run(self, block: Block) -> None:
        """Run a block, or check what can be checked of one that is not run. Raises DocsError when it does not work."""
        if block.language == "python":
            self._python(block)
        elif block.language == "bash":
            if block.mark != "not ours":
                for words in commands(block.code):
                    with _blaming(block, shlex.join(words)):
                        run_command(words, self, block.mark == "not run")
        elif block.language == "yaml":
            with _blaming(block, "YAML"):
                yaml.safe_load(block.code)
        elif block.language not in SHOWN:
            raise DocsError(f"{block.where}: say what this block is: ```bash, ```python or ```{', ```'.join(SHOWN)}.")

    def _python(self, block: Block) -> None:
        with _blaming(block, "compile"):
            tree = ast.parse(block.code)
        if block.mark == "not run":
            with _blaming(block, "imports"):
                look_up_imports(tree)
        if block.mark:
            return
        code = block.code
        for long, short in SIZES.items():
            code = code.replace(long, short)
        file = re.match(r"# (python )?(\w+\.py)\b(.*)", code)
        code = self.fill_in(code)
        with _blaming(block, "run"):
            if file is None:
                exec(compile(code, block.where, "exec"), self.names)
                return
            path = self.folder / file[2]
            path.write_text(code, encoding="utf-8")
            if file[1]:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(sys, "argv", [file[2], *self.fill_in(file[3]).split()])
                    runpy.run_path(str(path), run_name="__main__")


@contextmanager
def _blaming(block: Block, what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        raise DocsError(f"{block.where}: {what}\n{type(error).__name__}: {error}") from error


def look_up_imports(tree: ast.Module) -> None:
    """Import what a block imports from this package. Raises ImportError for a name that is not there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "depthvlm":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    raise ImportError(f"{node.module} has no {alias.name}")


def run_command(words: list[str], workspace: Workspace, parse_only: bool) -> None:
    """One command of a bash block. Raises DocsError when it fails, or its program is not one of those known here."""
    program, arguments = words[0], words[1:]
    if program == "depthvlm":
        run_depthvlm(arguments, workspace, parse_only)
    elif words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        launched = launch_command_parser().parse_args(words[2:])
        if not launched.module or launched.training_script != "depthvlm":
            raise DocsError("Only `accelerate launch ... -m depthvlm ...` is known here.")
        run_depthvlm(launched.training_script_args, workspace, parse_only)
    elif words[:2] == ["pip", "install"]:
        check_install(words[2:])
    elif program == "make":
        check_make(arguments)
    elif program in ("python", "torchrun"):
        check_script(arguments)
    elif not parse_only:
        raise DocsError(f"`{program}` is not known here: mark the block, or teach docs_blocks.py.")


def run_depthvlm(arguments: list[str], workspace: Workspace, parse_only: bool) -> None:
    """`depthvlm ARGUMENTS`, in this process; or its options alone, where it needs a download or a browser."""
    if arguments[0] == "sft":
        run_sft(arguments[1:], workspace, parse_only)
        return
    if arguments[:2] == ["bench", "build"]:
        parse_only = not check_build(arguments) or parse_only
    arguments = [workspace.fill_in(word) for word in arguments]
    if arguments[:2] == ["bench", "eval"]:
        arguments, known = with_small_predictor(arguments, workspace)
        parse_only = parse_only or not known
    for option, value in SIZES.items():
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
    check_options(arguments)
    if parse_only or arguments[0] in NOT_RUN_HERE or any(word.startswith("$") for word in arguments):
        return
    result = CliRunner().invoke(app, arguments)
    if result.exit_code != 0:
        raise DocsError(f"exit code {result.exit_code}\n{result.output[-3000:]}") from result.exception


def check_options(arguments: list[str]) -> None:
    """Parse the options as the command itself does. Raises DocsError for one that it does not take."""
    command: Any = get_command(app)
    context = command.make_context("depthvlm", list(arguments))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        try:
            context = command.make_context(name, rest, parent=context)
        except typer.Exit:  # --help
            return


def check_build(arguments: list[str]) -> bool:
    """Whether `bench build` needs no download; its source and its split must be there in any case."""
    from depthvlm.benchmark.sources import source_class

    source = source_class(arguments[2])
    split = arguments[arguments.index("--split") + 1] if "--split" in arguments else source.splits[0]
    if split not in source.splits:
        raise DocsError(f"{source.name} has no split {split}.")
    return source.name in ("synthetic", "folder")


def with_small_predictor(arguments: list[str], workspace: Workspace) -> tuple[list[str], bool]:
    """`bench eval` with a checkpoint of DepthVLM replaced by nano; and whether its system can run here."""
    from depthvlm.benchmark.systems import find_system
    from depthvlm.benchmark.systems.registry import OURS

    place = 1 + next(i for i, word in enumerate(arguments) if word in ("--predictor", "-p"))
    name = arguments[place]
    if find_system(name).target == OURS and name not in RUN_PREDICTORS:  # an error where there is no such row
        name = f"depthvlm:{workspace.models['nano']}"
    changed = [*arguments[:place], name, *arguments[place + 1 :]]
    return changed, name in RUN_PREDICTORS or name.startswith("depthvlm:")


def run_sft(arguments: list[str], workspace: Workspace, parse_only: bool) -> None:
    """One step with a small model and tiny data; a dry run of what is meant for several GPUs."""
    from depthvlm.training.sft import run

    from depthvlm.cli.sft import find_recipes, split_arguments

    if "--help" in arguments:
        return
    arguments = find_recipes(arguments)  # what the second of two says may be replaced by small models and data
    filled = [workspace.fill_in(re.sub(r"^\$\w+$", "0", word)) for word in arguments]
    for option, instead in (("--dataset_name", "rgbd.jsonl"), ("--model_name_or_path", str(workspace.models["nano"]))):
        if option in filled:
            place = filled.index(option) + 1
            if arguments[place].startswith("/") or not (workspace.folder / filled[place]).exists():
                filled[place] = instead
    if "--model_name_or_path" not in filled:
        filled += ["--model_name_or_path", str(workspace.models["qwen"])]
    if filled[filled.index("--model_name_or_path") + 1] == str(workspace.models["qwen"]):
        filled = with_small_head(filled)
    launcher, script = split_arguments([*filled, *TRAIN_SETTINGS])  # the real parser, the launcher's included
    if not parse_only:
        run([*script, *(["--dry_run", "true"] if launcher else [])])


def with_small_head(arguments: list[str]) -> list[str]:
    """The arguments with a new head's widths added to what `--model_init_kwargs` says of it."""
    given: dict[str, Any] = {}
    if "--model_init_kwargs" in arguments:
        place = arguments.index("--model_init_kwargs")
        given = json.loads(arguments[place + 1])
        arguments = arguments[:place] + arguments[place + 2 :]
    head = SMALL_HEAD | given.get("depth_config", {})
    return [*arguments, "--model_init_kwargs", json.dumps(given | {"depth_config": head})]


def check_install(arguments: list[str]) -> None:
    """`pip install` of this package: its extras are there. Raises DocsError for anything else."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for word in arguments:
        if word in ("-e", "-c", "constraints.txt"):
            continue
        requirement = Requirement(re.sub(r"^\.", "depthvlm", word))
        unknown = requirement.extras - set(project["optional-dependencies"])
        if requirement.name != project["name"] or unknown:
            raise DocsError(f"`pip install {word}`: another package, or an extra that is not there ({unknown}).")


def check_make(arguments: list[str]) -> None:
    """`make` knows the targets and would do something. Raises DocsError when not."""
    dry = subprocess.run(["make", "-n", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if dry.returncode != 0:
        raise DocsError(dry.stderr)


def check_script(arguments: list[str]) -> None:
    """A script of the repository, with options that it has. Raises DocsError when not."""
    file = next((word for word in arguments if word.endswith(".py")), None)
    if file is None or not (REPOSITORY / file).is_file():
        raise DocsError(f"There is no script {file} in the repository.")
    source = (REPOSITORY / file).read_text(encoding="utf-8")
    for word in arguments[arguments.index(file) + 1 :]:
        if word.startswith("--") and not re.search(rf"\b{word[2:].split('=')[0].replace('-', '[-_]')}\b", source):
            raise DocsError(f"{file} has no option {word}.")
