"""What `aligntok data check` finds in an index of shards."""

from __future__ import annotations

import json
import os
import pickle
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aligntok.cli import main
from aligntok.data.buckets import AspectBuckets
from aligntok.data.index.sampled import SampledSource
from aligntok.data.remote import RemoteFiles

COLUMNS = runpy.run_path(str(Path(__file__).with_name("packing.py")))["COLUMNS"]


def look(capsys, *words, status=0):
    assert main(["data", "check", *map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["shards", "tables"])
def test_a_data_check_of_an_index_tells_what_its_columns_say_of_all(kind, build, request, capsys):
    index = build(request.getfixturevalue(kind))
    (told,) = look(capsys, index.folder, "--equal-area", 64, "--decoded", 5)["data"].values()
    assert (told["images"], told["decoded"]) == (len(index), 5)
    heights, widths = (index.column(name).astype(int) for name in ("height", "width"))
    there = heights > 0
    short = sorted(map(min, zip(heights[there], widths[there], strict=True)))
    assert told["short_side"] == [short[0], short[(len(short) - 1) // 2], short[-1]]
    assert told["without_header"] == len(index) - sum(there)
    assert sum(told["shapes"].values()) == sum(there)
    shapes = AspectBuckets(dict(side=64))
    wanted = Counter(
        shapes.nearest(*size) for size in zip(heights[there].tolist(), widths[there].tolist(), strict=True)
    )
    assert [*told["shapes"].values()] == [wanted[number] for number in range(len(shapes))]
    assert told["captions"]["images"] == int((index.column("caption_size") > 0).sum())
    for name, column in told["columns"].items():
        values = index.column(name)
        assert column["spread"] == pytest.approx([np.nanmin(values), np.nanmedian(values), np.nanmax(values)])
        assert column["missing"] == pytest.approx(np.isnan(values).mean(), abs=1e-4)
    assert {*told["columns"]} == {*COLUMNS}
    assert main(["data", "check", str(index.folder)]) == 0
    assert COLUMNS[0] in capsys.readouterr().out


def test_a_data_check_of_an_index_reads_shards_and_has_no_use_for_what_folders_have(shards, build, capsys):
    index = build(shards)
    assert main(["data", "check", str(index.folder), "--splits", "train"]) == 2
    assert "is an index of shards, which has no use for --splits" in capsys.readouterr().err
    assert main(["data", "check", str(index.folder), "--caption", "txt"]) == 2
    assert "which has no use for --caption" in capsys.readouterr().err
    path = sorted(shards.glob("*.tar"))[0]
    data = bytearray(path.read_bytes())
    begin = int(index.column("offset")[0])
    data[begin : begin + 64] = bytes(64)
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (told,) = look(capsys, index.folder, status=1)["data"].values()
    assert told["unreadable"]["images"] == 1


def test_samples_of_an_index_can_be_looked_at_by_processes_that_are_not_forked(tables, build):
    source = SampledSource(build(tables), 5, RemoteFiles())
    whole = [source.read(i) for i in range(5)]
    copied = pickle.loads(pickle.dumps(source))
    assert [copied.read(i) for i in range(5)] == whole
