"""What lies beside, before and around an index, or is odd in its shards, neither breaks it nor is broken by it."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import aligntok.io.arrays as arrays
from aligntok.data.index import Index
from aligntok.data.index.build import merge_indexes
from aligntok.data.index.check import check_index
from aligntok.data.index.write import Shard, write_index
from aligntok.data.settings import IndexCheck, MergeRequest
from aligntok.errors import DataError

packing = runpy.run_path(str(Path(__file__).with_name("packing.py")))
SAMPLES, EACH = packing["SAMPLES"], packing["EACH"]


def write(out, place, dtypes, samples=2):
    """An index of one shard, which is not there, with all columns 1."""
    dtypes = {"row_group": "u4", "row": "u4", "size": "u4", "height": "u2", "width": "u2", **dtypes}
    columns = {name: np.ones(samples, dtype) for name, dtype in dtypes.items()}
    write_index(out, "parquet", None, dtypes, [Shard(place, 10, "", samples)], lambda _: columns)
    return out


def test_a_host_that_is_half_of_a_character_costs_no_shard(tmp_path, build):
    image = SAMPLES[0][0]
    said = json.dumps({"url": "http://\ud800.org/a.jpg"}).encode()
    packing["write_tar"](tmp_path / "data/0.tar", [("a.jpg", image), ("a.json", said)])
    assert len(build(tmp_path / "data", columns=())) == 1


@pytest.mark.parametrize("caption", [{"en": "a fox"}, [["a fox"]]])
def test_a_column_that_holds_no_texts_is_no_column_of_captions(tmp_path, build, caption):
    packing["write_table"](tmp_path / "data/0.parquet", [{"image": {"bytes": SAMPLES[0][0]}, "caption": caption}])
    assert build(tmp_path / "data", columns=()).caption is None
    with pytest.raises(DataError, match="no column of captions named 'caption'"):
        build(tmp_path / "data", columns=(), caption="caption")


def test_a_table_that_changed_beside_its_shard_is_read_again(shards, build):
    (shards / "00001.tar").rename(shards / "kept")
    words = f"{shards}/{{00000..00001}}.tar"
    with pytest.raises(DataError, match="cannot be indexed"):
        build(words)  # the first one is kept
    rows = [{**about, "hits": -1} for *_, about in SAMPLES[:EACH]]
    packing["write_table"](shards / "00000.parquet", rows)
    (shards / "kept").rename(shards / "00001.tar")
    assert build(words).column("hits")[:EACH].tolist() == [-1] * EACH


def test_an_index_that_takes_the_place_of_a_link_finds_its_shards(shards, build, tmp_path):
    build(shards, out="far/away/index")
    (tmp_path / "index").symlink_to(tmp_path / "far/away/index")
    index = build(shards)
    assert os.path.samefile(index.shards.place(0), shards / "00000.tar")
    assert os.path.samefile(Index.open(tmp_path / "far/away/index").shards.place(0), shards / "00000.tar")


def test_what_another_index_is_being_made_in_stays(shards, build, tmp_path):
    other, left = tmp_path / ".index.val.0123abcd.tmp", tmp_path / ".index.0123abcd.tmp"
    other.mkdir()
    left.mkdir()  # of a start that was killed
    build(shards)
    assert other.exists()
    assert not left.exists()


def test_columns_of_any_type_are_merged(tmp_path):
    parts = [write(tmp_path / name, f"/x/{name}.parquet", {"n": dtype}) for name, dtype in (("a", "u1"), ("b", "i8"))]
    index = merge_indexes(MergeRequest(parts=tuple(map(str, parts)), out=tmp_path / "all"))
    assert index.columns["n"] == "i8"
    assert index.column("n").tolist() == [1] * 4


def test_hosts_that_are_no_hashes_are_refused(tmp_path):
    with pytest.raises(DataError, match="its column domain is f4, and not u8"):
        Index.open(write(tmp_path / "index", "/x/a.parquet", {"domain": "f4"}))


def test_threads_that_look_up_samples_parse_nothing(tmp_path, monkeypatch):
    index = Index.open(write(tmp_path / "index", "/x/a.parquet", {}))
    monkeypatch.setattr(arrays, "_read_header", None)  # Python's parser fails in several threads before 3.11.8
    assert index.at("row", [1]).tolist() == [1]


def test_a_caption_that_is_gone_from_a_table_is_found(tables, build):
    index = build(tables)
    np.load(index.folder / "columns/caption_size.npy", mmap_mode="r+")[3] += 1
    problems, _ = check_index(IndexCheck(index=index.folder))
    assert "no caption lies where the index says" in " ".join(problems)


def test_a_table_of_types_that_nobody_reads_is_a_damaged_one(tables, build, monkeypatch, caplog):
    def refuse(*_, **__):  # as it does where bytes at the end of a file have changed
        raise pyarrow.lib.ArrowNotImplementedError("Integers with more than 64 bits not implemented")

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", refuse)
    with pytest.raises(DataError, match="3 of 3 shards cannot be indexed"):
        build(tables)
    assert "0.parquet cannot be read (Integers with more than 64 bits not implemented)" in caplog.text
