import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from depthvlm import DepthPredictor, DepthVLMProcessor

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DEPTHVLM_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The numbers of the published implementation."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of sample data; tests that ask for it carry the mark `real_data`."""
    if not SHARED.is_dir():
        pytest.skip(f"sample data not found at {SHARED}: set DEPTHVLM_SHARED to its folder")
    return SHARED


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy checkpoint in a folder `toy`, for tests that do not write to it."""
    from toy_checkpoint import save_toy_checkpoint

    return save_toy_checkpoint(tmp_path_factory.mktemp("checkpoint") / "toy")


@pytest.fixture(scope="session")
def checkpoint(toy_folder: Path) -> str:
    """Its path in words."""
    return str(toy_folder)


@pytest.fixture
def trained_toy(toy_folder: Path, tmp_path: Path) -> Path:
    """A copy of it with a trained head, which may be written to."""
    from toy_cards import with_trained_head

    return with_trained_head(toy_folder, tmp_path / "toy")


@pytest.fixture(scope="session")
def nano() -> "DepthPredictor":
    """The bundled model on the CPU, for tests that do not change it."""
    from depthvlm import load

    return load("depthvlm-nano", device="cpu")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of rendered scenes as `walk.mp4`."""
    from toy_clips import SEEDS, write_clip

    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4", SEEDS)


@pytest.fixture(scope="session")
def processor() -> "DepthVLMProcessor":
    """A processor with a byte tokenizer, whose images have at most 128x128 pixels."""
    from toy_rows import toy_processor

    return toy_processor()


def pytest_collection_finish() -> None:
    """Take what the imports made out of garbage collection, of which every training run does a full one."""
    gc.collect()
    gc.freeze()
