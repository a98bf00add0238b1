"""The order of a stream is a function of (seed, number): a permutation of what passes, well mixed, cheap to look up."""

from __future__ import annotations

import math
import pickle
from itertools import chain

import numpy as np
import pytest

from aligntok.data.sampler import SampleIndex
from aligntok.data.settings import Wanted
from aligntok.data.stream.order import StreamOrder, StreamSampler, permuted
from aligntok.data.stream.selection import select
from aligntok.errors import DataError
from aligntok.rng import rng

SIZES = [(32, 32), (32, 40), (40, 32)]
KEYS = np.random.default_rng(5).integers(2**64, size=6, dtype=np.uint64)


@pytest.fixture
def selection(index):
    return select(index, Wanted(where="score >= 2", image_size=SIZES))


@pytest.mark.parametrize("among", [1, 2, 3, 4, 5, 7, 64, 65, 101, 1009, 65_537, 100_003])
def test_it_is_a_permutation_of_any_number(among):
    found = permuted(np.arange(among), among, KEYS)
    assert np.array_equal(np.sort(found), np.arange(among))
    assert np.array_equal(permuted(np.arange(among)[::-1], among, KEYS), found[::-1])  # each by itself


def test_it_looks_like_a_random_one():
    among = 100_003
    found = permuted(np.arange(among), among, KEYS)
    assert abs(np.abs(np.diff(found)).mean() / among - 1 / 3) < 0.01  # of two random places
    assert abs(np.corrcoef(np.arange(among), found)[0, 1]) < 0.01
    assert abs((np.diff(found) > 0).mean() - 0.5) < 0.01
    assert (found == np.arange(among)).sum() < 8  # one in the mean
    quarters = np.histogram2d(np.arange(among), found, bins=4)[0]
    assert np.abs(quarters / (among / 16) - 1).max() < 0.05
    other = permuted(np.arange(among), among, KEYS ^ np.uint64(1))
    assert (other == found).mean() < 1e-3
    distances = permuted(np.arange(2000), among, KEYS) - permuted(np.arange(2000), among, KEYS[::-1].copy())
    assert len(np.unique(distances)) > 1900


def slow_table(order, epoch, bucket, window):
    """What the order's text says, sample by sample."""
    selection, places = order.selection, range(order.selection.blocks.number)
    blocks = [int(order.blocks(epoch, np.array([place]))[0]) for place in places]
    kept = []
    for block in blocks:
        (begin,), (end,) = selection.blocks.ranges(np.array([block]))
        kept.append([sample for sample in range(begin, end) if selection.buckets[sample] == bucket])
    inside = kept[window * order.window : (window + 1) * order.window]
    before = epoch * int(selection.totals[bucket]) + sum(map(len, kept[: window * order.window]))
    members = [sample for block in inside for sample in block]
    lane = [(before + i) % order.batch_size * order.lanes // order.batch_size for i in range(len(members))]
    drawn = rng("window", order.seed, epoch, bucket, window).random(len(members))
    table, taken = [0] * len(members), 0
    for each in range(order.lanes):
        places = [i for i in range(len(members)) if lane[i] == each]
        share = range(taken, taken + len(places))
        for place, j in zip(places, sorted(share, key=lambda j: drawn[j]), strict=True):
            table[place] = members[j]
        taken += len(places)
    return table


@pytest.mark.parametrize("batch_size", [1, 6, 16, 96, 1000])
def test_the_fast_order_is_the_slow_one(selection, batch_size):
    order = StreamOrder(selection, 3, batch_size, window=2)
    assert order.lanes == math.gcd(batch_size, 64)
    for bucket in range(3):
        slow = [
            sample for epoch in (0, 1) for window in range(4) for sample in slow_table(order, epoch, bucket, window)
        ]
        assert order.samples(bucket, 0, len(slow)).tolist() == slow
        pieces = [order.samples(bucket, first, 7) for first in range(0, len(slow) - 7, 7)]
        assert np.concatenate(pieces).tolist() == slow[: 7 * len(pieces)]


def test_every_sample_comes_once_an_epoch_and_each_epoch_differs(selection):
    order = StreamOrder(selection, 3, 12, window=3)
    for bucket, total in enumerate(selection.totals.tolist()):
        epochs = [order.samples(bucket, epoch * total, total) for epoch in range(3)]
        own = np.flatnonzero(selection.buckets == bucket)
        assert all(np.array_equal(np.sort(epoch), own) for epoch in epochs)
        assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(StreamOrder(selection, 4, 12, window=3).samples(0, 0, 20), order.samples(0, 0, 20))


def test_it_is_the_same_in_another_process_and_from_any_place(selection):
    order = StreamOrder(selection, 3, 12)
    copied = pickle.loads(pickle.dumps(order))
    assert copied.samples(1, 1_000_003, 9).tolist() == order.samples(1, 1_000_000, 12)[3:].tolist()


def test_a_process_reads_its_share_of_the_blocks(build_index, tmp_path):
    selection = select(build_index(tmp_path, [64] * 32), Wanted(image_size=SIZES))
    number, order = 16, None
    for processes in (1, 2, 4):
        order = StreamOrder(selection, 0, number, window=32)
        whole = order.samples(0, 0, int(selection.totals[0]) // number * number).reshape(-1, number)
        shares = np.split(whole, processes, axis=1)  # of every batch its own range
        read = [len(np.unique(selection.blocks.of(share.ravel()))) for share in shares]
        assert max(read) <= 32 / processes + 2
        assert len(np.unique(selection.blocks.of(whole[:4].ravel()))) > 20  # while each batch mixes them


def test_a_selection_that_does_not_fit_its_counts_is_damaged(selection):
    path = selection.folder / "buckets.npy"
    content = bytearray(path.read_bytes())
    content[-3:] = bytes(b"\xff\xff\xff" if content[-3:] != b"\xff\xff\xff" else b"\0\0\0")
    path.write_bytes(bytes(content))
    order = StreamOrder(select(selection.index, Wanted(where="score >= 2", image_size=SIZES)), 0, 8)
    with pytest.raises(DataError, match="damaged"):
        [order.samples(bucket, 0, total) for bucket, total in enumerate(selection.totals.tolist())]


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (3, 1), (4, 1), (2, 3), (1, 12)])
def test_any_split_sees_the_same_batches(selection, processes, accumulation):
    whole = [*StreamSampler(selection, 12, 5, num_steps=40, window=2)]
    split = [
        [*StreamSampler(selection, 12, 5, r, processes, accumulation, num_steps=40, window=2)] for r in range(processes)
    ]
    for step, batch in enumerate(whole):
        parts = [split[r][step * accumulation + m] for m in range(accumulation) for r in range(processes)]
        assert [*chain(*parts)] == batch
        assert [request.sample_number for request in batch] == [*range(step * 12, step * 12 + 12)]
        assert len({int(selection.buckets[request.index]) for request in batch}) == 1
    later = StreamSampler(selection, 12, 5, num_steps=40, start_step=23, window=2)
    assert [*later] == whole[23:]


def test_what_comes_later_is_told_for_each_process(selection):
    sampler = StreamSampler(selection, 12, 5, 1, 2, 3, num_steps=40, window=2)
    ahead = sampler.steps_ahead
    for micro in range(3):
        assert sampler.later(sampler.batch(7, micro)[0]) == sampler.batch(7 + ahead, micro)
    assert sampler.later(SampleIndex(0, 12 * (40 - ahead))) == []


def test_the_table_of_a_window_is_made_once_for_all_numbers_in_it(selection, monkeypatch):
    made, shuffle = [], StreamOrder._shuffle
    monkeypatch.setattr(StreamOrder, "_shuffle", lambda self, *which: made.append(which) or shuffle(self, *which))
    order = StreamOrder(selection, 0, 64, window=2)
    of_bucket = int(selection.totals[0])
    for first in range(0, 3 * of_bucket, 64):
        order.samples(0, first, 64)
    assert len(made) == len({*made}) > 3
