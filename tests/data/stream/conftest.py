"""What tests of streams share."""

from __future__ import annotations

import pytest


@pytest.fixture
def index(tmp_path, build_index):
    """An index of 300 samples in five shards, one of them empty, on the disk."""
    return build_index(tmp_path, (100, 70, 0, 128, 2))
