"""Random streams keep their numbers: runs that were begun go on as the same runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aligntok.rng import NUMPY, TORCH, batch_noise, rng, seed_torch

#: What each stream was seeded with when the first runs were made: of seed 7 and the numbers 11, 13, 17.
FIRST_NUMPY = {
    "order": (0, 7, 11, 13),
    "sample": (1, 7, 11),
    "buckets": (2, 7, 11),
    "posterior": (7, 11, 13),
    "dropout": (3, 7, 11),
    "caption": (4, 7, 11),
    "label": 7,
    "prompt": (5, 7, 11, 13),
    "blocks": (6, 7, 11),
    "window": (7, 7, 11, 13, 17),
    "instead": (8, 7, 11, 13),
}
FIRST_TORCH = {
    "noise": 7,
    "step": 7 * 1_000_003 + 11,
    "layers": (7 * 1_000_003 + 11) * 4096,
    **dict.fromkeys(("weights", "probe", "points", "subsets", "shuffle"), 7),
}


def numbers(formula):
    return (7, 11, 13, 17)[: formula.__code__.co_argcount]


@pytest.mark.parametrize("stream", NUMPY)
def test_streams_of_numpy_stay(stream):
    first = np.random.default_rng(FIRST_NUMPY[stream])
    assert (
        rng(stream, *numbers(NUMPY[stream])).integers(2**60, size=4).tolist() == first.integers(2**60, size=4).tolist()
    )


@pytest.mark.parametrize("stream", TORCH)
def test_streams_of_torch_stay(stream):
    first = torch.randn(4, generator=torch.Generator().manual_seed(FIRST_TORCH[stream]))
    assert torch.equal(torch.randn(4, generator=rng(stream, *numbers(TORCH[stream]))), first)
    with torch.random.fork_rng(devices=[]):
        seed_torch(stream, *numbers(TORCH[stream]))
        assert torch.equal(torch.randn(4), first)


def test_noise_of_a_batch_is_that_of_each_by_itself():
    of_numpy = [np.random.default_rng((3, n, 0)).standard_normal((2, 4, 4), dtype=np.float32) for n in (5, 6)]
    drawn = batch_noise([rng("posterior", 3, n, 0) for n in (5, 6)], (2, 4, 4))
    assert drawn.dtype == torch.float32
    assert np.array_equal(drawn.numpy(), np.stack(of_numpy))
    assert torch.equal(
        batch_noise([rng("noise", 8)], (3,))[0], torch.randn(3, generator=torch.Generator().manual_seed(8))
    )


def test_a_samples_label_stays():
    state = rng("label", 12).bit_generator.seed_seq.generate_state(1, np.uint64)
    assert state == np.random.SeedSequence(12).generate_state(1, np.uint64)
