"""An index gives what was written, wherever it is opened, and whatever is wrong with it is one sentence."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from aligntok.data.index import Index, domain_of, host_of
from aligntok.data.index.write import Shard, write_index
from aligntok.errors import AlignTokError, ConfigError, DataError
from aligntok.io.files import write_json

DTYPES = {"offset": "i8", "size": "u4", "height": "u2", "width": "u2", "score": "f4"}
SAMPLES = (3, 0, 2)


def columns(shard):
    numbers = np.arange(SAMPLES[shard])
    return {
        "offset": 512 + 1024 * numbers,
        "size": 100 + numbers,
        "height": 30 + shard + numbers,
        "width": 40 + numbers,
        "score": np.where(numbers, numbers / 3, np.nan),
    }


def write(out, places):
    shards = [Shard(place, 4096, f"tag {i}", n) for i, (place, n) in enumerate(zip(places, SAMPLES, strict=True))]
    write_index(out, "tar", None, DTYPES, shards, columns)
    return out


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "index", [f"{tmp_path}/data/{name}.tar" for name in ("a/0", "a/1", "b/2")])


def test_what_was_written_is_read_and_stays_on_disk(folder, tmp_path):
    index = Index.open(folder)
    assert (len(index), index.kind, index.caption, index.columns) == (5, "tar", None, DTYPES)
    assert index.column("height").tolist() == [30, 31, 32, 32, 33]
    assert np.isnan(index.column("score")[[0, 3]]).all()
    assert index.column("score")[2] == np.float32(2 / 3)
    assert isinstance(index.column("size"), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        index.column("size")[0] = 1
    assert [index.shards.place(i) for i in range(3)] == [
        f"{tmp_path}/data/{name}.tar" for name in ("a/0", "a/1", "b/2")
    ]
    assert index.shards.first.tolist() == [0, 3, 3, 5]
    assert index.shard_of([0, 2, 3, 4]).tolist() == [0, 0, 2, 2]  # none is of the empty one
    begins, ends = index.spans(np.array([2, 3]))
    assert (begins.tolist(), ends.tolist()) == ([2560, 512], [2662, 612])


def test_it_moves_with_its_shards_and_is_the_same_for_the_same_content(folder, tmp_path):
    folder.parent.joinpath("elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "index")
    assert Index.open(moved).shards.place(0) == f"{tmp_path}/elsewhere/data/a/0.tar"
    again = write(tmp_path / "again", [f"{tmp_path}/data/{name}.tar" for name in ("a/0", "a/1", "b/2")])
    assert Index.open(again).digest == Index.open(moved).digest
    other = write(tmp_path / "other", [f"{tmp_path}/data/{name}.tar" for name in ("a/0", "a/1", "b/3")])
    assert Index.open(other).digest != Index.open(again).digest


@pytest.mark.parametrize(
    ("places", "root"),
    [
        (["https://a.org/x/0.tar", "https://a.org/x/1.tar", "https://a.org/y/0.tar"], "https://a.org/"),
        (["https://a.org/x/0.tar", "https://b.org/x/0.tar", "s3://c/x/0.tar"], ""),
        (["s3://c/x/0.tar", "s3://c/x/1.tar", "s3://c/x/12.tar"], "s3://c/x/"),
    ],
)
def test_addresses_of_shards_are_kept(tmp_path, places, root):
    index = Index.open(write(tmp_path / "index", places))
    assert index.shards.root == root
    assert [index.shards.place(i) for i in range(3)] == places


def test_another_process_opens_it_again_and_notices_another_one(folder, tmp_path):
    index = Index.open(folder)
    copy = pickle.loads(pickle.dumps(index))
    assert copy.column("offset").tolist() == index.column("offset").tolist()
    sent = pickle.dumps(index)
    assert len(sent) < 1000
    write(folder, [f"{tmp_path}/data/{name}.tar" for name in ("a/0", "a/1", "c/2")])
    with pytest.raises(DataError, match="another index than when this started"):
        pickle.loads(sent)


def test_an_unknown_column_is_answered_with_those_there_are(folder):
    with pytest.raises(ConfigError, match="no column named 'scores'; did you mean 'score'"):
        Index.open(folder).column("scores")


@pytest.mark.parametrize(("offset", "size"), [(4000, 97), (-1, 1), (4097, 0), (2**62, 1)])
def test_a_place_outside_of_its_shard_is_named_when_it_is_read(folder, tmp_path, offset, size):
    for name, value in (("offset", offset), ("size", size)):
        np.load(folder / f"columns/{name}.npy", mmap_mode="r+")[4] = value
    index = Index.open(folder)
    index.spans(np.arange(4))
    with pytest.raises(DataError, match=f"sample 4 would lie at byte {offset:,} of {tmp_path}/data/b/2.tar"):
        index.spans(np.arange(5))
    np.load(folder / "columns/offset.npy", mmap_mode="r+")[4] = 4096 - size if size else 4096
    index.spans(np.arange(5))


def changed(name, **values):
    """Write other values into one of the two JSON files."""

    def change(folder):
        content = json.loads((folder / name).read_text())
        write_json(folder / name, content | values)

    return change


def cut_off(folder):
    path = folder / "columns/width.npy"
    path.write_bytes(path.read_bytes()[:-1])


def longer(folder):
    with (folder / "columns/width.npy").open("ab") as file:
        file.write(b"1")


def of_objects(folder):
    np.save(folder / "columns/width.npy", np.array([print] * 5, dtype=object), allow_pickle=True)


def a_pipe(folder):
    import os

    (folder / "columns/width.npy").unlink()
    os.mkfifo(folder / "columns/width.npy")


DAMAGE = {
    "version 2": (changed("index.json", version=2), "of version 2, not 'aligntok-index' of 1"),
    "another format": (changed("index.json", format="other"), "it is 'other'"),
    "kind": (changed("index.json", kind="zip"), "its kind is 'zip'"),
    "negative": (changed("index.json", samples=-1), "number of samples is -1"),
    "too large": (changed("index.json", samples=2**41), f"number of samples is {2**41}"),
    "of truth": (changed("index.json", samples=True), "number of samples is True"),
    "another number": (changed("index.json", samples=6), "6 samples by index.json and 5 by shards.json"),
    "a path": (changed("index.json", columns={**DTYPES, "../x": "f4"}), r"it has a column '\.\./x'"),
    "objects": (changed("index.json", columns={**DTYPES, "x": "O"}), "of 'O', which cannot be"),
    "no dict": (changed("index.json", columns=[1]), "index.json cannot be read"),
    "a column less": (changed("index.json", columns={"size": "u4"}), "its column offset is None, and not i8"),
    "captions": (changed("index.json", caption="txt"), "its column caption_offset is None"),
    "no captions' place": (changed("index.json", caption=3), "its place of captions is 3"),
    "a column without a file": (changed("index.json", columns={**DTYPES, "x": "f4"}), "x.npy cannot be read"),
    "root": (changed("index.json", root=3), "its root and its digest"),
    "too short a list": (changed("shards.json", sizes=[1]), "different lengths"),
    "size": (changed("shards.json", sizes=[1, 2, -3]), "a size or a number of samples is none"),
    "samples of one": (changed("shards.json", samples=[3, 0, "2"]), "a size or a number of samples is none"),
    "many samples": (changed("shards.json", samples=[2**61, 2**61, 5]), "its shards hold"),
    "leads out": (changed("shards.json", paths=["a/0.tar", "b", "../../c"]), "does not lead from the root"),
    "absolute": (changed("shards.json", paths=["a/0.tar", "b", "/etc/passwd"]), "does not lead from the root"),
    "address": (changed("shards.json", paths=["a/0.tar", "b", "http://a.org/x"]), "does not lead from the root"),
    "twice": (changed("shards.json", paths=["a", "b", "a"]), "a shard is there twice"),
    "no text": (changed("shards.json", tags=["a", "b", 3]), "a path or a tag is no text"),
    "cut off": (cut_off, r"width.npy cannot be read \(it is uint16 \(5,\) in 137 bytes"),
    "longer": (longer, "width.npy cannot be read"),
    "pickled": (of_objects, "width.npy cannot be read"),
    "pipe": (a_pipe, "width.npy cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_hostile_index_is_refused_in_a_sentence(folder, damage):
    spoil, said = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(DataError, match=said) as caught:
        Index.open(folder)
    assert "make it anew with `aligntok index`" in str(caught.value)


def test_what_is_no_index_and_what_lies_elsewhere_is_said(tmp_path):
    with pytest.raises(DataError, match="index.json cannot be read"):
        Index.open(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="has other things in it"):
        write(tmp_path, [f"{tmp_path}/{n}.tar" for n in range(3)])


def test_an_index_whose_columns_do_not_come_leaves_nothing_and_the_one_before(folder, tmp_path):
    before = Index.open(folder).digest
    (tmp_path / ".index.0123abcd.tmp/columns").mkdir(parents=True)  # as a start leaves it that was killed

    def failing(shard):
        if shard:
            raise DataError("gone")
        return columns(shard)

    with pytest.raises(AlignTokError, match="gone"):
        write_index(folder, "tar", None, DTYPES, [Shard("/a", 1, "", 3), Shard("/b", 1, "", 2)], failing)
    assert Index.open(folder).digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    with pytest.raises(DataError, match="hold no sample"):
        write_index(folder, "tar", None, DTYPES, [Shard("/a", 1, "", 0)], columns)


def test_hosts_have_hashes_that_are_the_same_everywhere():
    assert host_of("HTTPS://user@WWW.Example.org.:8080/a?b") == "example.org"
    assert [host_of(text) for text in ("", "no address", "http://[", "data:x")] == [""] * 4
    assert domain_of("example.org") == 0xBFABC37432958B06  # printf example.org | sha256sum
    assert domain_of("") == 0
