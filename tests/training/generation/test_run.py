"""A generator's run: from a cache or from images, after stages or alone; interrupted, and in several processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import aligntok
from aligntok.cli import train
from aligntok.data.loader import number_of_classes
from aligntok.engine.checkpoints import finished_steps, list_checkpoints, read_checkpoint
from aligntok.engine.ema import post_hoc_coefficients
from aligntok.engine.saving import write_checkpoint
from aligntok.engine.snapshots import read_snapshots
from aligntok.errors import CheckpointError
from aligntok.io.files import write_json
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.loading import STAGE_FORMAT, load_latent_diffusion, load_tokenizer
from aligntok.ops import attention
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation
from aligntok.training.stages import TrainedModel

STEPS = 6
EXACT = dict(type="AdamW", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-2)  # rounding is not divided by


def finish(*processes):
    """Wait for processes to end well; return what the first printed."""
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(printed)
    return printed[0]


def scalars(run):
    """What was logged at each step: the values of every line, joined step by step."""
    joined = {}
    for file in (run / "generation").rglob("scalars.json"):
        for line in map(json.loads, file.read_text().splitlines()):
            joined.setdefault(line["step"], {}).update(line)
    return joined


def same_ends(tool, a, b):
    """Whether two work folders end with the same checkpoint and the same saved generator, bit for bit."""
    saved = [(run / "latent_diffusion" / "generator.safetensors").read_bytes() for run in (a, b)]
    return tool.same(tool.newest(a / "generation"), tool.newest(b / "generation")) and saved[0] == saved[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, generation_source, tool):
    """A run that nothing interrupted: (work folder, config file)."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.py").write_text(generation_source(steps=STEPS, optimizer=EXACT))
    finish(tool.launch(folder / "tiny.py", folder / "run"))
    return folder / "run", folder / "tiny.py"


def test_a_run_ends_with_samples_and_a_folder_that_loads(whole):
    run, _ = whole
    assert finished_steps(run / "generation") == STEPS
    assert [path.name for path in (run / "generation" / "pictures").iterdir()] == ["step_00000006.png"]
    for source in (run, run / "generation", run / "latent_diffusion"):
        model = aligntok.load_latent_diffusion(source)
        assert model.condition.class_names == ("ant", "bee", "zebra")
        assert model.sampling.cfg_scale == 2.0
    saved = LatentDiffusion.from_pretrained(run / "latent_diffusion").generator.state_dict()
    content = read_checkpoint(list_checkpoints(run / "generation")[-1][1])
    for name, average in content["ema"]["averages"]["0.9"]["generator"].items():
        assert torch.equal(saved[name], average)
    raw = load_latent_diffusion(run, weights="raw").generator.state_dict()
    assert torch.equal(raw["x_embedder.proj.weight"], content["parts"]["generator"]["x_embedder.proj.weight"])
    wide = load_latent_diffusion(run, average=0.1).generator.state_dict()
    assert not torch.equal(wide["x_embedder.proj.weight"], saved["x_embedder.proj.weight"])


@pytest.mark.parametrize("generator", ["x", 5, {"type": "lightning_dit", "num_classes": "x"}])
def test_a_description_of_other_types_is_told_with_what_a_training_can_do(tmp_path, generation_source, generator):
    (tmp_path / "tiny.py").write_text(generation_source())
    stage = expand_generation(load_config(tmp_path / "tiny.py", {"work_dir": str(tmp_path / "run")}))
    own = {key: value for key, value in stage.settings.generator.items() if key != "num_classes"}
    stage = replace(stage, settings=replace(stage.settings, generator=own))
    write_checkpoint(stage.folder, 1, {}, keep=1)
    said = {"generator": {"num_classes": 7}, "latent_shape": [4, 2, 2], "sampling": {}, "class_names": []}
    said |= {"format": STAGE_FORMAT, "statistics": {"mean": [0] * 4, "std": [1] * 4}}
    write_json(stage.description, said)
    assert stage.completed().settings.generator["num_classes"] == 7
    write_json(stage.description, {**said, "generator": generator})
    with pytest.raises(CheckpointError, match=r"stage\.json cannot be read \(.*: restore it, or remove it to go on"):
        stage.completed()


def test_losses_are_logged_in_whole_and_by_time(whole):
    logged = scalars(whole[0])
    assert sorted(logged) == list(range(1, STEPS + 1))
    assert {"loss/total", "loss/velocity", "loss/direction", "grad_norm/generator", "lr/generator"} <= set(logged[1])
    by_time = [name for line in logged.values() for name in line if name.startswith("loss_at_time/")]
    assert by_time
    assert set(by_time) <= {f"loss_at_time/0.{i}0-{(i + 1) / 10:.2f}" for i in range(10)}


def test_a_finished_run_is_skipped_and_a_longer_one_goes_on(whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    assert train([str(whole[1]), "--work-dir", str(tmp_path / "run")]) == 0
    assert "generation: finished already, skipped" in capsys.readouterr().err
    more = ["--cfg-options", f"steps={STEPS + 1}"]
    assert train([str(whole[1]), "--work-dir", str(tmp_path / "run"), *more]) == 0
    assert finished_steps(tmp_path / "run" / "generation") == STEPS + 1


def test_steps_of_a_norm_that_a_config_forbids_are_left_out_after_its_first(write_generation, tmp_path):
    config = write_generation(steps=4, skip_norm=1e-9, skip_after=3)
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 0
    assert [line["skipped_steps"] for _, line in sorted(scalars(tmp_path / "run").items())] == [0, 0, 0, 1]


@pytest.mark.nightly
def test_a_run_killed_at_random_steps_ends_bit_identical(whole, tool, tmp_path):
    rng = random.Random(4)
    for _ in range(3):
        process = tool.launch(whole[1], tmp_path / "run")
        process.until(f"step {rng.randint(1, STEPS - 1)}/{STEPS}")
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
    finish(tool.launch(whole[1], tmp_path / "run"))
    assert same_ends(tool, tmp_path / "run", whole[0])


@pytest.mark.nightly
def test_sigterm_finishes_the_step_writes_a_checkpoint_and_exits_with_75(whole, tool, tmp_path, slow_steps):
    slow, env = slow_steps
    options = ["--cfg-options", "checkpoint.every=1000"]
    process = tool.launch(whole[1], tmp_path / "run", *options, slow, env=env)
    process.until(f"step 2/{STEPS}")
    os.killpg(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75, printed
    assert 2 <= finished_steps(tmp_path / "run" / "generation") < STEPS
    finish(tool.launch(whole[1], tmp_path / "run", *options))
    assert same_ends(tool, tmp_path / "run", whole[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "accumulation", "held"),
    [
        (1, 2, "replicate"),
        (2, 1, "shard"),
        pytest.param(2, 1, "replicate", marks=pytest.mark.nightly),
        pytest.param(4, 2, "dict(shard=2)", marks=pytest.mark.nightly),
    ],
)
def test_any_split_of_the_batch_is_one_curve(whole, warm, tool, tmp_path, processes, accumulation, held):
    options = ["--cfg-options", f"gradient_accumulation_steps={accumulation}", f"parallel={held}"]
    printed = warm.together(processes, tool.program, whole[1], "--work-dir", tmp_path / "many", *options)
    assert "".join(printed).count("Generator: ") == 1
    one, many = scalars(whole[0]), scalars(tmp_path / "many")
    assert sorted(one) == sorted(many)
    for step, line in one.items():
        assert line.keys() == many[step].keys()
        for name in line.keys() - {"step", "images_per_second"}:
            rel = 1e-5 if name.startswith("loss") else 1e-3
            assert many[step][name] == pytest.approx(line[name], rel=rel, abs=1e-5), f"{step} {name}"
    first, second = (tool.newest(run / "generation") for run in (whole[0], tmp_path / "many"))
    torch.testing.assert_close(second["parts"], first["parts"], rtol=0, atol=1e-5)
    torch.testing.assert_close(second["ema"]["averages"], first["ema"]["averages"], rtol=0, atol=1e-5)


def test_images_can_be_encoded_on_the_fly_in_reduced_precision(write_generation, classes, tiny_tokenizer, tmp_path):
    data = dict(train=dict(type="images", split="train", image_size=32), statistics_images=10)
    changes = dict(data_root=str(classes), tokenizer=str(tiny_tokenizer), data=data, precision="bf16")
    config = write_generation(steps=2, schedule=[dict(type="LinearLR", start_factor=0.1, end=2)], **changes)
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 0
    begun = json.loads((tmp_path / "run" / "generation" / "stage.json").read_text())
    assert len(begun["statistics"]["mean"]) == 4
    more = ["--cfg-options", "steps=3", "data.statistics_images=3"]
    assert train([config, "--work-dir", str(tmp_path / "run"), *more]) == 0
    after = json.loads((tmp_path / "run" / "generation" / "stage.json").read_text())
    assert after["statistics"] == begun["statistics"], "what a run has begun with stays"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
def test_compiled_and_checkpointed_blocks_train_as_plain_ones(write_generation, tmp_path, tool):
    config = write_generation(steps=2, log=dict(every=1, pictures=0), optimizer=EXACT)
    variants = {"plain": "seed=0", "kept": "grad_checkpointing=True", "compiled": "compile={'backend':'aot_eager'}"}
    for name, option in variants.items():
        assert train([config, "--work-dir", str(tmp_path / name), "--cfg-options", option]) == 0
    parts = {name: tool.newest(tmp_path / name / "generation")["parts"] for name in variants}
    for name in ("kept", "compiled"):
        torch.testing.assert_close(parts[name], parts["plain"], rtol=0, atol=1e-6)


def test_one_config_trains_tokenizer_cache_and_generator(config_source, classes, tmp_path, capsys):
    generation = dict(
        generator=dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, in_channels=4, num_classes=3),
        steps=2,
        global_batch_size=4,
        latent_cache=dict(split="train", image_size=32, workers=0),
        ema=None,
        log=dict(pictures=2),
    )
    data = dict(train=dict(split="train", image_size=32), val=None, workers=0)
    changes = dict(data_root=str(classes), data=data, generation=generation)
    (tmp_path / "chain.py").write_text(config_source(steps=2, **changes))
    run = tmp_path / "run"
    assert train([str(tmp_path / "chain.py"), "--work-dir", str(run), "--dry-run"]) == 0
    assert "generation" in capsys.readouterr().out
    assert not run.exists()
    assert train([str(tmp_path / "chain.py"), "--work-dir", str(run), "--stage", "generation"]) == 2
    assert "the generator's tokenizer is not finished" in capsys.readouterr().err
    assert train([str(tmp_path / "chain.py"), "--work-dir", str(run)]) == 0
    model = aligntok.load_latent_diffusion(run)
    assert model.tokenizer.identity == aligntok.load_tokenizer(run / "tokenizer").identity
    assert model.sample([0, 1], [0, 1]).shape == (2, 3, 32, 32)
    capsys.readouterr()
    assert train([str(tmp_path / "chain.py"), "--work-dir", str(run)]) == 0
    assert capsys.readouterr().err.count("finished already, skipped") == 4
    further = ["--cfg-options", "generation.steps=3", "generation.log.pictures=0"]
    assert train([str(tmp_path / "chain.py"), "--work-dir", str(run), *further]) == 0
    noted = json.loads((run / "run.json").read_text())  # the newest start, whatever it had left to train
    assert noted["options"]["generation.steps"] == 3
    another = ["--work-dir", str(tmp_path / "another"), "--stage", "generation"]  # on the tokenizer of that run
    own = f"generation.tokenizer={run / 'tokenizer'}"
    assert train([str(tmp_path / "chain.py"), *another, "--cfg-options", own, "seed=1"]) == 0
    assert aligntok.load_latent_diffusion(tmp_path / "another").tokenizer.identity == model.tokenizer.identity


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(generator=dict(type="lightning_dit", depth=1, in_channels=8)), "the stages' tokenizer has latent_dim 4"),
        (dict(latent_cache=dict(split="trian", image_size=32)), "trian"),
        (dict(latent_cache=dict(split="train", image_size=36)), "its sides must be multiples of f = 8"),
    ],
)
def test_a_generator_that_cannot_follow_is_found_before_the_stages_train(
    config_source, classes, tmp_path, capsys, changes, said
):
    generation = {**dict(generator=dict(type="lightning_dit", depth=1, in_channels=4), steps=2), **changes}
    data = dict(train=dict(split="train", image_size=32), val=None, workers=0)
    (tmp_path / "chain.py").write_text(config_source(data_root=str(classes), data=data, generation=generation))
    assert train([str(tmp_path / "chain.py"), "--work-dir", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("checkpoints"))


GENERATOR = dict(type="lightning_dit", hidden_size=32, depth=2, num_heads=2, input_size=4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(generator=dict(depth=1)), "has no type; lightning_dit is one"),
        (dict(generator=dict(type="lightning_dit", size="M")), "LightningDiT: no size named 'M'"),
        (dict(losses=dict()), "no key named 'losses'"),
        (dict(sampling=dict(sampler="eular")), "did you mean 'euler'?"),
        (dict(sampling=dict(cfg_interval=[0.5, 0.1])), "it is (lo, hi)"),
        (
            dict(
                generator={**GENERATOR, "in_channels": 4, "num_classes": 3, "class_dropout_prob": 0.0},
                sampling=dict(steps=2),
                validation=dict(every=1, num_samples=2, variants=dict(led=dict(cfg_scale=3.0))),
            ),
            "validation.variants.led",
        ),
        (
            dict(validation=dict(every=1, num_samples=2, variants=dict(led=dict(cfg_channels=99)))),
            "validation.variants.led.cfg_channels=99 of 4 latent channels",
        ),
        (dict(transport=dict(times="cosine")), "transport.times='cosine'; "),
        (dict(transport=dict(direction_weight=-1.0)), "direction_weight=-1.0"),
        (dict(latent_cache=dict(image_size=32), data=dict(train=dict(root="x"))), "leave one of the two out"),
        (dict(latent_cache=dict(image_sise=32)), "did you mean 'image_size'?"),
        (dict(ema=dict(decays=[0.2], inference=0.2)), "EMA decay 0.2; it must lie in [0.5, 1)"),
        (dict(ema=dict(snapshot_every=1)), "ema.snapshot_every=1 keeps widths, and ema.sigma_rel names none"),
        (dict(data_root=None), "data_root is not set, so there is nothing to train on"),
        (dict(data_root="nowhere"), "no latent cache in nowhere"),
        (dict(precision="fp8"), "precision='fp8'; it must be 'fp32', 'tf32', 'bf16', 'fp16' or 'auto'"),
        (dict(attention="flash"), "attention='flash'; it must be 'xformers' or 'sdpa' or None"),
        (dict(optimizer=dict(typ="SGD")), "optimiser 'AdamW' takes no keyword named 'typ'"),
        (dict(generation=dict(steps=3)), "generation is for a generator that is trained after stages"),
        (dict(log=dict(pictures_at=[0])), "log.pictures_at"),
        (dict(data=dict(train=dict(type="images"))), "no tokenizer is known"),
    ],
)
def test_each_mistake_is_one_clear_error_before_training(write_generation, tmp_path, capsys, changes, said):
    assert train([write_generation(**changes), "--work-dir", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_width_that_was_not_kept_is_made_of_a_generators_snapshots(write_generation, tmp_path):
    ema, run = dict(sigma_rel=[0.05, 0.10], decays=[0.9], inference=0.05, snapshot_every=1), tmp_path / "run"
    assert train([write_generation(ema=ema, steps=3, log=dict(pictures=0)), "--work-dir", str(run)]) == 0
    steps, widths, parts = zip(*read_snapshots(run / "generation", STEPS), strict=True)
    shares = post_hoc_coefficients(steps, widths, 3, 0.07)
    made = load_latent_diffusion(run, average=0.07).generator.state_dict()
    for name in parts[0]["generator"]:
        expected = sum(share * part["generator"][name].double() for share, part in zip(shares, parts, strict=True))
        torch.testing.assert_close(made[name].double(), expected, rtol=0, atol=1e-6)
    kept = read_checkpoint(list_checkpoints(run / "generation")[-1][1])["ema"]["averages"]["0.9"]["generator"]
    found = load_latent_diffusion(run, average=0.9).generator.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())


def test_a_config_forces_the_attention(write_generation, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(attention, "_forced", [])
    assert train([write_generation(attention="xformers"), "--work-dir", str(tmp_path / "run")]) == 2
    assert "attention backend 'xformers' was forced" in capsys.readouterr().err
    assert train([write_generation(attention="sdpa", steps=1), "--work-dir", str(tmp_path / "other")]) == 0


@pytest.mark.parametrize(
    ("generator", "said"),
    [
        (dict(in_channels=8, num_classes=3), "generator, latents and tokenizer do not fit"),
        (dict(in_channels=4, num_classes=2), "the data has 3 classes, the generator's num_classes is 2"),
        (dict(in_channels=4, num_classes=4), "the data has 3 classes, the generator's num_classes is 4"),
        (dict(in_channels=4, num_classes=1, class_dropout_prob=0.0), "needs a null class"),
    ],
)
def test_a_generator_that_does_not_fit_its_data_is_one_clear_error(write_generation, tmp_path, capsys, generator, said):
    config = write_generation(generator={**GENERATOR, **generator})
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            dict(generator={**GENERATOR, "in_channels": 8}),
            "in_channels=8, but the tokenizer has latent_dim 4; set one to",
        ),
        (
            dict(data=dict(train=dict(type="images", image_size=[(32, 32), (36, 32)]))),
            "generation: data.train.image_size (36, 32); its sides must be multiples of f = 8",
        ),
        (dict(generator={**GENERATOR, "in_channels": 4, "mlp_ratio": 1e-300}), "mlp_ratio=1e-300; it must be int or"),
        (
            dict(
                generator={**GENERATOR, "in_channels": 4, "num_classes": 3},
                validation=dict(num_samples=2, labels="balanced", metrics=[dict(type="generation", reference="x")]),
            ),
            "generation: validation.labels=balanced with num_samples=2 misses 1 of 3 classes; draw 3 or more",
        ),
    ],
)
def test_a_dry_run_finds_what_does_not_fit(write_generation, tiny_tokenizer, capsys, changes, said):
    changes = {"tokenizer": str(tiny_tokenizer), "data_root": None, **changes}
    assert train([write_generation(**changes), "--dry-run"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("steps", [["--dry-run"], []])
def test_a_number_of_classes_that_differs_is_found_by_a_dry_run_and_by_a_run(write_generation, tmp_path, capsys, steps):
    config = write_generation(generator={**GENERATOR, "in_channels": 4, "num_classes": 1000}, tokenizer=None)
    assert train([config, "--work-dir", str(tmp_path / "run"), *steps]) == 2
    assert "the data has 3 classes, the generator's num_classes is 1000" in capsys.readouterr().err


def test_the_number_of_classes_is_the_datas_and_stays(write_generation, tmp_path, capsys):
    config = write_generation(generator={**GENERATOR, "in_channels": 4}, steps=1, log=dict(pictures=0))
    run = [config, "--work-dir", str(tmp_path / "run")]
    assert train([*run, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "unknown" not in planned  # epochs
    assert train(run) == 0
    assert json.loads((tmp_path / "run/generation/stage.json").read_text())["generator"]["num_classes"] == 3
    assert aligntok.load_latent_diffusion(tmp_path / "run").generator.num_classes == 3
    capsys.readouterr()
    assert train([*run, "--cfg-options", "steps=2", "data.train.hflip=False"]) == 0
    assert "generator.num_classes" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "labels", "number"),
    [("ab", [0, 0], 2), ("", [0, 2], 3), ("", [-1, 2], None), ("", [], None), (None, None, None)],
)
def test_classes_are_counted_by_their_names_or_by_the_largest_label(names, labels, number):
    data = SimpleNamespace() if names is None else SimpleNamespace(class_names=tuple(names), labels=np.array(labels))
    assert number_of_classes(data) == number


def test_until_its_first_checkpoint_a_training_takes_what_its_config_says(
    write_generation, tmp_path, classes, tiny_tokenizer, monkeypatch
):
    """Its description, and a copy of its tokenizer, lie there already when it is stopped."""
    torch.manual_seed(1)
    other, saved = tmp_path / "other", load_tokenizer(tiny_tokenizer)
    with torch.no_grad():
        for parameter in saved.adapter.parameters():
            parameter.mul_(2)
    saved.save_pretrained(other)
    changes = dict(data_root=str(classes), ema=None, log=dict(pictures=0), steps=1)
    changes["data"] = dict(train=dict(type="images", split="train", image_size=32), statistics_images=6)
    told, go = {}, TrainedModel.train_step
    for tokenizer in (tiny_tokenizer, other):
        config = write_generation(tokenizer=str(tokenizer), **changes)
        stopped = tokenizer is tiny_tokenizer
        monkeypatch.setattr(TrainedModel, "train_step", interrupted if stopped else go)
        assert train([config, "--work-dir", str(tmp_path / "run")]) == (130 if stopped else 0)
        said = json.loads((tmp_path / "run" / "generation" / "stage.json").read_text())
        told[tokenizer] = said["tokenizer_identity"], said["statistics"]["mean"]
    assert told[other][0] == saved.identity == load_tokenizer(tmp_path / "run" / "generation" / "tokenizer").identity
    assert told[other][0] != told[tiny_tokenizer][0]
    assert told[other][1] != told[tiny_tokenizer][1]


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_what_a_state_depends_on_cannot_change_on_the_way(whole, tmp_path, capsys):
    run = ["--work-dir", str(tmp_path / "run"), "--cfg-options"]
    assert train([str(whole[1]), *run, "steps=2"]) == 0
    for option, said in (("optimizer.type=Adam", "optimizer.type"), ("generator.depth=3", "does not fit")):
        assert train([str(whole[1]), *run, option]) == 2
        assert said in capsys.readouterr().err
