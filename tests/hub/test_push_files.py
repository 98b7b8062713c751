"""Which files of a checkpoint go to the Hub, and what keeps it from going there."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from depthvlm.hub_cards.push.package import (
    PushError,
    check_repo_id,
    package_code,
    select_adapter_files,
    select_checkpoint_files,
)
from depthvlm.modeling_depthvlm import FAMILIES
from safetensors.numpy import load_file, save_file
from transformers.dynamic_module_utils import get_imports

from depthvlm.checkpoint import hub_name_problem, resolve_model_path
from depthvlm.recipe_file import is_hub_name

FILES = ("training_args.bin", "optimizer.pt", "trainer_state.json", "README.md", "notes.txt", "helper.py")
SAFETENSORS = ("text_probe.safetensors", "ema.safetensors")
ROOMS = ("modeling_depthvlm", "processing")


@pytest.fixture
def checkpoint(toy_folder, tmp_path) -> Path:
    return Path(shutil.copytree(toy_folder, tmp_path / "checkpoint"))


def problems_of(folder: Path) -> str:
    with pytest.raises(PushError) as error:
        select_checkpoint_files(folder)
    return str(error.value)


def test_all_that_save_pretrained_writes_is_pushed(checkpoint):
    selected = select_checkpoint_files(checkpoint)
    assert sorted(selected.files) == sorted(file.name for file in checkpoint.iterdir())
    assert selected.left_out == {}


def test_what_a_run_leaves_beside_it_stays_here(checkpoint):
    for name in FILES:
        (checkpoint / name).write_text("x")
    for name in SAFETENSORS:
        save_file({}, checkpoint / name)
    for folder in ("checkpoint-12", ".cache", "runs"):
        (checkpoint / folder).mkdir()
    (checkpoint / "checkpoint-12" / "model.safetensors").write_text("x")
    (checkpoint / "training_recipe.yaml").write_text("format: 1")
    (checkpoint / "LICENSE").write_text("terms")
    selected = select_checkpoint_files(checkpoint)
    assert set(selected.left_out) == {*FILES, *SAFETENSORS, ".cache/", "checkpoint-12/", "runs/"}
    assert selected.left_out["optimizer.pt"] == "pickled"
    assert selected.left_out["checkpoint-12/"] == "a training checkpoint"
    assert {"training_recipe.yaml", "LICENSE"} <= set(selected.files)
    assert not [name for name in selected.files if name.endswith((".bin", ".pt", ".md"))]


def test_shards_are_those_of_the_index(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, checkpoint / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "both there" in problems_of(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    selected = select_checkpoint_files(checkpoint)
    assert {*parts, "model.safetensors.index.json"} <= set(selected.files)

    save_file({key: weights[key] for key in names[:3]}, checkpoint / "model-00001-of-00002.safetensors")
    assert "model-00001-of-00002.safetensors lacks 2 weights" in problems_of(checkpoint)
    (checkpoint / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors is missing" in problems_of(checkpoint)


def test_everything_that_is_wrong_is_told_at_once(checkpoint):
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / "losses_depthvlm.py").unlink()
    with (checkpoint / "depth_heads_depthvlm.py").open("a") as file:
        file.write("# mine\n")
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[:-100])
    told = problems_of(checkpoint)
    for problem in (
        "chat_template.jinja is missing",
        "must travel with it is missing: losses_depthvlm.py",
        "depth_heads_depthvlm.py is not this package's file, byte for byte",
        "model.safetensors is incomplete or damaged",
        f"depthvlm convert {checkpoint} NEW_FOLDER",
    ):
        assert problem in told


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def pickled_behind_an_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "weights.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def code_of_another(folder: Path, name: str, auto_class: str, code: object) -> None:
    config = json.loads((folder / name).read_text())
    config.get("image_processor", config)["auto_map"][auto_class] = code
    (folder / name).write_text(json.dumps(config))


EVE = "eve/code--modeling_depthvlm.DepthVLMForConditionalGeneration"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (pickled, "no safetensors weights (only pytorch_model.bin, and pickled weights are never pushed)"),
        (pickled_behind_an_index, "model.safetensors.index.json names weights.bin, which is no safetensors file"),
        *(
            (lambda folder, code=code: code_of_another(folder, "config.json", "AutoModel", code), "no `auto_map`, or")
            for code in (EVE, "other.Model")
        ),
        (
            lambda folder: code_of_another(folder, "processor_config.json", "AutoImageProcessor", [EVE, EVE]),
            "`auto_map` of processor_config.json names code of another repository",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "qwen3_vl"}'),
            "'qwen3_vl', expected that of a DepthVLM. `depthvlm convert",
        ),
    ],
)
def test_what_keeps_a_checkpoint_here(checkpoint, change, problem):
    change(checkpoint)
    assert problem in problems_of(checkpoint)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        select_checkpoint_files(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint: it has no config\.json"):
        select_checkpoint_files(tmp_path)


def test_an_adapter_is_no_model_but_can_be_pushed_by_the_trainer(checkpoint):
    (checkpoint / "config.json").unlink()
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(PushError, match=r"depthvlm convert .* merges it"):
        select_checkpoint_files(checkpoint)
    with pytest.raises(PushError, match=r"adapter_model\.safetensors is missing"):
        select_adapter_files(checkpoint)
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    (checkpoint / "training_args.bin").write_text("x")
    files = select_adapter_files(checkpoint).files
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json"} <= set(files)
    assert "training_args.bin" not in files


@pytest.mark.parametrize("name", ["depthvlm-8b", "a/b/c", "user/na me", "user/-x", ""])
def test_names_that_the_hub_does_not_take(name):
    with pytest.raises(PushError, match="--repo is"):
        check_repo_id(name)


@pytest.mark.parametrize("name", ["a/b/c", "/a", "./a", "../a/b", "~/a", "a b", "a/b--c"])
def test_what_is_neither_a_folder_nor_a_name_on_the_hub_is_no_model(name):
    assert hub_name_problem(name)
    assert not is_hub_name(name)
    with pytest.raises(FileNotFoundError, match="There is no model folder"):
        resolve_model_path(name)


def test_names_on_the_hub_and_folders_are_models(tmp_path):
    for name in ("depthvlm-8b", "user/depthvlm-8b", "user/Depth_VLM.2"):
        assert hub_name_problem(name) is None
        assert is_hub_name(name) == ("/" in name)
        assert resolve_model_path(name) == name
    assert resolve_model_path(str(tmp_path)) == str(tmp_path)


def test_the_code_that_travels_is_the_packages_and_imports_nothing_else():
    """transformers refuses code whose imports are missing; it passes over those in a `try`: HEIC's and OpenEXR's."""
    allowed = {"torch", "transformers", "safetensors", "huggingface_hub", "numpy", "PIL", *sys.stdlib_module_names}
    travelling = package_code()
    here = {file.name: file for room in ROOMS for file in (REPOSITORY / room).glob("*.py")}
    del here["__init__.py"]
    families = {f"{family.model.__module__.rpartition('.')[2]}.py" for family in FAMILIES.values()}
    assert travelling.keys() == here.keys() - families | {"modeling_depthvlm.py"}
    assert len(travelling) <= 14
    for family in FAMILIES.values():
        own = f"{family.model.__module__.rpartition('.')[2]}.py"
        assert package_code(family.config.model_type).keys() == travelling.keys() | {own}
    for name, file in travelling.items():
        assert file.read_bytes() == here[name].read_bytes()
        assert set(get_imports(file)) <= allowed, name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert (file.parent / f"{node.module}.py").is_file(), (name, node.module)
                continue
            elif isinstance(node, ast.ImportFrom):
                imported = [str(node.module)]
            else:
                continue
            assert {module.split(".")[0] for module in imported} <= {*allowed, "pillow_heif", "OpenEXR"}, (
                name,
                imported,
            )


def test_a_link_out_of_the_folder_is_not_followed(checkpoint, tmp_path):
    secret = tmp_path / "passwd"
    secret.write_text("root")
    (checkpoint / "LICENSE").symlink_to(secret)
    (checkpoint / "NOTICE").symlink_to(checkpoint / "config.json")
    assert "LICENSE would be read from outside of the folder" in problems_of(checkpoint)
    (checkpoint / "LICENSE").unlink()
    assert "NOTICE" in select_checkpoint_files(checkpoint).files
    (checkpoint / "additional_chat_templates").symlink_to(tmp_path)
    (tmp_path / "key.jinja").write_text("x")
    assert "additional_chat_templates/key.jinja would be read from outside" in problems_of(checkpoint)


def test_a_snapshot_of_the_cache_links_to_its_blobs(checkpoint, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in checkpoint.iterdir():
        (blobs / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blobs / file.name)
    assert len(select_checkpoint_files(snapshot).files) == len(list(checkpoint.iterdir()))
