"""What a training will take of an index is found from the command line, and told condition by condition."""

from __future__ import annotations

from aligntok.cli import main
from aligntok.data.stream import selection
from aligntok.data.stream.dataset import StreamDataset


def test_what_passes_is_told_and_is_what_a_training_opens(index, tmp_path, capsys, monkeypatch):
    (tmp_path / "hosts").write_text("host1.org\n")
    words = ["index", "select", str(index.folder), "--where", "score >= 3 and score < 8", "--captioned"]
    words += ["--blocked-domains", str(tmp_path / "hosts"), "--image-size", "32x32", "32x40"]
    assert main(words) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for line in (
        "Samples of 300",
        "can be read 300 100.00 %",
        "score >= 3 180 60.00 %",
        "score < 8 240 80.00 %",
        "host is not blocked 225 75.00 %",
        "has a caption 300",
        "all of these 105 35.00 %",
        "cropped to 32 x 32 70 23.33 %",
        "cropped to 32 x 40 35 11.67 %",
    ):
        assert line in told
    monkeypatch.setattr(selection, "_make", lambda *_: 1 / 0)
    data = StreamDataset(
        index.folder,
        where="score >= 3 and score < 8",
        blocked_domains=str(tmp_path / "hosts"),
        image_size=[(32, 32), (32, 40)],
        caption="auto",
    )
    assert len(data) == 105


def test_shapes_of_an_area_and_one_side_are_said_in_words(index, capsys):
    assert main(["index", "select", str(index.folder), "--image-size", "side=32"]) == 0
    assert "cropped to 32 x 32" in capsys.readouterr().out
    assert main(["index", "select", str(index.folder), "--image-size", "64"]) == 0
    assert "cropped to 64 x 64" in capsys.readouterr().out
    assert main(["index", "select", str(index.folder), "--where", "scor > 1"]) == 2
    assert "did you mean 'score'" in capsys.readouterr().err
