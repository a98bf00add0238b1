"""The command: folders of samples against their prompts, alone and side by side, and what it says of bad files."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from aligntok.cli import evaluate
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.report import write_report
from aligntok.evaluation.results import read_result
from aligntok.evaluation.settings import ReportSettings, TextImageSettings
from aligntok.evaluation.text_image import evaluate_text_image, run
from aligntok.evaluation.text_image.geneval import COCO, Found, GenEval
from aligntok.evaluation.text_image.samples import PromptedSamples, PromptSet, matched
from aligntok.evaluation.text_image.scorers import CLIP, CLIPScore, PickScore, Source

pytest.importorskip("transformers")


def words(folder, *more):
    return [
        "text-image",
        *map(str, folder if isinstance(folder, list) else [folder]),
        "--workers",
        "0",
        *map(str, more),
    ]


def rows(folder):
    with (folder / "per_image.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def weights(clip_folder):
    return ["--weights", f"clip={clip_folder}", f"pickscore={clip_folder}"]


def test_one_folder_gives_a_mean_an_error_and_a_row_for_each_picture(samples, clip_folder, weights, tmp_path, capsys):
    folder, out = samples(), tmp_path / "out"
    assert evaluate(words(folder, "--metrics", "clip", "pickscore", *weights, "--batch-size", "4", "--out", out)) == 0
    result = read_result(out / "text_image.json")
    name = Source.of(clip_folder, "").name
    assert set(result.metrics) == {
        *(f"{metric}-{name}{more}" for metric in ("CLIPScore", "PickScore") for more in ("", ", standard error")),
        "images",
    }
    scorer = CLIPScore(CLIP(clip_folder, ""))
    table = rows(out)
    for row in table:
        seen = scorer.see(Image.open(folder / row["file"]).convert("RGB"))
        (sample,) = [each for each in PromptedSamples(folder, PromptSet(())).samples if each.file == row["file"]]
        assert float(row[f"CLIPScore-{name}"]) == pytest.approx(float(scorer([seen], [sample])), abs=1e-4)
        assert row["prompt"] == sample.prompt
    values = [float(row[f"CLIPScore-{name}"]) for row in table]
    assert [row["turn"] for row in table] == ["0"] * 3 + ["1"] * 3
    assert result.metrics[f"CLIPScore-{name}"] == pytest.approx(sum(values) / 6)
    (described, _) = result.settings["metrics"]
    assert len(described["identity"]) == 64
    assert described["columns"] == [f"CLIPScore-{name}"]
    page = (out / "report.html").read_text()
    assert f"CLIPScore-{name}" in page
    assert "No numbers of the paper beside these: the paper names no model of its CLIP score" in page
    assert f"CLIPScore-{name}" in capsys.readouterr().out.replace("\n", "")


def test_two_folders_are_compared_prompt_by_prompt(samples, clip_folder, weights, tmp_path, caplog):
    first, second, out = samples("first"), samples("second", seed=1), tmp_path / "out"
    with (first / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"file": "images/more.png", "prompt": "a red apple"}) + "\n")
    (first / "images/more.png").write_bytes((first / "images/000000.png").read_bytes())
    arguments = ["--metrics", "pickscore", "clip", *weights, "--out", out]
    assert evaluate(words([first, second], *arguments)) == 0
    result, name = read_result(out / "text_image.json"), Source.of(clip_folder, "").name
    assert "1 pictures have none of their prompt and turn in the other folder: 'a red apple', picture 3" in caplog.text
    (table,) = [rows for title, rows in result.tables.items() if title.startswith("Side by side, 6 pictures")]
    by_folder = {key: [row for row in rows(out) if row["folder"] == key] for key in ("first", "second")}
    for row in table:
        x, y = ([float(each[row["metric"]]) for each in by_folder[key][:6]] for key in ("first", "second"))
        assert row["first wins"] == sum(a > b for a, b in zip(x, y, strict=True))
        assert row["second wins"] == sum(a < b for a, b in zip(x, y, strict=True))
        assert row["first wins"] + row["ties"] + row["second wins"] == 6
        assert row["difference"] == pytest.approx(sum(x) / 6 - sum(y) / 6)
        if row["metric"].startswith("PickScore"):
            chances = [1 / (1 + math.exp(b - a)) for a, b in zip(x, y, strict=True)]
            pairwise = [result.metrics[f"{key}/PickScore pairwise-{name}"] for key in ("first", "second")]
            assert pairwise[0] == pytest.approx(sum(chances) / 6)
            assert sum(pairwise) == pytest.approx(1)
    assert result.metrics["first/images"] == 7
    means = {row["metric"]: row for row in result.tables["Means"]}
    for column in table[0]["metric"], table[1]["metric"]:
        assert means[column]["second"] == result.metrics[f"second/{column}"]
        assert means[column]["first, standard error"] == result.metrics[f"first/{column}, standard error"]
    assert result.settings["unmatched"] == 1
    page = write_report(ReportSettings(runs=(out / "text_image.json",), out=tmp_path / "r.html")).read_text()
    assert "first wins" in page


def test_pictures_are_matched_by_prompt_and_turn_wherever_they_stand(samples):
    first, second = samples("a", ["x", "y", "x"], 1), samples("b", ["y", "x", "z"], 1)
    nothing = PromptSet(())
    both, alone = matched(*(PromptedSamples(each, nothing).samples for each in (first, second)))
    assert both == [(0, 1), (1, 0)]
    assert alone == ["'x', picture 2", "'z', picture 1"]


def test_categories_are_those_of_the_prompt_set(samples, weights, tmp_path, caplog):
    (tmp_path / "set.tsv").write_text(
        "Prompt\tCategory\na red apple\tFood\na green cat\tAnimals\na dog on a photo\tAnimals\n"
    )
    folder = samples(prompts=["a red apple", "a green cat", "a dog on a photo", "else"])
    out = tmp_path / "out"
    more = ["--prompt-set", tmp_path / "set.tsv", "--metrics", "pickscore", *weights, "--out", out]
    assert evaluate(words(folder, *more)) == 0
    table, result = rows(out), read_result(out / "text_image.json")
    (column,) = [name for name in table[0] if name.startswith("PickScore")]
    (told,) = result.tables.values()
    for row in told:
        values = [float(each[column]) for each in table if each["category"] == row["category"]]
        assert (row["images"], row[column]) == (len(values), pytest.approx(sum(values) / len(values)))
    assert [row["category"] for row in told] == ["Animals", "Food"]
    assert [row["images"] for row in told] == [4, 2]
    assert "1 prompts are not in the prompt set: 'else'" in caplog.text


def test_of_several_files_a_category_is_the_files_name_and_doubled_prompts_are_told(samples, tmp_path, caplog):
    (tmp_path / "anime.json").write_text(json.dumps(["a red apple", "a green cat"]))
    (tmp_path / "photo.json").write_text(json.dumps(["a red apple", "a dog on a photo"]))
    prompts = PromptSet([tmp_path / "anime.json", tmp_path / "photo.json"])
    assert (
        "the prompt set has 1 prompts more than once, whose first line says the category: 'a red apple'" in caplog.text
    )
    found = [each.category for each in PromptedSamples(samples(each=1), prompts).samples]
    assert found == ["anime", "anime", "photo"]
    assert PromptedSamples(tmp_path / "samples", PromptSet([tmp_path / "photo.json"])).samples[0].category == ""


def test_questions_of_a_prompt_a_line_each_are_all_there_and_none_is_told(samples, tmp_path, caplog):
    (tmp_path / "dpg.csv").write_text("item_id,text,proposition_id,dependency\nx,a red apple,1,0\nx,a red apple,2,1\n")
    first = PromptedSamples(samples(), PromptSet([tmp_path / "dpg.csv"])).samples[0]
    assert [said["proposition_id"] for said in first.said] == ["1", "2"]
    assert first.where == f"line 2 of {tmp_path / 'dpg.csv'}"
    assert not caplog.records


def an_apple(image):
    """Stands for a detector, for which every picture shows one apple and nothing else."""
    return [Found("apple", 0.95, (0, 0, 8, 8), torch.ones(image.height, image.width, dtype=torch.bool))]


def test_genevals_score_is_the_mean_of_the_tasks_means(
    samples, tmp_path, monkeypatch, caplog, clip_folder, detector_folder
):
    scorer = GenEval(an_apple, lambda image, found: ["red"], COCO, [Source("drawn-1", {})])
    monkeypatch.setattr(run.Models, "scorer", lambda models, metric: scorer)
    apple, red, cat = {"class": "apple", "count": 1}, {"color": "red"}, {"class": "cat", "count": 1}
    lines = [
        {"tag": "single_object", "include": [apple], "prompt": "an apple"},  # right
        {"tag": "colors", "include": [{**apple, **red}], "prompt": "a red apple"},  # right
        {"tag": "colors", "include": [{**apple, "color": "blue"}], "prompt": "a blue apple"},
        {"tag": "two_object", "include": [apple, cat], "prompt": "an apple and a cat"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    asked = TextImageSettings(
        samples=(samples(prompts=[line["prompt"] for line in lines]),),
        metrics=("geneval",),
        weights={"clip": str(clip_folder), "detector": str(detector_folder)},
        prompt_set=(tmp_path / "metadata.jsonl",),
        out=out,
        workers=0,
    )
    result = evaluate_text_image(asked)
    assert result.metrics["GenEval (HF)-drawn-1"] == pytest.approx((1 + 0.5 + 0) / 3)  # not 2 / 4
    assert "GenEval (HF)-drawn-1, standard error" not in result.metrics  # a task has one prompt alone
    assert "the pictures have none of counting, position, color_attr" in caplog.text
    assert "GenEval (HF)" in (out / "report.html").read_text()


def test_two_processes_give_the_numbers_of_one(as_processes, samples, clip_folder):
    def measure(rank=0):
        return run.score_all(PromptedSamples(folder, PromptSet(())), scorers, 2, 0)

    folder, scorers = samples(each=3), [PickScore(CLIP(clip_folder, ""))]
    alone = measure()
    first, second = as_processes(measure)
    assert alone.shape == (9, 1)
    assert np.array_equal(first, second)
    assert np.allclose(first, alone, atol=1e-5)


# Files of strangers


def measured(folder, **more):
    given = dict(metrics=("clip",), weights={"clip": "x"}, workers=0, out=folder / "out")
    return run.evaluate(TextImageSettings(**{**given, "samples": (folder,), **more}))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"prompt": "a"}, "line 2 of .*prompts.jsonl names no file"),
        ({"file": 3, "prompt": "a"}, "line 2 of .*prompts.jsonl names no file"),
        (
            {"file": "../../diary.png", "prompt": "a"},
            r"names '../../diary.png', which is no file in that folder; correct line 2",
        ),
        ({"file": "/etc/hostname", "prompt": "a"}, "names '/etc/hostname', which is no file in that folder"),
        ({"file": "images/000000.png", "prompt": "a"}, "names images/000000.png more than once"),
        ({"file": "images/9.png"}, "line 2 of .*prompts.jsonl has no prompt"),
        ("{", "line 2 of .*prompts.jsonl is no JSON"),
    ],
)
def test_a_line_about_no_picture_is_refused_with_its_number(samples, line, told):
    folder = samples(prompts=["a"], each=1)
    with (folder / "prompts.jsonl").open("a") as file:
        file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(DataError, match=told):
        measured(folder)


def test_a_picture_that_is_missing_broken_or_a_strip_is_named(samples, clip_folder):
    folder = samples(prompts=["a"], each=1)
    picture = folder / "images/000000.png"
    for spoil in (lambda: picture.write_bytes(b"no"), lambda: Image.new("L", (6000, 1)).save(picture), picture.unlink):
        spoil()
        with pytest.raises(DataError, match="000000.png is missing or cannot be read .*; draw it again"):
            measured(folder, weights={"clip": str(clip_folder)})
    with pytest.raises(DataError, match="000000.png is missing or cannot be read .no such file."):
        PromptedSamples(folder, PromptSet([]))  # before weights are loaded


def test_folders_that_cannot_be_measured_are_refused(samples, tmp_path):
    with pytest.raises(DataError, match="has no prompts.jsonl; give a folder of"):
        measured(tmp_path)
    with pytest.raises(DataError, match="have no prompt in common"):
        run.evaluate(
            TextImageSettings(
                samples=(samples("a", ["x"]), samples("b", ["y"])), metrics=("clip",), weights={"clip": "x"}
            )
        )
    folder = samples()
    (folder / "samples.json").write_text(json.dumps({"num": 6, "finished": False}))
    with pytest.raises(DataError, match="has not all of its 6 samples yet"):
        measured(folder)


def test_questions_have_to_be_there_for_every_prompt(samples, tmp_path):
    folder = samples()
    with pytest.raises(ConfigError, match="metric 'geneval' asks by a file of its own; give --prompt-set, GenEval's"):
        measured(folder, metrics=("geneval",))
    (tmp_path / "m.jsonl").write_text('{"prompt": "a red apple", "tag": "colors", "include": []}\n')
    with pytest.raises(
        DataError, match="metric 'geneval': 2 prompts of the pictures are not in the prompt set, such as"
    ):
        measured(folder, metrics=("geneval",), prompt_set=(tmp_path / "m.jsonl",))


def test_a_metric_that_is_not_finite_is_told_with_the_picture(samples, clip_folder, monkeypatch):
    monkeypatch.setattr(CLIP, "texts", lambda clip, texts: torch.full((len(texts), 24), torch.nan))
    with pytest.raises(DataError, match="CLIPScore-tiny-clip-.* is not finite for images/000000.png of "):
        measured(samples(), weights={"clip": str(clip_folder)})


def test_missing_weights_are_told_before_torch_is_loaded(samples):
    code = (
        "import sys, aligntok.cli as cli\n"
        f"status = cli.evaluate({words(samples(), '--metrics', 'hpsv2', '--weights', 'hpsv2=/nowhere/HPS.pt')!r})\n"
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "WeightsError: metric 'hpsv2': there is no file /nowhere/HPS.pt; place the file HPS_v2_compressed.pt there, or "
        "say where it is: --weights hpsv2=/path/to/it\n"
    )
