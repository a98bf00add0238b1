"""What is fetched from far away is fetched once, stays within its bound, and is never half of what it was."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligntok.data.stream import cache as module
from aligntok.data.stream.cache import BlockCache
from aligntok.data.stream.reader import joined
from aligntok.errors import ShardError

WHOLE = bytes(range(100)) * 10


def fetching(asked, content=WHOLE, seconds=0.0):
    def fetch():
        asked.append(len(content))
        time.sleep(seconds)
        return content

    return fetch


def test_a_block_is_fetched_once_and_read_in_parts(tmp_path):
    asked, cache = [], BlockCache(tmp_path / "kept", 10**6)
    fetch = fetching(asked)
    assert cache.read("one", 1000, 10, 5, fetch) == WHOLE[10:15]
    assert cache.read("one", 1000, 990, 10, fetch) == WHOLE[990:]
    assert BlockCache(tmp_path / "kept", 10**6).read("one", 1000, 0, 1000, fetch) == WHOLE
    assert asked == [1000]
    cache.read("other", 1000, 0, 1, fetch)
    assert len(asked) == 2
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".block", ".block"]
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


def test_threads_that_ask_at_once_fetch_once(tmp_path):
    asked, cache = [], BlockCache(tmp_path, 10**6)
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda i: cache.read("one", 1000, i, 10, fetching(asked, seconds=0.1)), range(8))]
    assert found == [WHOLE[i : i + 10] for i in range(8)]
    assert asked == [1000]


def _read_in_process(folder, results):
    asked = []
    data = BlockCache(folder, 10**6).read("one", 1000, 3, 10, fetching(asked, seconds=0.3))
    results.put((data, len(asked)))


def test_processes_that_ask_at_once_fetch_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    several = [context.Process(target=_read_in_process, args=(tmp_path, results)) for _ in range(3)]
    [process.start() for process in several]
    found = [results.get(timeout=30) for _ in several]
    [process.join() for process in several]
    assert {data for data, _ in found} == {WHOLE[3:13]}
    assert sum(number for _, number in found) == 1


def test_what_was_used_longest_ago_goes_first(tmp_path):
    asked, cache = [], BlockCache(tmp_path, 3500)
    for number in range(3):
        cache.read(f"{number}", 1000, 0, 1, fetching(asked))
        os.utime(cache._path(f"{number}"), (number + 1, number + 1))
    left = tmp_path / f".{'a' * 32}.block.0123abcd.tmp"  # of a process that was killed
    foreign = [tmp_path / "mine.tmp", tmp_path / "mine.block"]
    for path in (left, *foreign):
        path.write_bytes(b"x" * 400)
        os.utime(path, (1, 1))
    cache.read("0", 1000, 0, 1, fetching(asked))  # used now
    cache.read("3", 1000, 0, 1, fetching(asked))
    there = [number for number in range(4) if cache._path(f"{number}").exists()]
    assert there == [0, 2, 3]
    assert not left.exists()
    assert all(path.exists() for path in foreign)
    assert len(asked) == 4


def test_a_block_that_is_cut_off_or_gone_is_fetched_again(tmp_path):
    asked, cache = [], BlockCache(tmp_path, 10**6)
    cache.read("one", 1000, 0, 1, fetching(asked))
    os.truncate(cache._path("one"), 999)
    assert cache.read("one", 1000, 10, 5, fetching(asked)) == WHOLE[10:15]
    cache._path("one").unlink()
    assert cache.read("one", 1000, 10, 5, fetching(asked)) == WHOLE[10:15]
    assert len(asked) == 3


def test_a_full_disk_is_said_once_and_reading_goes_on(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    asked, cache = [], BlockCache(tmp_path, 10**6)
    monkeypatch.setattr(module.os, "replace", full)
    with caplog.at_level(logging.WARNING, "aligntok.data"):
        for number in range(3):
            assert cache.read(f"{number}", 1000, 10, 5, fetching(asked)) == WHOLE[10:15]
    assert [record.message.count("No space left") for record in caplog.records] == [1]
    assert [*tmp_path.iterdir()] == []
    assert not cache.works


def test_a_failure_is_handed_on_and_the_next_one_asks_again(tmp_path):
    def away():
        raise ShardError("it stays away")

    asked, cache = [], BlockCache(tmp_path, 10**6)
    with pytest.raises(ShardError):
        cache.read("one", 1000, 0, 1, away)
    assert cache.works
    assert cache.read("one", 1000, 0, 1, fetching(asked)) == WHOLE[:1]


def test_a_folder_of_another_user_is_not_trusted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module.os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    cache = BlockCache(tmp_path, 10**6)
    assert cache.read("one", 1000, 0, 5, fetching([])) == WHOLE[:5]
    assert "another user" in caplog.text


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 200)), max_size=20), st.integers(0, 100))
def test_ranges_are_joined_where_they_are_near(ranges, gap):
    begins = np.array([begin for begin, _ in ranges], dtype=np.int64)
    ends = begins + np.array([size for _, size in ranges], dtype=np.int64)
    found = list(zip(*(each.tolist() for each in joined(begins, ends, gap, 500)), strict=True))
    assert found == sorted(found)
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        assert any(first <= begin and end <= last for first, last in found)  # each lies within one
    assert all(last - first <= 500 for first, last in found)
    needed = {byte for begin, end in zip(begins.tolist(), ends.tolist(), strict=True) for byte in range(begin, end)}
    for first, last in found:  # and no further than that from another
        inside = sorted(needed & {*range(first, last)})
        assert inside[0] == first
        assert inside[-1] == last - 1
        assert all(b - a <= gap + 1 for a, b in pairwise(inside))
