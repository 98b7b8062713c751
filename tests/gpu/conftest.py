"""What the tests on a CUDA GPU share: its float32 exact, and the helpers of `tests/`."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "support"))


@pytest.fixture(autouse=True)
def gpu() -> None:
    """Fails where there is no GPU, rather than pass without one. Float32 products are not rounded to TF32."""
    if not torch.cuda.is_available():
        pytest.fail("These tests need a CUDA GPU.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def count_syncs() -> Callable[[Callable[[], Any]], int]:
    """How often a call makes the host wait for the GPU."""

    def count(call: Callable[[], Any]) -> int:
        call()  # what is made once is made here
        torch.cuda.synchronize()
        torch.set_warn_always(True)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.set_warn_always(False)
        places = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]
        print(f"{len(places)} waits", *places, sep="\n  ")
        return len(places)

    return count
