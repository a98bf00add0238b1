"""A stream gives the same batches whatever reads them: processes, workers, interruptions, faults of the server."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import time
from itertools import chain, product

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from aligntok.data.images import ImageDataset, find_buckets
from aligntok.data.loader import explaining_loader_errors
from aligntok.data.sampler import SampleIndex
from aligntok.data.sources import open_source
from aligntok.data.stream.dataset import StreamDataset
from aligntok.errors import ConfigError, DataError, ShardError

SIZES = [(32, 32), (32, 40), (40, 32)]
WANTED = dict(where="score >= 1", image_size=SIZES, caption="auto", window=2)
SOON = dict(pause=0.02, timeout=1.0)
PAIR = [(StreamDataset, "index"), (ImageDataset, "shards")]
STEPS, BATCH = 45, 12  # 540 samples: two epochs and a bit of 240


def read(data, world=1, workers=0, start=0, stop=STEPS):
    """The batches of some steps, put together from those of each process."""
    each = []
    for rank in range(world):
        sampler = data.batches(BATCH, 7, rank, world, num_steps=stop, start_step=start)
        loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
        each.append([(b["index"].tolist(), b["images"].double().sum((1, 2, 3)).tolist(), b["caption"]) for b in loader])
    return [tuple([*chain(*(part[i] for part in step))] for i in range(3)) for step in zip(*each, strict=True)]


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory, build_index):
    folder = tmp_path_factory.mktemp("stream")
    build_index(folder, (100, 70, 0, 128, 2))
    return folder


@pytest.fixture(scope="module")
def whole(served_folder):
    """What is read from the disk, by one process."""
    return read(StreamDataset(served_folder / "index", **WANTED))


@pytest.fixture
def far(served_folder, tmp_path, serve, build_index):
    """The same samples, indexed at an address; and the server there."""
    served = serve(served_folder / "shards")
    build_index(tmp_path, (100, 70, 0, 128, 2), at=served.url)
    return tmp_path / "index", served


def stream(place, tmp_path, **more):
    return StreamDataset(place, **{**WANTED, "cache": str(tmp_path / "cache"), "remote": SOON, **more})


def test_every_sample_comes_once_an_epoch_with_its_own_pixels_and_caption(served_folder, whole):
    data = StreamDataset(served_folder / "index", **WANTED)
    numbers = [*chain(*(batch[0] for batch in whole))]
    assert [*chain(*(batch[2] for batch in whole))] == [f"picture {number}" for number in numbers]
    times = np.bincount(numbers, minlength=300)
    selected = data.selection.buckets != 255
    assert times[~selected].sum() == 0
    assert set(times[selected].tolist()) == {2, 3}  # 540 of 240
    item = data[SampleIndex(numbers[0], 5)]
    assert item["images"].shape[1:] == SIZES[data.selection.buckets[numbers[0]]]
    assert (item["label"], item["index"], item["caption"]) == (-1, numbers[0], f"picture {numbers[0]}")


def test_items_are_those_of_images_read_from_the_shards_themselves(served_folder):
    pytest.importorskip("webdataset")
    images = ImageDataset(served_folder / "shards", image_size=32, short_side=36, seed=3, caption="auto")
    data = StreamDataset(served_folder / "index", image_size=32, short_side=36, seed=3, caption="auto")
    assert len(data) == len(images) == 300
    for request in (SampleIndex(5, 77), SampleIndex(299, 1234), 17):
        one, other = images[request], data[request]
        assert torch.equal(one["images"], other["images"])
        assert (one["index"], one["caption"]) == (other["index"], other["caption"])
    val = StreamDataset(served_folder / "index", image_size=32, train=False)
    assert torch.equal(
        val[3]["images"], ImageDataset(served_folder / "shards", image_size=32, train=False)[3]["images"]
    )


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_processes_and_workers_goes_on_with_the_same_batches(served_folder, whole, world, workers):
    data = StreamDataset(served_folder / "index", **WANTED)
    assert read(data, world, workers, start=33) == whole[33:]


EVERY = {None: 1, "503": 7, "cut": 3, "short": 3, "hang": 5, "whole": 4}
QUICK = [(None, 1, 0), ("503", 2, 2), ("cut", 3, 0), ("short", 4, 0), ("hang", 1, 2), ("whole", 2, 0)]
OTHERS = [case for case in product(EVERY, (1, 2, 3, 4), (0, 2)) if case not in QUICK]


@pytest.mark.parametrize(
    ("fault", "world", "workers"), QUICK + [pytest.param(*case, marks=pytest.mark.nightly) for case in OTHERS]
)
def test_faults_of_the_server_change_nothing(far, whole, tmp_path, fault, world, workers):
    place, served = far
    served.fail(fault, EVERY[fault])
    data = stream(place, tmp_path, remote=dict(pause=0.02, timeout=0.5))
    assert read(data, world, workers, stop=20) == whole[:20]
    assert read(data, 1, 0, start=20) == whole[20:]  # stopped, and gone on with one process
    assert data.num_unreadable == 0
    if fault is None:
        assert len(served.asked) == 7  # a request a block


def test_a_server_that_dies_for_a_while_is_waited_for(far, whole, tmp_path):
    place, served = far
    data = stream(place, tmp_path, remote=dict(pause=0.1, timeout=1.0))
    assert read(data, 2, 0, stop=5) == whole[:5]
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    served.die(1.0)
    assert read(data, 2, 0, start=5, stop=15) == whole[5:15]


def test_without_a_place_to_keep_blocks_the_samples_themselves_are_fetched(far, whole, tmp_path, caplog):
    place, served = far
    (tmp_path / "file").write_text("")
    data = stream(place, tmp_path, cache=str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "aligntok.data"):
        assert read(data, stop=15) == whole[:15]
    assert sum("is not kept in" in record.message for record in caplog.records) == 1
    assert len(served.asked) > 15 * BATCH


def test_a_shard_that_stays_away_ends_it_with_its_name(far, tmp_path):
    place, served = far
    served.fail("503", 1)
    data = stream(place, tmp_path, remote=dict(attempts=2, **SOON))
    with pytest.raises(ShardError, match=r"0000\d\.tar stays away"), explaining_loader_errors():
        read(data, stop=2, workers=1)


def test_where_asked_to_a_shard_that_is_gone_is_skipped(far, tmp_path, served_folder, caplog):
    place, names = far[0], sorted((served_folder / "shards").iterdir())
    names[1].rename(tmp_path / "away")
    try:
        data = stream(place, tmp_path, on_missing="skip", remote=dict(attempts=2, **SOON))
        found = read(data, stop=20)
        numbers = [*chain(*(batch[0] for batch in found))]
        assert len(numbers) == 240
        assert not {*range(100, 170)} & {*numbers}
        assert data.num_unreadable > 20
        assert "00001.tar" in caplog.text
        assert read(stream(place, tmp_path, on_missing="skip", remote=dict(attempts=1)), 3, stop=20) == found
    finally:
        (tmp_path / "away").rename(names[1])


def test_broken_samples_are_replaced_alike_everywhere_counted_and_named(tmp_path, build_index, caplog):
    broken = range(3, 300, 20)
    build_index(tmp_path, (100, 70, 0, 128, 2), broken=broken)
    data = StreamDataset(tmp_path / "index", **WANTED, max_unreadable=0.5)
    whole = read(data, stop=20)
    assert not {*broken} & {*chain(*(batch[0] for batch in whole))}
    assert all(len({data.selection.buckets[number] for number in batch[0]}) == 1 for batch in whole)
    told = [record.message for record in caplog.records if "cannot read" in record.message]
    assert len({*told}) == 15
    assert data.num_unreadable == len(told) == 18  # in the place of three another broken one was drawn
    assert "00000.tar, bytes " in "".join(told)
    other = StreamDataset(tmp_path / "index", **WANTED, max_unreadable=0.5)
    assert read(other, 3, 2, stop=20) == whole
    assert other.num_unreadable == 18  # over all workers


def test_too_many_broken_samples_end_it(tmp_path, build_index):
    build_index(tmp_path, (100, 70, 0, 128, 2), broken=range(0, 300, 5))
    data = StreamDataset(tmp_path / "index", **WANTED)
    with pytest.raises(DataError, match=r"17 of \d+ samples read so far are broken, the latest in .*\.tar, bytes"):
        read(data)


def test_where_nothing_can_be_read_it_ends(tmp_path, build_index):
    build_index(tmp_path, (20,), broken=range(20))
    with pytest.raises(DataError, match="16 samples in a row cannot be read"):
        StreamDataset(tmp_path / "index", image_size=32)[0]


def test_places_shapes_and_labels_are_as_those_of_other_data(served_folder, tmp_path):
    data = StreamDataset(served_folder / "index", **WANTED, train=False)
    part = Subset(data, [0, 100, 239])
    buckets = find_buckets(part, tmp_path)
    assert buckets.tolist() == [data.selection.buckets[data[place]["index"]] for place in (0, 100, 239)]
    assert [data[i]["images"].shape[1:] for i in (0, 100, 239)] == [SIZES[bucket] for bucket in buckets]
    assert data[-1]["index"] == data[239]["index"]
    with pytest.raises(IndexError):
        data[240]
    assert StreamDataset(served_folder / "index", image_size=32).buckets is None


def test_it_says_how_many_pass_what(served_folder, caplog):
    StreamDataset(served_folder / "index", where="score >= 8", image_size=[(32, 32), (40, 32)])
    assert "30 of 300 samples are taken (can be read: 300, sides at most 1 : 50: 300, score >= 8: 30): " in caplog.text
    assert "of 32 x 32, " in caplog.text


def test_a_copy_for_a_worker_reads_the_same(far, tmp_path):
    data = stream(far[0], tmp_path)
    copied = pickle.loads(pickle.dumps(data.reader))
    assert copied.read([5, 200]) == data.reader.read([5, 200])
    if (child := os.fork()) == 0:  # with a pool and connections that are the parent's
        os._exit(0 if data.reader.read([7])[0].captions == ["picture 7"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_workers_that_are_not_forked_read_the_same(served_folder, whole):
    data = StreamDataset(served_folder / "index", **WANTED)
    sampler = data.batches(BATCH, 7, num_steps=STEPS)
    next(iter(sampler))
    copied = pickle.loads(pickle.dumps(data))  # as a spawned worker gets it, once batches were asked for
    items = copied.__getitems__(sampler.batch(3))
    assert [item["index"] for item in items] == whole[3][0]
    assert copied._sampler.batch(40) == sampler.batch(40)


def test_what_it_is_made_of_tells_when_that_changes(served_folder, build_index, tmp_path):
    data = StreamDataset(served_folder / "index", **WANTED)
    data.listing.write(tmp_path)
    listing = type(data.listing).read(tmp_path)
    assert listing.changes(data.listing) is None
    other = StreamDataset(served_folder / "index", **{**WANTED, "where": "score >= 2"}).listing
    assert "1 changed" in str(listing.changes(other))
    build_index(tmp_path / "other", (100, 71, 0, 128, 2))
    more = StreamDataset(tmp_path / "other/index", **WANTED).listing
    assert "changed" in str(listing.changes(more))
    assert listing.unit == "shards and filters"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (dict(caption="json:text"), "did you mean|known: auto, txt"),
        (dict(where="scor > 1"), "did you mean 'score'"),
        (dict(image_size=32, short_side=16), "smaller than a side of the crop"),
        (dict(remote=dict(attemps=1)), "did you mean 'attempts'"),
    ],
)
def test_what_cannot_be_is_refused(served_folder, wrong, told):
    with pytest.raises(ConfigError, match=told):
        StreamDataset(served_folder / "index", **wrong)


def test_an_index_is_no_folder_of_images(served_folder):
    with pytest.raises(DataError, match="data.train.type=stream"):
        open_source(served_folder / "index")


def test_a_stream_is_not_measured_on_samples_that_it_is_trained_on(served_folder, tmp_path, build_index):
    """They are compared one by one, by where they lie: in one index, in two of the same shards, and in a copy."""
    build_index(tmp_path / "second", (100, 70, 0, 128, 2), at=str(served_folder / "shards"))
    whole, same, copy = served_folder / "index", tmp_path / "second/index", tmp_path / "copy"
    shutil.copytree(served_folder, copy)

    def meet(one, other):
        with pytest.raises(DataError, match=r"samples of .* measured on that are also trained on: .*; do this"):
            one.check_apart(other, "do this")

    low, high = (dict(where=f"score {sign} 5", image_size=32) for sign in ("<", ">="))
    train = StreamDataset(whole, **low)
    for place in (whole, same, copy / "index"):
        meet(train, StreamDataset(place, image_size=32))
        train.check_apart(StreamDataset(place, **high), "")
    build_index(tmp_path / "other", (90,))
    train.check_apart(StreamDataset(tmp_path / "other/index", image_size=32), "")


def test_a_stream_and_images_of_the_same_shards_are_told(served_folder, tmp_path, build_index):
    pytest.importorskip("webdataset")
    data, images = (make(served_folder / name, image_size=32) for make, name in PAIR)
    for one, other in ((data, images), (images, data)):
        with pytest.raises(DataError, match="are also trained on, in .*; do this"):
            one.check_apart(other, "do this")
    build_index(tmp_path, (9,))
    data.check_apart(ImageDataset(tmp_path / "shards", image_size=32), "")


def test_buckets_are_had_one_by_one_by_list_and_by_slice(served_folder):
    data = StreamDataset(served_folder / "index", **WANTED)
    each = [int(data.selection.buckets[data.selection.nth(place)]) for place in range(len(data))]
    assert data.buckets[1::3].tolist() == each[1::3]
    assert data.buckets[[7, 0, 239]].tolist() == [each[7], each[0], each[239]]


@pytest.fixture
def silent(tmp_path, serve, build_index):
    """A function that opens a stream of 40 shards at an address whose server answers 503; and the server."""
    build_index(tmp_path / "made", [2] * 40)
    served = serve(tmp_path / "made/shards")
    build_index(tmp_path / "far", [2] * 40, at=served.url)
    served.fail("503")

    def open_stream(attempts=4, **more):
        soon = dict(attempts=attempts, pause=0.02, timeout=2)
        return stream(tmp_path / "far/index", tmp_path, where=None, window=256, threads=2, remote=soon, **more), served

    return open_stream


@pytest.mark.parametrize("keeps", [True, False])
def test_the_first_shard_that_stays_away_is_named_and_the_others_are_not_waited_for(silent, tmp_path, keeps):
    (tmp_path / "file").write_text("")
    data, served = silent(**({} if keeps else {"cache": str(tmp_path / "file")}))
    with pytest.raises(ShardError, match="stays away: 4 attempts"):
        data.reader.read(range(80))
    assert len(served.asked) <= 12  # two threads, each at one shard, perhaps at the next


def test_a_shard_to_be_skipped_is_not_asked_for_again_and_a_silent_host_once_for_each(silent):
    data, served = silent(on_missing="skip")
    for _ in range(2):
        assert all(isinstance(found, ShardError) for found in data.reader.read(range(80)))
        assert len(served.asked) <= 8 + 40
    data.reader.bring(range(80))
    data.reader._pool("ahead").shutdown()
    assert len(served.asked) <= 8 + 40


def test_who_waits_for_a_block_that_is_fetched_ahead_does_not_ask_in_vain_again(silent):
    data, served = silent(attempts=3)
    data.reader.bring([0])
    while not served.asked:
        time.sleep(0.01)
    with pytest.raises(ShardError, match="3 attempts"):
        data.reader.read([0])
    assert len(served.asked) == 3
