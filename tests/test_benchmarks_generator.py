"""The benchmarks of a generator beside the published code run and tell what they did; seconds are nobody's promise."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "generator_step.py"
DEVICE = BENCHMARK.with_name("device.py")
TINY = shlex.split("--depth 1 --latent-size 4 --batch-size 2 --points 9 --rounds 2 --steps 1 --threads 1")
#: The published model's interface around our weights: a module `models.lightningdit` as a clone has it.
PUBLISHED = """
import torch
from aligntok.generators.lightning_dit import LightningDiT as Ours

class LightningDiT(Ours):
    def __init__(self, input_size, patch_size, in_channels, use_checkpoint, **options):
        super().__init__(input_size=input_size, patch_size=patch_size, in_channels=in_channels, **options)

    @torch.compile
    def forward_with_cfg(self, x, t, y, cfg_scale, cfg_interval=None, cfg_interval_start=None):
        return self.forward(x, t, y)
"""


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """The benchmarks' folder as Python's first one, which it is for a script."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARK.parent), *sys.path])


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the benchmark with some options and return what it printed."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *TINY, *options])
        with torch.random.fork_rng():
            runpy.run_path(str(BENCHMARK), run_name="__main__")
        return capsys.readouterr().out

    yield run
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]


def test_every_part_and_sampling_is_told_with_the_evaluations_it_took(run):
    lines = run("--grad-checkpointing").splitlines()
    told = {line.strip().split("  ")[0]: line.replace(")", " ").split() for line in lines}
    for part in ("forward", "loss", "backward", "optimiser", "moving average", "the whole step"):
        assert told[part][-1].endswith("%")
    evaluations = {name: [int(word) for word in words if word.isdigit()][-2:] for name, words in told.items()}
    assert evaluations["guided, all channels"] == [8, 64]  # 8 steps, each of 4 images with and without their class
    assert evaluations["guided, first 3 channels"] == [8, 64]
    # Shifted by 0.3, the first three of the eight times, up to 0.114, lie before the interval.
    assert evaluations["guided for t in 0.125 to 1, shift 0.3"] == [8, 3 * 4 + 5 * 8]
    assert evaluations["unguided"] == [8, 32]


def test_published_seconds_are_compared_with_the_same_work_only(run):
    assert "no ratio: the published seconds are of other work, see depth, latent_size" in run()


def test_published_seconds_are_told_to_be_of_another_run(monkeypatch, capsys):
    benchmark = runpy.run_path(str(BENCHMARK))
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), "--threads", "2", "--published-step", "3"])
    laps = {benchmark["WHOLE"]: 1.5}
    ours = benchmark["Measured"](training=[[laps]] * 5, samplings=[{benchmark["GUIDED"]: laps}] * 5)
    benchmark["print_goals"]({"ours": ours}, benchmark["parse_arguments"]())
    out = capsys.readouterr().out
    assert "training step            0.500 (0.500-0.500), goal at most 0.90: met" in out
    assert "not run beside ours in this run: its 3 and 15.6 s were measured once" in out


@pytest.fixture
def clone(tmp_path):
    """A folder that stands in for a clone of the published code."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "lightningdit.py").write_text(PUBLISHED)
    return tmp_path


def test_published_code_runs_beside_ours(run, clone):
    out = run("--reference", str(clone))
    assert "\nPublished\n" in out
    for goal in ("training step", "guided sampling", "guided in an interval"):
        assert f"\n  {goal} " in out.partition("over the published code")[2]
    assert "not run beside" not in out


@pytest.mark.nightly
def test_on_a_device_each_line_of_the_published_code_has_ours_over_it(clone):
    """Not compiled, which would take minutes; the lines are the same."""
    words = [sys.executable, DEVICE, "--small", "--seconds", "0.1", "--limit", "9", "--only", "generator", "sampling"]
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    out = subprocess.run([*words, "--reference", clone], text=True, check=True, capture_output=True, env=environment)
    parts = [part.splitlines()[1:-1] for part in out.stdout.split("\n\n")[1:]]
    training, sampling = ([line.strip() for line in part] for part in parts)
    for number, how in enumerate(("eager", "compiled")):
        ours, theirs, ratios = training[3 * number : 3 * number + 3]
        rates = [float(line.partition(" images/s")[0].split()[-1]) for line in (ours, theirs)]
        assert re.match(rf"{how} +[\d.]+ images/s, +nan GiB, first step", ours)
        assert re.match(rf"published, {how} +[\d.]+ images/s, +nan GiB, first step", theirs)
        found = re.fullmatch(rf"ours / published, {how} +([\d.]+) x the images/s, nan x the memory", ratios)
        assert float(found[1]) == pytest.approx(rates[0] / rates[1], rel=0.02, abs=0.02)
    assert [line.partition(": ")[0] for line in sampling] == [
        "eager, fp32, guided",
        "published, eager, fp32, guided",
        "eager, tf32, guided",
        "eager, fp32, unguided",
        "compiled, fp32, guided",
        "published, compiled, fp32, guided",
    ]
    for ours, theirs in (sampling[:2], sampling[4:]):
        rates = [float(line.partition(" images/s")[0].split()[-1]) for line in (ours, theirs)]
        assert float(theirs.split()[-2]) == pytest.approx(rates[0] / rates[1], rel=0.02, abs=0.02)


def test_a_folder_without_the_published_code_is_told_before_anything_is_measured(tmp_path):
    words = [sys.executable, DEVICE, "--small", "--reference", tmp_path]
    ended = subprocess.run(words, text=True, capture_output=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"--reference {tmp_path}: No module named 'models'; give a folder with a clone of the published LightningDiT, "
        "and install what its model imports (timm, einops, fairscale)"
    )
    assert not ended.stdout


def test_the_parts_of_a_devices_table_take_ten_minutes_together():
    assert sum(limit for _, limit in runpy.run_path(str(DEVICE))["PARTS"].values()) <= 600
