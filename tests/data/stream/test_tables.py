"""Rows of parquet shards come as samples of tar shards do."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from aligntok.data.captions import drawn
from aligntok.data.index.build import build_index
from aligntok.data.sampler import SampleIndex
from aligntok.data.settings import IndexRequest
from aligntok.data.stream.dataset import StreamDataset
from aligntok.errors import ShardError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
SIZES = [(32, 32), (32, 40), (40, 32)]
_spec = importlib.util.spec_from_file_location("shards", Path(__file__).parents[1] / "shards.py")
shards = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shards)


def rows(numbers, several=False):
    for number in numbers:
        caption = f" picture {number} é"
        yield {
            "image": {"bytes": shards.picture(number)[0], "path": None},
            "caption": [caption, "another"] if several else caption,
            "score": None if number % 10 == 9 else float(number % 10),
        }


def write(folder, several=False):
    folder.mkdir()
    for shard, numbers in enumerate((range(100), range(100, 170))):
        table = pyarrow.Table.from_pylist([*rows(numbers, several)])
        parquet.write_table(table, folder / f"{shard}.parquet", row_group_size=30)  # blocks lie across


@pytest.fixture
def tables(tmp_path):
    write(tmp_path / "tables")
    return build_index(
        IndexRequest(shards=(str(tmp_path / "tables"),), out=tmp_path / "index", columns=("score",), workers=0)
    )


def open_stream(folder, tmp_path, **more):
    wanted = dict(where="score >= 2", image_size=SIZES, caption="auto", window=2, cache=str(tmp_path / "cache"))
    return StreamDataset(folder, **{**wanted, **more})


def read(data, steps=12):
    batches = list(data.batches(10, 3, num_steps=steps))
    return [item for batch in batches for item in data.__getitems__(batch)]


def told(items):
    return [(item["index"], item["caption"], item["images"].tolist()) for item in items]


def test_every_row_comes_with_its_own_pixels_and_caption(tables, tmp_path, build_index):
    data = open_stream(tables.folder, tmp_path)
    assert len(data) == 170 * 7 // 10
    found = read(data)
    assert {item["index"] for item in found} == {n for n in range(170) if 2 <= n % 10 < 9}
    build_index(tmp_path / "tar", (100, 70))
    tar = StreamDataset(tmp_path / "tar/index", where="score >= 2", image_size=SIZES)
    assert all(item["caption"] == f"picture {item['index']} é" for item in found)
    for request in (SampleIndex(12, 5), SampleIndex(98, 6), SampleIndex(105, 7)):
        assert torch.equal(data[request]["images"], tar[request]["images"])
    assert len(list((tmp_path / "cache").glob("*.block"))) == 4  # 64 and 36, 64 and 6


def test_it_is_the_same_kept_or_not_and_from_far_away(tables, tmp_path, serve):
    whole = told(read(open_stream(tables.folder, tmp_path)))
    (tmp_path / "file").write_text("")
    assert told(read(open_stream(tables.folder, tmp_path, cache=str(tmp_path / "file")))) == whole
    served = serve(tmp_path / "tables")
    places = tuple(f"{served.url}/{shard}.parquet" for shard in range(2))
    build_index(IndexRequest(shards=places, out=tmp_path / "far", columns=("score",), workers=0))
    served.fail("503", 5)
    far = open_stream(tmp_path / "far", tmp_path, cache=str(tmp_path / "other"), remote=dict(pause=0.01))
    assert told(read(far)) == whole


def test_of_several_captions_one_is_drawn_as_images_draw_it(tmp_path):
    write(tmp_path / "tables", several=True)
    build_index(IndexRequest(shards=(str(tmp_path / "tables"),), out=tmp_path / "index", columns=("score",), workers=0))
    data = open_stream(tmp_path / "index", tmp_path, seed=3)
    assert data[3]["caption"] == f"picture {data[3]['index']} é"
    requests = [SampleIndex(number, 4090 + number) for number in range(2, 9)]
    wanted = [(f"picture {n} é", "another")[drawn(3, 4090 + n, 2)] for n in range(2, 9)]
    assert len({*wanted}) > 2
    (tmp_path / "file").write_text("")
    for cache in ("cache", "file"):  # kept, or not
        kept = open_stream(tmp_path / "index", tmp_path, seed=3, cache=str(tmp_path / cache))
        assert [item["caption"] for item in kept.__getitems__(requests)] == wanted
    still = open_stream(tmp_path / "index", tmp_path, seed=3, train=False)
    assert [item["caption"] for item in still.__getitems__(requests)] == [f"picture {n} é" for n in range(2, 9)]


def test_captions_without_text_are_passed_over_and_others_are_drawn_from_both_kinds_of_shards(tmp_path):
    given = [[None, "a cat"], ["", " a cat "], ["a cat"], [" a dog", "", "a cat"]]
    rows = [{"image": {"bytes": shards.picture(0)[0], "path": None}, "caption": each} for each in given]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tars").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "tables/0.parquet")
    with tarfile.open(tmp_path / "tars/0.tar", "w") as tar:
        for number, row in enumerate(rows):
            texts = [text or "" for text in row["caption"]]
            for name, data in (("png", row["image"]["bytes"]), ("json", json.dumps({"caption": texts}).encode())):
                info = tarfile.TarInfo(f"{number}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for kind in ("tables", "tars"):
        build_index(IndexRequest(shards=(str(tmp_path / kind),), out=tmp_path / "index", workers=0))
        data = StreamDataset(tmp_path / "index", image_size=32, caption="auto", cache=str(tmp_path / kind / "cache"))
        assert [data[SampleIndex(place, 0)]["caption"] for place in range(3)] == ["a cat"] * 3
        found = [data[SampleIndex(3, number)]["caption"] for number in range(20)]
        assert found == [("a dog", "a cat")[drawn(0, number, 2)] for number in range(20)]


def test_a_shard_that_is_another_than_was_indexed_is_named(tables, tmp_path):
    table = pyarrow.Table.from_pylist([*rows(range(200, 300))])
    parquet.write_table(table, tmp_path / "tables/0.parquet", row_group_size=30)
    with pytest.raises(ShardError, match=r"0\.parquet cannot be read"):
        read(open_stream(tables.folder, tmp_path))


def far(tmp_path, serve, out="far"):
    served = serve(tmp_path / "tables")
    places = tuple(f"{served.url}/{shard}.parquet" for shard in range(2))
    build_index(IndexRequest(shards=places, out=tmp_path / out, columns=("score",), workers=0))
    return served


def test_another_file_of_the_same_size_is_named_and_nothing_kept_of_it_is_used(tables, tmp_path, serve):
    far(tmp_path, serve)
    read(open_stream(tmp_path / "far", tmp_path))
    data = bytearray((tmp_path / "tables/0.parquet").read_bytes())
    (tmp_path / "tables/0.parquet").write_bytes(data)
    with pytest.raises(ShardError, match="0.parquet cannot be read: it is another file than was listed"):
        read(open_stream(tmp_path / "far", tmp_path, cache=str(tmp_path / "new")))
    far(tmp_path, serve)
    before = len(list((tmp_path / "cache").glob("*.block")))
    read(open_stream(tmp_path / "far", tmp_path))
    assert (
        len(list((tmp_path / "cache").glob("*.block"))) > before
    )  # those of the other server and tag are not believed


def test_a_caption_of_gigabytes_by_the_index_fills_no_memory(tables, tmp_path):
    np.load(tables.folder / "columns/caption_size.npy", mmap_mode="r+")[:] = 4 * 10**9
    with pytest.raises(ShardError, match="4000000000 bytes, which is not between"):
        read(open_stream(tables.folder, tmp_path), 1)
