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
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A toy checkpoint for tests that do not write to it."""
    from toy_checkpoint import save_toy_checkpoint

    return str(save_toy_checkpoint(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="session")
def nano() -> "DepthPredictor":
    """The bundled model on the CPU, for tests that do not change it."""
    from depthvlm import load

    return load("depthvlm-nano", device="cpu")


@pytest.fixture(scope="session")
def processor() -> "DepthVLMProcessor":
    """A processor with a byte tokenizer, whose images have at most 128x128 pixels."""
    from toy_rows import toy_processor

    return toy_processor()


def pytest_collection_finish() -> None:
    """Take what the imports made out of garbage collection, of which every training run does a full one."""
    gc.collect()
    gc.freeze()
