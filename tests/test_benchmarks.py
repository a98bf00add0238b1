"""The benchmarks run and tell what they did, on the smallest of everything; their seconds are nobody's promise.

That of a generator's step has a file of its own.
"""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


class Here:
    """Stands where a pool of one fresh process does: what it would measure is not asked."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def apply(self, function, arguments):
        return float(len(arguments))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a benchmark with some options and return what it printed."""

    def run(name, options):
        monkeypatch.setattr(sys, "argv", [name, *shlex.split(options)])
        threads = torch.get_num_threads()
        with torch.random.fork_rng():
            try:
                runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
            except SystemExit as ended:
                if ended.code:
                    pytest.fail(f"{name} ended with {ended.code}")
            finally:
                torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


def test_the_peers_way_and_ours_find_the_same_gradients(run):
    lines = run("adaptive_weights", "--image-size 32 --batch 2 --rounds 1 --threads 1").splitlines()
    assert float(lines[0].split()[-1]) < 1e-3
    assert [line.split()[0] for line in lines[1:]] == ["fixed", "peers", "ours", "groups"]


def test_fluxs_transformer_is_held_against_diffusers_class_and_padding_against_none(run):
    pytest.importorskip("diffusers")
    options = "--width 128 --depth 1 1 --latent-size 4 --text 5 --batch-size 2 --rounds 2 --threads 1"
    head, apart, kernels, *lines = run("text_to_image_step", options).splitlines()
    assert head.startswith("1 CPU threads, float32") or torch.cuda.is_available()
    assert float(apart.rpartition(" ")[2]) < 1e-5
    assert "generator: " in kernels
    assert [line.strip().split("  ")[0] for line in lines[:5]] == [
        "flux_dit",
        "diffusers' class",
        "flux_dit, padded text",
        "attention of all",
        "attention without padding",
    ]
    goals = [
        re.fullmatch(r"  (.+ / .+?) +([\d.]+) \(.*\), goal at most 1.[01]0: (not )?met", line) for line in lines[5:]
    ]
    assert len(goals) == 3
    assert all(float(goal[2]) > 0 for goal in goals)


def test_each_kernel_of_attention_is_timed_or_says_why_not_and_the_products_is_marked(run):
    options = "--shapes 17x2x8 9x1x16 --packed 5 1 9 --packed-heads 2x8 --images 2 --rounds 2 --limit 30"
    first, *parts = run("attention", options).split("\n\n")
    assert "torch" in first
    assert [len(part.splitlines()) for part in parts] == [8, 8, 6]
    for part in parts:
        _, *lines, said = part.splitlines()
        (taken,) = (line for line in lines if line.startswith("*"))
        timed = [line for line in lines if "cannot run: " not in line]
        assert taken in timed
        for line in timed:
            found = re.fullmatch(r"[* ] \S.{24} +([\d.]+) ms +([\d.]+) ms backward  off by (\S+), 2 rounds", line)
            assert float(found[1]) > 0
            assert float(found[2]) > 0
            assert float(found[3]) < 1e-5
        assert said.startswith("  taken: ")
    if not torch.cuda.is_available():
        assert parts[2].count("on CUDA alone") == 4
        assert "does not support backward on CPU" in parts[0]


def test_a_kernel_that_takes_too_long_is_ended_and_the_others_are_timed(run, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.flex_attention.flex_attention", lambda *_: time.sleep(60))
    printed = run("attention", "--shapes 5x1x8 --packed --images 1 --rounds 1 --limit 3")
    assert re.search(r"FlexAttention +cannot run: its first pass took longer than [\d.]+ s", printed)
    assert "SDPA math  " in printed
    assert printed.count(", 1 rounds") == printed.count("off by")


@pytest.mark.nightly
def test_groups_of_images_have_the_ratios_of_processes_that_have_these_alone():
    command = [sys.executable, FOLDER / "ratio_groups.py", "--batches", "8", "16", "--processes", "1", "2"]
    printed = subprocess.check_output([*command, "--image-size", "32"], text=True)
    rows = [re.fullmatch(r" *(\d+) (.{32}) +([\d.]+) +([\d.]+)", line).groups() for line in printed.splitlines()[1:]]
    found = {(int(batch), name.strip()): (float(gan), float(semantic)) for batch, name, gan, semantic in rows}
    for batch in (8, 16):
        alone = found[batch, "8 images alone, the mean"]
        for name in ("groups of 8, 1 process", "groups of 8, 2 processes"):
            assert found[batch, name] == pytest.approx(alone, rel=1e-3)
    assert found[8, "the whole batch"] == pytest.approx(found[8, "8 images alone, the mean"], rel=1e-3)
    assert found[16, "the whole batch"] != pytest.approx(found[16, "8 images alone, the mean"], rel=0.02)


def test_a_checkpoint_is_written_hashed_and_read(run, tmp_path):
    lines = run("checksums", f"--gigabytes 0.001 --folder {tmp_path} --rounds 1").splitlines()
    assert [line[:20].strip() for line in lines] == ["plain", "with its checksum", "hash", "read and check"]
    assert all(line.endswith("% of the interval") for line in lines)


def test_three_ways_of_reading_latents_are_timed(run):
    options = "--images 80 --shard-size 32 --batch-size 8 --batches 10 12 --rounds 1 --workers 0"  # 80: a short shard
    assert len(re.findall(r"[\d,]+/s \(\d+\.\d x\)", run("latent_reading", options))) == 3


@pytest.mark.nightly
def test_an_index_of_many_samples_is_opened_at_once_and_stays_on_disk(tmp_path):
    command = [sys.executable, FOLDER / "streaming.py", "--synthetic", "600000000"]
    printed = subprocess.run(command, text=True, check=True, capture_output=True, cwd=tmp_path).stdout
    seconds, taken = re.match(
        r"600,000,000 samples of 60,000 shards: opened in ([\d.]+) s, with (\d+) MB", printed
    ).groups()
    assert float(seconds) < 3  # one is promised, on a machine that does nothing else
    assert float(taken) < 100
    assert not [*tmp_path.iterdir()]


@pytest.mark.nightly
def test_a_step_is_taken_apart_and_compared_with_what_it_can_do_without(run, monkeypatch):
    monkeypatch.setattr("multiprocessing.context.BaseContext.Pool", lambda *_, **__: Here())
    lines = run("training_step", "--stage 2 --image-size 32 --batch 2 --rounds 2 --threads 1").splitlines()
    shares = {line.strip().split("  ")[0]: float(line.split()[-1].rstrip("%")) for line in lines if line.endswith("%")}
    for part in ("l1 and lpips, forward and back", "gan, forward and back", "semantic, forward and back"):
        assert part in shares
    for part in ("gradient ratios", "teacher, forward", "decoder, backward", "optimisers", "EMA", "the rest"):
        assert shares[part] > 0, part
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    for variant in ("the whole step", "without gan", "without semantic and teacher", "fixed weights, no gradient rat"):
        assert any(line.strip().startswith(variant) for line in lines), variant


@pytest.mark.nightly
def test_a_killed_run_ends_as_one_that_was_not(run, config_source, tmp_path):
    (tmp_path / "tiny.py").write_text(
        config_source(stages=[dict(name="only", steps=2)], losses=dict(l1=dict(type="l1")))
    )
    options = f"--config {tmp_path}/tiny.py --runs 1 --folder {tmp_path}/runs --cfg-options checkpoint.every=1"
    assert "1 of 1 runs ended bit-identical" in run("kill_and_resume", options)


@pytest.mark.nightly
def test_a_process_reads_its_share_of_a_checkpoint(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    asked = [FOLDER / "resume_reading.py", "--gigabytes", "0.2", "--folder", tmp_path]
    lines = subprocess.check_output([*torchrun, *asked], text=True).splitlines()
    said = re.compile(r"process \d: read \d+ MB of .*, ([\d.]+) x its own share, .*; bit for bit what was written")
    assert [float(said.fullmatch(line)[1]) for line in lines] == pytest.approx([1, 1], abs=0.2)


@pytest.mark.nightly
def test_a_step_is_held_against_that_of_another_state(run, config_source, tmp_path):
    (tmp_path / "tiny.py").write_text(config_source())
    options = f"{FOLDER.parent} --config {tmp_path}/tiny.py --stage 2 --rounds 2 --burst 1"
    lines = run("step_against", options).splitlines()
    assert re.fullmatch(r"stage 2: [\d.]+ s a step of one processor, [\d.]+ s before: [\d.]+ x", lines[0])
    assert re.fullmatch(r"ratio within a round, of 2: [\d.]+ \([\d.]+ to [\d.]+\)", lines[1])


@pytest.mark.nightly
def test_every_part_of_the_devices_table_runs_on_a_cpu_too():
    command = [sys.executable, FOLDER / "device.py", "--small", "--seconds", "0.1", "--limit", "9"]
    printed = subprocess.run(command, text=True, check=True, capture_output=True).stdout
    assert "was ended" not in printed
    assert "stands above" not in printed
    parts = {part.split(":")[0]: part.splitlines()[1:-1] for part in printed.split("\n\n")[1:]}
    assert set(parts) == {
        *("stages", "ratios", "memory", "deterministic", "compiled", "generator", "sampling", "attention")
    }
    assert all(parts.values()), parts
    for line in parts["deterministic"]:  # a CPU computes the same each time
        equal, of = re.search(r"(\d+) of (\d+) tensors equal", line).groups()
        assert equal == of


def test_a_part_of_the_devices_table_that_takes_too_long_is_ended_and_the_next_begins():
    command = [sys.executable, FOLDER / "device.py", "--small", "--only", "stages", "memory", "--limit", "0.001"]
    printed = subprocess.run(command, text=True, check=True, capture_output=True).stdout
    assert printed.count("and was ended") == 2


def test_what_a_part_started_is_ended_with_it_and_nothing_stays_of_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    device = runpy.run_path(str(FOLDER / "device.py"))
    script = f"mktemp -d; sleep 60 & echo $! > {tmp_path}/pid; wait"
    monkeypatch.setitem(device["run"].__globals__, "words_of", lambda *_: ["sh", "-c", script])
    (tmp_path / "work").mkdir()
    device["run"](["stages"], device["Setting"](True, 1.0, FOLDER, tmp_path / "work", None), 0.01)
    assert "took longer than 1 s, and was ended" in capsys.readouterr().out
    assert list((tmp_path / "work").iterdir())
    state = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    for _ in range(100):  # whoever adopts it has to notice
        if not state.exists() or state.read_text().split()[2] in "ZX":
            return
        time.sleep(0.05)
    pytest.fail("what a part started outlived it")


@pytest.mark.nightly
def test_the_time_to_start_is_told_beside_that_of_torch_alone(run):
    head, *lines = run("start", "--rounds 1").splitlines()
    assert head.startswith("seconds of the processor")
    assert [line[:26].strip() for line in lines] == [
        "python",
        "import aligntok",
        "aligntok --help",
        "aligntok train --help",
        "tools/train.py --help",
        "import torch",
    ]
    assert all(re.search(r" [\d.]+ \([\d.]+-[\d.]+\)  [\d.]+ x", line) for line in lines)


def test_an_evaluation_of_pictures_tells_what_of_it_is_waiting(run):
    pytest.importorskip("transformers")
    shown = run(
        "text_image_share", "--pictures 6 --size 32 --width 64 --layers 1 --batch-size 2 --workers 0 --threads 1"
    )
    assert "6 pictures of 32 pixels, 0 reading, 1 layers of 64, patch 32, 1 threads" in shown
    computing, waiting, share, whole = map(float, re.findall(r"([\d.]+) (?:s\b|%)", shown))
    assert whole == pytest.approx(computing + waiting, abs=0.02)
    assert share == pytest.approx(100 * waiting / whole, abs=1 + 100 * 0.01 / whole)  # seconds have two digits


def test_a_linear_code_keeps_the_directions_in_which_patches_differ_most():
    code = runpy.run_path(str(FOLDER / "pca_code.py"))
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(12, 3)))[0].T  # 2 x 2 patches of three colours have 12 numbers

    def images(number):  # of 8 x 8 patches, which differ in three directions, by .3, .1 and .03 in each
        amounts = rng.normal(size=(number, 64, 3)) * (0.3, 0.1, 0.03) / np.sqrt(12)
        grid = (amounts @ axes).reshape(number, 8, 8, 3, 2, 2)
        return grid.transpose(0, 3, 1, 4, 2, 5).reshape(number, 3, 16, 16), amounts

    (train, _), (held_out, amounts) = images(400), images(5)
    assert code["patches"](held_out, 2).shape == (5, 64, 12)
    for dim in (1, 2):
        lost = (amounts[..., dim:] ** 2).sum(axis=(1, 2)) / (64 * 12)
        found = code["psnr_of_code"](train, held_out, 2, dim)
        np.testing.assert_allclose(found, 10 * np.log10(4 / lost), atol=0.05)
    assert (code["psnr_of_code"](train, held_out, 2, 3) > 200).all()


def test_a_ridge_probe_reads_a_class_off_the_positions_that_tell_it():
    probe = runpy.run_path(str(FOLDER / "feature_probe.py"))
    rng = np.random.default_rng(0)

    def sample(number):  # a class is the sign of what channel 1 has at one position; others are noise, channel 0 loud
        maps, labels = rng.normal(size=(number, 2, 2, 3)).astype(np.float32), rng.integers(0, 2, number)
        maps[..., 0] *= 10
        maps[:, 1, 0, 1] = 4 * (2 * labels - 1)
        return maps, labels

    train, val = sample(400), sample(200)
    assert probe["accuracy"](train, val) > 0.98
    assert probe["accuracy"](train, (val[0], 1 - val[1])) < 0.02
    one, two = (probe["reduced"](train[0], val[0], dim)[1] for dim in (1, 2))
    np.testing.assert_allclose(abs(np.corrcoef(one.ravel(), val[0][..., 0].ravel())[0, 1]), 1, atol=0.01)
    assert two.shape == (200, 2, 2, 2)
    assert probe["accuracy"]((one, val[1]), (one, val[1])) < 0.65 < probe["accuracy"]((two, val[1]), (two, val[1]))
