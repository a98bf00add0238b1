"""A sweep over guidance scales and steps: that its numbers are what they are called, and what it leaves behind."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from aligntok.cli.generating import sample as command
from aligntok.data.latent_shards import LatentStatistics
from aligntok.diffusion.settings import Sampling
from aligntok.distributed import job
from aligntok.errors import ConfigError, DivergenceError
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.sampling.guidance_sweep import SweepPoint, combinations, draw_grid, plot, print_points, sweep_guidance
from aligntok.sampling.pipeline import SamplePipeline
from aligntok.sampling.settings import SampleRequest
from aligntok.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
PART = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8)  # f2
GENERATOR = dict(
    type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=[4, 6], in_channels=4, num_classes=5
)
FILES = {"sweep.csv", "sweep.png", "sweep_grid.png", "sweep.json"}


def save(folder, seed=0, **generator):
    torch.manual_seed(seed)
    tokenizer = Tokenizer({**PART, "pretrained": False}, None, PART, 4, 2)
    statistics = LatentStatistics((0.1,) * 4, (1.5, 0.5, 1.0, 2.0))
    model = LatentDiffusion({**GENERATOR, **generator}, tokenizer, statistics, (4, 4, 6), sampling={"steps": 3})
    for parameter in model.generator.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A saved generator."""
    folder = tmp_path_factory.mktemp("run")
    save(folder)
    return folder


def words(run, out, *more):
    sweep = ["--guidance-sweep", "4", "2", "--sweep-steps", "4", "2", "--num-samples", "6", "--batch-size", "4"]
    return [str(run), "--out", str(out), *sweep, *more]


@pytest.fixture(scope="module")
def swept(run, tmp_path_factory):
    """A sweep over scales 1, 2, 4 and 2 and 4 steps."""
    out = tmp_path_factory.mktemp("swept") / "out"
    assert command(words(run, out)) == 0
    return out


def table(folder):
    with (folder / "sweep.csv").open() as file:
        return {(float(row["cfg_scale"]), int(row["steps"])): row for row in csv.DictReader(file)}


def column(folder, name):
    return [float(row[name]) for row in table(folder).values()]


def test_a_sweep_leaves_a_table_a_plot_and_a_picture(run, swept):
    assert {path.name for path in swept.iterdir()} - {".lock"} == FILES
    assert list(table(swept)) == [(1, 2), (1, 4), (2, 2), (2, 4), (4, 2), (4, 4)]
    with Image.open(swept / "sweep.png") as picture:
        assert picture.size == (1500, 850)
    told = json.loads((swept / "sweep.json").read_text())
    assert told["sampling"]["cfg_scale"] == [1.0, 2.0, 4.0]
    assert (told["sampling"]["steps"], told["num"], told["seed"], told["labels"]) == ([2, 4], 6, 0, "random")


def test_its_numbers_are_those_of_the_samples(run, swept):
    model, drawer = LatentDiffusion.from_pretrained(run), SamplePipeline(SampleRequest(run=run))
    labels = drawer.rule.labels(6)
    for steps in (2, 4):
        unguided = grey_levels(model.sample(labels, range(6), sampling=Sampling(steps=steps)))
        for scale in (1.0, 2.0, 4.0):
            sampling, row = Sampling(steps=steps, cfg_scale=scale), table(swept)[scale, steps]
            latents = model.sample_latents(labels, range(6), sampling=sampling)
            pictures = grey_levels(model.decode(latents))
            differences = np.sqrt(np.square(pictures - unguided).mean(axis=(1, 2, 3)))
            assert float(row["rms_from_unguided"]) == pytest.approx(differences.mean(), abs=0.05)
            assert float(row["latent_std"]) == pytest.approx(float(latents.std(correction=0)), rel=1e-4)
            saturated = np.isin(pictures, (0, 255)).mean()
            assert float(row["saturated"]) == pytest.approx(saturated, abs=0.003)
            assert float(row["seconds_per_sample"]) > 0
    assert table(swept)[1, 2]["rms_from_unguided"] == "0.0"
    assert float(table(swept)[4, 2]["rms_from_unguided"]) > float(table(swept)[2, 2]["rms_from_unguided"]) > 1


def grey_levels(images):
    return ((images.numpy() + 1) * 127.5).round()


@pytest.mark.parametrize(
    ("options", "evaluations"),
    [
        ([], [2, 4, 4, 8, 4, 8]),  # a guided step is two passes
        (["--sampler", "heun"], [4, 8, 8, 16, 8, 16]),
        (["--cfg-interval", "0.5", "1"], [2, 4, 3, 6, 3, 6]),  # of times 0, 0.25, 0.5, 0.75 the last two
    ],
)
def test_a_guided_pass_counts_as_two(run, tmp_path, options, evaluations):
    assert command(words(run, tmp_path / "out", *options)) == 0
    assert column(tmp_path / "out", "evaluations_per_sample") == evaluations


def test_a_pass_of_a_weaker_generator_counts_too(run, tmp_path):
    save(tmp_path / "weak", seed=1, class_dropout_prob=0)
    assert command(words(run, tmp_path / "out", "--autoguidance", str(tmp_path / "weak"))) == 0
    assert column(tmp_path / "out", "evaluations_per_sample") == [2, 4, 4, 8, 4, 8]
    assert table(tmp_path / "out")[1, 4]["rms_from_unguided"] == "0.0"


def test_the_unguided_samples_are_added_and_come_first():
    grid = combinations(Sampling(steps=9, shift=0.3), [4, 0.5, 2, 4], [])
    assert [(each.cfg_scale, each.steps, each.shift) for each in grid] == [(s, 9, 0.3) for s in (1, 0.5, 2, 4)]
    grid = combinations(Sampling(steps=9), [3], [20, 10, 20])
    assert [(each.steps, each.cfg_scale) for each in grid] == [(10, 1), (10, 3), (20, 1), (20, 3)]


def test_the_picture_has_a_row_a_scale_and_a_column_a_number_of_steps():
    pictures = {
        (scale, steps): [np.full((8, 12, 3), int(scale) * 20 + steps + i, np.uint8) for i in range(4)]
        for scale in (1.0, 2.5)
        for steps in (10, 30)
    }
    sheet = np.asarray(draw_grid(pictures))
    width, height = 2 * 144 + 2, 2 * 96 + 2  # samples of 8 x 12, twelvefold, two by two
    top, left = sheet.shape[0] - 2 * (height + 8), sheet.shape[1] - 2 * (width + 8)
    for row, scale in enumerate((1.0, 2.5)):
        for column, steps in enumerate((10, 30)):
            y, x = top + row * (height + 8) + 3, left + column * (width + 8) + 3
            corners = [sheet[y, x], sheet[y, x + 148], sheet[y + 98, x], sheet[y + 98, x + 148]]
            assert [int(corner[0]) for corner in corners] == [int(scale) * 20 + steps + i for i in range(4)]
    assert (sheet[:top] < 128).any(axis=(1, 2)).sum() > 5  # the columns' names
    assert (sheet[top:, :left] < 128).any(axis=(1, 2)).sum() > 10  # the rows' names


def test_the_picture_shows_the_very_samples(run, tmp_path):
    one = ["--guidance-sweep", "1", "--num-samples", "1", "--size", "96"]
    assert command([str(run), "--out", str(tmp_path / "out"), *one]) == 0
    with Image.open(tmp_path / "out/sweep_grid.png") as opened:
        sheet = np.asarray(opened)
    picture = SamplePipeline(SampleRequest(run=run, size=(96, 96))).draw([0], Sampling(steps=3)).pixels[0]
    assert np.array_equal(sheet[-96 - 8 : -8, -96 - 8 : -8], picture)


CELLS = [SweepPoint(scale, steps, 2.0 * steps, 0.5, scale, 1.1, 0.01) for scale in (1.0, 4.0) for steps in (10, 250)]


def test_the_plot_has_a_curve_a_number_of_steps():
    figure = plot(CELLS)
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert len(panels) == 5
    for panel in panels:
        curves = [line for line in panel.lines if line.get_marker() == "o"]
        assert [line.get_label() for line in curves] == ["10 steps", "250 steps"]
        assert all(line.get_xdata().tolist() == [1, 4] for line in curves)


def test_the_table_is_printed_in_eighty_columns():
    printed = io.StringIO()
    print_points(CELLS, 64, Console(file=printed, width=80))
    assert "means of 64 samples" in printed.getvalue()
    rows = [line.replace("│", " ").split() for line in printed.getvalue().splitlines() if line.startswith("│")]
    assert rows[3] == ["4", "250", "500.0", "0.5000", "4.00", "1.100", "0.0100"]


@pytest.mark.nightly
def test_several_processes_find_the_same(warm, run, swept, tmp_path):
    printed = warm.together(2, ROOT / "tools/sample.py", *words(run, tmp_path / "out"))
    assert "".join(printed).count("Sweep: ") == 1
    for name in ("rms_from_unguided", "latent_std", "saturated", "evaluations_per_sample"):
        assert column(tmp_path / "out", name) == pytest.approx(column(swept, name), rel=1e-12)
    assert (tmp_path / "out/sweep_grid.png").read_bytes() == (swept / "sweep_grid.png").read_bytes()


def test_a_sweep_may_be_done_again_but_not_among_other_things(run, swept, tmp_path):
    assert command(words(run, tmp_path / "out")) == 0
    before = column(tmp_path / "out", "rms_from_unguided")
    assert command(words(run, tmp_path / "out", "--seed", "5")) == 0
    assert column(tmp_path / "out", "rms_from_unguided") != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"has other things in it, and no sweep\.json; give a new folder"):
        command.__wrapped__(words(run, tmp_path / "mine"))


def test_the_folders_own_name_tells_scales_and_steps(tmp_path):
    save(tmp_path)
    folder = sweep_guidance(SampleRequest(run=tmp_path, guidance_sweep=(1.5, 3), sweep_steps=(2,), num_samples=1))
    assert folder.parent == tmp_path / "samples"
    assert folder.name.startswith("sweep_euler_cfg-1-1.5-3_steps-2_8x12_")


def test_sigterm_ends_it_without_results(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "sigterm_was_sent", lambda: True)
    assert command(words(run, tmp_path / "out")) == 75
    assert "a guidance sweep is not gone on with, it begins anew" in capsys.readouterr().err
    assert not [*(tmp_path / "out").iterdir()]
    monkeypatch.undo()
    assert command(words(run, tmp_path / "out")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cfg-scale", "2"], "--guidance-sweep and --sweep-steps say which scales and steps; leave out --cfg-scale"),
        (["--steps", "2"], "leave out --cfg-scale, --steps"),
        (["--guidance-sweep", "-2"], "cfg_scale=-2.0; it must be int or float of at least 0"),
        (["--sweep-steps", "0"], "aligntok sample: --sweep-steps 0; it must be list of int of at least 1"),
        (["--num-samples", "0"], "aligntok sample: --num-samples 0; it must be int of at least 1"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(run, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        command.__wrapped__(words(run, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_without_a_null_class_nothing_is_begun(tmp_path):
    save(tmp_path / "run", class_dropout_prob=0)
    with pytest.raises(ConfigError, match="cfg_scale=2.0 needs a null class"):
        command.__wrapped__(words(tmp_path / "run", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert (
        command([str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--guidance-sweep", "1", "--num-samples", "2"])
        == 0
    )


def test_a_sample_that_is_not_finite_is_told_with_its_scale(tmp_path):
    save(tmp_path / "run")
    model = LatentDiffusion.from_pretrained(tmp_path / "run")
    with torch.no_grad():
        model.generator.y_embedder.embedding_table.weight[5] = float("nan")  # the null class
    model.save_pretrained(tmp_path / "run")
    with pytest.raises(DivergenceError, match="--cfg-scale 4; try"):
        command.__wrapped__(words(tmp_path / "run", tmp_path / "out"))
