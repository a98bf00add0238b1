"""A generator of prompts: trained on captioned images, gone on with, exported, drawn from in words."""

from __future__ import annotations

import csv
import json
import shutil
import threading

import numpy as np
import pytest
import torch

import aligntok
from aligntok.app import functions
from aligntok.check import CheckRequest, check_folder
from aligntok.cli import export, sample, train
from aligntok.condition.text_models import TextModels
from aligntok.data.transforms import open_image
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint
from aligntok.errors import ConfigError, WeightsError
from aligntok.text_encoders.pretrained import PretrainedTextEncoder
from aligntok.training.generation.model import GenerationModel

FLUX = dict(
    type="flux_dit",
    in_channels=4,
    hidden_size=32,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    context_in_dim=32,
    vec_in_dim=32,
)


@pytest.fixture(scope="module")
def captioned(classes, tmp_path_factory):
    """Those photographs with a caption each, in captions.csv."""
    root = tmp_path_factory.mktemp("captioned") / "photos"
    shutil.copytree(classes / "train", root)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    with (root / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        writer.writerows([name, f"a photo of a {name.split('/')[0]}"] for name in names)
    return root


@pytest.fixture
def prompted(captioned, tiny_tokenizer, text_model, write_generation):
    """Write the config of a small training on captions, and return its path."""

    def write(name="prompted", **changes):
        bert = str(text_model("bert"))
        text = dict(
            tokens=dict(type="hf_text", path=bert, max_tokens=32),
            pooled=dict(type="hf_text", path=bert, max_tokens=32, pool="mean"),
            dropout=0.5,
        )
        config = dict(
            data_root=str(captioned),
            tokenizer=str(tiny_tokenizer),
            generator=dict(FLUX, text=text),
            data=dict(train=dict(type="images", image_size=32)),
            global_batch_size=4,
            log=dict(every=1, pictures=2, prompts=["a red apple", "a cat on a dog"]),
        )
        return write_generation(name, **{**config, **changes})

    return write


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def trained(kept, prompted, tmp_path):
    """The folder of a training of one step: made once, and a copy for each test."""
    if not kept.exists():
        assert train([prompted(steps=1), "--cfg-options", f"work_dir={kept}"]) == 0
    return shutil.copytree(kept, tmp_path / "run")


def test_a_generator_learns_from_captions_and_draws_from_words(prompted, tmp_path):
    run = tmp_path / "run"
    assert train([prompted(), "--cfg-options", f"work_dir={run}"]) == 0
    assert (run / "generation/pictures/step_00000004.png").is_file()
    out = tmp_path / "samples"
    words = ["--prompt", "a red apple", "a cat", "--num-samples", "4", "--out", str(out)]
    assert sample([str(run), *words]) == 0
    lines = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["place"], line["image"]) for line in lines] == [
        ("a red apple", 0, 0),
        ("a cat", 1, 0),
        ("a red apple", 0, 1),
        ("a cat", 1, 1),
    ]
    assert len({line["seed"] for line in lines}) == 4
    model = aligntok.load_latent_diffusion(run)
    drawn = model(["a red apple", "a cat"])
    for picture, line in zip(drawn, lines, strict=False):
        written = np.asarray(open_image((out / line["file"]).read_bytes())).astype(int)
        mine = ((picture.permute(1, 2, 0) + 1) * 127.5).round().numpy()
        assert np.abs(written - mine).max() <= 1
    assert torch.equal(model("a red apple"), model(["a red apple"]))
    assert not torch.equal(model(["a red apple"], [3]), model(["a dog"], [3]))


def test_an_export_names_its_text_encoders_and_has_none(trained, kept, tmp_path, text_model):
    run = trained
    exported = run / "latent_diffusion"
    said = json.loads((exported / "latent_diffusion.json").read_text())
    assert str(kept) not in json.dumps(said)
    assert "path" not in said["text"]["tokens"]
    assert len(said["text"]["tokens"]["identity"]) == 64
    with pytest.raises(WeightsError, match=r"generator.text.tokens: the 'hf_text' text encoder has no path; give its"):
        aligntok.load_latent_diffusion(exported)("a red apple")
    bert = text_model("bert")
    with pytest.raises(WeightsError, match=r"has no path; give its .*, --text-encoders tokens=\.\.\. to a command or"):
        functions.load([exported / "tokenizer"], exported, "cpu")
    models = functions.load([exported / "tokenizer"], exported, "cpu", dict(tokens=bert, pooled=bert))
    assert functions.sample(models, "a red apple", 0, 2, 1.0)
    model = aligntok.load_latent_diffusion(exported, text_encoders=dict(tokens=bert, pooled=bert))
    assert torch.equal(model("a red apple"), aligntok.load_latent_diffusion(run)("a red apple"))
    model = aligntok.load_latent_diffusion(exported, text_encoders=dict(tokens=text_model("qwen3"), pooled=bert))
    with pytest.raises(WeightsError, match=r"is another one \(identity \w{12}\) than the generator was trained with"):
        model("a red apple")
    with pytest.raises(ConfigError, match="no part named 'token'"):
        aligntok.load_latent_diffusion(exported, text_encoders=dict(token=bert))
    whole = tmp_path / "whole"
    aligntok.load_latent_diffusion(run).save_pretrained(whole, include_text_encoders=True)
    assert torch.equal(aligntok.load_latent_diffusion(whole)("a cat"), aligntok.load_latent_diffusion(run)("a cat"))


def test_words_that_cannot_be_are_refused_before_anything_is_drawn(prompted, write_generation, tmp_path, capsys):
    runs = {"prompts": prompted(steps=1), "classes": write_generation("classes", steps=1)}
    for name, config in runs.items():
        assert train([config, "--cfg-options", f"work_dir={tmp_path / name}"]) == 0
    for name, told, *options in [
        ("prompts", "generator.text: prompt 0, 'a\\udcff', is no UTF-8", "--prompt", "a\udcff"),
        ("prompts", "prompt 0, 'b\\udcff', is no UTF-8", "--prompt", "a", "--cfg-scale=2", "--negative", "b\udcff"),
        ("prompts", "negative 'b' with cfg_scale=1 guides nothing", "--prompt=a", "--negative=b", "--cfg-scale=1"),
        ("classes", "no class named 'no'", "--negative", "no", "--cfg-scale=2"),
        ("classes", "--negative and --autoguidance were both given", "--negative=ant", "--autoguidance=x"),
    ]:
        capsys.readouterr()
        assert sample([str(tmp_path / name), *options, "--out", str(tmp_path / "out")]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_words_to_draw_while_training_are_looked_at_before_it(prompted, write_generation, tmp_path, capsys):
    metrics = [dict(type="generation", reference="x")]
    for told, config in [
        ("log.prompts or validation.prompts were given, but the", write_generation("a", log=dict(prompts=["dog"]))),
        ("prompt 0, 'a\\ud800', is no UTF-8", prompted("b", log=dict(prompts=["a\ud800"]))),
        ("validation.labels='balanced', but the generator takes", prompted("c", validation=dict(labels="balanced"))),
        (
            "nowhere.txt cannot be read",
            prompted("d", validation=dict(num_samples=2, prompts="nowhere.txt", metrics=metrics)),
        ),
    ]:
        capsys.readouterr()
        assert train([config, "--cfg-options", f"work_dir={tmp_path / 'run'}"]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_weaker_generator_needs_no_encoders_of_its_own(trained, tmp_path, text_model):
    run = trained
    exported, bert = str(run / "latent_diffusion"), text_model("bert")
    given = ["--prompt", "a", "--cfg-scale", "2", "--text-encoders", f"tokens={bert}", f"pooled={bert}"]
    assert sample([exported, *given, "--autoguidance", exported, "--out", str(tmp_path / "out")]) == 0


def test_a_generator_is_exported_for_diffusers(trained, tmp_path, caplog, capsys):
    flux = pytest.importorskip("diffusers").FluxTransformer2DModel
    run, out = trained, tmp_path / "out"
    assert export([str(run), str(out), "--format", "diffusers"]) == 0
    assert "give it each prompt's own tokens alone" in caplog.text
    model, theirs = aligntok.load_latent_diffusion(run), flux.from_pretrained(out)
    generator, said = model.generator, json.loads((out / "vae/config.json").read_text())
    assert said["latents_mean"] == list(model.statistics.mean)
    assert said["latents_std"] == list(model.statistics.std)
    assert not check_folder(CheckRequest(folder=out))
    assert "6 of 6 files are as they were written" in capsys.readouterr().out
    x, t, text, pooled = torch.randn(2, 4, 3, 5), torch.tensor([0.2, 0.9]), torch.randn(2, 6, 32), torch.randn(2, 32)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(3.0), torch.arange(5.0))
    found = theirs(
        hidden_states=x.flatten(2).transpose(1, 2),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=1 - t,
        img_ids=ids,
        txt_ids=torch.zeros(6, 3),
    ).sample
    expected = generator(x, t, dict(text=text, pooled=pooled))
    torch.testing.assert_close(-found.transpose(1, 2).unflatten(2, (3, 5)), expected, rtol=1e-5, atol=1e-5)


def test_a_stopped_training_goes_on_bit_for_bit(prompted, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = prompted(steps=4)
    assert train([config, "--cfg-options", f"work_dir={whole}"]) == 0
    assert train([config, "--cfg-options", f"work_dir={parts}", "steps=2"]) == 0
    assert train([config, "--cfg-options", f"work_dir={parts}"]) == 0
    ends = [read_checkpoint(list_checkpoints(run / "generation")[-1][1])["parts"] for run in (whole, parts)]
    for name, tensor in ends[0]["generator"].items():
        assert torch.equal(tensor, ends[1]["generator"][name]), name


def test_texts_that_are_encoded_beforehand_give_the_same_training(prompted, tmp_path, monkeypatch):
    online, cached = tmp_path / "online", tmp_path / "cached"
    config = prompted(log=dict(every=1, pictures=0))
    assert train([config, "--cfg-options", f"work_dir={online}"]) == 0
    monkeypatch.setattr(PretrainedTextEncoder, "forward", counted := counting(PretrainedTextEncoder.forward))
    assert train([config, "--cfg-options", f"work_dir={cached}", "generator.text.cache=True"]) == 0
    assert counted.texts == 2 * (1 + 4)  # each encoder tries itself once; three captions and "", and nothing in a step
    ends = [read_checkpoint(list_checkpoints(run / "generation")[-1][1])["parts"] for run in (online, cached)]
    for name, tensor in ends[0]["generator"].items():
        torch.testing.assert_close(tensor, ends[1]["generator"][name], rtol=0, atol=2e-3)  # rows are kept in fp16


def counting(forward):
    def counted(self, input_ids, attention_mask):
        counted.texts += len(input_ids)
        return forward(self, input_ids, attention_mask)

    counted.texts = 0
    return counted


def test_a_training_goes_on_at_twice_the_size(prompted, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    assert train([prompted(steps=3), "--cfg-options", f"work_dir={small}"]) == 0
    wide = dict(train=dict(type="images", image_size=dict(side=64, multiple_of=8)))
    config = prompted("large", steps=2, data=wide, init_from=dict(folder=str(small)), checkpoint=dict(every=1))
    assert train([config, "--cfg-options", f"work_dir={large}", "optimizer.lr=1e-6"]) == 0
    before = read_checkpoint(list_checkpoints(small / "generation")[-1][1])
    after = read_checkpoint(list_checkpoints(large / "generation")[0][1])
    for name, tensor in before["parts"]["generator"].items():
        torch.testing.assert_close(after["parts"]["generator"][name], tensor, rtol=0, atol=1e-5)
        average = before["ema"]["averages"]["0.9"]["generator"][name]
        torch.testing.assert_close(after["ema"]["averages"]["0.9"]["generator"][name], average, rtol=0, atol=1e-2)
    assert after["ema"]["step"] == before["ema"]["step"] + 1
    moments = [next(iter(each["optimizers"]["sides"]["generator"]["state"].values())) for each in (before, after)]
    assert (int(moments[0]["step"]), int(moments[1]["step"])) == (3, 4)
    shutil.rmtree(small / "generation/checkpoints")  # which nothing needs any more, once the other has begun
    assert train([config, "--cfg-options", f"work_dir={large}", "optimizer.lr=1e-6", "steps=3"]) == 0
    described = [json.loads((run / "generation/stage.json").read_text()) for run in (small, large)]
    assert described[0]["statistics"] == described[1]["statistics"]
    assert (described[0]["latent_shape"], described[1]["latent_shape"]) == ([4, 4, 4], [4, 8, 8])


def test_what_cannot_be_gone_on_from_is_refused(prompted, trained, tmp_path, capsys, text_model):
    assert train([prompted(init_from=dict(folder=str(tmp_path)))]) == 2
    assert "has no trained generator" in capsys.readouterr().err
    assert train([prompted(init_from=dict(folder=str(tmp_path), take=["averages"]))]) == 2
    assert "init_from.take=['averages'] lacks 'weights'" in capsys.readouterr().err
    bert = dict(type="hf_text", path=str(text_model("bert")), max_tokens=32, pool="mean")
    wider = dict(FLUX, hidden_size=48, text=dict(tokens=bert, pooled=bert))
    capsys.readouterr()
    assert train([prompted("wider", generator=wider, init_from=dict(folder=str(trained)))]) == 2
    assert "does not fit" in capsys.readouterr().err
    for cache in (False, True):
        shorter = dict(FLUX, text=dict(tokens=dict(bert, max_tokens=31), pooled=bert, cache=cache))
        shorter, run = prompted("shorter", generator=shorter, init_from=dict(folder=str(trained))), tmp_path / "shorter"
        assert train([shorter, "--cfg-options", f"work_dir={run}"]) == 2
        assert "generator.text.tokens: the text encoder at" in (said := capsys.readouterr().err)
        assert "is another one (identity" in said
        assert not (run / "generation/stage.json").exists()


def test_the_next_steps_captions_are_encoded_beside_a_step(prompted, tmp_path, monkeypatch):
    """Where a step waits for the encoding of the next, both end; one after the other they would not."""
    begun, steps, backward = threading.Semaphore(0), [], GenerationModel.backward
    encode = TextModels.encode

    def encoding(self, *given):
        begun.release()
        return encode(self, *given)

    def step(self, batch, place):
        steps.append(place.step)
        for _ in range(2 if place.step == 0 else place.step < 3):  # its own, and the next one's
            assert begun.acquire(timeout=30), "the next step's captions were not begun with"
        return backward(self, batch, place)

    monkeypatch.setattr(TextModels, "encode", encoding)
    monkeypatch.setattr(GenerationModel, "backward", step)
    assert train([prompted(log=dict(every=1, pictures=0)), "--cfg-options", f"work_dir={tmp_path / 'run'}"]) == 0
    assert steps == [0, 1, 2, 3]


def test_a_run_is_not_taken_up_again_with_another_text_encoder(prompted, tmp_path, text_model, capsys):
    run, bert, other = tmp_path / "run", tmp_path / "encoder", text_model("qwen3")
    shutil.copytree(text_model("bert"), bert)

    def text(path, **more):
        tokens = dict(type="hf_text", path=str(path), max_tokens=32, pool="mean")
        return dict(FLUX, text=dict(tokens=tokens, pooled=tokens, **more))

    assert train([prompted(steps=1, generator=text(bert)), "--cfg-options", f"work_dir={run}"]) == 0
    described = (run / "generation/stage.json").read_bytes()
    changed = prompted("changed", steps=2, generator=text(other))
    cached = prompted("cached", steps=2, generator=text(other, cache=True))
    for config in (changed, cached, None):
        if config is None:  # another content where it was
            shutil.rmtree(bert)
            shutil.copytree(other, bert)
        capsys.readouterr()
        config = config or prompted("same", steps=2, generator=text(bert))
        assert train([config, "--cfg-options", f"work_dir={run}"]) == 2
        assert "is another one (identity" in capsys.readouterr().err
    assert (run / "generation/stage.json").read_bytes() == described


@pytest.mark.parametrize("saved", ["generation/stage.json", "latent_diffusion/latent_diffusion.json"])
def test_a_file_that_describes_no_text_encoders_is_refused(trained, tmp_path, capsys, saved):
    run = trained
    (run / saved).with_name("checksums.json").unlink(missing_ok=True)
    said = json.loads((run / saved).read_text())
    folder = run if saved.startswith("generation") else (run / saved).parent
    tokens = said["text"]["tokens"]
    wrong = [dict(identity=5), dict(identity=None), dict(type="os.system"), dict(layer=dict(type="os.system"))]
    parts = ["x", [], 5, {}, None, *({**tokens, **each} for each in wrong)]
    for text in ["x", [1], 5, True, None, {}, *({**said["text"], "tokens": part} for part in parts)]:
        (run / saved).write_text(json.dumps({**said, "text": text}))
        capsys.readouterr()
        assert sample([str(folder), "--prompt", "a", "--out", str(tmp_path / "out")]) == 2, text
        assert "Error: " in capsys.readouterr().err
