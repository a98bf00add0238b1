"""Samples beside real images: of the same class, real ones on the left."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from aligntok.cli import sample as command
from aligntok.data.latents import LatentDataset
from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource
from aligntok.errors import DataError
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.sampling.samples import paired
from aligntok.tokenizer import Tokenizer

GREYS = {"ant": 40, "bee": 130, "zebra": 220}
SMALL = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=4)


@pytest.fixture
def greys(tmp_path):
    """Three classes of two images each, every class of one grey."""
    for name, grey in GREYS.items():
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 36), (grey,) * 3).save(tmp_path / "data" / "train" / name / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def run(tiny_tokenizer, tiny_cache, tmp_path):
    def save(**generator):
        cache = LatentDataset(tiny_cache)
        tokenizer = Tokenizer.from_pretrained(tiny_tokenizer)
        model = LatentDiffusion({**SMALL, **generator}, tokenizer, cache.statistics, (4, 4, 4), tuple(GREYS))
        model.save_pretrained(tmp_path / "run")
        return str(tmp_path / "run")

    return save


def picture(folder):
    with Image.open(folder / "beside_real.png") as opened:
        return np.asarray(opened.convert("RGB"))


def test_a_class_has_its_real_images_on_the_left_and_its_samples_on_the_right(run, greys, tmp_path):
    options = ["--num-samples", "5", "--classes", "zebra", "ant", "--steps", "1", "--out", str(tmp_path / "out")]
    assert command([run(num_classes=3), *options, "--real-images", str(greys), "--split", "train"]) == 0
    shown = picture(tmp_path / "out")
    tile, gap, between = 32, 2, 10
    width = 4 * tile + 3 * gap
    assert shown.shape == (tile, 2 * width + between, 3)
    for column, name in ((0, "zebra"), (width + between, "ant")):  # in the order of the samples
        for left in (column, column + tile + gap):
            assert (shown[:, left : left + tile] == GREYS[name]).all()
    for number, left in ((0, 2 * (tile + gap)), (2, 3 * (tile + gap))):
        with Image.open(tmp_path / "out" / "images" / f"{number:06d}.png") as sample:
            assert (shown[:, left : left + tile] == np.asarray(sample)).all()


def beside(data, out, number):
    words = {"--num-samples": number, "--steps": 1, "--out": out, "--real-images": data, "--split": "train"}
    return [str(word) for pair in words.items() for word in pair]


def test_without_classes_samples_stand_beside_images_of_all_the_data(run, greys, tmp_path):
    options = beside(greys, tmp_path / "out", 3)
    assert command([run(num_classes=1, class_dropout_prob=0.0), *options]) == 0
    assert {int(grey) for grey in picture(tmp_path / "out")[0, :32, 0]} == {GREYS["ant"]}


def test_real_images_are_paired_by_the_names_of_classes(greys):
    source = paired(open_source(greys, "train"), [0, 1], ("zebra", "ant"))  # the data number them the other way round
    assert [source.names[i].split("/")[0] for i in np.flatnonzero(source.labels == 0)] == ["zebra"] * 2
    assert (source.labels[[name.startswith("bee") for name in source.names]] == -1).all()


def test_data_without_a_class_of_the_samples_is_one_clear_error(greys):
    names = ("ant", "bee", "cat")
    assert isinstance(paired(open_source(greys, "train"), [0, 1], names), ImageSource)
    with pytest.raises(DataError, match="has no images of class 'cat', of which there are samples"):
        paired(open_source(greys, "train"), [0, 2], names)
    with pytest.raises(DataError, match="the classes of .*train have names, those of the generator have not"):
        paired(open_source(greys, "train"), [0, 1], ())
    for name in ("ant", "bee", "zebra"):
        (greys / "train" / name / "0.png").rename(greys / f"{name}.png")
    for folder in (greys / "train").iterdir():
        shutil.rmtree(folder)
    (greys / "train").rmdir()
    with pytest.raises(DataError, match="the classes of the generator have names, those of .*data have not"):
        paired(open_source(greys, None), [0, 1], names)


def test_a_real_image_that_cannot_be_read_is_named(run, greys, tmp_path, capsys):
    for path in (greys / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    assert len(open_source(greys, "train")) == 6
    options = beside(greys, tmp_path / "out", 1)
    assert command([run(num_classes=3), *options]) == 2
    assert "or damaged in its first bytes" in capsys.readouterr().err
