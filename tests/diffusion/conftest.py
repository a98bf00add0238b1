"""The published numbers of a training step on the linear path."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file


@pytest.fixture
def reference(shared_dir):
    """Tensors by name: what went in, the point of the path, its velocity, both losses."""
    return load_file(shared_dir / "reference/parity/flow_matching.safetensors")
