"""What several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference tensors and layouts beside the repository; a test that needs it is skipped without."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "reference").is_dir():
        pytest.skip(f"the reference tensors are not at {folder}: parity with published code is not checked")
    return folder
