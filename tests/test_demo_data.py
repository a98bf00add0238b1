"""The demo's photographs come out of installed packages, the same ones each time."""

import hashlib
import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOL = Path(__file__).parents[1] / "tools" / "make_demo_data.py"


def make(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*/*")}


@pytest.fixture
def installed():
    for package in ("skimage", "foolbox"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.usefixtures("installed")
def test_photographs_are_written_whole_and_held_out_ones_kept_apart(monkeypatch, tmp_path):
    make(monkeypatch, tmp_path)
    written = contents(tmp_path)
    make(monkeypatch, tmp_path)
    assert contents(tmp_path) == written
    train = {path.stem for path in (tmp_path / "train").iterdir()}
    held_out = {path.stem for path in (tmp_path / "val").iterdir()}
    assert (len(train), len(held_out)) == (30, 4)
    assert not train & held_out
    assert len(written) == 34
    for path in tmp_path.glob("*/*.png"):
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert min(image.size) == 256


@pytest.mark.usefixtures("installed")
def test_crops_are_of_the_training_photographs_and_cover_them(monkeypatch, tmp_path):
    make(monkeypatch, tmp_path, "--crops", "2")
    crops = sorted((tmp_path / "crops").glob("*/*.png"))
    assert len(crops) == 4 * 30
    assert {path.parent.name for path in crops} == {path.stem for path in (tmp_path / "train").iterdir()}
    sizes = set()
    for path in crops:
        with Image.open(path) as image:
            sizes.add(image.size)
    assert sizes == {(64, 64)}
    make(monkeypatch, tmp_path, "--crops", "1")  # nothing of an earlier call stays to be trained on
    assert len([*(tmp_path / "crops").glob("*/*.png")]) == 30
    make(monkeypatch, tmp_path)
    assert not (tmp_path / "crops").exists()


@pytest.mark.usefixtures("installed")
def test_what_it_cannot_or_may_not_write_over_is_told_in_a_sentence(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out, said in ((tmp_path / "file/below", "could not be written"), (tmp_path, "has other things in it")):
        with pytest.raises(SystemExit):
            make(monkeypatch, out)
        assert re.search(f"error: .*{said}", capsys.readouterr().err)
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(SystemExit):
        make(monkeypatch, tmp_path)
    assert (
        'the demo\'s photographs are in the package skimage, which is not here: pip install "aligntok[demo]"'
        in capsys.readouterr().err
    )
