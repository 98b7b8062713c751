"""The documentation works: every command and every Python block of the README and of docs/, on nano and tiny data."""

import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import run
from conftest import REPOSITORY
from datasets import Dataset
from depthvlm.benchmark.systems import SYSTEMS
from docs_blocks import PAGES, SMALL_RUN, Block, DocsError, Workspace, blocks, check_options, commands
from PIL import Image
from toy_checkpoint import make_foreign
from toy_clips import write_clip
from toy_training import save_toy_lines, toy_dataset, toy_rows

from depthvlm.checkpoint import bundled_model_path

NANO = bundled_model_path()
LONG = ("finetune", "onnx", "paper", "training")  # pages whose blocks train several models or export them


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """Nano without its head, as a plain Qwen3-VL checkpoint."""
    unused = shutil.ignore_patterns("README.md", "training_recipe.yaml", "generation_config.json")
    return make_foreign(Path(shutil.copytree(NANO, tmp_path_factory.mktemp("qwen") / "nano", ignore=unused)))


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """What a reader has: photographs, RGB-D files in several forms, a small build of the benchmark."""
    folder = tmp_path_factory.mktemp("template")
    for source, names in {
        "room": ("photo.jpg", "photos/a.jpg", "frames/f1.jpg", "frames/f2.jpg"),
        "street": ("photos/b.jpg", "more/c.jpg"),
    }.items():
        with Image.open(REPOSITORY / "depthvlm" / "assets" / f"{source}.jpg") as picture:
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                picture.resize((96, 64)).save(folder / name, exif=picture.info.get("exif", b""))
    shutil.copy(REPOSITORY / "depthvlm" / "assets" / "room.jpg", folder)
    write_rgbd(folder)
    write_clip(folder / "clip.mp4", [1, 2, 3, 4])
    for split in ("test", "train"):
        options = ("--root", folder, "--out", folder / "bench", "--split", split, "--num-images", 4, "--workers", 1)
        run("bench", "build", "synthetic", *options)
    return folder


def write_rgbd(folder: Path) -> None:
    """`rgbd.jsonl` with its files; the folders of stage2_mixed.yaml; a folder of RGB-D files."""
    save_toy_lines(folder)
    (folder / "rooms" / "rgb").mkdir(parents=True)
    (folder / "rooms" / "depth").mkdir()
    (folder / "rooms" / "intrinsics.json").write_text("[1000, 1000, 48, 32]")
    (folder / "rooms" / "depth.json").write_text('{"depth_scale": 1000}')
    for index, row in enumerate(toy_rows(8)):
        if row["depth"] and row["depth"][0]:
            row["images"][0].save(folder / "rooms" / "rgb" / f"{index}.jpg")
            row["depth"][0].save(folder / "rooms" / "depth" / f"{index}.png")
    words = Dataset.from_list([{"messages": row["messages"]} for row in toy_rows(4)])
    sets = {"rgbd": toy_dataset(toy_rows(8)), "general_instructions": words, "general_held_out": words}
    for name, data in sets.items():
        (folder / "data" / name).mkdir(parents=True)
        data.to_parquet(folder / "data" / name / "train.parquet")


@pytest.fixture
def workspace(template, qwen, tmp_path, monkeypatch) -> Workspace:
    folder = shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    dataset = toy_dataset([row for row in toy_rows(4) if row["depth"] and row["depth"][0]])
    names = {"__name__": "docs", "dataset": dataset, "SMALL_RUN": SMALL_RUN}
    return Workspace(folder, {"nano": NANO, "qwen": qwen}, names)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in LONG)) for page in PAGES]
)
def test_every_block_of_the_page_works(page, workspace):
    for block in blocks(page):
        workspace.run(block)
    if page.stem == "paper":
        check_ablations(workspace.folder)


def check_ablations(folder: Path) -> None:
    """The runs of docs/paper.md have trained what the paper's tables 4, 5 and 7 compare."""
    heads = {
        "mlp-stage1": ("mlp", "llm_final"),
        "mlp-multi-stage1": ("mlp", "vit+llm"),
        "dpt-stage1": ("dpt", "vit+llm"),
        "dpt-stage2": ("dpt", "vit+llm"),
        "vit-stage1": ("dpt_light", "vit"),
        "llm-stage1": ("dpt_light", "llm"),
        "llm-stage2": ("dpt_light", "llm"),
    }
    for name, expected in heads.items():
        head = json.loads((folder / name / "config.json").read_text())["depth_config"]
        assert (head["head_type"], head["feature_source"]) == expected, name
    for name, focal_length in {"fc800-stage1": 800, "fc1200-stage1": 1200, "vit-stage1": 1000}.items():
        config = json.loads((folder / name / "config.json").read_text())
        processor = json.loads((folder / name / "processor_config.json").read_text())
        assert config["canonical_focal_length"] == focal_length
        assert processor["image_processor"]["canonical_focal_length"] == focal_length


def test_every_file_has_its_place_in_the_site():
    nav = (REPOSITORY / "mkdocs.yml").read_text().partition("nav:")[2].partition("plugins:")[0]
    named = set(re.findall(r": (\S+\.md)$", nav, flags=re.MULTILINE))
    there = {str(path.relative_to(REPOSITORY / "docs")) for path in (REPOSITORY / "docs").rglob("*.md")}
    assert named == there


def test_the_page_of_results_names_every_table_and_every_row():
    page = (REPOSITORY / "docs" / "paper.md").read_text()
    in_words = re.sub(r"[Tt]ables? (\d+), (\d+) and (\d+)|[Tt]ables? (\d+) and (\d+)", r"\1 \2 \3 \4 \5", page)
    for number in range(1, 12):
        assert re.search(rf"^## .*\b{number}\b", in_words, flags=re.MULTILINE), f"table {number}"
    for key, row in SYSTEMS.items():
        if row.tables:
            assert f"`{key}`" in page, key


@pytest.mark.parametrize("file", [REPOSITORY / "Makefile", *PAGES], ids=lambda path: path.stem)
def test_the_files_that_it_names_are_there(file):
    folders = "modeling_depthvlm|processing|training|benchmark|hub_cards|depthvlm|tests|docs|scripts"
    before = r"(?<=`)" if file.suffix == ".md" else r"(?<![\w./-])"
    named = re.findall(rf"{before}((?:{folders})/[\w./-]+)(?![\w./%-])", file.read_text())
    assert len(named) > 12 or file.stem not in ("Makefile", "CONTRIBUTING")
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize(
    ("language", "code", "mark", "message"),
    [
        ("bash", "depthvlm predict photo.jpg --colour red", "", "No such option"),
        ("bash", "depthvlm predict photo.jpg --colour red", "not run", "No such option"),
        ("bash", "depthvlm forecast photo.jpg", "not run", "No such command"),
        ("bash", "depthvlm predict nowhere.jpg", "", "There is no image file"),
        ("bash", "depthvlm sft --config stage9.yaml", "not run", "no recipe of that name"),
        ("bash", "depthvlm sft --config stage1.yaml --dataset_name DATA --speed 3", "not run", "is an option neither"),
        ("bash", "depthvlm bench eval --predictor depth-amateur --data bench", "not run", "There is no predictor"),
        ("bash", "depthvlm bench build moon --root /data/moon --out out", "not run", "There is no source"),
        ("bash", 'pip install "depthvlm[everything]"', "", "an extra that is not there"),
        ("bash", "make tea", "", "No rule to make target"),
        ("bash", "python scripts/perf/forward.py --years 3", "", "has no option --years"),
        ("bash", "curl somewhere", "", "is not known here"),
        ("python", "from depthvlm import DepthOracle", "not run", "has no DepthOracle"),
        ("python", "assert 1 == 2", "", "AssertionError"),
        ("python", "def (", "not ours", "SyntaxError"),
        ("yaml", "a: [1", "", "while parsing"),
        ("", "what is this", "", "say what this block is"),
    ],
)
def test_the_checker_notices_what_is_wrong(workspace, language, code, mark, message):
    with pytest.raises(DocsError, match=re.escape(message)):
        workspace.run(Block(REPOSITORY / "README.md", 1, language, code, mark))


def test_marks_and_commands_are_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- docs-test: not run: no GPU -->\n```bash\na b \\\n    'c d'  # why\n\n# no\ne\n```\n")
    [block] = blocks(page)
    assert (block.language, block.line, block.mark) == ("bash", 3, "not run")
    assert commands(block.code) == [["a", "b", "c d"], ["e"]]
    wrong = {"no mark": "<!-- docs-test: skip -->\n```bash\na\n```\n", "does not end": "```bash\na\n"}
    for message, text in wrong.items():
        page.write_text(text)
        with pytest.raises(DocsError, match=message):
            blocks(page)
    check_options(["predict", "--help"])
    check_options(["bench", "report", "results", "--table", "1", "--table", "2"])
