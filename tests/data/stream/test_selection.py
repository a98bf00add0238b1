"""What passes is found once, is what a slow look at each sample finds, and is opened in no time after that."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligntok.data.buckets import AspectBuckets
from aligntok.data.index import Index, domain_of
from aligntok.data.index.write import Shard, write_index
from aligntok.data.settings import Wanted
from aligntok.data.stream import selection as module
from aligntok.data.stream.selection import BLOCK, Blocks, select
from aligntok.errors import ConfigError, DataError, WriteError

SIZES = [(32, 32), (32, 40), (40, 32)]
WANTED = dict(where="score >= 3", image_size=SIZES)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=12, unique=True),
    st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535)), min_size=1, max_size=20),
)
def test_the_nearest_shape_is_that_which_is_found_one_by_one(shapes, images):
    buckets = AspectBuckets(shapes)
    heights, widths = np.array(images, dtype=np.uint16).T
    assert buckets.nearest_of(heights, widths).tolist() == [buckets.nearest(*image) for image in images]


def test_ties_go_to_the_first_shape():
    buckets = AspectBuckets([(4, 5), (5, 4), (4, 8), (8, 4)])
    images = [(n, n) for n in range(1, 400)] + [(n * 63, n * 100) for n in range(1, 90)]
    heights, widths = np.array(images).T
    found = buckets.nearest_of(heights, widths).tolist()
    assert found == [buckets.nearest(*image) for image in images]
    assert found[:399] == [0] * 399


def test_blocks_end_with_their_shards():
    blocks = Blocks(np.array([0, 100, 170, 170, 298, 300]))
    begins, ends = blocks.ranges(np.arange(blocks.number))
    assert begins.tolist() == [0, 64, 100, 164, 170, 234, 298]
    assert ends.tolist() == [64, 100, 164, 170, 234, 298, 300]
    of = blocks.of(np.arange(300))
    assert all(begins[block] <= sample < ends[block] for sample, block in enumerate(of))


def test_the_selection_is_what_a_look_at_each_sample_finds(index):
    wanted = Wanted(**WANTED, max_aspect_ratio=1.2)
    found = select(index, wanted)
    column, shapes = {name: index.column(name).tolist() for name in index.columns}, AspectBuckets(SIZES)
    for i in range(len(index)):
        height, width, score = (column[name][i] for name in ("height", "width", "score"))
        passes = score >= 3 and max(height, width) <= 1.2 * min(height, width)  # a missing score is not
        assert found.buckets[i] == (shapes.nearest(height, width) if passes else 255)
    assert len(found) == found.totals.sum() == (found.buckets != 255).sum() > 0
    for block, (begin, end) in enumerate(zip(*found.blocks.ranges(np.arange(7)), strict=True)):
        assert found.counts[block].tolist() == [(found.buckets[begin:end] == b).sum() for b in range(3)]
    assert found.passed["score >= 3"] == 300 * 6 // 10
    assert found.passed["can be read"] == 300


def test_a_place_among_those_that_pass_is_found_without_a_list(index, monkeypatch):
    monkeypatch.setattr(module, "_COARSE", 2)
    found = select(index, Wanted(**WANTED))
    assert [found.nth(i) for i in range(len(found))] == np.flatnonzero(found.buckets != 255).tolist()
    for bucket in range(3):
        own = [found.nth(i, bucket) for i in range(found.totals[bucket])]
        assert own == np.flatnonzero(found.buckets == bucket).tolist()


def test_hosts_captions_and_what_cannot_be_read_are_left_out(tmp_path):
    columns = {
        "offset": np.arange(6) * 1024,
        "size": np.full(6, 100),
        "height": np.array([10, 10, 0, 10, 10, 10]),
        "width": np.array([10, 10, 0, 10, 10, 10]),
        "caption_offset": np.arange(6) * 1024 + 200,
        "caption_size": np.array([5, 0, 5, 5, 5, 5]),
        "domain": np.array([domain_of(host) for host in ("a.org", "a.org", "a.org", "b.org", "", "c.org")], dtype="u8"),
    }
    dtypes = {name: "u8" if name == "domain" else "i8" if "offset" in name else "u4" for name in columns}
    dtypes |= {"height": "u2", "width": "u2"}
    write_index(tmp_path / "i", "tar", "txt", dtypes, [Shard("/x/0.tar", 1 << 20, "", 6)], lambda i: columns)
    (tmp_path / "hosts").write_text("b.org\n")
    found = select(Index.open(tmp_path / "i"), Wanted(blocked_domains=str(tmp_path / "hosts"), captioned=True))
    assert np.flatnonzero(found.buckets != 255).tolist() == [0, 4, 5]
    assert found.passed["host is not blocked"] == 5
    assert found.passed["has a caption"] == 5


def test_samples_are_held_out_by_number_and_the_rest_is_trained_on(index):
    held, rest = (select(index, Wanted(fraction=0.2, held_out=which)).buckets != 255 for which in (True, False))
    assert (held ^ rest).all()
    assert 30 < held.sum() < 90
    more = select(index, Wanted(fraction=0.4, held_out=True)).buckets != 255
    assert (more >= held).all()  # a larger part holds out those and others
    large = module._held_out(np.arange(1_000_000), 0.01)
    assert abs(large.mean() - 0.01) < 5e-4
    assert abs(large.reshape(1000, -1).mean(0) - 0.01).max() < 0.02  # whatever the place within a shard


def test_it_is_made_once_and_then_opened(index, monkeypatch):
    first = select(index, Wanted(**WANTED))
    assert first.folder.parent == index.folder / "selections"
    monkeypatch.setattr(module, "_make", lambda *_: pytest.fail("it was made again"))
    same = select(Index.open(index.folder), Wanted(where=" (score>=3.0)", image_size=[list(size) for size in SIZES]))
    assert same.digest == first.digest
    copied = pickle.loads(pickle.dumps(same))
    assert (copied.buckets == first.buckets).all()
    assert isinstance(copied.buckets, np.memmap)


@pytest.mark.parametrize(
    "other",
    [
        dict(where="score >= 4"),
        dict(image_size=32),
        dict(max_aspect_ratio=2),
        dict(captioned=True),
        dict(fraction=0.1),
        dict(fraction=0.1, held_out=True),
        dict(where=None),
    ],
)
def test_another_wish_is_another_selection(index, other):
    assert select(index, Wanted(**{**WANTED, **other})).digest != select(index, Wanted(**WANTED)).digest


def test_of_several_that_ask_at_once_one_makes_it(index, monkeypatch):
    made, make = [], module._make
    monkeypatch.setattr(module, "_make", lambda *given: (made.append(1), make(*given)))
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda _: select(index, Wanted(**WANTED)), range(8))]
    assert len(made) == 1
    assert len({each.digest for each in found}) == 1
    assert {path.name for path in (index.folder / "selections").iterdir()} == {found[0].digest[:16]}


def test_an_index_that_cannot_be_written_has_its_selections_elsewhere(index, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_can_write", lambda folder: folder == tmp_path / "own")
    found = select(index, Wanted(**WANTED), tmp_path / "own")
    assert found.folder.parent == tmp_path / "own"
    assert not (index.folder / "selections").exists()
    monkeypatch.setattr(module, "_make", lambda *_: pytest.fail("it was made again"))
    assert select(index, Wanted(**WANTED), tmp_path / "own").digest == found.digest


def test_a_full_disk_leaves_nothing(index, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_checksums", full)
    with pytest.raises(WriteError, match="No space left"):
        select(index, Wanted(**WANTED))
    assert [*(index.folder / "selections").iterdir()] == []


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (dict(where="score > 100"), "not one of 300 samples passes .*score > 100: 0"),
        (dict(where="scor > 1"), "did you mean 'score'"),
        (dict(held_out=True), "give fraction="),
        (dict(max_aspect_ratio=51), "max_aspect_ratio=51; it must be .* at most 50"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(index, wanted, told):
    with pytest.raises(ConfigError, match=told):
        select(index, Wanted(**wanted))
    assert not (index.folder / "selections").exists() or not [*(index.folder / "selections").iterdir()]


DAMAGES = [(file, how) for file in ("buckets.npy", "counts.npy", "selection.json") for how in ("cut", "gone", "other")]
DAMAGES.remove(("selection.json", "gone"))  # as one that was not finished
DAMAGES.remove(("buckets.npy", "other"))  # found when its window is read; see test_order.py


@pytest.mark.parametrize(("file", "how"), DAMAGES)
def test_a_damaged_selection_is_said_to_be_damaged(index, file, how):
    path = select(index, Wanted(**WANTED)).folder / file
    if how == "gone":
        path.unlink()
    elif how == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif file == "selection.json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "totals": [1, 2, math.pi]}))
    else:
        path.write_bytes(path.read_bytes()[:-3] + b"\1\2\3")
    with pytest.raises(DataError, match="remove that folder"):
        select(index, Wanted(**WANTED))


def test_a_selection_that_was_not_finished_is_made_anew(index):
    made = select(index, Wanted(**WANTED))
    whole = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    (made.folder / "selection.json").unlink()
    (made.folder / "buckets.npy").write_bytes(b"half")
    assert select(index, Wanted(**WANTED)).folder == made.folder
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == whole


def test_a_block_has_no_more_samples_than_its_count_can_hold():
    assert BLOCK < 256


def test_a_folder_of_another_user_holds_no_selection(index, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(module, "_can_write", lambda folder: folder == other)
        assert select(index, Wanted(**WANTED), other).folder.parent == other
    monkeypatch.setattr(module.os, "getuid", lambda: os.stat(other).st_uid + 1)
    assert select(index, Wanted(**WANTED), other).folder.parent == index.folder / "selections"


def test_what_a_killed_start_left_of_a_selection_goes(index):
    made = select(index, Wanted(**WANTED)).folder
    made.rename(left := made.with_name(f".{made.name}.0123abcd.tmp"))
    select(index, Wanted(**WANTED))
    assert made.exists()
    assert left.exists()  # it may be what a living one is at
    shutil.rmtree(made)
    for path in (left, *left.iterdir()):
        os.utime(path, (0, 0))
    select(index, Wanted(**WANTED))
    assert not left.exists()


def test_without_locks_two_that_select_at_once_leave_each_other_their_work(index, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    decided, first = module._decided, []

    def select_within(*given):
        if not first:
            first.append(None)
            first[0] = os.stat(select(index, Wanted(**WANTED)).folder).st_ino
        yield from decided(*given)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(module, "_decided", select_within)
    second = select(index, Wanted(**WANTED))
    assert os.stat(second.folder).st_ino == first[0]  # the faster one's, whose files are mapped
    assert [path.name for path in (index.folder / "selections").iterdir()] == [second.digest[:16]]
