"""The measure of the demo of text to image: ranks of right pictures, and a control that has the same pictures."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

from aligntok.extractors import Extractor, Features
from aligntok.io.pictures import save_picture, to_picture

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


class Corner(Extractor):
    """Two numbers of a picture: how red, and how green its first pixel is."""

    title = resize = "corner"

    def forward(self, pixels):
        return Features(pixels[:, :2, 0, 0].float())


def colour(red, green):
    return torch.tensor([red, green, 0.0])[:, None, None].expand(3, 4, 4) * 2 - 1


@pytest.fixture
def emoji(tmp_path):
    """Pictures from red to green, three to train and two held out."""
    for split, names in {"train": ["red", "orange", "lime"], "val": ["green", "yellow"]}.items():
        folder = tmp_path / "emoji" / split
        folder.mkdir(parents=True)
        for name in names:
            save_picture(folder / f"{name}.png", to_picture(colour(*SHADES[name])))
        with (folder / "captions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file", "caption"], *([f"{name}.png", name] for name in names)])
    return tmp_path / "emoji"


SHADES = dict(red=(1, 0), orange=(1, 0.5), yellow=(1, 1), lime=(0.5, 1), green=(0, 1))


def run(monkeypatch, capsys, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_a_rank_is_the_place_of_the_right_picture_by_likeness(emoji, tmp_path, monkeypatch, capsys):
    samples = {"green": (0, 1), "yellow": (0.2, 1), "red": (1, 0.1)}  # yellow came out as green: lime is nearer, too
    lines = []
    for number, (prompt, shade) in enumerate(samples.items()):
        save_picture(tmp_path / "samples/images" / f"{number}.png", to_picture(colour(*shade)))
        lines.append(json.dumps({"file": f"images/{number}.png", "prompt": prompt}))
    (tmp_path / "samples/prompts.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr("aligntok.evaluation.metrics.features.build_extractor", lambda given: Corner())
    folders = [tmp_path / "samples", tmp_path / "again"]
    shutil.copytree(*folders)
    lines = run(monkeypatch, capsys, "retrieval_rank", *folders, emoji).splitlines()
    told, again = map(json.loads, lines)
    assert again == {**told, "folder": str(folders[1])}
    assert (told["samples"], told["pictures"], told["median_rank"]) == (3, 5, 1.0)
    assert told["among_the_first_10"] == 1.0
    ranks = runpy.run_path(str(BENCHMARKS / "retrieval_rank.py"))["ranks"]
    drawn = torch.nn.functional.normalize(torch.tensor([[0.0, 1.0], [0.2, 1.0], [1.0, 0.1]]), dim=1)
    known = torch.nn.functional.normalize(torch.tensor([SHADES[name] for name in SHADES]), dim=1)
    assert ranks(drawn, known, torch.tensor([4, 2, 0])).tolist() == [1, 3, 1]
    twice = torch.cat([known, known])
    assert ranks(drawn[:1], twice, torch.tensor([4])).tolist() == [1.5]


def test_the_control_has_the_same_pictures_and_captions_in_another_order(emoji, tmp_path, monkeypatch, capsys):
    run(monkeypatch, capsys, "shuffled_captions", emoji, tmp_path / "control", "--seed", "1")
    for split in ("train", "val"):
        own, other = (
            list(csv.reader((root / split / "captions.csv").read_text().splitlines()))
            for root in (emoji, tmp_path / "control")
        )
        assert [row[0] for row in own] == [row[0] for row in other]
        assert sorted(row[1] for row in own) == sorted(row[1] for row in other)
        assert (own == other) == (split == "val")
    assert {path.name for path in (tmp_path / "control/train").iterdir()} == {
        path.name for path in (emoji / "train").iterdir()
    }
