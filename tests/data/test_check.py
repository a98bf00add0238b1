"""What `aligntok data check` finds in a data set."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from aligntok.cli import main


def picture(path, height, width, number, **saved):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **saved)
    return path


@pytest.fixture
def photographs(tmp_path):
    """Two splits of class folders, and everything that can be wrong with them."""
    root = tmp_path / "photographs"
    for number in range(6):
        picture(root / "train/ant" / f"{number}.jpg", 40, 30 + number, number)
    picture(root / "train/bee/0.png", 20, 90, 10)
    picture(root / "train/bee/strip.png", 2, 200, 11)
    (root / "train/bee/broken.jpg").write_bytes((root / "train/ant/0.jpg").read_bytes()[:-200])
    (root / "train/bee/no_image.jpg").write_text("<html>not found</html>")
    (root / "train/bee/0.heic").write_bytes(b"0")
    (root / "train/bee/[red]:train:.txt").write_text("notes")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(root / "train/bee/turned.jpg", 30, 50, 12, exif=turned)
    shutil.copy(root / "train/ant/1.jpg", root / "train/ant/again.jpg")
    picture(root / "val/ant/0.jpg", 40, 40, 20)
    shutil.copy(root / "train/ant/2.jpg", root / "val/ant/[bold]leaked.jpg")
    return root


def look(capsys, *words, status=0):
    assert main(["data", "check", *map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_each_split_is_told_by_itself_and_beside_the_others(photographs, capsys):
    told = look(capsys, photographs, "--image-size", 32, status=1)
    train, val = told["data"][str(photographs / "train")], told["data"][str(photographs / "val")]
    assert (train["images"], train["looked_at"], val["images"]) == (12, 12, 2)
    assert train["passed_over"] == {".heic": 1, ".txt": 1}
    assert (train["classes"], train["images_a_class"]) == (2, [5, 6, 7])
    assert {*train["unreadable"]["such_as"]} == {"bee/strip.png", "bee/broken.jpg", "bee/no_image.jpg"}
    assert "strip" in train["unreadable"]["such_as"]["bee/strip.png"]
    assert "truncated" in train["unreadable"]["such_as"]["bee/broken.jpg"]  # whose header is whole
    assert (train["unreadable"]["images"], val["unreadable"]["images"]) == (3, 0)
    assert train["formats"] == {"JPEG": 9, "PNG": 1}
    assert train["turned_by_exif"] == 1
    assert train["copies"] == {"images": 1, "such_as": [["ant/1.jpg", "ant/again.jpg"]]}
    (shared,) = told["copies_across"]["such_as"]
    assert told["copies_across"]["images"] == 1
    assert shared == [f"{photographs}/train/ant/2.jpg", f"{photographs}/val/ant/[bold]leaked.jpg"]
    assert train["captions"] == {"images": 0, "none": "none"}


def test_sides_are_upright_and_held_against_the_crops(photographs, capsys):
    told = look(capsys, photographs, "--splits", "train", "--image-size", "30x60", "50x30", status=1)
    found = told["data"][str(photographs / "train")]
    # 40 x 30 to 35 and the one of 50 x 30 that is turned are upright; 20 x 90 is flat, and too low
    assert found["shapes"] == {"30x60": 1, "50x30": 9}
    assert (found["short_side"][0], found["long_side"][2]) == (20, 90)
    assert found["enlarged"] == 9  # all but the turned one: its 50 x 30 are as they should be
    sizes = [(40, 30), (40, 30), (40, 31), (40, 31), (40, 32), (40, 33), (40, 34), (40, 35), (50, 30)]
    kept = [(60 / 90) / (30 / 20)]
    kept += [min(50 / h, 30 / w) / max(50 / h, 30 / w) for h, w in sizes]
    assert found["cropped_away"] == pytest.approx(1 - sum(kept) / 10, abs=1e-4)


def test_a_part_is_looked_at_when_asked_for(photographs, capsys):
    told = look(capsys, photographs, "--splits", "train", "--num-images", 4, "--decoded", 1, status=1)
    found = told["data"][str(photographs / "train")]
    assert (found["images"], found["looked_at"], found["decoded"]) == (12, 4, 1)


def test_captions_are_counted_and_what_is_wrong_with_them_is_told(photographs, capsys):
    rows = ['{"file": "ant/0.jpg", "caption": ["an ant", "a small red ant"]}', '{"file": "ant/1.jpg", "caption": ""}']
    table = photographs / "train/captions.jsonl"
    table.write_text("\n".join(rows))
    name = str(photographs / "train")
    found = look(capsys, photographs, "--splits", "train", status=1)["data"][name]["captions"]
    assert found == {"images": 2, "without": 10, "captions": 3, "empty": 1, "words": [0, 1, 2]}
    table.write_text("{")
    found = look(capsys, photographs, "--splits", "train", status=1)["data"][name]
    assert found["images"] == 12
    assert "captions.jsonl, line 1" in found["captions"]["none"]


def test_options_of_an_index_are_refused_for_other_data(photographs, capsys):
    assert main(["data", "check", str(photographs), "--attempts", "3"]) == 2
    assert "is no index of shards: --attempts" in capsys.readouterr().err


def test_names_are_printed_as_they_are(photographs, capsys):
    assert main(["data", "check", str(photographs), "--image-size", "32"]) == 1
    printed = capsys.readouterr().out
    assert "val/ant/[bold]leaked.jpg" in printed.replace("\n", "")
    assert "cannot be read: bee/no_image.jpg (" in printed
    assert "1 .heic" in printed


def test_every_kind_of_source_is_looked_at(as_shards, class_folders, capsys):
    told = look(capsys, as_shards(), "--equal-area", 32)
    (shards,) = told["data"].values()
    (folder,) = look(capsys, class_folders, "--equal-area", 32)["data"].values()
    assert shards["images"] == 12
    assert shards.pop("passed_over") == folder.pop("passed_over") == {}
    assert shards == folder
    assert main(["data", "check", str(class_folders / "none")]) == 2
