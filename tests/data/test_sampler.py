"""Which images a step sees follows from (seed, step) alone."""

import time
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligntok.data.sampler import GlobalBatchSampler, epoch_order, evenly_spaced, per_process_batch
from aligntok.errors import ConfigError
from aligntok.rng import rng


def global_batch(step, dataset_len=37, size=8, world_size=1, accumulation=1, **options):
    samplers = [
        GlobalBatchSampler(dataset_len, size, rank=rank, world_size=world_size, accumulation=accumulation, **options)
        for rank in range(world_size)
    ]
    return [request for m in range(accumulation) for sampler in samplers for request in sampler.batch(step, m)]


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 2), (4, 2), (2, 4), (8, 1)])
def test_the_global_batch_does_not_depend_on_how_it_is_split(world_size, accumulation):
    for step in (0, 3, 4, 9):  # step 4 holds the end of the first epoch
        split = global_batch(step, world_size=world_size, accumulation=accumulation, seed=5)
        assert split == global_batch(step, seed=5)


@given(dataset_len=st.integers(1, 60), size=st.integers(1, 24), seed=st.integers(0, 2**40))
def test_every_epoch_visits_each_image_once_even_when_it_ends_inside_a_batch(dataset_len, size, seed):
    stream = iter(GlobalBatchSampler(dataset_len, size, seed))
    requests = [request for batch in islice(stream, -(-3 * dataset_len // size)) for request in batch]
    assert [request.sample_number for request in requests] == list(range(len(requests)))
    for epoch in range(3):
        visited = [request.index for request in requests[epoch * dataset_len : (epoch + 1) * dataset_len]]
        assert sorted(visited) == list(range(dataset_len))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_every_bucket_and_epoch_has_an_order_of_its_own():
    """Pinned to numpy's own: in buckets of one size, orders that are alike would be seen by nobody."""
    for seed, epoch, bucket in [(2, 1, 3), (0, 0, 0), (5, 7, 1)]:
        expected = np.random.default_rng((0, seed, epoch, bucket)).permutation(20).tolist()
        assert epoch_order(20, seed, epoch, bucket).tolist() == expected
    buckets = np.array([0, 1] * 20, dtype=np.uint8)
    visited = {0: [], 1: []}
    for batch in GlobalBatchSampler(40, 4, seed=2, num_steps=20, buckets=buckets):
        visited[int(buckets[batch[0].index])] += [request.index // 2 for request in batch]
    for bucket, places in visited.items():
        orders = [np.random.default_rng((0, 2, epoch, bucket)).permutation(20).tolist() for epoch in (0, 1)]
        assert places == [*orders[0], *orders[1]]
    assert visited[0] != visited[1]


def test_a_resumed_sampler_goes_on_as_if_never_stopped():
    whole = list(GlobalBatchSampler(11, 4, seed=3, accumulation=2, num_steps=9))
    resumed = GlobalBatchSampler(11, 4, seed=3, accumulation=2, num_steps=9)
    resumed.start_step = 5
    assert list(resumed) == whole[5 * 2 :]
    assert len(resumed) == 4 * 2
    assert list(GlobalBatchSampler(11, 4, seed=3, accumulation=2, num_steps=9, start_step=5)) == whole[5 * 2 :]


def test_without_shuffle_images_come_in_their_own_order():
    batches = list(GlobalBatchSampler(5, 3, shuffle=False, num_steps=3))
    assert [request.index for batch in batches for request in batch] == [0, 1, 2, 3, 4, 0, 1, 2, 3]


def test_an_endless_sampler_has_no_length():
    with pytest.raises(TypeError, match="num_steps"):
        len(GlobalBatchSampler(5, 3))


def test_an_uneven_split_names_batch_sizes_that_work():
    with pytest.raises(ConfigError, match=r"64 is not divisible by 24 .* 48 or 72 would work"):
        per_process_batch(64, world_size=8, accumulation=3)
    with pytest.raises(ConfigError, match=r"; 4 would work"):
        GlobalBatchSampler(100, 3, world_size=4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset_len": 0},
        {"global_batch_size": 0},
        {"rank": 2},
        {"rank": -1},
        {"world_size": 0, "rank": 0},
        {"accumulation": 0},
        {"start_step": -1},
        {"seed": -1},
    ],
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        GlobalBatchSampler(**{"dataset_len": 10, "global_batch_size": 4, "world_size": 2, **wrong})


def test_random_streams_of_samples_and_seeds_differ_and_repeat():
    draws = [rng("sample", seed, number).random() for seed in (0, 1) for number in (0, 1, 2**33)]
    assert len(set(draws)) == len(draws)
    assert draws == [rng("sample", seed, number).random() for seed in (0, 1) for number in (0, 1, 2**33)]


def test_steps_are_quick_once_the_order_of_an_epoch_is_drawn():
    sampler = GlobalBatchSampler(3_000_000, 256, rank=3, world_size=8)
    sampler.batch(0)
    start = time.perf_counter()
    for step in range(1, 101):
        sampler.batch(step)
    assert time.perf_counter() - start < 0.5  # drawing the order anew would take 10 s


def test_the_least_arguments_are_allowed_and_a_run_that_is_over_gives_nothing():
    assert [batch[0] for batch in GlobalBatchSampler(1, 1, num_steps=2)] == [(0, 0), (0, 1)]
    over = GlobalBatchSampler(10, 4, num_steps=3, start_step=5)
    assert (len(over), list(over)) == (0, [])


def test_places_are_spread_over_the_whole_by_hand():
    assert evenly_spaced(15, 4) == [0, 3, 7, 11]
    assert evenly_spaced(10, 1) == [0]
    assert evenly_spaced(3, 3) == evenly_spaced(3, 9) == [0, 1, 2]
    assert evenly_spaced(7, 0) == []
