"""A report: everything found under runs on one page that needs nothing else, and what is missing said, not hidden."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aligntok.cli import report as command
from aligntok.data.transforms import open_image
from aligntok.errors import DataError, WriteError
from aligntok.evaluation.report import key_numbers, write_report
from aligntok.evaluation.report.blocks import NONE, TIMES, data, metric, write_seconds, write_value
from aligntok.evaluation.report.collect import find, read_history
from aligntok.evaluation.report.evaluations import FREE, FREE_FOR_GENERATORS, compare
from aligntok.evaluation.report.figures import embed, smooth, thin
from aligntok.evaluation.results import KINDS, Result
from aligntok.evaluation.settings import ReportSettings
from aligntok.settings import fields_of
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation
from aligntok.training.generator_settings import GeneratorConfig
from aligntok.training.run_info import run_info_of
from aligntok.training.settings import StagesConfig

ROOT = Path(__file__).parents[3]
STEPS = (40, 80, 60)
NAMES = ("latent_alignment", "perceptual_alignment", "decoder_refinement")
TOKENIZER = dict(
    encoder=dict(type="efficientnet_lite0", stride=8),
    decoder=dict(type="ldm_cnn", ch=16),
    latent_dim=16,
    downsample_factor=8,
    aligntok_version="0.1.0",
)
SWEEP = "cfg_scale,steps,evaluations_per_sample,FD-EfficientNetLite0\n" + "".join(
    f"{scale},{steps},{steps * 2},{100 / scale + steps}\n" for scale in (1.0, 2.0, 4.0) for steps in (10, 30)
)


def picture(path, width=96, height=64, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(path)


def log(folder, start, records):
    path = folder / start / "vis_data/scalars.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def trained(step, offset=0.0):
    losses = {"loss/l1": 1 / step + offset, "ratio/gan": 0.1, "grad_norm/decoder": 2.0 + step, "skipped_steps": 0.0}
    return {**losses, "images_per_second": 20.0, "lr/autoencoder": 1e-3, "step": step}


def make_run(folder, generator=True, **result):
    """A work folder as a chained training leaves it, without weights."""
    for i, (name, steps) in enumerate(zip(NAMES, STEPS, strict=True)):
        stage = folder / f"{i + 1}_{name}"
        measured = {"reconstruction/psnr": 15.0 + i, "reconstruction/images": 4.0}
        log(
            stage,
            f"2026010{i + 1}_120000",
            [*(trained(s) for s in range(2, steps + 1, 2)), {**measured, "step": steps}],
        )
        settings = dict(stage=name, tokenizer=TOKENIZER, steps=steps, global_batch_size=4, trainable=["decoder"])
        settings |= dict(data={"train": {"image_size": 64}, "val": {"image_size": 64}}, optimizer={"lr": 1e-3})
        (stage / "stage.json").write_text(json.dumps(settings))
        (stage / "result.json").write_text(json.dumps({"step": steps, "seconds": 61.0, "metrics": measured}))
        for step in (steps // 2, steps):
            picture(stage / f"pictures/step_{step:08d}.png", seed=step)
    if generator:
        stage = folder / "generation"
        bins = {f"loss_at_time/{i / 10:.2f}-{(i + 1) / 10:.2f}": 1.0 + i for i in range(10)}
        log(stage, "20260105_120000", [each for s in (10, 20) for each in (trained(s), {**bins, "step": s})])
        settings = dict(
            stage="generation", steps=20, global_batch_size=32, generator=dict(type="lightning_dit", depth=6)
        )
        (stage / "stage.json").write_text(json.dumps(settings))
        for step in (10, 20):
            picture(stage / f"pictures/step_{step:08d}.png", 64, 64, step)
    origin = dict(config="configs/x.py", docstring="A run <for> tests.\n\nMore of it.", options={"seed": 1})
    (folder / "run.json").write_text(json.dumps({**origin, "aligntok_version": "0.1.0", "device": "a CPU"}))
    return folder


def make_evaluations(run):
    for step, distance in ((10, 90.0), (20, 60.0)):
        metrics = {"FD-EfficientNetLite0": distance, "precision-EfficientNetLite0": 0.5, "images": 54.0}
        folder = run / f"samples/evaluation/step_{step}"
        Result("generation", "samples", metrics, {"num": 54, "reference": {"name": "r"}}, step=step).write(folder)
    folder = run / "evaluation/reconstruction_val"
    picture(folder / "worst.png")
    metrics = {"psnr": 20.123, "st_lpips": 0.35864, "rFD-EfficientNetLite0": 44.171, "images": 500.0}
    tables = {"By class": [{"class": f"c{i}", "psnr": 20.0 + i} for i in range(50)]}
    pictures = {"The worst reconstructions": "worst.png", "The best reconstructions": "best.png"}
    Result("reconstruction", str(run), metrics, {"images": 500}, tables, pictures).write(folder)
    Result("linear_probe", str(run), {"top-1": 0.3509, "top-5": 0.55}, {}).write(run / "evaluation/linear-probe")
    rows = [{"model": "a", "CKNNA-dinov2": 0.28, "spatial variance": 1.205}]
    Result("latent_space", str(run), {"CKNNA-dinov2": 0.28}, {}, {"Latent spaces": rows}).write(
        run / "evaluation/latents"
    )
    rows = [{"config": "x", "part": "decoder", "parameters_m": 41.42}]
    Result("cost", "x", {"x/decoder/parameters": 41.42e6}, {}, {"Parameters": rows}).write(run / "evaluation/cost")


def make_samples(run):
    sampling = dict(steps=30, sampler="euler", cfg_scale=2.0)
    for i in range(5):
        picture(run / f"samples/images/{i:06d}.png", 32, 32, i)
    settings = dict(num=5, sampling=sampling, seed=0, finished=True, labels=[0] * 5, image_size=[32, 32])
    (run / "samples/samples.json").write_text(json.dumps(settings))
    (run / "sweep").mkdir()
    (run / "sweep/sweep.csv").write_text(SWEEP)
    (run / "sweep/sweep.json").write_text(json.dumps(dict(num=6, sampling=sampling)))
    picture(run / "sweep/sweep_grid.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with everything that a report can show."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "my_run")
    make_evaluations(folder)
    make_samples(folder)
    return folder


@pytest.fixture(scope="module")
def page(run):
    return write_report(ReportSettings(runs=[run], out=run / "report.html"))


@pytest.fixture(scope="module")
def text(page):
    return visible(page)


def visible(page):
    """What a reader sees, in one line."""
    content = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", content)).split())


# What the page says


def test_everything_under_a_run_is_found_and_shown(text, page):
    for part in (
        "A run <for> tests.",
        "More of it.",
        "configs/x.py seed=1",
        "efficientnet_lite0, stride 8",
        "f8d16",
        "latent alignment 40, perceptual alignment 80, decoder refinement 60 steps",
        "720 in batches of 4",
        "begun 2026-01-01 12:00; the stages took 3 min 3 s",
        "PSNR ↑ 20.12 dB",
        "Top-1 ↑ 35.09 %",
        "5 samples, 30 steps of euler, guidance 2, seed 0",
        "6 samples each, over guidance scale",
        "6 samples each, over sampling steps",
        "Convergence: evaluations over training steps",
        "Loss by time of the flow",
        "x decoder 41.42",
        "10 more rows are in the file",
    ):
        assert part in text, part
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", page.read_text())
    assert titles[:5] == ["Reconstruction", "Generation", "Linear probe", "Latent space", "Cost"]
    assert {"Quality over training", "Reconstructions", "Samples", "Guidance and steps", "Stages", "Settings"} <= {
        *titles
    }


def test_every_entry_of_the_contents_leads_to_a_section(page):
    content = page.read_text()
    targets = re.findall(r'<a href="#([^"]+)"', content)
    assert len(targets) > 8
    assert all(f'id="{target}"' in content for target in targets)
    ids = re.findall(r'\sid="([^"]+)"', content)
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_elsewhere(page):
    content = page.read_text()
    assert re.findall(r"https?://", content) == []
    addresses = re.findall(r'(?:src|href)="([^"]*)"', content)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in content


def test_pictures_are_the_files_and_have_words(run, page):
    images = re.findall(r'<img src="data:image/(\w+);base64,([^"]+)"[^>]* alt="([^"]+)"', page.read_text())
    assert len(images) == page.read_text().count("<img ") > 8
    decoded = [base64.b64decode(content) for _, content, _ in images]
    assert (run / "evaluation/reconstruction_val/worst.png").read_bytes() in decoded
    assert (run / "3_decoder_refinement/pictures/step_00000060.png").read_bytes() in decoded
    for content in decoded:
        Image.open(io.BytesIO(content)).load()


def test_plots_follow_the_pages_colours_and_say_what_they_show(page):
    plots = re.findall(r"<svg.*?</svg>", page.read_text(), flags=re.DOTALL)
    assert len(plots) > 15
    for plot in plots:
        assert 'role="img" aria-label="' in plot
        assert "var(--line-0)" in plot
        assert "var(--plot-ink)" in plot
        assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", plot)


def test_distances_on_other_features_are_never_called_fid(text):
    assert "FD-EfficientNetLite0 ↓" in text
    assert "rFD-EfficientNetLite0 ↓" in text
    assert not re.search(r"\br?FID [↓0-9]", text)
    assert "not FID, and not comparable to it" in text


def test_several_runs_stand_side_by_side(tmp_path):
    runs = [make_run(tmp_path / name, generator=False) for name in ("my_run", "other")]
    page = write_report(ReportSettings(runs=runs, out=tmp_path / "both.html", title="Two <runs>"))
    content, seen = page.read_text(), visible(page)
    assert "<h1>Two &lt;runs&gt;</h1>" in content
    assert "key number my_run other" in seen
    assert '<div class="columns">' in content
    assert re.search(r'class="legend"><li><span class="swatch line-0"></span>my_run</li><li>.*?other</li>', content)


def test_runs_of_one_name_are_told_apart(tmp_path):
    pages = [make_run(tmp_path / name / "run", generator=False) for name in ("a", "b")]
    content = visible(write_report(ReportSettings(runs=pages, out=tmp_path / "both.html")))
    assert "a/run" in content
    assert "b/run" in content


def test_an_evaluation_alone_is_a_page_too_and_quick(run, tmp_path):
    folder = tmp_path / "reconstruction"
    shutil.copytree(run / "evaluation/reconstruction_val", folder)
    (folder / "per_image.csv").write_text("image,psnr\n")
    began = time.process_time()
    content = visible(write_report(ReportSettings(runs=[folder], out=folder / "report.html")))
    assert time.process_time() - began < 3
    assert "PSNR ↑ 20.12 dB" in content
    assert "The worst reconstructions" in content
    assert (
        visible(write_report(ReportSettings(runs=[folder / "reconstruction.json"], out=tmp_path / "one.html"))).count(
            "20.12"
        )
        == 2
    )


def test_all_results_of_a_run_are_shown_and_of_many_steps_the_newest(tmp_path):
    for i in range(6):
        Result("reconstruction", "a", {"psnr": 20.0 + i}).write(tmp_path / f"evaluation/data{i}")
        Result("generation", "a", {"FD-X": 90.0 - i}, step=100 * (i + 1)).write(tmp_path / f"evaluation/step_{i}")
    content = visible(write_report(ReportSettings(runs=[tmp_path], out=tmp_path / "report.html")))
    assert "data0 data1 data2 data3 data4 data5" in content
    assert "step_2, step 300 step_3, step 400 step_4, step 500 step_5, step 600" in content
    assert "2 more of earlier steps" in content


def test_importing_it_loads_neither_mmengine_nor_matplotlib():
    program = (
        "import torch, sys; import aligntok.evaluation.report; print({'mmengine', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# What is missing or damaged


def test_what_is_missing_or_damaged_is_named(run, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(run, folder)
    (folder / "2_perceptual_alignment/pictures/step_00000080.png").write_bytes(b"\x89PNG no more")
    shutil.rmtree(folder / "3_decoder_refinement/pictures")
    shutil.rmtree(folder / "1_latent_alignment/20260101_120000")
    (folder / "1_latent_alignment/result.json").write_text('{"step": 1')
    (folder / "2_perceptual_alignment/20260102_120000/vis_data/scalars.json").write_text(
        '{"loss/l1": 1, "step": 2}\n{"lo'
    )
    (folder / "evaluation/cost/cost.json").write_text("[]")
    (folder / "sweep/sweep.csv").write_text("cfg_scale\nthree\n")
    (folder / "generation/stage.json").write_text("no JSON")
    (folder / "run.json").write_text("")
    content = visible(write_report(ReportSettings(runs=[folder], out=folder / "report.html")))
    for part in (
        "not found: broken/2_perceptual_alignment/pictures/step_00000080.png",
        "broken/3_decoder_refinement/pictures, what the training drew",
        "broken/1_latent_alignment/*/vis_data/scalars.json, the training's log",
        "broken/1_latent_alignment/result.json cannot be read (",
        "1 line of broken/2_perceptual_alignment/20260102_120000/vis_data/scalars.json cannot be read",
        "broken/evaluation/cost/cost.json cannot be read",
        "broken/sweep/sweep.csv cannot be read (",
        "broken/generation/stage.json cannot be read",
        "broken/run.json cannot be read (",
        "broken/evaluation/reconstruction_val/best.png",
    ):
        assert part in content, part


@pytest.mark.parametrize("name", ["../../diary.png", "/diary.png", "link.png", "away/diary.png", "..", "a" * 5000])
def test_a_picture_from_outside_of_a_results_folder_is_not_embedded(name, tmp_path):
    """A result that came from elsewhere names what it likes; the page may be sent on."""
    folder = tmp_path / "run/result"
    folder.mkdir(parents=True)
    picture(tmp_path / "diary.png")
    (folder / "link.png").symlink_to(tmp_path / "diary.png")
    (folder / "away").symlink_to(tmp_path)
    named = str(tmp_path / "diary.png") if name == "/diary.png" else name
    Result("reconstruction", "x", {"psnr": 1.0}, {}, {}, {"A picture": named}).write(folder)
    page = write_report(ReportSettings(runs=[folder], out=tmp_path / "report.html"))
    assert "<img" not in page.read_text()
    assert "a picture of the reconstruction result" in visible(page)
    assert "(DataError), A picture" in visible(page)


def test_samples_of_several_sizes_are_no_sheet(tmp_path):
    for i in range(2):
        picture(tmp_path / f"images/{i:06d}.png", 32, 32 + 8 * i)
    (tmp_path / "samples.json").write_text('{"num": 2}')
    assert "not found: pictures of one size" in visible(
        write_report(ReportSettings(runs=[tmp_path], out=tmp_path / "report.html"))
    )


@pytest.mark.parametrize("place", ["2_perceptual_alignment/pictures/step_00000080.png", "samples/images/000001.png"])
def test_a_picture_that_is_a_link_to_elsewhere_is_not_embedded(place, run, tmp_path):
    folder, part = tmp_path / "run", Path(place).parts[0]
    shutil.copytree(run / part, folder / part)
    picture(tmp_path / "diary.png", 64, 64, seed=99)
    (folder / place).unlink()
    (folder / place).symlink_to(tmp_path / "diary.png")
    page = write_report(ReportSettings(runs=[folder], out=tmp_path / "report.html"))
    assert base64.b64encode((tmp_path / "diary.png").read_bytes()).decode() not in page.read_text()
    assert "(DataError)" in visible(page)


@pytest.mark.parametrize(
    "settings", ["[1]", "{}", '{"tokenizer": 3, "data": null, "log": [], "optimizer": "x", "steps": "y"}']
)
def test_odd_descriptions_are_no_crash(settings, tmp_path):
    folder = make_run(tmp_path / "run")
    for path in folder.glob("*/stage.json"):
        path.write_text(settings)
    assert visible(write_report(ReportSettings(runs=[folder], out=folder / "report.html")))


def test_words_that_are_no_text_are_shown_by_their_code(tmp_path):
    folder = make_run(tmp_path / os.fsdecode(b"r\xe9"), generator=False)
    (folder / "run.json").write_text(json.dumps({"config": "a\udce9", "docstring": "b\ud800"}))
    assert r"r\udce9" in visible(write_report(ReportSettings(runs=[folder], out=tmp_path / "r.html")))
    Result("generation", "caf\udce9", {"FID": 3.0}).write(folder / "g")
    assert write_report(ReportSettings(runs=[folder / "g"])).is_file()


HUGE = 10**400
ODD = {
    "steps": ("1_latent_alignment/stage.json", {"stage": "a", "steps": HUGE}),
    "setting": ("1_latent_alignment/stage.json", {"stage": "a", "steps": 40, "other": HUGE}),
    "step": ("1_latent_alignment/result.json", {"step": HUGE}),
    "seconds": ("1_latent_alignment/result.json", {"seconds": math.nan}),
    "images": ("g/generation.json", {"metrics": {"FID": 3.0, "images": math.inf}}),
    "setting of a result": ("g/generation.json", {"metrics": {"FID": 3.0}, "settings": {"a": HUGE, "num": math.nan}}),
    "step of a result": ("g/generation.json", {"metrics": {"FID": 3.0}, "step": HUGE}),
    "logged step": ("1_latent_alignment/20270101_000000/vis_data/scalars.json", {**trained(1), "step": HUGE}),
    "loss": ("1_latent_alignment/20270101_000000/vis_data/scalars.json", {**trained(2), "loss/l1": 1e308}),
}


@pytest.mark.parametrize("name", ODD)
def test_numbers_that_there_cannot_be_are_no_crash(name, tmp_path):
    folder = make_run(tmp_path / "run", generator=False)
    for later in NAMES[1:]:
        shutil.rmtree(next(folder.glob(f"?_{later}")))
    place, content = ODD[name]
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    if place.endswith("generation.json"):
        content = {"format": 1, "aligntok_version": "0", "kind": "generation", "subject": "s", **content}
    (folder / place).write_text(json.dumps(content))
    assert visible(write_report(ReportSettings(runs=[folder], out=tmp_path / "r.html")))


def test_a_single_file_that_is_no_result_is_refused_as_one_in_a_folder_is(tmp_path):
    path = tmp_path / "cost.json"
    Result("cost", "s", {"a": 3.0}).write(tmp_path)
    path.write_text(path.read_text().replace('"kind": "cost"', '"kind": "costs"'))
    with pytest.raises(DataError, match=r"cost\.json cannot be read \(it is of the kind 'costs', which is none of"):
        write_report(ReportSettings(runs=[path], out=tmp_path / "r.html"))
    with pytest.raises(DataError, match="holds nothing to report .not found: .*of the kind 'costs'"):
        write_report(ReportSettings(runs=[tmp_path], out=tmp_path / "r.html"))


def test_a_latent_space_has_a_key_number(tmp_path):
    Result("latent_space", "s", {"CKNNA-dinov2": 0.4, "reference/CKNNA-dinov2": 1.0}).write(tmp_path)
    (head, text), *others = key_numbers(find(tmp_path)).items()
    assert (head.text, text, others) == ("CKNNA-dinov2", "0.400", [])


def test_a_folder_with_nothing_to_report_is_an_error(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    assert command([str(tmp_path)]) == 2
    assert "DataError: " + str(tmp_path) + " holds nothing to report" in (said := capsys.readouterr().err)
    assert "give a work folder of tools/train.py" in said
    with pytest.raises(DataError, match="no such file or folder to report on"):
        write_report(ReportSettings(runs=[tmp_path / "none"], out=tmp_path / "report.html"))
    with pytest.raises(DataError, match="nothing to report on"):
        write_report(ReportSettings(runs=[], out=tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_a_folder_of_several_runs_is_an_error_that_names_them(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, generator=False)
    with pytest.raises(DataError, match=r"holds several runs \(.*a, .*b\)"):
        find(tmp_path)


def test_a_page_that_cannot_be_written_is_an_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="could not be written"):
        write_report(ReportSettings(runs=[run / "samples"], out=tmp_path / "file" / "report.html"))


def test_the_command_writes_beside_the_first_run(tmp_path, capsys):
    make_samples(tmp_path)
    assert command([str(tmp_path / "samples"), str(tmp_path / "sweep"), "--title", "Named so"]) == 0
    assert f"Report: {tmp_path / 'samples/report.html'}" in capsys.readouterr().out
    assert "<h1>Named so</h1>" in (tmp_path / "samples/report.html").read_text()


# Logs


def test_a_start_that_goes_on_replaces_what_was_logged_after_its_checkpoint(tmp_path):
    log(tmp_path, "20260101_000000", [trained(10), trained(20), trained(30), {"reconstruction/psnr": 1.0, "step": 20}])
    log(tmp_path, "20260102_000000", [trained(20, 5.0), trained(40, 5.0)])
    history = read_history(tmp_path)
    assert history.trained["loss/l1"] == {10: 0.1, 20: 5.05, 40: 5.025}
    assert history.measured == {"reconstruction/psnr": {20: 1.0}}
    assert not history.faults


def test_joining_takes_the_newest_of_one_step(tmp_path):
    log(tmp_path, "20260101_000000", [trained(1), trained(1, 3.0)])
    log(tmp_path, "20260102_000000", [])
    history = read_history(tmp_path)
    assert history.trained == {name: {1: value} for name, value in trained(1, 3.0).items() if name != "step"}


def test_smoothing_is_a_mean_that_keeps_ends_and_skips_what_is_not_finite():
    values = [float(i) for i in range(100)]
    assert smooth(values) == pytest.approx(values)
    assert smooth([*values[:50], float("nan"), *values[51:]])[50] == pytest.approx(50)
    assert smooth([1.0, 9.0]) == [1.0, 9.0]


def test_thinning_keeps_extremes():
    values = [0.0] * 5000
    values[1234], values[4321] = 7.0, -7.0
    thinned = thin(dict(enumerate(values)))
    assert len(thinned) <= 400
    assert (thinned[1234], thinned[4321]) == (7.0, -7.0)


# Numbers


def test_numbers_have_the_digits_and_units_that_they_need():
    written = {
        metric("reconstruction/psnr").write(25.8349): "25.83 dB",
        metric("LPIPS").write(0.11712): "0.1171",
        metric("top-1").write(0.3509): "35.09 %",
        metric("KID").write(0.0000012): f"1.20 {TIMES} 10⁻⁶",
        metric("FD-X").write(float("nan")): "not a number",
        write_value(348_600_000): "348,600,000",
        write_value(1e-4): f"1.00 {TIMES} 10⁻⁴",
        write_value(0.001): "0.001",
        write_value([1, 2]): "1, 2",
        write_value(True): "yes",
        write_value(None): NONE,
        write_seconds(59): "59 s",
        write_seconds(7 * 3600 + 60): "7 h 1 min",
    }
    assert {key: key for key in written.values()} == {value: key for key, value in written.items()}


def test_which_way_is_better_is_known_for_metrics_alone():
    better = {
        name: metric(name).better for name in ("PSNR", "FD-X", "KD-X", "KD_se-X", "recall-X", "L1", "a/CKNNA-dinov2")
    }
    assert better == dict(zip(better, ("up", "down", "down", None, "up", None, "up"), strict=True))
    assert metric("a/CKNNA-dinov2").label == "a: CKNNA-dinov2"


def test_large_pictures_are_reduced_and_small_ones_enlarged_by_whole_factors(tmp_path):
    picture(tmp_path / "small.png", 64, 64)
    content = (tmp_path / "small.png").read_bytes()
    small = embed(open_image(content), "words", "", content)
    assert 'class="enlarged" alt="words"' in small.content
    assert small.width > 64
    assert small.width % 64 == 0
    noise = np.random.default_rng(0).integers(0, 255, (900, 2400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    content = (tmp_path / "large.png").read_bytes()
    large = embed(open_image(content), "words", "", content)
    assert large.width == 2000
    assert 'width="2000" height="750" alt="words"' in large.content
    assert large.note == f"shown at 2000 {TIMES} 750 pixels; the file has 2400 {TIMES} 900"


# The paper's numbers


def note_start(folder, config, **options):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"config": str(config), "docstring": "", "options": options}))


def stages_of(config, folder, **options):
    """The run that a config of the repository leaves, as the stages' files and run.json describe it."""
    note_start(folder, config, **options)
    for stage in expand_stages(load_config(ROOT / config, {"work_dir": str(folder)})):
        stage.folder.mkdir(parents=True)
        model = stage.settings.model
        (stage.folder / "stage.json").write_text(
            json.dumps({"stage": stage.name, "tokenizer": model, **asdict(stage.settings)})
        )
        log(stage.folder, "20260101_000000", [trained(stage.settings.steps)])
    return find(folder)


#: What results of the paper's kind say of how they were made.
SETTINGS = {
    "reconstruction": dict(image_size=[256, 256], split="val", tokenizer={"weights": None}),
    "linear_probe": dict(
        images=50_000, train_images=1_281_167, image_size=[256, 256], features="whole latents, flattened"
    )
    | dict(standardize=False, optimizer="Adam", lr=1e-3, batch_size=256, epochs=3, weights=None),
    "generation": {"samples": dict(image_size=[256, 256], labels="random", generator={"weights": None})},
}
CONFIGS = {
    "configs/aligntok_dinov2_f16d32.py": {"rFID": 0.26, "PSNR": 25.83, "LPIPS": 0.117, "Top-1": 0.3509},
    "configs/aligntok_dinov2_f16d64.py": {"rFID": 0.17, "PSNR": 27.41, "LPIPS": 0.089, "Top-1": 0.4699},
    "configs/aligntok_dinov2_f16d64_reconstruction.py": {"rFID": 0.14, "PSNR": 28.91, "LPIPS": 0.070, "Top-1": 0.4522},
    "configs/aligntok_mae_f16d32.py": {"rFID": 0.29, "PSNR": 26.12, "LPIPS": 0.113},
    "configs/ablations/lora.py": {"rFID": 1.35, "PSNR": 26.18, "LPIPS": 0.121, "Top-1": 0.1856},
    "configs/ablations/semantic_weight_0.py": {"rFID": 0.33, "PSNR": 26.29, "LPIPS": 0.11, "Top-1": 0.095},
    "configs/ablations/semantic_weight_5.py": {"rFID": 0.49, "PSNR": 23.7, "LPIPS": 0.163, "Top-1": 0.4055},
    "configs/ablations/semantic_weight_10.py": {"rFID": 0.59, "PSNR": 22.63, "LPIPS": 0.189, "Top-1": 0.4089},
    "configs/ablations/semantic_pre_adapter.py": {"rFID": 0.34, "PSNR": 25.78, "LPIPS": 0.118, "Top-1": 0.1561},
    "configs/ablations/semantic_cosine.py": {"rFID": 0.37, "PSNR": 25.23, "LPIPS": 0.129, "Top-1": 0.3799},
    "configs/ablations/without_ema.py": {"rFID": 0.33, "PSNR": 25.7, "LPIPS": 0.122, "Top-1": 0.3504},
    "configs/ablations/larger_decoder.py": {"rFID": 0.36, "PSNR": 26.27, "LPIPS": 0.121, "Top-1": 0.2724},
    "configs/ablations/stage_1_only.py": {"rFID": 1.63, "PSNR": 17.34, "LPIPS": 0.323, "Top-1": 0.4153},
    "configs/ablations/stages_1_and_2.py": {"rFID": 0.36, "PSNR": 25.62, "LPIPS": 0.121, "Top-1": 0.3509},
}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_run_of_a_paper_config_has_the_papers_numbers_beside_it(config, tmp_path):
    run = stages_of(config, tmp_path)
    ours = {"rFID": 0.3, "psnr": 25.0, "lpips": 0.1, "ssim": 0.7, "rFD-X": 1.0, "st_lpips": 0.2, "images": 50_000.0}
    Result("reconstruction", str(tmp_path), ours, SETTINGS["reconstruction"]).write(tmp_path / "evaluation/a")
    accuracies = {"top-1": 0.3, "top-5": 0.5}
    Result("linear_probe", str(tmp_path), accuracies, SETTINGS["linear_probe"]).write(tmp_path / "evaluation/b")
    found = {}
    for each in find(tmp_path).results:
        comparison = compare(run, each)
        assert comparison.note.startswith("The paper's column: AlignTok f16")
        found |= {name: value for name in each.result.metrics if (value := comparison.of(each.result.kind, name))}
    shown = {metric(name).label: value for name, (value, table) in found.items() if re.fullmatch(r"Table \d+", table)}
    assert shown == CONFIGS[config]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(images=5000.0), "its own are of 50,000 validation images of ImageNet, these of 5,000"),
        (dict(step=9), "the training that was evaluated is not there whole"),
        (dict(options={"stages.1.optimizer.lr": 0.5}), "it has no such tokenizer (RUN with stages.1.optimizer.lr=0.5"),
        (dict(options={"model": {"latent_dim": 8}}), "(RUN with model.latent_dim=8, 120,000 + 220,000 + 100,000 steps"),
        (
            dict(options={"gradient_accumulation_steps": 2}),
            "(RUN with gradient_accumulation_steps=2,",
        ),  # the discriminator's batch norm sees it
        (dict(options={"logs": 2}), "(RUN with logs=2,"),
        (dict(origin={"config": "RUN"}), "(RUN with options that are not noted,"),
        (dict(origin={"config": "configs/my_aligntok_dinov2_f16d32.py", "options": {}}), "it has no such tokenizer"),
        (dict(origin={}), "it has no such tokenizer (no run.json names the config that it was started with)"),
        (dict(origin=None), "it has no such tokenizer (no run.json names the config that it was started with)"),
        (dict(edited={"steps": 3}), "it has no such tokenizer (RUN, 120,000 + 3 + 100,000 steps of 64)"),
        (dict(edited={"global_batch_size": 8}), "it has no such tokenizer (RUN, 120,000 + 220,000 + 100,000 steps of"),
    ],
)
def test_where_a_run_is_not_the_papers_the_page_says_why(change, reason, tmp_path):
    config = "configs/aligntok_dinov2_f16d32.py"
    stages_of(config, tmp_path, **change.get("options", {}))
    if "origin" in change:
        (tmp_path / "run.json").write_text(json.dumps(change["origin"]).replace("RUN", config))
    if change.get("origin", {}) is None:
        (tmp_path / "run.json").unlink()
    second = tmp_path / "2_perceptual_alignment/stage.json"
    second.write_text(json.dumps({**json.loads(second.read_text()), **change.get("edited", {})}))
    metrics = {"rFID": 0.3, "images": change.get("images", 50_000.0)}
    result = Result("reconstruction", str(tmp_path), metrics, SETTINGS["reconstruction"], step=change.get("step"))
    result.write(tmp_path / "evaluation")
    run = find(tmp_path)
    comparison = compare(run, run.results[0])
    assert not comparison.values
    assert reason.replace("RUN", config) in comparison.note


def test_of_a_run_that_a_result_from_elsewhere_names_nothing_is_told(tmp_path):
    stages_of("configs/aligntok_dinov2_f16d32.py", tmp_path / "run", data_root="/home/me/secret", accumulation=2)
    notes = []
    for folder in (tmp_path / "run/evaluation", tmp_path / "elsewhere"):
        numbers = {"rFID": 0.3, "images": 50_000.0}
        Result("reconstruction", str(tmp_path / "run"), numbers, SETTINGS["reconstruction"]).write(folder)
        alone = find(folder)
        notes.append(compare(alone, alone.results[0]).note)
    assert "it has no such tokenizer (configs/aligntok_dinov2_f16d32.py with accumulation=2, 120,000 + " in notes[0]
    assert notes[1].endswith("it has no such tokenizer.")


def test_options_that_no_number_depends_on_leave_a_run_the_papers(tmp_path):
    options = {"work_dir": "w", "data_root": "/d", "seed": 3, "log": {"every": 1}, "data": {"workers": 2}}
    options |= {"parallel": "shard", "data.train.cache": 2, "data.val.root": "/v"}
    config = tmp_path / "elsewhere/configs/aligntok_dinov2_f16d32.py"
    stages_of("configs/aligntok_dinov2_f16d32.py", tmp_path)
    note_start(tmp_path, config, **options, **{"stages.0.checkpoint.every": 7})
    numbers, settings = {"rFID": 0.3, "images": 50_000.0}, SETTINGS["reconstruction"]
    Result("reconstruction", str(tmp_path), numbers, settings).write(tmp_path / "evaluation")
    run = find(tmp_path)
    assert compare(run, run.results[0]).of("reconstruction", "rFID") == (0.26, "Table 3")
    content = visible(write_report(ReportSettings(runs=[tmp_path], out=tmp_path / "report.html")))
    assert "The paper's column: AlignTok f16d32, DINOv2-L." in content
    assert "rFID ↓ 0.30 0.26 Table 3" in content


def test_stages_of_a_longer_run_have_the_papers_numbers_of_a_shorter_one(tmp_path):
    stages_of("configs/aligntok_dinov2_f16d32.py", tmp_path)
    values = {}
    for name in NAMES:
        stage = next(tmp_path.glob(f"*_{name}"))
        numbers = {"rFID": 0.3, "images": 50_000.0}
        Result("reconstruction", str(stage), numbers, SETTINGS["reconstruction"]).write(tmp_path / "evaluation" / name)
    run = find(tmp_path)
    values = {each.path.parent.name: compare(run, each).of("reconstruction", "rFID")[0] for each in run.results}
    assert values == dict(zip(NAMES, (1.63, 0.36, 0.26), strict=True))


def test_another_runs_origin_is_not_taken_for_a_runs_own(tmp_path):
    (tmp_path / "a").mkdir()
    note_start(tmp_path / "a", "configs/aligntok_dinov2_f16d32.py")
    make_run(tmp_path / "b", generator=False)
    assert find(tmp_path).origin["config"] == "configs/x.py"


@pytest.mark.parametrize(
    ("kind", "numbers", "other", "reason"),
    [
        ("reconstruction", {"rFID": 0.1}, dict(image_size=[512, 512]), "image_size=[256, 256], these are not"),
        ("reconstruction", {"rFID": 0.1}, dict(split="train"), 'split="val", these are not'),
        ("reconstruction", {"rFID": 0.1}, dict(tokenizer={"weights": "raw"}), 'tokenizer.weights="ema", these are not'),
        ("reconstruction", {"lpips": 0.1}, dict(perceptual=[{"type": "lpips", "net": "alex"}]), "perceptual="),
        ("linear_probe", {"top1": 0.1}, dict(epochs=100), "epochs=3, these are not"),
        ("linear_probe", {"top1": 0.1}, dict(standardize=True), "standardize=false, these are not"),
        ("linear_probe", {"top1": 0.1}, dict(features="means over positions"), "features="),
        ("linear_probe", {"top1": 0.1}, dict(train_images=5000), "train_images=1281167, these are not"),
    ],
)
def test_what_was_measured_otherwise_than_the_papers_is_not_held_against_it(kind, numbers, other, reason, tmp_path):
    run = stages_of("configs/aligntok_dinov2_f16d32.py", tmp_path)
    for settings, shown in ((SETTINGS[kind], True), ({**SETTINGS[kind], **other}, False)):
        Result(kind, str(tmp_path), {**numbers, "images": 50_000.0}, settings).write(tmp_path / "evaluation")
        found = compare(run, find(tmp_path).results[0])
        assert bool(found.values) is shown
        assert shown or f"No numbers of the paper beside these: its own are of {reason}" in found.note


def generator_of(config, folder, on="configs/aligntok_dinov2_f16d32.py", **tokenizer):
    """The finished run that a generator's config of the repository leaves, on the tokenizer that another leaves."""
    made = folder / "tokenizer_run"
    if not made.exists():
        stages_of(on, made)
    generation = expand_generation(
        load_config(ROOT / f"configs/generator/{config}.py", {"work_dir": str(folder), "tokenizer": str(made)})
    )
    (generation.folder / "tokenizer").mkdir(parents=True)
    own = dict(encoder=dict(type="dinov2"), latent_dim=64 if "d64" in config else 32, downsample_factor=16)
    (generation.folder / "tokenizer/config.json").write_text(json.dumps({**own, **tokenizer}))
    generation.description.write_text(json.dumps({"stage": "generation", **asdict(generation.settings)}))
    log(generation.folder, "20260101_000000", [trained(generation.settings.steps)])
    note_start(folder, f"configs/generator/{config}.py", gradient_accumulation_steps=2, tokenizer="my_tokenizer")


def sampled(folder, steps, scale, sampling=None, **samples):
    own = json.loads((folder / "generation/stage.json").read_text())["sampling"]
    drawn = {**own, "steps": steps, "cfg_scale": scale, **(sampling or {})}
    settings = {"samples": {**SETTINGS["generation"]["samples"], "sampling": drawn, **samples}}
    Result("generation", "samples", {"FID": 9.0, "FD-X": 9.0, "images": 50_000.0}, settings).write(
        folder / "evaluation"
    )
    run = find(folder)
    return compare(run, run.results[0])


@pytest.mark.parametrize(
    ("config", "steps", "scale", "fid"),
    [
        ("lightningdit_xl_aligntok_f16d32_64ep", 30, 10.0, 2.17),
        ("lightningdit_xl_aligntok_f16d32_64ep", 29, 10.0, 2.17),  # 30 times, as published code counts
        ("lightningdit_xl_aligntok_f16d32_64ep", 31, 10.0, None),
        ("lightningdit_xl_aligntok_f16d32_64ep", 250, 1.0, 3.71),
        ("lightningdit_xl_aligntok_f16d32_64ep", 249, 1.0, 3.71),
        ("lightningdit_xl_aligntok_f16d32_800ep", 250, 6.7, 1.37),
        ("lightningdit_xl_aligntok_f16d32_unconditional", 30, 1.0, 11.80),
        ("lightningdit_xl_aligntok_f16d64_64ep", 30, 10.0, 2.34),
        ("lightningdit_xl_aligntok_f16d32_64ep", 30, 0.0, None),  # the null class alone
        ("lightningdit_xl_aligntok_f16d32_64ep", 50, 10.0, None),
    ],
)
def test_generators_are_compared_at_the_papers_steps_and_guidance(config, steps, scale, fid, tmp_path):
    generator_of(config, tmp_path, f"configs/aligntok_dinov2_{'f16d64' if 'd64' in config else 'f16d32'}.py")
    comparison = sampled(tmp_path, steps, scale)
    assert (comparison.of("generation", "FID") or (None,))[0] == fid
    assert comparison.of("generation", "FD-X") is None


def test_a_generator_on_another_tokenizer_or_unfinished_is_not_the_papers(tmp_path):
    config = "lightningdit_xl_aligntok_f16d32_64ep"
    for name, other in {
        "encoder": {"encoder": {"type": "mae"}},
        "size": {"latent_dim": 16},
        "odd": {"encoder": 3},
    }.items():
        generator_of(config, tmp_path / name, **other)
        assert "it has no such generator (configs/generator/" in sampled(tmp_path / name, 30, 10.0).note
    generator_of(config, tmp_path / "early")
    log(tmp_path / "early/generation", "20260101_000000", [trained(79_000)])
    assert "is not there whole" in sampled(tmp_path / "early", 30, 10.0).note


@pytest.mark.parametrize("name", ["semantic_cosine", "stage_1_only", "larger_decoder"])
def test_a_generator_on_an_ablations_tokenizer_has_the_ablations_numbers(name, tmp_path):
    row = re.search(rf"\| `ablations/{name}` \|.*", (ROOT / "docs/ablations.md").read_text())[0]
    wanted = [float(cell) for cell in row.strip(" |").split("|")[-4:]]
    generator_of("lightningdit_xl_aligntok_f16d32_64ep", tmp_path, f"configs/ablations/{name}.py")
    found = sampled(tmp_path, 30, 10.0)
    assert [found.of("generation", each)[0] for each in ("FID", "IS", "precision", "recall")] == wanted
    assert not sampled(tmp_path, 30, 1.0).values  # the paper's table has it with guidance alone
    shutil.rmtree(tmp_path / "tokenizer_run")
    assert "80,000 steps of 1024, on tokenizer_run)" in sampled(tmp_path, 30, 10.0).note


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (dict(sampling=dict(sampler="heun")), "it has none of samples with other settings than its config's: sampler."),
        (dict(sampling=dict(shift=1.0, cfg_interval=None)), "shift, cfg_interval."),
        (dict(labels=[5]), 'its own are of samples.labels="random", these are not'),
        (dict(image_size=[128, 128]), "its own are of samples.image_size=[256, 256], these are not"),
        (dict(generator={"weights": "raw"}), "its own are of samples.generator.weights="),
        (dict(autoguidance={"identity": "a"}), "its own are of samples.autoguidance=null, these are not"),
    ],
)
def test_samples_drawn_otherwise_are_not_held_against_the_papers(other, reason, tmp_path):
    generator_of("lightningdit_xl_aligntok_f16d32_64ep", tmp_path)
    assert sampled(tmp_path, 30, 10.0).values
    found = sampled(tmp_path, 30, 10.0, **other)
    assert not found.values
    assert reason in found.note


def test_the_papers_numbers_are_well_formed_and_their_configs_are_there():
    content = data("paper")
    assert set(content) == {"about", "evaluated", "tokenizers", "generators", "cost"}
    assert set(content["evaluated"]) | {"latent_space", "cost", "comparison", "text_image"} == set(KINDS)
    for entry in content["tokenizers"]:
        assert set(entry) == {"title", "configs", "steps", "batch", "values"}
        assert set(entry["values"]) <= {"reconstruction", "linear_probe"}
        values = [each for of_kind in entry["values"].values() for each in of_kind.items()]
        check_values(values)
    for entry in content["generators"]:
        assert set(entry) == {"title", "configs", "steps", "batch", "tokenizer", "values"}
        own = load_config(ROOT / entry["configs"][0], {})["tokenizer"]  # a published file, or what a training made
        trained_by = {each["title"] for each in content["tokenizers"]}
        assert entry["tokenizer"]["from"] in trained_by | ({Path(own).name} if Path(own).suffix else set())
        for each in entry["values"]:
            assert set(each) == {"sampler_steps", "guided", "generation"}
            check_values(each["generation"].items())
    entries = content["tokenizers"] + content["generators"]
    keys = [
        (config, (*entry["steps"], entry.get("tokenizer", {}).get("from")))
        for entry in entries
        for config in entry["configs"]
    ]
    assert len(keys) == len(set(keys))
    assert set(content["cost"]) == {"configs", "tables"}
    assert all((ROOT / config).is_file() for config in [*(config for config, _ in keys), *content["cost"]["configs"]])


def test_options_that_may_differ_are_keys_of_configs():
    of_stages, of_generators = ({option.name for option in fields_of(cls)} for cls in (StagesConfig, GeneratorConfig))
    assert {name for name in FREE if not name.startswith("data.train.")} <= of_stages  # of a data set's own keywords
    assert of_stages | of_generators >= FREE_FOR_GENERATORS - FREE
    page = (ROOT / "docs/reports.md").read_text()
    listed = re.search(r"Free to differ\s+are (.*?);\n- ", page, re.DOTALL)[1]
    assert set(re.findall(r"`([\w.]+)`", listed)) == FREE_FOR_GENERATORS


def check_values(values):
    for name, value in values:
        assert metric(name).label == name or name in ("precision", "recall")
        assert set(value) == {"value", "table"}
        assert value["value"] > 0
        assert re.fullmatch(r"Table (1|3|4|9|10)", value["table"])


def test_the_papers_cost_tables_stand_beside_its_own_model(tmp_path):
    Result("cost", "aligntok_dinov2_f16d32", {}, {}, {"Parameters": []}).write(tmp_path / "a")
    Result("cost", "x", {}, {}, {"Parameters": []}).write(tmp_path / "b")
    assert "The paper's Table 8: encoder and decoder" in visible(
        write_report(ReportSettings(runs=[tmp_path / "a"], out=tmp_path / "a.html"))
    )
    assert "The paper's Table 8" not in visible(
        write_report(ReportSettings(runs=[tmp_path / "b"], out=tmp_path / "b.html"))
    )
    stages_of("configs/ablations/lora.py", tmp_path / "run")
    Result("cost", str(tmp_path / "run"), {}, {}, {"Parameters": []}).write(tmp_path / "c")
    assert "The paper's Table 8" in visible(
        write_report(ReportSettings(runs=[tmp_path / "c"], out=tmp_path / "c.html"))
    )


def test_a_start_notes_the_configs_own_words():
    origin = run_info_of(ROOT / "configs/aligntok_dinov2_f16d32.py", {"seed": 1})
    assert origin["docstring"].startswith("AlignTok, DINOv2-L/14, f16d32, ImageNet 256")
    assert origin["options"] == {"seed": 1}
    assert run_info_of("none.py", {})["docstring"] == ""


# In a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--hide-scrollbars",
]
#: Writes what a page became into its title; in a frame, so that it can be narrower than a browser's window may be.
LOOK = """<!doctype html><title>waiting</title><body style="margin:0">
<iframe id="f" src="page.html" style="border:0;width:{width}px;height:4000px"></iframe><script>
addEventListener("load", async () => {{
  const page = document.getElementById("f").contentDocument, images = [...page.images];
  page.querySelectorAll("details").forEach(each => each.open = true);
  await Promise.all(images.map(each => each.decode().catch(() => 0)));
  const plots = [...page.querySelectorAll("svg")], box = each => each.getBoundingClientRect();
  document.title = JSON.stringify({{
    images: images.length, loaded: images.filter(each => each.naturalWidth > 0 && box(each).width > 0).length,
    plots: plots.length, drawn: plots.filter(each => box(each).height > 50 && each.querySelector("path")).length,
    wide: page.documentElement.scrollWidth, width: page.documentElement.clientWidth,
    requests: document.getElementById("f").contentWindow.performance.getEntriesByType("resource")
      .filter(each => !each.name.startsWith("data:")).map(each => each.name),
  }});
}});
</script>"""


def browse(arguments, profile):
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or google-chrome on PATH: the page is not opened in a browser"
)
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_all_of_it_offline_and_without_overflow(width, page, tmp_path):
    content = page.read_text()
    (tmp_path / "page.html").write_text(content)
    (tmp_path / "look.html").write_text(LOOK.format(width=width))
    options = ["--virtual-time-budget=10000", "--allow-file-access-from-files", "--window-size=1400,1000", "--dump-dom"]
    done = browse([*options, f"file://{tmp_path}/look.html"], tmp_path / "profile")
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))
    assert seen["images"] == seen["loaded"] == content.count("<img ")
    assert seen["plots"] == seen["drawn"] == content.count("<svg ")
    assert seen["width"] == width
    assert seen["wide"] <= width, "the page is wider than the window"
    assert seen["requests"] == []
    assert "CONSOLE" not in done.stderr


@pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or google-chrome on PATH: the page is not opened in a browser"
)
def test_a_screenshot_is_a_page_not_a_blank(page, tmp_path):
    shot = tmp_path / "shot.png"
    browse([f"--screenshot={shot}", "--window-size=1280,3000", f"file://{page}"], tmp_path / "profile")
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (3000, 1280, 3)
    assert len(np.unique(pixels[:, ::8].reshape(-1, 3), axis=0)) > 100
