"""Reading on and on takes no more memory."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from aligntok.data.stream.dataset import StreamDataset


def held():
    """MB that this process holds for itself, the files that it maps apart."""
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1000


@pytest.mark.nightly
def test_memory_is_flat_over_a_hundred_thousand_samples(build_index, tmp_path, serve):
    (tmp_path / "far/shards").mkdir(parents=True)
    served = serve(tmp_path / "far/shards")
    (tmp_path / "far/shards").rmdir()
    build_index(tmp_path / "far", (1000, 1000, 500), at=served.url)
    data = StreamDataset(tmp_path / "far/index", image_size=32, cache=str(tmp_path / "cache"), cache_gb=0.004, window=8)
    levels = []
    for step, batch in enumerate(data.batches(100, 0, num_steps=1000)):
        data.__getitems__(batch)
        if step % 100 == 99:
            levels.append(held())
            served.asked.clear()
    assert max(levels[2:]) - levels[1] < 20, levels
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 4_000_000
