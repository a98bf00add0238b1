"""Features of a set do not depend on batches and processes, and no number has a name that is not its own."""

from __future__ import annotations

import pytest
import torch

from aligntok.errors import DataError
from aligntok.evaluation.metrics.features import FeatureCollector, FeatureSet, compare
from aligntok.evaluation.metrics.fid import Gaussian, RunningMoments
from aligntok.extractors import Extractor, Features

EXTRACTOR = '''
import torch
from aligntok.extractors import Extractor, Features


class Colours(Extractor):
    """The mean colours of a 3 x 3 grid, squared; those of its middle; as logits, a few of them."""

    title, resize = "Colours", "mean over a grid"

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(27))

    def forward(self, pixels):
        grid = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 64, 3)
        pooled = grid.flatten(1).square() @ self.gain.diag()
        return Features(pooled, grid[:, :, 1, 1], 5 * pooled[:, :6])
'''
exec(EXTRACTOR)

# One of three processes; the last has no image. Says what it found.
WORKER = """
import sys, torch, torch.distributed as dist
from aligntok.evaluation.metrics.features import FeatureCollector
torch.set_num_threads(1)
folder = sys.argv[1]
dist.init_process_group("gloo")
rank = dist.get_rank()
pixels = torch.load(f"{folder}/pixels.pt")
for batch_size, keep in ((9, True), (21, {1, 7, 20, 39})):
    collector = FeatureCollector(Colours(), keep)
    batches = range(0, 40, batch_size)
    for start in [b for i, b in enumerate(batches) if i % 2 == rank]:  # dealt to the first two
        collector.add(pixels[start:start + batch_size], range(start, min(start + batch_size, 40)))
    collector.add(pixels[:0], [])
    found = collector.combine()
    torch.save(found, f"{folder}/{batch_size}_{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def pixels():
    coarse = torch.randint(0, 256, (40, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    return coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3).to(torch.uint8)


def gaussian_of(features):
    moments = RunningMoments()
    moments.add(features)
    return moments.combine()


def collect(pixels, batch_size=7, keep=True, extractor=None, places=None):
    collector = FeatureCollector(extractor or Colours(), keep)  # noqa: F821
    places = list(range(len(pixels))) if places is None else places
    for start in range(0, len(pixels), batch_size):
        collector.add(pixels[start : start + batch_size], places[start : start + batch_size])
    return collector.combine()


def assert_same(a, b):
    assert (a.title, a.count) == (b.title, b.count)
    for x, y in ((a.gaussian, b.gaussian), (a.spatial, b.spatial)):
        torch.testing.assert_close(x.mean, y.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(x.covariance, y.covariance, rtol=1e-9, atol=1e-10)
    for x, y in ((a.features, b.features), (a.logits, b.logits)):
        assert (x is None and y is None) or torch.allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_neither_batch_size_nor_order_matters(pixels, batch_size):
    whole = collect(pixels)
    assert_same(collect(pixels, batch_size), whole)
    order = torch.randperm(40).tolist()
    assert_same(collect(pixels[order], batch_size, places=order), whole)
    torch.testing.assert_close(whole.features, Colours()(pixels).pooled.detach())  # noqa: F821
    for name, value in compare(collect(pixels[:20], batch_size), collect(pixels[20:])).items():
        assert value == pytest.approx(compare(collect(pixels[:20]), collect(pixels[20:]))[name], rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_three_processes_of_which_one_has_nothing_find_what_one_finds(warm, pixels, tmp_path):
    torch.save(pixels, tmp_path / "pixels.pt")
    (tmp_path / "worker.py").write_text(EXTRACTOR + WORKER)
    warm.together(3, tmp_path / "worker.py", tmp_path, setup=warm.strict)
    torch.serialization.add_safe_globals([FeatureSet, Gaussian])
    chosen = collect(pixels, keep={1, 7, 20, 39})
    for rank in range(3):  # every process has all of it
        assert_same(torch.load(tmp_path / f"9_{rank}.pt"), collect(pixels))
        assert_same(torch.load(tmp_path / f"21_{rank}.pt"), chosen)


def test_only_what_is_asked_for_is_kept(pixels):
    nothing, some = collect(pixels, keep=False), collect(pixels, keep={4, 39})
    assert nothing.features is None
    assert nothing.logits is None
    assert some.logits is None
    torch.testing.assert_close(some.features, collect(pixels).features[[4, 39]])
    assert some.count == nothing.count == 40
    assert_same(FeatureSet(**{**vars(some), "features": None}), nothing)


def test_what_surrounds_the_extractor_does_not_touch_it(pixels):
    """Half precision around it, gradients, and later use of what it gave."""
    collector = FeatureCollector(Colours(), True)  # noqa: F821
    with torch.autocast("cpu", dtype=torch.bfloat16):
        collector.add(pixels, range(40))
    found = collector.combine()
    assert_same(found, collect(pixels))
    found.features.mul_(2)  # no inference tensor
    assert not found.features.requires_grad


class Broken(Extractor):
    title, resize = "Broken", "not at all"

    def forward(self, pixels):
        return Features(pixels.float().mean(dim=(2, 3)).log())


def test_features_that_are_not_finite_are_named(pixels):
    black = pixels[:4].clone()
    black[2] = 0
    with pytest.raises(DataError, match="Broken gives features that are not finite .* places 0 to 3"):
        collect(black, extractor=Broken())


def test_no_images_are_too_few():
    with pytest.raises(DataError, match="at least 2 images"):
        collect(torch.zeros(0, 3, 8, 8, dtype=torch.uint8))


def features_of(title, n=30, d=8, seed=0, spatial=True, features=True, logits=True):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    rows = x if features else None
    return FeatureSet(title, gaussian_of(x), gaussian_of(x * 2) if spatial else None, rows, x if logits else None, n)


ALL = ["FID", "sFID", "IS", "IS_std", "KID", "KID_se", "precision", "recall", "density", "coverage"]
OTHERS = ["FD", "sFD", "IS", "IS_std", "KD", "KD_se", "precision", "recall", "density", "coverage"]


def test_inception_alone_gives_fid_and_its_kin():
    assert list(compare(features_of("Inception-v3"), features_of("Inception-v3", seed=1))) == ALL
    for title in ("EfficientNetLite0", "Inception-v3-random", "inception_v3", "timm-inception_v3"):
        found = compare(features_of(title), features_of(title, seed=1))
        assert list(found) == [f"{name}-{title}" for name in OTHERS]
        assert not [name for name in found if "FID" in name or "KID" in name]


@pytest.mark.parametrize(
    ("left", "right", "missing"),
    [
        ({"spatial": False}, {}, {"sFID"}),
        ({}, {"spatial": False}, {"sFID"}),
        ({"logits": False}, {}, {"IS", "IS_std"}),
        ({}, {"logits": False}, set()),
        ({}, {"features": False}, {"KID", "KID_se", "precision", "recall", "density", "coverage"}),
        ({"features": False}, {}, {"KID", "KID_se", "precision", "recall", "density", "coverage"}),
        ({"n": 9}, {}, {"IS", "IS_std"}),
        ({"n": 4}, {}, {"IS", "IS_std", "density", "coverage"}),
        ({}, {"n": 3}, {"KID", "KID_se", "precision", "recall", "density", "coverage"}),
    ],
)
def test_numbers_are_left_out_that_the_two_sides_do_not_allow(left, right, missing):
    found = compare(features_of("Inception-v3", **left), features_of("Inception-v3", seed=1, **right))
    assert set(ALL) - set(found) == missing


def test_the_sides_have_the_roles_that_their_names_say():
    real = features_of("T", n=60)
    narrow = features_of("T", n=60, seed=1)
    narrow = FeatureSet("T", gaussian_of(narrow.features * 0.1), None, narrow.features * 0.1, None, 60)
    found = compare(narrow, real)
    assert found["precision-T"] == 1  # each is among the real ones
    assert found["recall-T"] < 0.2  # but they are not as diverse


def test_features_of_different_extractors_are_not_compared():
    with pytest.raises(DataError, match=r"features of A \(8 numbers an image\) cannot be compared with features of B"):
        compare(features_of("A"), features_of("B"))
    with pytest.raises(DataError, match=r"A \(8 numbers .* A \(9 numbers"):
        compare(features_of("A"), features_of("A", d=9))


def test_the_seed_chooses_subsets_and_splits():
    sides = features_of("T", n=60), features_of("T", n=60, seed=1)
    first, other = compare(*sides), compare(*sides, seed=1)
    assert first == compare(*sides)
    assert {name for name in first if first[name] != other[name]} == {"KD-T", "KD_se-T", "IS-T", "IS_std-T"}
