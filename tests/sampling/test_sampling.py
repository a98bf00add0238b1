"""Drawing samples into a folder: what each depends on, what is written, and that nothing interrupts it for good."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter, namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from aligntok import distributed
from aligntok.cli.generating import sample as command
from aligntok.condition import PromptCondition
from aligntok.data.latent_shards import LatentStatistics
from aligntok.data.transforms import open_image
from aligntok.diffusion.settings import Sampling, changed
from aligntok.distributed import job, output_folder
from aligntok.engine import compile as engine_compile
from aligntok.engine.checkpoints import write_frozen
from aligntok.engine.saving import write_checkpoint
from aligntok.errors import CheckpointError, ConfigError, DataError, DivergenceError, Preempted, WeightsError
from aligntok.evaluation.metrics.fid import RunningMoments, frechet_distance
from aligntok.io import files
from aligntok.io.files import write_json
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.loading import STAGE_FORMAT
from aligntok.sampling import folder, pipeline
from aligntok.sampling import samples as sampling
from aligntok.sampling.folder import SampleFolder, write_npz
from aligntok.sampling.pipeline import SamplePipeline, generator_identity
from aligntok.sampling.samples import sample_images
from aligntok.sampling.settings import SampleRequest
from aligntok.sampling.words import LabelRule, PromptRule
from aligntok.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
PART = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8)  # f2
GENERATOR = dict(
    type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=[4, 6], in_channels=4, num_classes=5
)
NAMES = ("ant", "golden retriever", "n01443537", "tench", "zebra")
OWN = dict(steps=3, cfg_scale=2.0, cfg_interval=(0.1, 1), cfg_channels=3, shift=0.7, preserve_energy=True)
NUM = 11


def make_diffusion(seed=0, names=NAMES, std=(1.5, 0.5, 1.0, 2.0), own=OWN, shape=(4, 4, 6), **generator):
    torch.manual_seed(seed)
    channels = shape[0]
    tokenizer = Tokenizer({**PART, "pretrained": False}, None, PART, channels, 2)
    statistics = LatentStatistics((0.1,) * channels, std)
    config = {**GENERATOR, "in_channels": channels, **generator}
    model = LatentDiffusion(config, tokenizer, statistics, shape, names, own)
    for parameter in model.generator.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A saved generator."""
    folder = tmp_path_factory.mktemp("run")
    make_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """Eleven samples of it, drawn without interruption in batches of four."""
    return sample_images(
        SampleRequest(run=run, num_samples=NUM, out=tmp_path_factory.mktemp("whole") / "out", batch_size=4)
    )


def pixels(folder):
    paths = sorted((folder / "images").glob("*.png"))
    assert [path.name for path in paths] == [f"{i:06d}.png" for i in range(len(paths))]
    return np.stack([np.asarray(open_image(path.read_bytes())) for path in paths])


def grey_levels_apart(a, b):
    return int(np.abs(pixels(a).astype(int) - pixels(b)).max())


def contents(folder):
    found = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def arrays(folder):
    with np.load(folder / "samples.npz") as opened:
        return dict(opened)


def size(path):
    with Image.open(path) as picture:
        return picture.size


def described(folder):
    return json.loads((folder / "samples.json").read_text())


# What a sample depends on


def test_samples_are_those_of_the_generator_for_their_labels_and_seeds(run, whole):
    model = LatentDiffusion.from_pretrained(run)
    found = arrays(whole)
    assert found["arr_1"].tolist() == SamplePipeline(SampleRequest(run=run)).rule.labels(NUM)
    for i in range(NUM):
        picture = model.sample([int(found["arr_1"][i])], [i])[0]
        expected = ((picture + 1) * 127.5).permute(1, 2, 0).numpy()
        assert np.abs(pixels(whole)[i] - expected).max() < 0.51  # rounded to the nearest
    assert pixels(whole).std(axis=0).mean() > 10  # they differ


@pytest.mark.parametrize("sampler", ["euler", "euler_maruyama", "dopri5"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_batch_size_changes_no_pixel_by_more_than_a_grey_level(run, whole, tmp_path, sampler, batch_size):
    changes = {"sampler": sampler}
    one = (
        whole
        if sampler == "euler"
        else sample_images(SampleRequest(run=run, sampling=changes, num_samples=NUM, out=tmp_path / "a", batch_size=4))
    )
    other = sample_images(
        SampleRequest(run=run, sampling=changes, num_samples=NUM, out=tmp_path / "b", batch_size=batch_size)
    )
    assert grey_levels_apart(one, other) <= 1


def test_a_seed_gives_a_sample_wherever_it_is_in_a_set(run, whole, tmp_path):
    later = sample_images(SampleRequest(run=run, seed=8, num_samples=3, out=tmp_path / "out", batch_size=4))
    assert np.abs(pixels(later).astype(int) - pixels(whole)[8:]).max() <= 1
    assert arrays(later)["arr_1"].tolist() == arrays(whole)["arr_1"].tolist()[8:]


def words(run, out, *more, num=NUM):
    return [str(run), "--num-samples", str(num), "--out", str(out), "--batch-size", "4", *more]


TOOL = ROOT / "tools/sample.py"
SLOW_DISK = """
import os, time
from aligntok.cli import sample
from aligntok.evaluation.metrics.fid import RunningMoments, frechet_distance
from aligntok.io import files
from aligntok.sampling.pipeline import SamplePipeline
flush, draw = files._flush, SamplePipeline.draw
def slowly(path):
    time.sleep(1 if os.environ["RANK"] == "2" else 0)
    flush(path)
def draw_and_tell(self, numbers, *rest):
    print(f"drawing {len(numbers)}")
    return draw(self, numbers, *rest)
files._flush, SamplePipeline.draw = slowly, draw_and_tell
raise SystemExit(sample())
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_any_number_of_processes_draws_the_same_bits(warm, run, whole, tmp_path, processes):
    (tmp_path / "slow.py").write_text(SLOW_DISK)
    printed = "".join(warm.together(processes, tmp_path / "slow.py", *words(run, tmp_path / "out")))
    assert [printed.count(text) for text in ("drawing 4", "drawing 3", "Samples: ")] == [2, 1, 1]
    assert contents(tmp_path / "out") == contents(whole)


def test_the_array_waits_for_the_pictures_of_every_process(run, tmp_path, monkeypatch):
    told = []
    leave, write = folder.PictureWriter.__exit__, folder.SampleFolder.write_npz_together
    monkeypatch.setattr(folder.PictureWriter, "__exit__", lambda *a: told.append("mine") or leave(*a))
    for module in (sampling, output_folder):
        monkeypatch.setattr(module, "barrier", lambda: told.append("all"))
    monkeypatch.setattr(folder.SampleFolder, "write_npz_together", lambda *a: told.append("array") or write(*a))
    sample_images(SampleRequest(run=run, num_samples=1, out=tmp_path / "out"))
    assert told == ["mine", "all", "array", "all"]


def test_random_labels_follow_from_the_seed_alone_and_are_even():
    labels = LabelRule("random", 10, first_seed=100).labels(5000)
    assert labels[7:20] == LabelRule("random", 10, first_seed=107).labels(13)
    assert all(430 <= count <= 570 for count in Counter(labels).values())
    assert labels[:8] == [7, 7, 2, 6, 7, 3, 9, 1]  # those of every version, or old samples have other labels


@pytest.mark.parametrize(
    ("choice", "labels", "told"),
    [
        (["--labels", "balanced"], [0, 1, 2, 3, 4, 0, 1], "balanced"),
        (["--classes", "index:3", "Golden Retriever", "N01443537"], [3, 1, 2, 3, 1, 2, 3], [3, 1, 2]),
        (["--classes", "zebra"], [4] * 7, [4]),
    ],
)
def test_labels_may_be_chosen(run, tmp_path, choice, labels, told):
    assert command(words(run, tmp_path / "out", *choice, num=7)) == 0
    assert arrays(tmp_path / "out")["arr_1"].tolist() == labels
    assert described(tmp_path / "out")["labels"] == told


def test_an_unconditional_generator_has_no_labels(tmp_path):
    make_diffusion(names=(), own={}, num_classes=1, class_dropout_prob=0).save_pretrained(tmp_path / "run")
    assert command(words(tmp_path / "run", tmp_path / "out", num=3)) == 0
    found = arrays(tmp_path / "out")
    assert (list(found), found["arr_0"].shape) == (["arr_0"], (3, 8, 12, 3))
    assert described(tmp_path / "out")["labels"] == "none"
    for choice in (dict(labels="random"), dict(classes=["0"])):
        with pytest.raises(ConfigError, match="labels or classes were given, but this generator is unconditional"):
            sample_images(SampleRequest(run=tmp_path / "run", **choice, num_samples=3))


# What is written


def test_the_array_is_that_of_the_pictures_in_adms_format(whole):
    with zipfile.ZipFile(whole / "samples.npz") as archive:
        assert [info.filename for info in archive.infolist()] == ["arr_0.npy", "arr_1.npy"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None
    found = arrays(whole)
    assert (found["arr_0"].dtype, found["arr_1"].dtype) == (np.uint8, np.int64)
    assert found["arr_0"].shape == (NUM, 8, 12, 3)
    assert np.array_equal(found["arr_0"], pixels(whole))


def test_the_array_is_written_without_being_held_in_memory(tmp_path):
    rows = 2000
    made = (np.full((64, 64, 3), i % 251, dtype=np.uint8) for i in range(rows))
    tracemalloc.start()
    chunks = sum(1 for _ in write_npz(tmp_path / "a.npz", made, (rows, 64, 64, 3), [i % 7 for i in range(rows)]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chunks == 8
    assert peak < 2e6 < rows * 64 * 64 * 3
    with np.load(tmp_path / "a.npz") as found:
        assert np.array_equal(found["arr_0"][:, 5, 5, 1], np.arange(rows) % 251)
        assert np.array_equal(found["arr_1"], np.arange(rows) % 7)


def test_the_grid_shows_the_first_samples(run, whole, tmp_path):
    with Image.open(whole / "grid.png") as opened:
        grid = np.asarray(opened)
    assert grid.shape == (3 * 8 + 2 * 2, 4 * 12 + 3 * 2, 3)
    assert np.array_equal(grid[10:18, 14:26], pixels(whole)[5])
    assert command(words(run, tmp_path / "few", "--grid", "2", "--no-npz", num=3)) == 0
    assert size(tmp_path / "few/grid.png") == (26, 8)
    assert command(words(run, tmp_path / "none", "--grid", "0", "--no-npz", num=3)) == 0
    assert set(contents(tmp_path / "none")) == {f"images/00000{i}.png" for i in range(3)} | {"samples.json"}


def test_samples_json_says_what_they_are(run, whole):
    told, model = described(whole), LatentDiffusion.from_pretrained(run)
    assert told["generator"]["identity"] == generator_identity(model) == generator_identity(make_diffusion())
    assert told["generator"]["source"] == f"../../{run.name}"
    assert told["tokenizer"]["identity"] == model.tokenizer.identity
    assert Sampling(**told["sampling"]) == Sampling(**OWN)
    expected = dict(num=NUM, seed=0, labels="random", image_size=[8, 12], precision="fp32", finished=True, batch_size=4)
    assert {key: told[key] for key in expected} == expected


def test_an_identity_is_that_of_weights_config_and_statistics():
    own = generator_identity(make_diffusion())
    other = make_diffusion()
    with torch.no_grad():
        next(other.generator.parameters()).view(-1)[0] += 1e-6
    others = [other, make_diffusion(std=(1.5, 0.5, 1.0, 2.5)), make_diffusion(wo_shift=True)]
    assert len({own, *map(generator_identity, others)}) == 4


def test_the_folders_own_name_tells_the_settings(run, tmp_path):
    model = make_diffusion()
    model.save_pretrained(tmp_path / "run")
    tag = generator_identity(model)[:8]
    plain = sample_images(SampleRequest(run=tmp_path / "run", num_samples=1, npz=False))
    own = f"euler-3_cfg-2_interval-0.1-1_channels-3_energy_shift-0.7_8x12_{tag}"
    assert plain == tmp_path / "run/samples" / own
    changes = dict(sampler="ddim", steps=4, options={"eta": 0.5}, cfg_interval=None, cfg_channels=None)
    changes |= dict(preserve_energy=False, shift=1.0, cfg_scale=6.7)
    classes = [f"index:{number}" for number in (0, 1, 2, 3, 4, 0)]
    other = SampleRequest(
        run=tmp_path / "run", sampling=changes, classes=classes, seed=9, precision="tf32", size=(4, 4)
    )
    name = f"ddim-4_cfg-6.7_eta-0.5_4x4_classes-0-1-2-3-and-2_tf32_seed-9_{tag}"
    assert sample_images(replace(other, num_samples=1, npz=False)).name == name
    flow = replace(other, sampling={**changes, "shift": "length", "options": {"eta": 0.5, "noise": "flow"}})
    name = name.replace("eta-0.5", "shift-length_eta-0.5_noise-flow")
    assert sample_images(replace(flow, num_samples=1, npz=False)).name == name
    led = SampleRequest(run=tmp_path / "run", labels="balanced", autoguidance=run)
    assert sample_images(replace(led, num_samples=1, npz=False)).name.startswith(
        own.removesuffix(tag) + "balanced_weak-"
    )


# Options


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ([], {}),
        (["--sampler", "heun", "--steps", "2"], dict(sampler="heun", steps=2)),
        (["--cfg-scale", "1.5", "--shift", "1"], dict(cfg_scale=1.5, shift=1.0)),
        (["--cfg-interval", "None", "--cfg-channels", "None"], dict(cfg_interval=None, cfg_channels=None)),
        (["--cfg-interval", "0.2", "0.9", "--cfg-channels", "1"], dict(cfg_interval=(0.2, 0.9), cfg_channels=1)),
        (["--no-preserve-energy"], dict(preserve_energy=False)),
        (["--sampler", "ddim", "--options", "eta=0.5"], dict(sampler="ddim", options={"eta": 0.5})),
    ],
)
def test_what_is_not_given_is_as_the_generators_config_says(run, tmp_path, options, changes):
    assert command(words(run, tmp_path / "out", "--no-npz", *options, num=2)) == 0
    assert Sampling(**described(tmp_path / "out")["sampling"]) == Sampling(**{**OWN, **changes})


def test_options_belong_to_their_sampler():
    own = Sampling(steps=3, sampler="ddim", options={"eta": 0.5})
    assert changed(own, {"steps": 7})["options"] == {"eta": 0.5}
    assert changed(own, {"options": {"eta": 1.0}})["options"] == {"eta": 1.0}
    assert changed(own, {"sampler": "heun"})["options"] == {}


@pytest.mark.parametrize(
    ("precision", "state"), [("fp32", ("highest", False)), ("tf32", ("high", True)), ("bf16", ("high", True))]
)
def test_all_of_a_draw_multiplies_as_the_precision_says(run, precision, state):
    """On a GPU; a CPU has no TF32, so the settings are read inside of the draw, of the generator and the decoder."""
    pipeline, seen = SamplePipeline(SampleRequest(run=run, precision=precision)), {}
    parts = {"generator": pipeline.model.generator, "decoder": pipeline.model.tokenizer.decoder}
    for name, part in parts.items():
        part.register_forward_pre_hook(
            lambda *_, name=name: seen.setdefault(name, set()).add(
                (
                    torch.get_float32_matmul_precision(),
                    torch.backends.cudnn.allow_tf32,
                    torch.is_autocast_enabled("cpu"),
                    torch.is_inference_mode_enabled(),
                )
            )
        )
    pipeline.draw([0, 1])
    assert seen == {"generator": {(*state, precision == "bf16", True)}, "decoder": {(*state, False, True)}}


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_lower_precision_changes_little(run, whole, tmp_path, precision, monkeypatch):
    dtypes, decode = [], LatentDiffusion.decode

    def watched(self, latents):
        dtypes.append((self.generator.x_embedder.proj.weight.dtype, latents.dtype, torch.is_autocast_enabled("cpu")))
        return decode(self, latents)

    monkeypatch.setattr(LatentDiffusion, "decode", watched)
    sample_images(SampleRequest(run=run, precision=precision, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    assert set(dtypes) == {(torch.float32, torch.float32, False)}  # decoding is in float32
    assert np.array_equal(pixels(whole), pixels(tmp_path / "out")) == (precision == "tf32")
    assert grey_levels_apart(whole, tmp_path / "out") <= (1 if precision == "tf32" else 40)
    assert np.abs(pixels(whole).astype(int) - pixels(tmp_path / "out")).mean() < 4
    assert described(tmp_path / "out")["precision"] == precision
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("asked", "precision"), [(None, "bf16"), ("fp32", "fp32")])
def test_the_device_chooses_a_precision_that_is_not_asked_for(run, tmp_path, monkeypatch, asked, precision):
    """As on a GPU that computes in bf16; the record has it, and without a folder so does the folder's name."""
    monkeypatch.setattr(pipeline, "precision_on", lambda where: "bf16")
    drawn = sample_images(SampleRequest(run=run, precision=asked, num_samples=1, out=tmp_path / "out", npz=False))
    assert described(drawn)["precision"] == precision
    seen = []
    drawer = SamplePipeline(SampleRequest(run=run, precision=asked))
    drawer.model.generator.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    drawer.draw([0])
    assert set(seen) == {precision == "bf16"}
    assert ("bf16" in sampling.default_folder(drawer, drawer.describe()).name) == (precision == "bf16")


def test_bf16_moves_samples_by_less_than_their_noise(run):
    """The Frechet distance of bf16's latents from fp32's of the same seeds, against that of other seeds'."""

    def gaussian(precision, seed):
        drawer = SamplePipeline(SampleRequest(run=run, precision=precision, seed=seed))
        latents = drawer.draw(range(96)).latents.flatten(2)
        found = RunningMoments()
        found.add(torch.cat([latents.mean(2), latents.std(2)], dim=1))
        return found.combine()

    own = gaussian("fp32", 0)
    rounding, noise = (frechet_distance(own, gaussian(*other)) for other in (("bf16", 0), ("fp32", 1000)))
    assert 0 < rounding < 0.1 * noise


def test_a_compiled_generator_draws_the_same_up_to_rounding(run, whole, tmp_path, monkeypatch):
    """And goes on with a folder that one begun that was not; compiled without a C++ compiler here."""
    compiled = []

    def compile_blocks(modules, options):
        engine_compile.compile_blocks(modules, {"backend": "aot_eager", **options})
        compiled.extend(modules)

    monkeypatch.setattr(pipeline, "compile_blocks", compile_blocks)
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out/images/000002.png").unlink()
    sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4, compile=True))
    assert [type(each).__name__ for each in compiled] == ["LightningDiT", "NoneType"]
    assert all(block._compiled_call_impl is not None for block in compiled[0].blocks)
    assert grey_levels_apart(whole, tmp_path / "out") <= 1
    assert described(tmp_path / "out")["compile"]


def test_pictures_are_decoded_few_at_a_time_to_the_same_bits(run, whole, monkeypatch):
    monkeypatch.setattr(pipeline, "DECODED_AT_ONCE", 3 * 8 * 12)
    drawer, rows = SamplePipeline(SampleRequest(run=run)), []
    drawer.model.tokenizer.decoder.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    few = drawer.draw(range(4)).pixels
    assert rows == [3, 1]
    assert np.array_equal(few, pixels(whole)[:4])


def test_other_sizes_are_drawn_in_pixels(run, tmp_path):
    assert command(words(run, tmp_path / "out", "--size", "10", "4", num=2)) == 0
    assert pixels(tmp_path / "out").shape == (2, 10, 4, 3)
    message = r"size \(8, 13\); its sides must be multiples of .* = 2, such as \(8, 12\)"
    with pytest.raises(ConfigError, match=message):
        sample_images(SampleRequest(run=run, size=(8, 13), num_samples=1))


@pytest.fixture
def work_folder(tmp_path):
    """A training's work folder: raw weights of seed 0, averages of width 0.05 and decay 0.99 of seeds 1 and 2."""
    folder = tmp_path / "work/generation"
    models = [make_diffusion(seed) for seed in range(3)]
    models[0].tokenizer.save_pretrained(folder / "tokenizer")
    config = models[0].config
    keys = ("generator", "statistics", "latent_shape", "class_names", "sampling")
    said = {"format": STAGE_FORMAT, **{key: config[key] for key in keys}, "ema": {"inference": 0.05}}
    write_json(folder / "stage.json", said)
    raw, *averages = ({"generator": model.generator.state_dict()} for model in models)
    kept = {"averages": dict(zip(("0.05", "0.99"), averages, strict=True))}
    write_checkpoint(folder, 2, {"parts": raw, "ema": kept, "ema_inference": 0.05}, keep=1)
    write_frozen(folder, {}, {"generator": models[0].generator})
    return folder.parent


@pytest.mark.parametrize(
    ("options", "seed"),
    [([], 1), (["--weights", "raw"], 0), (["--weights", "ema"], 1), (["--ema", "0.99"], 2)],
)
def test_a_work_folders_weights_are_chosen_among(work_folder, tmp_path, options, seed):
    assert command(words(work_folder, tmp_path / "out", "--no-npz", *options, num=2)) == 0
    told = described(tmp_path / "out")["generator"]["identity"]
    assert told == generator_identity(make_diffusion(seed))


def test_weights_that_there_are_not_are_an_error(run, work_folder, tmp_path):
    with pytest.raises(CheckpointError, match="keeps no EMA of width 0.1; it keeps 0.05, 0.99"):
        sample_images(SampleRequest(run=work_folder, ema=0.1, num_samples=1, out=tmp_path / "out"))
    with pytest.raises(ConfigError, match="--weights and --ema choose among a work folder's weights"):
        sample_images(SampleRequest(run=run, weights="ema", num_samples=1, out=tmp_path / "out"))
    with pytest.raises(WeightsError, match="has no trained generator"):
        sample_images(SampleRequest(run=tmp_path, num_samples=1, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# A weaker generator


def test_guidance_may_lead_away_from_a_weaker_generator(run, whole, tmp_path):
    weak = make_diffusion(seed=1)
    weak.save_pretrained(tmp_path / "weak")
    assert command(words(run, tmp_path / "led", "--autoguidance", str(tmp_path / "weak"), num=2)) == 0
    model, sampling = LatentDiffusion.from_pretrained(run), Sampling(**OWN)
    labels = arrays(tmp_path / "led")["arr_1"].tolist()
    expected = model.sample(labels, [0, 1], sampling=sampling, weak=weak.generator)
    expected = ((expected + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels(tmp_path / "led") - expected).max() <= 1
    assert np.abs(pixels(tmp_path / "led") - pixels(whole)[:2].astype(int)).max() > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(shape=(3, 4, 6), std=(1.0,) * 3, own={}), r"has other latent channels than .* \(3, not 4\)"),
        (dict(names=(), num_classes=4), r"has other classes than .* \(4, not 5\)"),
        (dict(names=("bee", *NAMES[1:])), "has other names of the classes"),
        (dict(std=(1.5, 0.5, 1.0, 2.1)), r"normalised by other means and deviations \(up to 0.05 deviations apart"),
    ],
)
def test_it_must_see_the_same_latents(run, tmp_path, change, message):
    make_diffusion(**change).save_pretrained(tmp_path / "weak")
    with pytest.raises(ConfigError, match=message):
        sample_images(SampleRequest(run=run, autoguidance=tmp_path / "weak", num_samples=1, out=tmp_path / "out"))


def test_a_weaker_generator_without_a_scale_is_a_mistake(run, tmp_path):
    with pytest.raises(ConfigError, match="autoguidance with cfg_scale=1 guides nothing"):
        sample_images(
            SampleRequest(run=run, autoguidance=run, sampling={"cfg_scale": 1.0}, num_samples=1, out=tmp_path / "out")
        )


# Interruptions


@pytest.fixture
def drawn(monkeypatch):
    """The numbers of the samples of each batch that is drawn."""
    batches, draw = [], SamplePipeline.draw

    def remember(self, numbers, chosen=None):
        batches.append(list(numbers))
        return draw(self, numbers, chosen)

    monkeypatch.setattr(SamplePipeline, "draw", remember)
    return batches


def test_sigterm_ends_it_after_a_batch_and_the_same_command_goes_on(run, whole, tmp_path, drawn, monkeypatch, capsys):
    told = []

    def told_to_stop():
        told.append(None)
        return len(told) == 2

    with monkeypatch.context() as patch:
        patch.setattr(job, "sigterm_was_sent", told_to_stop)
        assert command(words(run, tmp_path / "out")) == 75
    assert "the pictures that are there are whole, and the same command goes on from them" in capsys.readouterr().err
    assert set(contents(tmp_path / "out")) == {f"images/00000{i}.png" for i in range(8)} | {"samples.json"}
    assert not described(tmp_path / "out")["finished"]
    assert command(words(run, tmp_path / "out")) == 0
    assert drawn == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert contents(tmp_path / "out") == contents(whole)
    assert command(words(run, tmp_path / "out")) == 0
    assert len(drawn) == 3
    assert contents(tmp_path / "out") == contents(whole)


def test_sigterm_to_the_process_is_heeded(run, whole, tmp_path, monkeypatch):
    write, out = folder.PictureWriter.write, tmp_path / "out"

    def write_and_be_told_to_stop(self, pictures):
        write(self, pictures)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(folder.PictureWriter, "write", write_and_be_told_to_stop)
        with pytest.raises(Preempted):
            sample_images(SampleRequest(run=run, num_samples=NUM, out=out, batch_size=4))
    assert len(pixels(out)) == 4
    sample_images(SampleRequest(run=run, num_samples=NUM, out=out, batch_size=4))
    assert contents(out) == contents(whole)


def test_an_array_of_fewer_samples_does_not_stay_beside_more(run, tmp_path, monkeypatch):
    sample_images(SampleRequest(run=run, num_samples=4, out=tmp_path / "out", batch_size=4))
    monkeypatch.setattr(job, "sigterm_was_sent", lambda: True)
    with pytest.raises(Preempted):
        sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    assert len(pixels(tmp_path / "out")) == 8
    assert not (tmp_path / "out/samples.npz").exists()
    assert (described(tmp_path / "out")["num"], described(tmp_path / "out")["finished"]) == (NUM, False)


def test_sigterm_while_the_array_is_written_leaves_none(run, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out/samples.npz").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(job, "sigterm_was_sent", lambda: True)
        with pytest.raises(Preempted, match="the pictures are there, and the same command writes it"):
            sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    assert set(contents(whole)) - set(contents(tmp_path / "out")) == {"samples.npz"}
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".tmp")]
    sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    assert contents(tmp_path / "out") == contents(whole)


KILLED_WHILE_WRITING = """
import os, signal, sys
from aligntok.evaluation.metrics.fid import RunningMoments, frechet_distance
from aligntok.io import files
from aligntok.cli import sample
flush = files._flush
def kill_before_the_rename(path):
    if "000006.png" in path.name:
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    flush(path)
files._flush = kill_before_the_rename
sample(sys.argv[1:])
"""


@pytest.mark.nightly
def test_a_kill_in_the_midst_of_writing_leaves_whole_pictures_only(warm, run, whole, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "killed.py").write_text(KILLED_WHILE_WRITING)
    killed = warm.start(tmp_path / "killed.py", *words(run, out))
    assert killed.end()[0] == -signal.SIGKILL, killed.output
    there = {path.name for path in (out / "images").glob("*.png") if not path.name.startswith(".")}
    assert {f"00000{i}.png" for i in range(4)} <= there
    assert "000006.png" not in there
    assert all((out / "images" / n).read_bytes() == (whole / "images" / n).read_bytes() for n in there)
    assert [path for path in (out / "images").iterdir() if path.name.endswith(".tmp")]
    assert command(words(run, out)) == 0
    assert contents(out) == contents(whole)


TOLD_TO_STOP = """
import os, signal, sys
from aligntok.cli import sample
from aligntok.sampling.folder import PictureWriter
write = PictureWriter.write
def write_and_be_told_to_stop(self, pictures):
    write(self, pictures)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
PictureWriter.write = write_and_be_told_to_stop
raise SystemExit(sample())
"""


@pytest.mark.slow
def test_sigterm_to_one_process_ends_all_after_the_same_batch(warm, run, whole, tmp_path):
    script, out = tmp_path / "sample.py", tmp_path / "out"
    script.write_text(TOLD_TO_STOP)
    stopped = warm.several(2, script, *words(run, out))
    assert [process.end()[0] for process in stopped] == [75, 75], stopped[0].output
    assert len(pixels(out)) == 8
    sample_images(SampleRequest(run=run, num_samples=NUM, out=out, batch_size=4))
    assert contents(out) == contents(whole)


def test_what_is_lost_is_drawn_again_and_nothing_else(run, whole, tmp_path, drawn):
    shutil.copytree(whole, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/images").iterdir()}
    (tmp_path / "out/images/000005.png").unlink()
    sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    assert drawn == [[4, 5, 6, 7]]
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/images").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"000005.png"}
    assert contents(tmp_path / "out") == contents(whole)


def test_a_larger_number_goes_on_and_a_smaller_one_draws_nothing(run, whole, tmp_path, drawn, capsys):
    out = tmp_path / "out"
    sample_images(SampleRequest(run=run, num_samples=8, out=out, batch_size=4))
    sample_images(SampleRequest(run=run, num_samples=NUM, out=out, batch_size=4))
    assert drawn == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert "Drawing 3 of 11 samples into" in capsys.readouterr().err
    assert contents(out) == contents(whole)
    sample_images(SampleRequest(run=run, num_samples=5, out=out, batch_size=4))
    assert len(drawn) == 3
    assert f"Samples: {out}   (5 of 8 x 12; images/ has 6 more, of an earlier start)" in capsys.readouterr().out
    assert len(arrays(out)["arr_0"]) == described(out)["num"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--cfg-scale", "4"], "sampling.cfg_scale 2.0, now 4.0"),
        (["--steps", "5", "--seed", "3"], "sampling.steps 3, now 5; seed 0, now 3|seed 0, now 3; sampling.steps 3"),
        (["--cfg-interval", "None"], r"sampling.cfg_interval \[0.1, 1.0\], now none"),
        (["--labels", "balanced"], "labels random, now balanced"),
        (["--classes", "index:3"], r"labels random, now \[3\]"),
        (["--size", "8"], r"image_size \[8, 12\], now \[8, 8\]"),
        (["--precision", "bf16"], "precision fp32, now bf16"),
        (
            ["--sampler", "ddim", "--options", "eta=1"],
            "sampling.options.eta none, now 1; sampling.sampler euler",
        ),
    ],
)
def test_a_folder_begun_with_other_settings_is_not_gone_on_with(run, whole, tmp_path, change, message):
    shutil.copytree(whole, tmp_path / "out")
    with pytest.raises(ConfigError, match=rf"was begun otherwise \(.*({message}).*\); give what it was begun with"):
        command.__wrapped__(words(run, tmp_path / "out", *change))
    assert contents(tmp_path / "out") == contents(whole)


def test_nor_with_another_generator_decoder_or_guide(run, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    make_diffusion(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(
        ConfigError, match=r"begun otherwise \(generator.identity \w{16}\.\.\., now \w{16}\.\.\.; token"
    ):
        sample_images(SampleRequest(run=tmp_path / "other", num_samples=NUM, out=tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"begun otherwise \(autoguidance.identity none, now \w{16}"):
        sample_images(SampleRequest(run=run, autoguidance=tmp_path / "other", num_samples=NUM, out=tmp_path / "out"))
    refined = LatentDiffusion.from_pretrained(run)
    with torch.no_grad():
        refined.tokenizer.decoder.conv_out.bias += 0.1
    refined.save_pretrained(tmp_path / "refined")
    with pytest.raises(ConfigError, match=r"begun otherwise \(tokenizer.decoder \w{16}\.\.\., now"):
        sample_images(SampleRequest(run=tmp_path / "refined", num_samples=NUM, out=tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(whole)


def test_the_generator_may_have_moved_and_the_batch_be_another(run, whole, tmp_path, drawn):
    shutil.copytree(whole, tmp_path / "out")
    shutil.copytree(run, tmp_path / "moved")
    sample_images(SampleRequest(run=tmp_path / "moved", num_samples=NUM, out=tmp_path / "out", batch_size=7))
    assert not drawn


# What cannot be done


def test_other_peoples_folders_are_not_written_into(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("mine")
    for out in (tmp_path / "mine", tmp_path / "mine/thesis.tex"):
        with pytest.raises(ConfigError, match=r"has other things in it, and no samples\.json; give a new folder"):
            sample_images(SampleRequest(run=run, num_samples=1, out=out))
    (tmp_path / "mine/samples.json").write_text("[1]")
    with pytest.raises(DataError, match="so how the files beside it were made is unknown"):
        sample_images(SampleRequest(run=run, num_samples=1, out=tmp_path / "mine"))


CLAIM = """
import sys
from aligntok.io.folders import lock_folder
with lock_folder(sys.argv[1]):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_two_at_once_do_not_share_a_folder(run, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"claimed\n"
    try:
        with pytest.raises(ConfigError, match="is in use by another run"):
            sample_images(SampleRequest(run=run, num_samples=1, out=tmp_path / "out"))
    finally:
        holder.communicate()
    sample_images(SampleRequest(run=run, num_samples=1, out=tmp_path / "out"))


def test_a_full_disk_is_known_before_anything_is_drawn(run, tmp_path, monkeypatch, drawn):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**26 + 60_000))
    message = r"13 samples and samples\.npz: 6\.07e-05 GB are needed, and 0\.067 GB should stay .* --no-npz"
    with pytest.raises(DataError, match=message):
        sample_images(SampleRequest(run=run, num_samples=13, out=tmp_path / "out"))
    assert not drawn
    sample_images(SampleRequest(run=run, num_samples=13, out=tmp_path / "out", npz=False))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("000010.png", r"000010\.png could not be written"),  # of the last batch
        ("000006.png", r"000006\.png could not be written \(.*No space left.*the pictures that are there are whole"),
        ("samples.npz", r"samples\.npz could not be written \(.*No space left.*the pictures are there.* add --no-npz"),
    ],
)
def test_a_disk_that_fills_up_leaves_whole_files(run, whole, tmp_path, monkeypatch, name, message):
    flush = files._flush

    def full(path):
        if name in path.name:
            raise OSError(28, "No space left on device")
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush", full)
        with pytest.raises(DataError, match=message):
            sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    there, all_of_them = contents(tmp_path / "out"), contents(whole)
    assert name not in {Path(path).name for path in there}
    assert all(there[path] == all_of_them[path] for path in there if path.startswith("images/"))
    sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    assert contents(tmp_path / "out") == all_of_them


@pytest.mark.parametrize("spoil", ["cut off", "other size"])
def test_a_damaged_picture_is_named(run, whole, tmp_path, spoil):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out/samples.npz").unlink()
    path = tmp_path / "out/images/000005.png"
    small = io.BytesIO()
    Image.new("RGB", (4, 4)).save(small, "PNG")
    path.write_bytes(path.read_bytes()[:60] if spoil == "cut off" else small.getvalue())
    with pytest.raises(DataError, match=r"000005\.png is missing, damaged or of another size .*remove it and start"):
        sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    path.unlink()
    sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    assert contents(tmp_path / "out") == contents(whole)


def test_samples_that_are_not_finite_are_an_error_and_no_pictures(tmp_path):
    model = make_diffusion()
    with torch.no_grad():
        model.generator.y_embedder.embedding_table.weight[3] = float("nan")
    model.save_pretrained(tmp_path / "run")
    message = r"the latents of sample 3 \(seed 5\) came out as NaN or infinite, with --precision fp32 and --cfg-scale 2"
    with pytest.raises(DivergenceError, match=message):
        sample_images(
            SampleRequest(run=tmp_path / "run", labels="balanced", seed=2, num_samples=5, out=tmp_path / "out")
        )
    assert not list((tmp_path / "out").glob("images/*"))
    broken = make_diffusion()
    with torch.no_grad():
        broken.tokenizer.decoder.conv_out.bias[1] = float("inf") * 0
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(DivergenceError, match="the picture of sample 0 "):
        sample_images(SampleRequest(run=tmp_path / "broken", num_samples=2, out=tmp_path / "other"))


@pytest.mark.nightly
def test_an_error_of_one_process_is_that_of_all(warm, tmp_path):
    model = make_diffusion()
    with torch.no_grad():
        model.generator.y_embedder.embedding_table.weight[4] = float("nan")
    model.save_pretrained(tmp_path / "run")
    both = warm.several(2, TOOL, *words(tmp_path / "run", tmp_path / "out", "--labels", "balanced"))
    assert all(process.end()[0] for process in both)
    assert any("the latents of sample 4 (seed 4) came out as NaN" in process.output for process in both)
    assert not any("Samples: " in process.output for process in both)


def test_too_little_memory_is_told_as_such(run, tmp_path, monkeypatch):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LatentDiffusion, "decode", too_much)
    with pytest.raises(ConfigError, match=r"4 samples of 8 x 12 at once do not fit into the memory .* --batch-size"):
        sample_images(SampleRequest(run=run, num_samples=4, out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cfg-interval", "0.1"], "Sampling: cfg_interval='0.1' is str; it must be"),
        (["--cfg-interval", "all", "1"], r"Sampling: cfg_interval=\('all', 1.0\); it must be"),
        (["--cfg-interval", "0.9", "0.1"], r"interval=\(0.9, 0.1\); it is \(lo, hi\)"),
        (["--cfg-channels", "9"], "guidance on channels=9, but x has 4"),
        (["--sampler", "eular"], "no sampler named 'eular'; did you mean 'euler'"),
        (["--options", "eta"], "--options takes key=value, not 'eta'"),
        (["--options", "eta=1"], "sampler 'euler' has no option named 'eta'"),
        (["--sampler", "ddim", "--options", "eta=half"], "sampler 'ddim' cannot use its options .*half"),
        (["--sampler", "ddim", "--options", "eta=3"], r"ddim: eta=3; it must lie in \[0, 1\]"),
        (["--steps", "0"], "steps=0; it must be int of at least 1"),
        (["--cfg-scale", "-1"], "cfg_scale=-1.0; it must be int or float of at least 0"),
        (["--classes", "tencj"], "no class named 'tencj'; did you mean 'tench'"),
        (["--classes", "index:5"], "class 5: there are 5, numbered from 0 to 4"),
        (["--classes", "1", "--labels", "random"], "both labels=random and a list of classes were given"),
        (["--batch-size", "0"], "aligntok sample: --batch-size 0; it must be int of at least 1"),
        (["--grid", "-1"], "aligntok sample: --grid -1; it must be int of at least 0"),
        (["--seed", "-1"], "aligntok sample: --seed -1; it must be int of at least 0"),
        (["--seed", "4294967290"], r"seed 4294967290 with 11 samples: seeds end at 2\^32 - 1"),
        (["--sweep-steps", "3"], "--sweep-steps belongs to --guidance-sweep"),
        (["--guidance-sweep", "2", "--cfg-scale", "3"], "leave out --cfg-scale"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(run, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        command.__wrapped__(words(run, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(precision="fp8"), "precision='fp8'; .*it must be 'fp32', 'tf32', 'bf16', 'fp16' or 'auto'"),
        (dict(weights="raw", ema=0.05), "ema 0.05 is one of the averages; leave it, or --weights raw, out"),
        (dict(labels="balance"), "labels='balance'; did you mean 'balanced'"),
        (dict(sampling={"step": 3}), r"Sampling: no key named 'step'; did you mean 'steps'"),
        (dict(split="val"), "--split does nothing without --real-images"),
        (dict(real_label="label"), "--real-label does nothing without --real-images"),
        (dict(guidance_sweep=(2.0,), real_images="x"), "--real-images does nothing with --guidance-sweep"),
        (dict(guidance_sweep=(2.0,), grid=4), "--grid does nothing with --guidance-sweep"),
        (dict(guidance_sweep=(2.0,), npz=False), "--no-npz does nothing with --guidance-sweep"),
        (dict(extractor="timm"), "--extractor does nothing without --reference"),
        (
            dict(guidance_sweep=(2.0,), extractor_options=dict(size=96)),
            "--extractor-options does nothing without --reference",
        ),
    ],
)
def test_a_drawing_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SampleRequest(run="anywhere", **options)


def test_guidance_without_a_null_class_is_refused_before_anything_is_written(tmp_path):
    make_diffusion(own={}, class_dropout_prob=0).save_pretrained(tmp_path / "run")
    with pytest.raises(
        ConfigError, match="needs a null class, but with class_dropout_prob=0 the generator learns none"
    ):
        sample_images(
            SampleRequest(run=tmp_path / "run", sampling={"cfg_scale": 2.0}, num_samples=1, out=tmp_path / "out")
        )
    assert not (tmp_path / "out").exists()


def test_processes_that_have_different_generators_are_told(monkeypatch):
    monkeypatch.setattr(distributed, "broadcast", lambda tensors: tensors[0].fill_(7))
    with pytest.raises(DataError, match="this process sees another generator, or other options than the first"):
        distributed.must_agree({"seed": 3}, "another generator")


def test_seeds_that_torch_would_take_for_one_are_the_reason_for_their_limit():
    same = [torch.randn(4, generator=torch.Generator().manual_seed(5 + k * pipeline.SEEDS)) for k in range(2)]
    assert torch.equal(*same)


def test_seeds_of_prompts_are_their_own_however_high_the_sets_is():
    rule = PromptRule(PromptCondition.__new__(PromptCondition), ["a", "b"], 2**32 - 1)
    assert all(0 <= rule.seed(i) < pipeline.SEEDS for i in range(8))


def test_what_belongs_to_more_samples_does_not_stay_beside_fewer(run, tmp_path):
    out = tmp_path / "out"
    sample_images(SampleRequest(run=run, num_samples=4, out=out, batch_size=4))
    (out / "prompts.jsonl").write_text("")
    sample_images(SampleRequest(run=run, num_samples=2, out=out, npz=False))
    assert not (out / "samples.npz").exists()
    folder = SampleFolder(out, 2, (8, 12), None, {}, records=[{"prompt": "a"}, {"prompt": "b"}])
    assert folder.begin_together(npz=False) == set()
    assert [json.loads(line)["prompt"] for line in (out / "prompts.jsonl").read_text().splitlines()] == ["a", "b"]


def test_a_damaged_array_counts_as_none(tmp_path):
    pixels = [np.zeros((2, 2, 3), np.uint8)] * 3
    [*write_npz(tmp_path / "samples.npz", iter(pixels), (3, 2, 2, 3), None)]
    folder = SampleFolder(tmp_path, 3, (2, 2), None, {})
    assert folder._has_arrays()
    content = (tmp_path / "samples.npz").read_bytes()
    absent = 0
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "samples.npz").write_bytes(changed)
        absent += not folder._has_arrays()
    assert absent > 500


def test_progress_is_told_for_what_is_missing(run, tmp_path, monkeypatch):
    told, bar = [], job.progress_bar

    def watched(total, *rest):
        made = bar(total, *rest)
        told.append((total, []))
        monkeypatch.setattr(made, "update", lambda count, known=told[-1][1]: known.append(count))
        return made

    monkeypatch.setattr(job, "progress_bar", watched)
    sample_images(SampleRequest(run=run, num_samples=4, out=tmp_path / "out", batch_size=4))
    sample_images(SampleRequest(run=run, num_samples=NUM, out=tmp_path / "out", batch_size=4))
    assert told == [(4, [4]), (7, [4, 3])]


@pytest.fixture
def loaded(monkeypatch):
    """A function that makes generators what is loaded, one after the other, without a folder."""

    def load(*models):
        left = list(models)
        monkeypatch.setattr(pipeline, "load_latent_diffusion", lambda *given, **how: left.pop(0))

    return load


def with_statistics(mean=(0.1,) * 4, std=(1.5, 0.5, 1.0, 2.0), **options):
    model = make_diffusion(**options)
    model.statistics = LatentStatistics(mean, std)
    return model


@pytest.mark.parametrize(
    ("own", "fits"),
    [
        (dict(std=(1.5, 0.5, 1.0, 2.0018)), True),
        (dict(std=(1.5, 0.5, 1.0, 2.0022)), False),
        (dict(std=(1.5, 0.5, 1.0, 1.9978)), False),
        (dict(mean=(0.1, 0.1 + 0.00045, 0.1, 0.1)), True),  # of a deviation of a half
        (dict(mean=(0.1, 0.1 + 0.00055, 0.1, 0.1)), False),
        (dict(mean=(0.1, 0.1 - 0.00055, 0.1, 0.1)), False),
        (dict(mean=(0.1, 0.1, 0.1, 0.1 + 0.0018)), True),
        (dict(mean=(0.1, 0.1, 0.1, float("nan"))), False),
        (dict(names=()), True),
    ],
)
def test_a_weaker_generators_latents_may_be_normalised_otherwise_by_a_thousandth(loaded, own, fits):
    weak = with_statistics(**own)
    loaded(weak)
    if fits:
        assert pipeline.load_weaker("weak", with_statistics()) is weak.generator
    else:
        with pytest.raises(ConfigError, match="normalised by other means and deviations"):
            pipeline.load_weaker("weak", with_statistics())


def test_the_names_of_classes_may_be_known_to_the_weaker_one_alone(loaded):
    weak = make_diffusion()
    loaded(weak)
    assert pipeline.load_weaker("weak", make_diffusion(names=())) is weak.generator


def test_seeds_end_where_the_last_sample_has_the_highest(loaded):
    loaded(make_diffusion())
    drawing = SamplePipeline(SampleRequest(run="x", seed=2**32 - 4))
    drawing.check(4, drawing.sampling)
    with pytest.raises(ConfigError, match="seed 4294967292 with 5 samples"):
        drawing.check(5, drawing.sampling)


def test_what_drawing_needs_is_moved_and_the_encoder_stays(loaded):
    loaded(make_diffusion(), make_diffusion(seed=1))
    drawing = SamplePipeline(SampleRequest(run="x", autoguidance="weak"))
    drawing.device = torch.device("meta")
    drawing.to_device()
    tokenizer = drawing.model.tokenizer
    parts = dict(generator=drawing.model.generator, weak=drawing.weak, decoder=tokenizer.decoder)
    for name, part in {**parts, "encoder": tokenizer.encoder}.items():
        assert {p.device.type for p in part.parameters()} == {"cpu" if name == "encoder" else "meta"}, name
    loaded(make_diffusion())
    SamplePipeline(SampleRequest(run="x")).to_device()  # without a weaker one


@pytest.mark.parametrize(
    ("patch_size", "size", "latent_size"),
    [
        (2, None, (4, 6)),
        (2, [4, 8], (2, 4)),
        (2, 12, (6, 6)),
        (None, [2, 6], (1, 3)),
        (2, [6, 8], None),
        (None, 3, None),
    ],
)
def test_a_size_is_of_whole_patches_of_latents(loaded, patch_size, size, latent_size):
    model = make_diffusion(**({} if patch_size is None else dict(patch_size=patch_size)))
    if patch_size is None:  # a generator of somebody else's, that has none
        del model.generator.patch_size
    loaded(model)
    request = SampleRequest(run="x", size=size)
    if latent_size is None:
        with pytest.raises(ConfigError, match="multiples of"):
            SamplePipeline(request)
    else:
        drawing = SamplePipeline(request)
        assert drawing.latent_size == latent_size
        assert drawing.image_size == tuple(2 * side for side in latent_size)


def test_a_weaker_generators_latents_may_be_apart_by_the_limit_itself(loaded, monkeypatch):
    monkeypatch.setattr(pipeline, "SAME_STATISTICS", 0.25)
    loaded(with_statistics(std=(1.5, 0.5, 1.25, 2.0)))
    pipeline.load_weaker("weak", with_statistics())
