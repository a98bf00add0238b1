"""What several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """One thread a process: many small operations, the same sums in the same order, and no fight for busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference tensors and layouts beside the repository; a test that needs it is skipped without."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "reference").is_dir():
        pytest.skip(f"the reference tensors are not at {folder}: parity with published code is not checked")
    return folder
