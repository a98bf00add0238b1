"""A reference is whole, named and checked, and refused for anything that it was not made for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from aligntok.errors import ConfigError, DataError, WriteError
from aligntok.evaluation import references
from aligntok.evaluation.images import RESIZE
from aligntok.evaluation.metrics.features import compare
from aligntok.evaluation.references import check_fits, make_reference, read_reference
from aligntok.evaluation.settings import ReferenceSettings
from aligntok.extractors import Extractor, Features


class Colours(Extractor):
    title, resize = "Colours", "mean over a grid"

    def __init__(self, gain=1.0):
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain))

    def forward(self, pixels):
        grid = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 64, 3)
        return Features(grid.flatten(1) * self.gain, grid[:, :, 1, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 pictures of 20 x 24 pixels."""
    root = tmp_path_factory.mktemp("real")
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 255, (5, 6, 3), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    return root


@pytest.fixture
def make(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "build_extractor", lambda word: Colours())

    def make(file="real.safetensors", **options):
        options = {"image_size": 16, "workers": 0, "batch_size": 5, **options}
        return make_reference(ReferenceSettings(data=folder, out=tmp_path / file, **options))

    return make


def test_what_is_written_is_read(make, folder):
    reference = read_reference(make(), Colours())
    said = {key: value for key, value in vars(reference).items() if key != "feature_set"}
    assert said == {
        "name": "real",
        "title": "Colours",
        "identity": Colours().identity,
        "resize": "mean over a grid",
        "image_resize": RESIZE,
        "image_size": (16, 16),
        "num_images": 24,
    }
    features = reference.feature_set
    assert features.features.shape == (24, 27)
    np.testing.assert_allclose(features.gaussian.covariance, np.cov(features.features.double().T), rtol=1e-6, atol=1e-7)
    assert features.spatial.mean.shape == (3,)
    found = compare(features, features)
    assert found["FD-Colours"] < 1e-9
    assert found["precision-Colours"] == 1


def test_batch_size_changes_nothing_and_features_are_evenly_spread(make):
    whole = read_reference(make(batch_size=24), Colours())
    some = read_reference(make("some.safetensors", keep_features=4, name="some of them"), Colours())
    assert some.name == "some of them"
    assert torch.equal(some.feature_set.features, whole.feature_set.features[[0, 6, 12, 18]])
    torch.testing.assert_close(some.feature_set.gaussian.mean, whole.feature_set.gaussian.mean, rtol=1e-10, atol=0)
    none = read_reference(make("none.safetensors", keep_features=0), Colours())
    assert none.feature_set.features is None
    assert read_reference(make("few.safetensors", num_images=6), Colours()).num_images == 6


def test_another_extractor_is_refused_with_both_sides(make):
    path = make()
    with pytest.raises(DataError, match=r"(?s)'real' is of the features of Colours \(.*uses Colours \(.*over a grid"):
        read_reference(path, Colours(gain=2.0))
    other = Colours()
    other.title = "Tints"
    with pytest.raises(DataError, match=r"(?s)features of Colours .* uses Tints"):
        read_reference(path, other)
    with pytest.raises(DataError, match=r"(?s)features of Colours .* uses Tints"):
        check_fits(read_reference(path, Colours()), other, 16)


def test_another_size_or_resizing_is_refused_with_both_sides(make):
    reference = read_reference(make(), Colours())
    check_fits(reference, Colours(), 16)
    check_fits(reference, Colours(), (16, 16), RESIZE)
    with pytest.raises(DataError, match=r"'real' is of images of 16 x 16 pixels, these have 16 x 24"):
        check_fits(reference, Colours(), (16, 24))
    with pytest.raises(DataError, match=r"resized with bicubic antialiased \(Pillow\), .*, these with nearest"):
        check_fits(reference, Colours(), 16, "nearest")


def test_a_damaged_file_is_refused(make, tmp_path):
    path = make()
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-3] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"is damaged \(its checksum differs\)"):
        read_reference(path, Colours())
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match="is damaged"):
        read_reference(path, Colours())
    path.write_bytes(b"not a reference")
    with pytest.raises(DataError, match="is damaged"):
        read_reference(path, Colours())
    with pytest.raises(DataError, match="no reference at .*gone"):
        read_reference(tmp_path / "gone.safetensors", Colours())


def test_what_is_said_of_the_tensors_is_under_the_checksum_too(make):
    path = make()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    said = json.dumps({**json.loads(metadata["reference"]), "num_images": 50_000}, sort_keys=True)
    save_file(tensors, path, {**metadata, "reference": said})
    with pytest.raises(DataError, match="its checksum differs"):
        read_reference(path, Colours())
    save_file(tensors, path, {"format": "something else"})
    with pytest.raises(DataError, match="no reference of this version"):
        read_reference(path, Colours())


def test_a_write_that_fails_leaves_what_was_there(make, monkeypatch):
    path = make()
    before = path.read_bytes()

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(WriteError, match="could not be written .No space left"):
        make(num_images=5)
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.sha256"]


def test_mistakes_are_found_before_any_work(folder, tmp_path):
    with pytest.raises(DataError, match=r"a reference is a \.safetensors file, out is .*ref\.npz"):
        make_reference(ReferenceSettings(data=folder, out=tmp_path / "ref.npz", extractor="nobodys"))
    with pytest.raises(ConfigError, match="ReferenceSettings: keep_features=-1; it must be int of at least 0"):
        make_reference(
            ReferenceSettings(data=folder, out=tmp_path / "ref.safetensors", extractor="nobodys", keep_features=-1)
        )
    with pytest.raises(DataError, match=r"a reference is a \.safetensors file, out is .*; give .*ref\.safetensors"):
        make_reference(ReferenceSettings(data=folder, out=tmp_path / "ref.pt", extractor="nobodys"))


class StandIn(Extractor):
    """As many numbers as Inception's, of the mean colours; under its title, as a local file of weights would be."""

    title, resize = "Inception-v3", "mean"

    def forward(self, pixels):
        x = pixels[..., :3].float().mean(dim=(2, 3)) / 255  # of the left: turned images would have others
        return Features(x.repeat(1, 683)[:, :2048], x.repeat(1, 675)[:, :2023], x)


@pytest.fixture(scope="module")
def adm(tmp_path_factory):
    """A file as ADM publishes them: statistics of more images than it holds."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((2048, 4)).astype(np.float32)
    path = tmp_path_factory.mktemp("adm") / "VIRTUAL_tiny.npz"
    content = {
        "mu": rng.standard_normal(2048).astype(np.float32),
        "sigma": root @ root.T,
        "mu_s": rng.standard_normal(2023),
        "sigma_s": np.eye(2023),
        "arr_0": rng.integers(0, 256, (70, 8, 10, 3), dtype=np.uint8),
    }
    np.savez(path, **content)
    return path, content


def test_adms_file_is_read_as_it_is(adm):
    path, content = adm
    reference = read_reference(path, StandIn())
    assert (reference.name, reference.image_size, reference.num_images) == ("VIRTUAL_tiny", (8, 10), 0)
    features = reference.feature_set
    np.testing.assert_array_equal(features.gaussian.mean, content["mu"].astype(np.float64))
    np.testing.assert_array_equal(features.gaussian.covariance, content["sigma"].astype(np.float64))
    np.testing.assert_array_equal(features.spatial.covariance, content["sigma_s"])
    images = torch.from_numpy(content["arr_0"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(features.features, StandIn()(images).pooled)
    check_fits(reference, StandIn(), (8, 10), RESIZE)
    with pytest.raises(DataError, match="images of 8 x 10 pixels, these have 16 x 16"):
        check_fits(reference, StandIn(), 16)
    assert len(features.features) == 70


def test_adms_file_is_for_inception_only(adm):
    with pytest.raises(DataError, match="features of Inception-v3, .*this evaluation uses Colours"):
        read_reference(adm[0], Colours())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"sigma": None}, "mu or sigma is missing, there is mu, mu_s"),
        ({"mu_s": None}, "one of mu_s and sigma_s is missing"),
        ({"mu": np.zeros(64)}, r"mu is float64 \(64,\)"),
        ({"sigma_s": np.zeros((2023, 2022))}, r"sigma_s is float64"),
        ({"arr_0": np.zeros((3, 8, 8, 3), np.float32)}, r"arr_0 is float32"),
    ],
)
def test_another_npz_is_refused(adm, tmp_path, change, fault):
    content = {key: value for key, value in {**adm[1], **change}.items() if value is not None}
    np.savez(tmp_path / "other.npz", **content)
    with pytest.raises(DataError, match=f"no reference of ADM's: {fault}"):
        read_reference(tmp_path / "other.npz", StandIn())


def test_samples_alone_and_damaged_archives_are_refused(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="mu or sigma is missing, there is arr_0.*make-reference"):
        read_reference(tmp_path / "samples.npz", StandIn())
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match=r"bad\.npz is damaged"):
        read_reference(tmp_path / "bad.npz", StandIn())
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match=r"one\.npz is damaged|no reference of ADM's"):
        read_reference(tmp_path / "one.npz", StandIn())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"said": None}, "it has no 'reference'"),
        ({"said": [1]}, "list indices"),
        ({"image_size": None}, "NoneType"),
        ({"num_images": "many"}, "invalid literal"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
        ({"covariance": None}, "it has no 'covariance'"),
        ({"spatial_covariance": None}, "it has no 'spatial_covariance'"),
        ({"covariance": torch.eye(26, dtype=torch.float64)}, r"covariance is torch.float64 \(26, 26\), not .*27, 27"),
        ({"mean": torch.full((27,), torch.nan, dtype=torch.float64)}, "mean is .* or not finite"),
        ({"mean": torch.tensor(1.0, dtype=torch.float64)}, r"mean is .* not torch.float64 \(1,\)"),
        ({"features": torch.zeros(4, 26)}, r"features is .*4, 26.*27"),
        ({"features": torch.zeros(4, 27, dtype=torch.int64)}, "features is torch.int64"),
    ],
)
def test_a_file_that_is_not_quite_ours_is_refused_in_a_sentence(make, change, fault):
    path = make()
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["reference"])
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    tensors |= {key: value for key, value in change.items() if isinstance(value, torch.Tensor) or key in tensors}
    tensors = {key: value for key, value in tensors.items() if value is not None}
    said = json.dumps(change.get("said", {**said, **{key: v for key, v in change.items() if key not in tensors}}))
    metadata = {"reference": said, "checksum": references.checksum(tensors, said)}
    metadata = {} if change.get("said", 1) is None else metadata
    save_file(tensors, path, {"format": references.FORMAT, **metadata})
    path.with_name(f"{path.name}.sha256").unlink()
    with pytest.raises(DataError, match=rf"real\.safetensors cannot be read \(.*{fault}.*; fetch or make it again"):
        read_reference(path, Colours())
