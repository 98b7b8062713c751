import os
from pathlib import Path

import pytest

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
