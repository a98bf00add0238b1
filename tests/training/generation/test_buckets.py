"""A generator's training on images of several shapes: one shape a step, of all processes, and numbers as ever."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import aligntok
from aligntok.caching import encoder as module
from aligntok.caching.encoder import latent_statistics
from aligntok.cli import train
from aligntok.data.images import ImageDataset
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint
from aligntok.generators import Generator
from aligntok.registry import GENERATORS
from aligntok.tokenizer import Tokenizer
from aligntok.training.generation import data as generation_data
from aligntok.training.generation.model import GenerationModel

AREA = dict(side=32, multiple_of=8, max_aspect_ratio=2.0)
SIZES = [(24, 40), (32, 32), (40, 24)]
SHAPES = [(40, 60), (40, 40), (60, 40)]  # of the images, one for each


class AnyGrid(Generator):
    """A stand-in for a transformer of tokens that lie anywhere."""

    def __init__(self, in_channels: int = 4, num_classes: int = 1) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes)
        linear = torch.nn.Linear
        self.layers = torch.nn.Sequential(linear(in_channels + 1, 8), torch.nn.SiLU(), linear(8, in_channels))

    def forward(self, x, t, y):
        tokens = torch.cat([x, t[:, None, None, None].expand_as(x[:, :1])], dim=1).flatten(2).transpose(1, 2)
        return self.layers(tokens).transpose(1, 2).unflatten(2, x.shape[2:])

    def set_grad_checkpointing(self, enable=True):
        return


@pytest.fixture(autouse=True)
def any_grid(monkeypatch):
    """Lets configs name the stand-in."""
    monkeypatch.setitem(GENERATORS._module_dict, "any_grid", AnyGrid)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Four images of each of three shapes, with captions."""
    root = tmp_path_factory.mktemp("mixed")
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (*SHAPES[number % 3], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:02d}.png")
        (root / f"{number:02d}.txt").write_text(f"picture {number}")
    return root


@pytest.fixture
def write_mixed(write_generation, mixed, tiny_tokenizer):
    """Write the config of a tiny generator's training on them; further keywords replace its keys."""

    def write(image_size=AREA, **changes):
        images = dict(type="images", image_size=image_size, caption="auto")
        data = dict(train=images, workers=0, statistics_images=None)
        how = dict(data_root=str(mixed), tokenizer=str(tiny_tokenizer), data=data, global_batch_size=4)
        how |= dict(generator=dict(type="any_grid"), steps=6, sampling=dict(steps=2), log=dict(every=1, pictures=0))
        return write_generation(**{**how, **changes})

    return write


@pytest.fixture
def seen(monkeypatch):
    """What every optimiser step sees: of each micro-batch latents' shape, captions and numbers drawn."""
    steps = []
    inner = GenerationModel.train_step

    def train_step(self, data, optim_wrapper):
        steps.append([(tuple(micro["images"].shape[2:]), micro["caption"]) for micro in data.micro_batches])
        return inner(self, data, optim_wrapper)

    monkeypatch.setattr(GenerationModel, "train_step", train_step)
    return steps


def test_every_step_has_one_shape_and_an_epoch_every_image(write_mixed, seen, tmp_path):
    assert train([write_mixed(gradient_accumulation_steps=2), "--work-dir", str(tmp_path / "run")]) == 0
    assert all(len({shape for shape, _ in micro_batches}) == 1 for micro_batches in seen)
    assert sorted(shape for ((shape, _), _) in seen[:3]) == sorted(shape for ((shape, _), _) in seen[3:]) == SIZES
    for epoch in (seen[:3], seen[3:]):
        captions = [caption for step in epoch for _, each in step for caption in each]
        assert sorted(captions) == sorted(f"picture {number}" for number in range(12))
    model = aligntok.load_latent_diffusion(tmp_path / "run")
    assert model.latent_shape == (4, 4, 4), "samples are square unless they are asked to be otherwise"
    assert model.sample([0], [1]).shape == (1, 3, 32, 32)


def test_any_split_of_a_batch_and_an_interruption_give_the_same_run(write_mixed, seen, tmp_path):
    exact = dict(optimizer=dict(type="AdamW", lr=1e-3, eps=1e-2))
    parts = []
    for name, accumulation, stops in [("one", 1, [6]), ("split", 4, [6]), ("halved", 1, [4, 6])]:
        config = write_mixed(gradient_accumulation_steps=accumulation, **exact)
        for steps in stops:
            assert train([config, "--work-dir", str(tmp_path / name), "--cfg-options", f"steps={steps}"]) == 0
        parts.append(read_checkpoint(list_checkpoints(tmp_path / name / "generation")[-1][1])["parts"]["generator"])
    whole, split, halved = parts
    assert all(torch.equal(tensor, halved[key]) for key, tensor in whole.items())
    for key, tensor in whole.items():
        torch.testing.assert_close(split[key], tensor, rtol=1e-4, atol=1e-6)
    shapes = [[shape for shape, _ in step][:1] for step in seen]
    assert shapes[:6] == shapes[6:12] == shapes[12:]


def test_processes_agree_on_the_shape_of_every_step(mixed):
    from aligntok.data.sampler import GlobalBatchSampler

    data = ImageDataset(mixed, AREA, caption="auto")
    samplers = [GlobalBatchSampler(12, 4, 0, rank, 2, num_steps=12, buckets=data.buckets) for rank in range(2)]
    for step, batches in enumerate(zip(*samplers, strict=True)):
        shapes = {tuple(data[request]["images"].shape[1:]) for batch in batches for request in batch}
        assert len(shapes) == 1, step


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_statistics_are_of_every_shape(mixed, monkeypatch, as_processes, posterior):
    torch.manual_seed(0)
    cnn = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
    tokenizer = Tokenizer(cnn, dict(type="identity"), cnn, latent_dim=4, downsample_factor=8, variational=True).eval()
    monkeypatch.setattr(module, "BATCH", 3)
    data = dict(type="images", root=str(mixed), image_size=AREA)
    images, values = ImageDataset(mixed, AREA, train=False), []
    found = latent_statistics(tokenizer, data, None, "fp32", 0, posterior, 7, images.buckets)
    assert latent_statistics(tokenizer, data, None, "fp32", 0, posterior, 7) == found
    own = [copy.deepcopy(tokenizer) for _ in range(2)]
    shared = as_processes(
        lambda rank: latent_statistics(own[rank], data, None, "fp32", 0, posterior, 7, images.buckets)
    )
    for one in shared:
        np.testing.assert_allclose([one.mean, one.std], [found.mean, found.std], rtol=1e-6)
    for place in range(12):
        image = images[place]["images"][None]
        assert image.shape[2:] == SIZES[place % 3]
        shape = (4, image.shape[2] // 8, image.shape[3] // 8)
        noise = np.random.default_rng((7, place, 0)).standard_normal(shape, dtype=np.float32)
        with torch.no_grad():
            latents = tokenizer.encode(image, noise=torch.from_numpy(noise)[None] if posterior == "sample" else None)
        values.append(latents[0].flatten(1).double())
    each = torch.cat(values, dim=1)
    np.testing.assert_allclose(found.mean, each.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.std, each.std(1, correction=0), rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (
            dict(side=36, multiple_of=12),
            "generation: data.train.image_size (36, 36); its sides must be multiples of f = 8",
        ),
        (dict(side=32, multiple_off=8), "image_size: no key named 'multiple_off'; did you mean 'multiple_of'?"),
        (dict(multiple_of=8), "image_size: side is not given; it must be int of at least 1"),
        (
            dict(side=32, max_aspect_ratio=0.5),
            "image_size: max_aspect_ratio=0.5; it must be int or float of at least 1",
        ),
        (dict(side=8192, multiple_of=8), "give one to 254 different (height, width) pairs"),
    ],
)
def test_shapes_that_cannot_be_are_found_by_a_dry_run(write_mixed, capsys, size, said):
    assert train([write_mixed(size), "--dry-run"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("patch", "status"), [(1, 0), (2, 2)])
def test_every_shape_is_of_whole_patches(write_mixed, capsys, patch, status):
    config = write_mixed([(32, 32), (24, 40)], generator={**TRANSFORMER, "patch_size": patch})
    assert train([config, "--dry-run"]) == status
    said = "(24, 40); its sides must be multiples of f x patch_size = 8 x 2 = 16, such as"
    assert (said in capsys.readouterr().err) == (status == 2)


def test_shapes_of_equal_area_come_from_the_command_line(write_mixed, seen, tmp_path, capsys):
    config = write_mixed(image_size=32, steps=3)
    assert train([config, "--dry-run", "--cfg-options", "data.train.image_size=dict(side=32,multiple_of=8)"]) == 0
    options = ["--cfg-options", "data.train.image_size=dict(side=32,multiple_of=8)"]
    assert train([config, "--work-dir", str(tmp_path / "run"), *options]) == 0
    assert sorted(shape for ((shape, _),) in seen) == SIZES


TRANSFORMER = dict(
    type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=4, num_classes=1
)


def test_a_transformer_with_a_grid_of_its_own_trains_on_every_shape(write_mixed, seen, tmp_path):
    config = write_mixed(generator=TRANSFORMER, steps=3)
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 0
    assert sorted(shape for ((shape, _),) in seen) == SIZES


@pytest.mark.nightly
def test_two_processes_train_the_same_generator_as_one(write_mixed, tool, tmp_path):
    config, parts = write_mixed(generator=TRANSFORMER, optimizer=dict(type="AdamW", lr=1e-3, eps=1e-2)), []
    for processes in (1, 2):
        torchrun = ("--standalone", f"--nproc_per_node={processes}")
        process = tool.launch(config, tmp_path / str(processes), torchrun=torchrun)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        parts.append(tool.newest(tmp_path / str(processes) / "generation")["parts"])
    torch.testing.assert_close(parts[1], parts[0], rtol=0, atol=1e-5)


def below(process):
    """A process, those that it has started, and so on."""
    lists = [path.read_text().split() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return [process, *(each for own in lists for child in own for each in below(int(child)))]


@pytest.mark.nightly
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_of_prompts_on_several_shapes_that_is_killed_ends_bit_identical(
    mixed, text_model, tiny_tokenizer, write_generation, tool, tmp_path, processes
):
    """Captions, two an image, become tokens in loading processes, and are encoded a step ahead; SIGKILL ends all."""
    shutil.copytree(mixed, images := tmp_path / "images", ignore=shutil.ignore_patterns("*.txt"))
    names = sorted(path.name for path in images.iterdir())
    lines = [dict(file=name, caption=[f"a dog {name}", f"a cat on a red apple {name}"]) for name in names]
    (images / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    encoder = dict(type="hf_text", path=str(text_model("bert")), max_tokens=32, pool="mean")
    config = write_generation(
        steps=6,
        data_root=str(images),
        tokenizer=str(tiny_tokenizer),
        generator=dict(
            **dict(type="flux_dit", in_channels=4, hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1),
            **dict(context_in_dim=32, vec_in_dim=32, text=dict(tokens=encoder, pooled=encoder, dropout=0.5)),
        ),
        data=dict(train=dict(type="images", image_size=AREA), workers=2),
        global_batch_size=4,
        checkpoint=dict(every=1),
        log=dict(every=1, pictures=0),
    )
    torchrun = ("--standalone", f"--nproc_per_node={processes}") if processes > 1 else ()
    rng, runs = random.Random(processes), [tmp_path / "whole", tmp_path / "killed"]
    for step in [rng.randint(2, 3), rng.randint(4, 5)]:
        process = tool.launch(config, runs[1], torchrun=torchrun)
        process.until(f"step {step}/6")
        for each in below(process.pid):
            os.kill(each, signal.SIGKILL)
        process.communicate()
    for run in runs:
        process = tool.launch(config, run, torchrun=torchrun)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
    assert any(
        "going on after step" in path.read_text() for path in runs[1].rglob("*rank0.log" if torchrun else "*.log")
    )
    assert tool.same(*(tool.newest(run / "generation") for run in runs))


def test_images_that_are_encoded_before_a_training_are_waited_for_as_long_as_its_own(monkeypatch, tmp_path):
    made = {name: MagicMock() for name in ("CacheSettings", "LatentEncoder", "images_to_cache", "LatentCache")}
    made |= {"latent_statistics": MagicMock(), "find_buckets": MagicMock(), "square_size": lambda data: (32, 32)}
    for name, stand_in in made.items():
        monkeypatch.setattr(generation_data, name, stand_in)
    stage = MagicMock(has_begun=False, start_folder=None)
    stage.settings.data.configure_mock(timeout=7.0, train={"type": "images"})
    generation_data._make_cache(stage, MagicMock())
    assert made["LatentCache"].return_value.fill.call_args.args[2:] == (7.0,)
    generation_data._statistics(stage, MagicMock(downsample_factor=8, latent_dim=4), MagicMock(), {})
    assert made["latent_statistics"].call_args.args[8:] == (7.0,)
    loader = MagicMock(side_effect=InterruptedError)
    monkeypatch.setattr(module, "make_loader", loader)
    monkeypatch.setattr(module, "DATASETS", MagicMock(build=lambda config: [{"images": torch.zeros(3, 32, 32)}] * 2))
    job = MagicMock(path=tmp_path / "shard", indices=range(2))
    images = dict(images=MagicMock(), encoder=MagicMock(image_size=(32, 32)), batch_size=2, workers=0)
    for call in (
        lambda: module.encode_shards([job], **images, check_unreadable=print, timeout=7.0),
        lambda: latent_statistics(MagicMock(downsample_factor=8), {}, None, "fp32", 0, timeout=7.0),
    ):
        with pytest.raises(InterruptedError):
            call()
        assert 7.0 in (*loader.call_args.args, *loader.call_args.kwargs.values())
