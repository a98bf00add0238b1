"""`aligntok reconstruct`: a file and a PSNR for each picture, none lost and none overwritten."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import aligntok
from aligntok import cli
from aligntok.tokenizer import Tokenizer


@pytest.fixture
def pictures(tmp_path):
    """a/cat.png, a/inner/cat.jpg, b/cat.png and b/dog.png, each of other pixels and sizes."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a/cat.png", "a/inner/cat.jpg", "b/cat.png", "b/dog.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (33 + number, 46, 3), dtype=np.uint8)).save(path)
    return tmp_path


def opened(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def reconstruct(tokenizer, *words):
    return cli.main(["reconstruct", str(tokenizer), *map(str, words), "--device", "cpu"])


def test_each_picture_is_a_file_and_a_line_and_the_numbers_are_those_of_the_pixels(tiny_tokenizer, pictures, capsys):
    out = pictures / "out"
    assert reconstruct(tiny_tokenizer, pictures / "a/cat.png", pictures / "b/dog.png", "--out", out) == 0
    printed = capsys.readouterr().out.splitlines()
    expected = []
    for source, name in (("a/cat.png", "cat.png"), ("b/dog.png", "dog.png")):
        made, image = (np.asarray(Image.open(path), dtype=float) for path in (out / name, pictures / source))
        height, width = made.shape[:2]
        assert (height, width) == (image.shape[0] // 8 * 8, image.shape[1] // 8 * 8)
        top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
        error = ((made - image[top : top + height, left : left + width]) ** 2).mean()
        expected.append(10 * math.log10(255**2 / error))
    assert printed == [
        f"cat.png {expected[0]:.2f}",
        f"dog.png {expected[1]:.2f}",
        f"mean {sum(expected) / 2:.2f}",
    ]
    model = aligntok.load_tokenizer(tiny_tokenizer)
    own = model.reconstruct(Image.open(pictures / "a/cat.png"))
    assert np.abs(np.asarray(own, int) - np.asarray(Image.open(out / "cat.png"), int)).max() <= 1


def test_two_of_one_name_are_two_files_and_folders_keep_theirs(tiny_tokenizer, pictures, capsys):
    out = pictures / "a/out"  # what lies there is nothing to begin with
    assert reconstruct(tiny_tokenizer, pictures / "a", pictures / "b", "--out", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    names = {each["image"].removeprefix(f"{pictures}/"): each["name"] for each in found["images"]}
    assert names == {
        "a/cat.png": "cat.png",
        "a/inner/cat.jpg": "inner/cat.png",
        "b/cat.png": "cat_2.png",
        "b/dog.png": "dog.png",
    }
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == sorted(names.values())
    assert found["mean_psnr"] == pytest.approx(sum(each["psnr"] for each in found["images"]) / 4)
    assert reconstruct(tiny_tokenizer, pictures / "a", "--out", out, "--force", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 2


@pytest.mark.parametrize("out", [".", "a"])
def test_pictures_below_the_place_of_what_is_made_are_found(pictures, out):
    from aligntok.evaluation.own_pictures import find_pictures

    found = find_pictures([pictures / "a"], pictures / out)
    assert {path.relative_to(pictures).as_posix() for path in found} == {"a/cat.png", "a/inner/cat.jpg"}
    assert set(find_pictures([pictures / "a"], pictures / "a/inner")) == {pictures / "a/cat.png"}


def test_a_number_never_takes_the_name_of_another_picture(pictures):
    from pathlib import Path

    from aligntok.evaluation.own_pictures import name_targets

    named = name_targets(
        {Path("a/x.png"): Path("x.png"), Path("b/x.png"): Path("x.png"), Path("x_2.png"): Path("x_2.png")}
    )
    assert [str(name) for name in named.values()] == ["x", "x_3", "x_2"]


def test_names_that_some_disks_take_for_one_are_told_apart():
    from pathlib import Path

    from aligntok.evaluation.own_pictures import name_targets

    names = ["Cat.png", "cat.jpg", "caf\u00e9.png", "cafe\u0301.png", "CAT_2.png"]
    named = name_targets({Path(str(number), name): Path(name) for number, name in enumerate(names)})
    assert [str(name) for name in named.values()] == ["Cat", "cat_3", "caf\u00e9", "cafe\u0301_2", "CAT_2"]


def test_what_is_there_is_kept_unless_forced(tiny_tokenizer, pictures, capsys):
    out = pictures / "out"
    out.mkdir()
    (out / "dog.png").write_text("mine")
    words = [pictures / "b", "--out", out]
    assert reconstruct(tiny_tokenizer, *words) == 2
    assert "dog.png would be overwritten; give another --out, or --force" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["dog.png"]
    assert (out / "dog.png").read_text() == "mine"
    assert reconstruct(tiny_tokenizer, *words, "--force") == 0
    assert opened(out / "dog.png").size == (40, 32)


def test_what_is_given_is_never_written_over(tiny_tokenizer, pictures, capsys):
    (pictures / "b/own.png").write_bytes(before := (pictures / "b/dog.png").read_bytes())
    for given, out in (
        (pictures / "b", pictures / "b"),
        (pictures / "b/own.png", pictures / "b"),
        (pictures, pictures),
    ):
        assert reconstruct(tiny_tokenizer, given, "--out", out, "--force") == 2
        assert "own.png would be reconstructed in its own place" in capsys.readouterr().err
        assert (pictures / "b/own.png").read_bytes() == before


def test_what_cannot_be_read_is_named_and_the_rest_is_done(tiny_tokenizer, pictures, capsys):
    (pictures / "b/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    Image.new("RGB", (3, 3)).save(pictures / "b/small.png")
    assert reconstruct(tiny_tokenizer, pictures / "b", "--out", pictures / "out", "--json") == 1
    printed, told = capsys.readouterr()
    assert f"left out: {pictures}/b/broken.png cannot be opened as an image" in told
    assert f"left out: {pictures}/b/small.png: an image of 3 x 3 pixels is smaller than f" in told
    found = json.loads(printed)
    assert [each["name"] for each in found["images"]] == ["cat.png", "dog.png"]
    assert sorted(found["unreadable"]) == [f"{pictures}/b/broken.png", f"{pictures}/b/small.png"]


def test_a_picture_too_large_for_the_memory_is_named_with_what_would_fit(tiny_tokenizer, pictures, monkeypatch, capsys):
    Image.new("RGB", (80, 40)).save(pictures / "b/large.png")
    encode = Tokenizer.encode

    def encode_small(self, images):
        if images.shape[-1] == 80:
            raise torch.OutOfMemoryError
        return encode(self, images)

    monkeypatch.setattr(Tokenizer, "encode", encode_small)
    assert reconstruct(tiny_tokenizer, pictures / "b", "--out", pictures / "out") == 1
    printed, told = capsys.readouterr()
    assert [line.split()[0] for line in printed.splitlines()] == ["cat.png", "dog.png", "mean"]
    assert "the 40 x 80 pixels of a picture at once do not fit" in told
    assert "--size" in told


def test_a_reconstruction_that_is_not_finite_is_no_black_picture(tiny_tokenizer, pictures, monkeypatch, capsys):
    decode = Tokenizer.decode

    def decode_large(self, latents):
        return decode(self, latents).mul_(torch.inf if latents.shape[-2:] == (4, 5) else 1)

    monkeypatch.setattr(Tokenizer, "decode", decode_large)
    Image.new("RGB", (24, 24)).save(pictures / "b/sound.png")
    assert reconstruct(tiny_tokenizer, pictures / "b", "--out", pictures / "out") == 1
    printed, told = capsys.readouterr()
    assert [line.split()[0] for line in printed.splitlines()] == ["sound.png", "mean"]
    assert "nan" not in printed
    assert f"left out: {pictures}/b/dog.png: its reconstruction is not finite; take --dtype float32" in told
    assert [path.name for path in (pictures / "out").iterdir()] == ["sound.png"]


def test_size_and_side_by_side(tiny_tokenizer, pictures, capsys):
    out = pictures / "out"
    words = [pictures / "a/cat.png", "--out", out, "--size", "32x24", "--dtype", "bfloat16"]
    assert reconstruct(tiny_tokenizer, *words) == 0
    assert opened(out / "cat.png").size == (24, 32)
    assert reconstruct(tiny_tokenizer, *words, "--side-by-side", "--force") == 0
    assert opened(out / "cat.png").size[0] > 3 * 24
    assert reconstruct(tiny_tokenizer, *words[:-4], "--size", "30", "--force") == 2
    assert "such as (32, 32)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no nowhere"),
        (["."], "no images in .; they end in"),
        (["videos"], "; there are 2 .mp4, 1 without suffix"),
    ],
)
def test_nothing_to_do_is_said(words, said, tiny_tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.MP4", "notes"):
        (tmp_path / "videos" / name).write_bytes(b"frames")
    assert reconstruct(tiny_tokenizer, *words, "--out", "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_work(tiny_tokenizer, pictures, capsys):
    (pictures / "out").write_text("mine")
    for out in (pictures / "out", pictures / "out/below"):
        assert reconstruct(tiny_tokenizer, pictures / "a/cat.png", "--out", out) == 2
        printed, told = capsys.readouterr()
        assert not printed
        assert f"cannot write in {out}: {pictures}/out is no folder that may be written in" in told
    assert (pictures / "out").read_text() == "mine"
