"""A loader reads what it is asked for, and keeps to itself what is no mistake."""

from __future__ import annotations

import os

from aligntok.data.loader import make_loader


def test_more_processes_than_cores_are_no_warning():
    """Warnings are errors here; none of the processes starts before the loader is read."""
    assert make_loader(range(3), [[0, 1], [2]], 4 * (os.cpu_count() or 1)).num_workers > (os.cpu_count() or 1)
    assert [batch.tolist() for batch in make_loader(range(3), [[0, 1], [2]], 0)] == [[0, 1], [2]]
