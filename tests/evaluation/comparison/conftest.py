"""Photographs that comparisons are run on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def labelled(write_labelled, tmp_path_factory):
    """A folder with train/ and val/ of two classes, 30 and 24 pictures."""
    return write_labelled(tmp_path_factory.mktemp("labelled"), train=30, val=24)
