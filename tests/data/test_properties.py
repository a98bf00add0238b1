"""What must hold for any sizes: images, buckets and shards made up at random, against slow and plain ways."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from aligntok.data import latent_shards, transforms
from aligntok.data.buckets import UNREADABLE, AspectBuckets
from aligntok.data.images import place_unreadable
from aligntok.data.latent_shards import LatentStatistics, Manifest, Moments, Shard, Skipped, shard_path, write_shard
from aligntok.data.latents import LatentDataset
from aligntok.data.sampler import BucketSchedule, GlobalBatchSampler, SampleIndex, evenly_spaced, per_process_batch
from aligntok.device import DTYPES
from aligntok.errors import ConfigError
from aligntok.io.files import write_json

few = settings(max_examples=60)
fewer = settings(few, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
sides = st.integers(1, 40)
SHAPES = st.tuples(sides, sides)


# The order of images


@st.composite
def runs(draw):
    """A data set, perhaps in buckets, and a way to split its batches: (buckets or None, length, options)."""
    length = draw(st.integers(1, 40))
    buckets = draw(st.none() | st.lists(st.integers(0, 4), min_size=length, max_size=length))
    world, accumulation, each = draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)))
    found = None if buckets is None else np.array(buckets, dtype=np.uint8)
    return found, length, world, accumulation, world * accumulation * each, draw(st.integers(0, 2**31))


def slow_order(buckets, length, size, seed, steps):
    """The images of each step, by walking: whose turn it is, and the endless stream of each bucket, image by image."""
    kinds = [0] * length if buckets is None else buckets.tolist()
    members = {kind: [i for i in range(length) if kinds[i] == kind] for kind in set(kinds)}

    def stream(kind):
        epoch = 0
        while True:
            order = np.random.default_rng((0, seed, epoch, kind)).permutation(len(members[kind]))
            yield from (members[kind][place] for place in order)
            epoch += 1

    streams, found, epoch = {kind: stream(kind) for kind in members}, [], 0
    while len(found) < steps:
        # steps of an epoch: those whose first image is in a bucket's pass of that number
        turns = [
            kind
            for kind in range(max(members) + 1)
            for step in range(math.ceil((epoch + 1) * len(members.get(kind, ())) / size) + 1)
            if kind in members and epoch * len(members[kind]) <= step * size < (epoch + 1) * len(members[kind])
        ]
        turns = np.array(turns, dtype=np.int64)
        np.random.default_rng((2, seed, epoch)).shuffle(turns)
        found += [[next(streams[kind]) for _ in range(size)] for kind in turns.tolist()]
        epoch += 1
    return found[:steps]


@few
@given(run=runs(), start=st.integers(0, 9))
def test_batches_are_those_of_the_slow_walk_for_any_split_and_from_any_step(run, start):
    buckets, length, world, accumulation, size, seed = run
    samplers = [
        GlobalBatchSampler(
            length,
            size,
            seed,
            rank,
            world,
            accumulation,
            start_step=start,
            num_steps=10,
            buckets=buckets,
        )
        for rank in range(world)
    ]
    expected = slow_order(buckets, length, size, seed, 10)
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {(10 - start) * accumulation} == {len(sampler) for sampler in samplers}
    for step in range(start, 10):
        micro = range((step - start) * accumulation, (step - start + 1) * accumulation)
        union = [request for m in micro for share in shares for request in share[m]]
        assert [request.index for request in union] == expected[step]
        assert [request.sample_number for request in union] == list(range(step * size, (step + 1) * size))


@few
@given(run=runs(), shuffle=st.booleans(), epochs=st.integers(1, 4))
def test_every_image_comes_as_often_as_there_are_epochs_but_for_the_next_passs_first(run, shuffle, epochs):
    buckets, length, *_, size, seed = run
    kinds = np.zeros(length, dtype=np.uint8) if buckets is None else buckets
    counts = np.bincount(kinds).tolist()
    steps = BucketSchedule(counts, size, seed, shuffle).first_step(epochs)
    sampler = GlobalBatchSampler(length, size, seed, shuffle=shuffle, num_steps=steps, buckets=buckets)
    seen = np.zeros(length, dtype=int)
    for batch in sampler:
        np.add.at(seen, [request.index for request in batch], 1)
    assert seen.min() >= epochs
    for kind, count in enumerate(counts):  # what a bucket's last batch lacked came from its own next pass
        over = (seen[kinds == kind] - epochs).sum()
        assert over == (-epochs * count) % size


@few
@given(length=st.integers(0, 300), wanted=st.integers(0, 300))
def test_evenly_spaced_places_are_in_order_and_at_even_distances(length, wanted):
    places = evenly_spaced(length, wanted)
    assert len(places) == min(length, wanted)
    assert places == sorted({*places})
    assert all(0 <= place < length for place in places)
    assert places[:1] == [0] * bool(places)
    gaps = np.diff([*places, length]) if places else np.array([0])
    assert gaps.max() - gaps.min() <= 1


@few
@given(size=st.integers(1, 300), world=st.integers(1, 9), accumulation=st.integers(1, 9))
def test_a_batch_is_split_evenly_or_refused_with_the_nearest_ones_that_are(size, world, accumulation):
    shares = world * accumulation
    if size % shares == 0:
        assert per_process_batch(size, world, accumulation) * shares == size
        return
    with pytest.raises(ConfigError) as caught:
        per_process_batch(size, world, accumulation)
    near = [other for other in range(1, size + shares + 1) if other % shares == 0 and abs(other - size) < shares]
    assert str(caught.value).endswith(f"; {' or '.join(map(str, near))} would work")


# Buckets


@few
@given(sizes=st.lists(SHAPES, min_size=1, max_size=6, unique=True), shape=SHAPES)
@example(sizes=[(4, 5), (5, 4)], shape=(7, 7))
def test_the_nearest_bucket_has_the_least_distance_of_log_ratios(sizes, shape):
    """A ratio of ratios, as fractions: the larger over the smaller, so that no logarithm is rounded."""

    def apart(size):
        a, b = size[0] * shape[1], size[1] * shape[0]
        return max(a, b) / min(a, b)

    found = AspectBuckets(sizes).nearest(*shape)
    least = min(map(apart, sizes))
    assert apart(sizes[found]) == pytest.approx(least, rel=1e-8)
    assert found == min(i for i, size in enumerate(sizes) if apart(size) == pytest.approx(least, rel=1e-10))


@few
@given(found=st.lists(st.sampled_from([0, 1, 2, 3, UNREADABLE]), min_size=1, max_size=20))
def test_unreadable_images_join_the_first_bucket_that_has_a_readable_one(found):
    readable = [bucket for bucket in found if bucket != UNREADABLE]
    expected = [(min(readable) if readable else 0) if bucket == UNREADABLE else bucket for bucket in found]
    assert place_unreadable(np.array(found, dtype=np.uint8)).tolist() == expected


# Pixels


def cubic(x):
    """Pillow's bicubic kernel (Keys, a = -1/2)."""
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resampled(pixels, length):
    """Resample the first axis: each place is a mean of those within two scaled pixels, weighed by the kernel."""
    old = len(pixels)
    scale = max(old / length, 1.0)
    rows = []
    for place in range(length):
        centre = (place + 0.5) * old / length
        first, last = max(0, int(centre - 2 * scale + 0.5)), min(old, int(centre + 2 * scale + 0.5))
        weights = np.array([cubic((i + 0.5 - centre) / scale) for i in range(first, last)])
        rows.append(np.tensordot(weights / weights.sum(), pixels[first:last], axes=1))
    return np.clip(np.round(np.stack(rows)), 0, 255)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@few
@given(shape=SHAPES, size=SHAPES)
@example(shape=(24, 7), size=(7, 4))  # 7 x 24 over: a surplus of 17, halved
@example(shape=(10, 67), size=(10, 64))
@example(shape=(67, 10), size=(64, 10))
def test_an_evaluations_pixels_are_those_of_the_slow_way(shape, size):
    (height, width), pixels = shape, picture(*shape)
    found = transforms.center_crop(transforms.resize_to_cover(Image.fromarray(pixels), size), size)
    # The smallest size of the same shape, rounded down, that covers both sides.
    wide, tall = max(size[1], width * size[0] // height), max(size[0], height * size[1] // width)
    assert wide == size[1] or tall == size[0]
    expected = pixels.astype(np.float64)
    if wide != width:
        expected = resampled(expected.swapaxes(0, 1), wide).swapaxes(0, 1)
    if tall != height:
        expected = resampled(expected, tall)
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    expected = expected[top : top + size[0], left : left + size[1]]
    assert found.size == size[::-1]
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= 2  # Pillow weighs in whole numbers, twice


@few
@given(surplus=st.tuples(st.integers(0, 5), st.integers(0, 5)), size=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_a_random_crop_is_a_part_of_the_image_and_any_part_may_be(surplus, size):
    height, width = (side + more for side, more in zip(size, surplus, strict=True))
    numbers = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    corners = set()
    for seed in range(12 * (surplus[0] + 1) * (surplus[1] + 1)):
        crop = np.asarray(transforms.random_crop(Image.fromarray(numbers), size, np.random.default_rng(seed)))
        top, left = divmod(int(crop[0, 0]), width)
        assert np.array_equal(crop, numbers[top : top + size[0], left : left + size[1]])
        corners.add((top, left))
    assert len(corners) == (surplus[0] + 1) * (surplus[1] + 1)


@few
@given(shape=SHAPES, orientation=st.integers(1, 8))
def test_an_upright_image_is_the_stored_one_turned_and_its_header_says_its_size(shape, orientation):
    pixels, exif = picture(*shape), Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", exif=exif)
    expected = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(pixels, 1),
    }[orientation]
    assert np.array_equal(np.asarray(transforms.open_image(data.getvalue())), expected)
    assert transforms.upright_size(io.BytesIO(data.getvalue())) == expected.shape[:2]


# Shards of latents


@st.composite
def caches(draw):
    """Images a shard (some with none), copies, dtype, shape of a latent, places left out, what is asked for."""
    counts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)))
    asked = draw(st.lists(st.integers(-sum(counts), sum(counts) - 1), min_size=1, max_size=8))
    return counts, draw(st.sampled_from([1, 2])), draw(st.sampled_from(["fp32", "bf16", "fp16"])), shape, asked


def write_cache(folder, counts, copies, dtype, shape):
    """Write a cache of random latents, of every other image of a data set; returns them, (images, copies, C, h, w)."""
    generator, images = torch.Generator().manual_seed(0), sum(counts)
    latents = (torch.randn(images, copies, *shape, generator=generator) * 3 + 1).to(DTYPES[dtype])
    labels, index = torch.arange(images) % 4 - 1, 2 * torch.arange(images)
    ends = np.cumsum(counts).tolist()
    for i, (end, count) in enumerate(zip(ends, counts, strict=True)):
        rows = slice(end - count, end)
        write_shard(shard_path(folder, i), latents[rows], labels[rows], index[rows], [Skipped(i, f"{i}.png", "E")])
    shards = [Shard(shard_path(folder, i)) for i in range(len(counts))]
    encoding = dict(format=latent_shards.FORMAT, hflip=copies == 2, dtype=dtype)
    encoding["tokenizer"] = dict(identity="0" * 64, source="x")
    moments = Moments.merged([shard.moments for shard in shards])
    entries = [dict(file=s.path.name, images=s.images, bytes=s.bytes) for s in shards]
    skipped = [found for shard in shards for found in shard.skipped]
    manifest = Manifest(encoding, images, shape, LatentStatistics.of(moments), (), entries, skipped)
    write_json(folder / latent_shards.ENCODING, encoding)
    write_json(folder / latent_shards.MANIFEST, manifest.as_json())
    return latents, labels, index


@fewer
@given(cache=caches())
def test_a_place_is_the_same_latent_label_and_image_wherever_the_shards_are_cut(cache, tmp_path_factory):
    counts, copies, dtype, shape, asked = cache
    folder = tmp_path_factory.mktemp("cache")
    latents, labels, index = write_cache(folder, counts, copies, dtype, shape)
    values = latents.double().transpose(0, 2).flatten(1)  # (C, all)
    if (values.std(dim=1, correction=0) == 0).any():
        return
    data = LatentDataset(folder, train=False, normalise=False)
    assert len(data) == sum(counts)
    assert data.source_index.tolist() == index.tolist()
    batch = data.batch(asked)
    assert torch.equal(batch["latents"], latents[asked, 0].float())
    assert batch["label"].tolist() == labels[asked].tolist()
    assert batch["index"].tolist() == [place % len(data) for place in asked]
    np.testing.assert_allclose(data.statistics.mean, values.mean(dim=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(data.statistics.std, values.std(dim=1, correction=0), rtol=1e-9)
    assert data.manifest.skipped == [Skipped(i, f"{i}.png", "E") for i in range(len(counts))]
    # And in training, each of the two copies by the sample's number alone.
    trained = LatentDataset(folder, normalise=False, seed=5)
    requests = [SampleIndex(place % len(data), 4090 + number) for number, place in enumerate(asked)]
    for request, found in zip(requests, trained.batch(requests)["latents"], strict=True):
        flips = np.random.default_rng((1, 5, request.sample_number // 4096)).integers(2, size=4096, dtype=np.uint8)
        copy = flips[request.sample_number % 4096] if copies == 2 else 0
        assert torch.equal(found, latents[request.index, copy].float())


@few
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6), offset=st.sampled_from([0.0, 1e4]))
def test_moments_of_parts_are_those_of_the_whole(sizes, offset):
    whole = torch.randn(sum(sizes), 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + offset
    merged = Moments.merged([Moments.of(part) for part in whole.split(sizes)])
    assert merged.count == 4 * sum(sizes)
    if merged.count:
        values = whole.transpose(0, 1).flatten(1).numpy()
        np.testing.assert_allclose(merged.mean, values.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(merged.m2, values.var(axis=1) * merged.count, rtol=1e-7)
