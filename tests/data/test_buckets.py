"""Aspect-ratio buckets: every batch of one shape, every image once a pass, all of it from (seed, step)."""

import re
import time
import zipfile
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from torch.utils.data import DataLoader, Subset

from aligntok.data.images import (
    UNREADABLE,
    AspectBuckets,
    ImageDataset,
    assign_buckets,
    find_buckets,
    place_unreadable,
)
from aligntok.data.sampler import BucketSchedule, GlobalBatchSampler, batches_in_buckets, epoch_order
from aligntok.data.sources import open_source
from aligntok.data.transforms import read_image, read_upright_size
from aligntok.errors import ConfigError, DataError

SIZES = [(16, 16), (16, 24), (24, 16)]
BUCKETS = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(lambda b: np.array(b, dtype=np.uint8))


def write(folder, name, height, width, **options):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, **options)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def photographs(tmp_path):
    """Square, wide and tall ones in turn, nine in all."""
    for i in range(9):
        write(tmp_path / "photos", f"{i}.png", *[(20, 20), (20, 30), (30, 20)][i % 3])
    return tmp_path / "photos"


def indices(requests):
    return [request.index for request in requests]


# Which bucket an image belongs to


@pytest.mark.parametrize(
    ("height", "width", "bucket"),
    [(100, 100, 0), (100, 149, 1), (149, 100, 2), (10, 1000, 1), (1000, 10, 2), (100, 122, 0), (100, 123, 1)],
)
def test_an_image_belongs_to_the_nearest_log_aspect_ratio(height, width, bucket):
    assert AspectBuckets(SIZES).nearest(height, width) == bucket


def test_of_equally_near_buckets_the_first_is_taken():
    for sizes in ([(16, 20), (20, 16)], [(20, 16), (16, 20)], [(32, 40), (20, 16)]):
        assert AspectBuckets(sizes).nearest(77, 77) == 0


def test_shapes_of_equal_area_are_those_of_the_paper_s_sizes():
    """Of every height that is a multiple of 16 the nearest width, as counted by hand: eleven at 256, 23 at 512."""
    at_256 = [
        (12, 21),
        (13, 20),
        (14, 18),
        (15, 17),
        (16, 16),
        (17, 15),
        (18, 14),
        (19, 13),
        (20, 13),
        (21, 12),
        (22, 12),
    ]
    assert AspectBuckets(dict(side=256)).sizes == tuple((16 * h, 16 * w) for h, w in at_256)
    for side, count, least, most in [(256, 11, 247, 264), (512, 23, 1008, 1040)]:
        sizes = AspectBuckets(dict(side=side, multiple_of=16, max_aspect_ratio=2.0)).sizes
        tokens = [height * width // 256 for height, width in sizes]
        assert (len(sizes), min(tokens), max(tokens)) == (count, least, most)
        assert all(side % 16 == 0 for size in sizes for side in size)
        assert max(max(size) / min(size) for size in sizes) <= 2
        assert (side, side) in sizes


@given(st.integers(1, 12), st.integers(1, 20), st.floats(1, 9))
def test_shapes_of_equal_area_are_all_that_there_are(cells, unit, ratio):
    side, area, slow = cells * unit, cells**2, []
    for height in range(1, 20 * area):
        width = min(range(2 * area), key=lambda w: (abs(w * height - area), w % 2))  # of two as near the even one
        if width and max(height, width) <= ratio * min(height, width):
            slow.append((height * unit, width * unit))
    assert list(AspectBuckets(dict(side=side, multiple_of=unit, max_aspect_ratio=ratio)).sizes) == slow
    assert (side, side) in slow


@pytest.mark.parametrize("one", [16, (16, 24), [16, 24], [(16, 24)]])
def test_one_size_is_one_bucket(one):
    assert len(AspectBuckets(one)) == 1


@pytest.mark.parametrize(
    "wrong", [0, [], [(16, 16), 24], [(16, 16), (16, 16)], [(16, 0), (16, 16)], "16", [(1, i + 1) for i in range(255)]]
)
def test_sizes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="image_size"):
        AspectBuckets(wrong)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image(tmp_path, suffix, orientation):
    write(tmp_path, f"a.{suffix}", 20, 30, exif=turned(orientation))
    source = open_source(tmp_path)
    upright = (20, 30) if orientation < 5 else (30, 20)
    assert read_upright_size(source, 0) == upright
    assert read_image(source, 0).size == upright[::-1]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_only_headers_are_read(tmp_path, monkeypatch, suffix):
    write(tmp_path, f"a.{suffix}", 20, 30)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("pixels were decoded"))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("pixels were decoded"))
    assert read_upright_size(open_source(tmp_path), 0) == (20, 30)


@pytest.mark.parametrize("zipped", [False, True])
def test_headers_are_read_by_several_threads_as_by_one(tmp_path, zipped):
    root = tmp_path / "many"
    for i in range(600):
        write(root, f"{i:03d}.bmp", 4 + i % 5, 4 + i % 3)
    if zipped:
        with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
            for path in root.iterdir():
                archive.write(path, path.name)
        root = tmp_path / "many.zip"
    buckets = AspectBuckets(SIZES)
    expected = [buckets.nearest(4 + i % 5, 4 + i % 3) for i in range(600)]
    assert assign_buckets(open_source(root), buckets).tolist() == expected
    assert assign_buckets(open_source(root), buckets, range(1, 600, 2)).tolist() == expected[1::2]


def test_unreadable_headers_count_as_of_the_first_bucket_in_use(photographs):
    (photographs / "1.png").write_bytes(b"no image")
    found = assign_buckets(open_source(photographs), AspectBuckets([(8, 64), *SIZES]))
    assert found.tolist() == [1, UNREADABLE, 3, 1, 2, 3, 1, 2, 3]
    assert place_unreadable(found).tolist() == [1, 1, 3, 1, 2, 3, 1, 2, 3]
    assert place_unreadable(np.array([UNREADABLE], dtype=np.uint8)).tolist() == [0]


# Which bucket a step takes


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any),
    size=st.integers(1, 20),
    seed=st.integers(0, 2**40),
)
def test_buckets_take_turns_in_proportion_to_their_images(counts, size, seed):
    schedule = BucketSchedule(counts, size, seed)
    taken = [0] * len(counts)
    for epoch in range(3):
        for step in range(schedule.first_step(epoch), schedule.first_step(epoch + 1)):
            bucket, nth = schedule.at(step)
            assert nth == taken[bucket]
            taken[bucket] += 1
        for count, steps in zip(counts, taken, strict=True):
            assert 0 <= steps * size - (epoch + 1) * count < size


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=5), size=st.integers(1, 20), step=st.integers(0, 10**9))
def test_any_step_is_found_without_those_before_it(counts, size, step):
    fresh, walked = BucketSchedule(counts, size), BucketSchedule(counts, size)
    assert [walked.at(s) for s in range(step, step + 5)][-1] == fresh.at(step + 4)


def test_the_order_of_buckets_is_shuffled_anew_by_epoch_and_seed():
    orders = {
        tuple(schedule.at(schedule.first_step(epoch) + i)[0] for i in range(20))
        for schedule in (BucketSchedule([40, 40], 4, seed) for seed in (0, 1))
        for epoch in (0, 1)
    }
    assert len(orders) == 4
    plain = BucketSchedule([40, 40], 4, shuffle=False)
    assert [plain.at(step)[0] for step in range(22)] == [0] * 10 + [1] * 10 + [0] * 2


# Which images a step sees


@given(buckets=BUCKETS, size=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_a_batch_is_of_one_bucket_and_a_bucket_is_passed_through_image_by_image(buckets, size, seed):
    seen = {bucket: [] for bucket in range(4)}
    sampler = GlobalBatchSampler(len(buckets), size, seed, buckets=buckets)
    for number, batch in enumerate(islice(sampler, 12)):
        (bucket,) = {int(buckets[request.index]) for request in batch}
        assert [request.sample_number for request in batch] == list(range(number * size, (number + 1) * size))
        seen[bucket] += indices(batch)
    for bucket, visited in seen.items():
        members = np.flatnonzero(buckets == bucket).tolist()
        for start in range(0, len(visited) - len(members) + 1, len(members) or 1):
            assert sorted(visited[start : start + len(members)]) == members


@given(buckets=BUCKETS, size=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_an_epoch_shows_every_image(buckets, size, seed):
    counts = np.bincount(buckets)
    steps = BucketSchedule(counts.tolist(), size, seed).first_step(1)
    shown = [
        i
        for batch in GlobalBatchSampler(len(buckets), size, seed, num_steps=steps, buckets=buckets)
        for i in indices(batch)
    ]
    assert set(shown) == set(range(len(buckets)))
    assert len(shown) - len(buckets) < size * np.count_nonzero(counts)  # filled from each bucket's next pass


@given(buckets=BUCKETS, split=st.sampled_from([(2, 1), (1, 2), (4, 2), (2, 4), (8, 1)]), step=st.integers(0, 30))
def test_the_global_batch_does_not_depend_on_how_it_is_split(buckets, split, step):
    world_size, accumulation = split

    def sampler(**options):
        return GlobalBatchSampler(len(buckets), 8, seed=5, buckets=buckets, **options)

    ranks = [sampler(rank=r, world_size=world_size, accumulation=accumulation) for r in range(world_size)]
    union = [request for m in range(accumulation) for rank in ranks for request in rank.batch(step, m)]
    assert union == sampler().batch(step)


@given(buckets=BUCKETS, start=st.integers(0, 12))
def test_a_resumed_sampler_goes_on_as_if_never_stopped(buckets, start):
    options = {"seed": 3, "accumulation": 2, "num_steps": 12, "buckets": buckets}
    resumed = GlobalBatchSampler(len(buckets), 4, **options)
    resumed.start_step = start
    assert list(resumed) == list(GlobalBatchSampler(len(buckets), 4, **options))[2 * start :]


def test_one_bucket_is_no_bucket():
    one = GlobalBatchSampler(11, 4, seed=2, buckets=np.zeros(11, dtype=np.uint8), num_steps=9)
    assert list(one) == list(GlobalBatchSampler(11, 4, seed=2, num_steps=9))
    assert epoch_order(11, 2, 1).tolist() == np.random.default_rng((0, 2, 1)).permutation(11).tolist()


def test_buckets_of_another_data_set_are_refused():
    with pytest.raises(ConfigError, match="buckets of 3 images for a data set of 4"):
        GlobalBatchSampler(4, 2, buckets=np.zeros(3, dtype=np.uint8))


def test_a_late_step_is_as_quick_as_an_early_one():
    buckets = np.random.default_rng(0).integers(0, 7, 1_000_000).astype(np.uint8)
    sampler = GlobalBatchSampler(len(buckets), 256, rank=3, world_size=8, buckets=buckets)
    start = time.perf_counter()
    for step in range(50_000_000, 50_000_100):
        sampler.batch(step)
    assert time.perf_counter() - start < 2


@given(buckets=BUCKETS, size=st.integers(1, 12))
def test_validation_sees_every_image_once_in_batches_of_one_bucket(buckets, size):
    batches = list(batches_in_buckets(buckets, size))
    assert all(len(set(buckets[batch].tolist())) == 1 and len(batch) <= size for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(len(buckets)))


# The data set


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_shape_of_their_bucket(photographs, workers):
    dataset = ImageDataset(photographs, SIZES)
    sampler = GlobalBatchSampler(len(dataset), 3, num_steps=6, buckets=dataset.buckets)
    batches = list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers))
    shapes = [tuple(batch["images"].shape) for batch in batches]
    assert set(shapes) == {(3, 3, *size) for size in SIZES}
    for batch, shape in zip(batches, shapes, strict=True):
        assert {SIZES[i % 3] for i in batch["index"].tolist()} == {shape[2:]}


def test_an_image_of_its_buckets_ratio_is_shown_whole(tmp_path):
    write(tmp_path, "wide.png", 32, 48)
    dataset = ImageDataset(tmp_path, SIZES, train=False)
    with Image.open(tmp_path / "wide.png") as image:
        small = np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC), dtype=np.float32)
    torch.testing.assert_close(dataset[0]["images"], torch.from_numpy(small / 127.5 - 1).permute(2, 0, 1))


def test_crops_of_a_larger_picture_have_their_buckets_shape_too(photographs):
    dataset = ImageDataset(photographs, SIZES, short_side=26)
    assert [tuple(dataset[i]["images"].shape[1:]) for i in range(3)] == SIZES
    with pytest.raises(ConfigError, match="short_side 20 is smaller than a side of the crop, 24"):
        ImageDataset(photographs, SIZES, short_side=20)


def test_an_unreadable_image_is_replaced_by_one_of_its_bucket(photographs):
    content = (photographs / "1.png").read_bytes()
    (photographs / "1.png").write_bytes(content[: len(content) // 2])  # the header is whole
    (photographs / "2.png").write_bytes(b"no header at all")
    dataset = ImageDataset(photographs, SIZES, max_unreadable=2)
    assert dataset.buckets.tolist() == [0, 1, 0, 0, 1, 2, 0, 1, 2]
    assert [dataset[i]["index"] for i in (1, 2)] == [4, 3]
    assert dataset[1]["images"].shape == (3, 16, 24)
    assert dataset.num_unreadable == 2


def test_a_bucket_without_a_readable_image_is_one_clear_error(photographs):
    dataset = ImageDataset(photographs, SIZES, max_unreadable=9)
    assert dataset.buckets is not None
    for i in (1, 4, 7):
        (photographs / f"{i}.png").write_bytes(b"gone since")
    with pytest.raises(DataError, match=r"not one of the images cropped to \(16, 24\) can be read"):
        dataset[4]


def test_headers_are_read_only_when_buckets_are_asked_for(photographs, monkeypatch):
    monkeypatch.setattr("aligntok.data.images.assign_buckets", lambda *args: pytest.fail("headers were read"))
    for one in (16, (16, 24), [(16, 24)]):
        assert ImageDataset(photographs, one).buckets is None
    given = ImageDataset(photographs, SIZES)
    given.buckets = np.full(9, 2, dtype=np.uint8)
    assert given[0]["images"].shape == (3, 24, 16)


@pytest.mark.parametrize("wrong", [[0] * 8, [3] * 9])
def test_buckets_that_do_not_fit_the_data_set_are_refused(photographs, wrong):
    dataset = ImageDataset(photographs, SIZES)
    with pytest.raises(ConfigError, match="buckets for"):
        dataset.buckets = np.array(wrong, dtype=np.uint8)


def test_there_may_be_254_shapes():
    shapes = AspectBuckets([(64, i + 1) for i in range(254)])
    assert (len(shapes), shapes.nearest(64, 254), UNREADABLE) == (254, 253, 255)


@pytest.fixture
def looked(photographs, monkeypatch):
    """Eleven images, a strip and one that cannot be read among them; what headers are read of, and whether it shows."""
    write(photographs, "strip.png", 2, 60)
    (photographs / "unread.png").write_bytes(b"no image")
    asked, plain = [], ImageDataset.assign_buckets

    def look(dataset, indices=None, progress=True):
        asked.append((None if indices is None else [*indices], progress))
        return plain(dataset, indices, progress)

    monkeypatch.setattr(ImageDataset, "assign_buckets", look)
    return asked


FOUND = [0, 1, 2] * 3 + [1, 0]


def test_two_processes_read_the_headers_of_their_shares_once(photographs, looked, tmp_path, as_processes):
    data = [ImageDataset(photographs, SIZES) for _ in range(2)]
    found = as_processes(lambda rank: find_buckets(data[rank], tmp_path / "run"))
    assert [each.tolist() for each in found] == [FOUND, FOUND]
    assert [each.buckets.tolist() for each in data] == [FOUND, FOUND]
    assert sorted(looked) == [([0, 2, 4, 6, 8, 10], True), ([1, 3, 5, 7, 9], False)]
    (file,) = (tmp_path / "run").glob("*.npy")
    assert re.fullmatch(r"buckets_[0-9a-f]{16}_[0-9a-f]{15}\.npy", file.name)
    assert np.load(file).tolist() == FOUND
    again = as_processes(lambda rank: find_buckets(ImageDataset(photographs, SIZES), tmp_path / "run").tolist())
    assert again == [FOUND, FOUND]
    assert len(looked) == 2
    file.write_bytes(b"damaged")
    assert find_buckets(ImageDataset(photographs, SIZES), tmp_path / "run").tolist() == FOUND
    assert looked[2:] == [([*range(11)], True)]


def test_buckets_are_kept_for_the_same_images_sizes_and_limit_alone(photographs, looked, tmp_path):
    def find(sizes=SIZES, **options):
        return find_buckets(ImageDataset(photographs, sizes, **options), tmp_path / "run").tolist()

    assert find() == find(max_aspect_ratio=50.0) == FOUND
    assert len(looked) == 1
    assert find(max_aspect_ratio=20) == [0, 1, 2] * 3 + [0, 0]  # the strip is unreadable
    assert find(SIZES[1:]) == [0, 0, 1] * 3 + [0, 0]
    assert len(looked) == 3
    assert len([*(tmp_path / "run").glob("*.npy")]) == 3
    assert find() == FOUND
    write(photographs, "unread.png", 30, 20)
    assert find() == [*FOUND[:10], 2]
    assert len(looked) == 4
    assert len([*(tmp_path / "run").glob("*.npy")]) == 3  # what the old file said is gone
    assert len([*(tmp_path / "run").glob("*.sha256")]) == 3


def test_a_part_of_a_data_set_has_the_buckets_of_its_images_and_others_have_one_size(photographs, looked, tmp_path):
    part = Subset(Subset(ImageDataset(photographs, SIZES), [10, 9, 2, 1]), [1, 2])
    assert find_buckets(part, tmp_path / "run").tolist() == [1, 2]
    assert find_buckets(ImageDataset(photographs, 16), tmp_path / "run") is None
    assert find_buckets(Subset(ImageDataset(photographs, 16), [3]), tmp_path / "run") is None
    assert find_buckets([1, 2, 3], tmp_path / "run") is None
    assert find_buckets(SimpleNamespace(buckets=np.array([3])), tmp_path / "run").tolist() == [3]
    assert len(looked) == 1


@pytest.mark.parametrize("shown", [True, False])
def test_how_far_the_headers_are_read_is_told_where_it_is_wanted(monkeypatch, shown):
    told, updates = [], []

    @contextmanager
    def bar(*given):
        told.append(given)
        yield SimpleNamespace(update=updates.append)

    monkeypatch.setattr("aligntok.data.images.progress_bar", bar)
    monkeypatch.setattr("aligntok.data.images.read_upright_size", lambda source, i, most: (20, 30 if i % 2 else 20))
    found = assign_buckets(range(700), AspectBuckets(SIZES), range(1, 700), **({} if shown else dict(progress=False)))
    assert found.tolist() == [1, 0] * 349 + [1]
    assert told == [(699, "reading image sizes", "image", shown)]
    assert sum(updates) == 699
    assert len(updates) > 1
