"""Generator and tokenizer as one thing: saved, loaded, sampled from, and what does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import aligntok
from aligntok.data.latent_shards import LatentStatistics
from aligntok.decoders.ldm_cnn import LDMDecoder
from aligntok.diffusion.settings import Sampling
from aligntok.errors import ConfigError, UnknownComponentError, WeightsError
from aligntok.generators.lightning_dit import LightningDiT
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.tokenizer import Tokenizer

PART = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8)
GENERATOR = dict(
    type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=[4, 6], in_channels=4, num_classes=5
)
NAMES = ("Ant", "golden retriever", "n01443537", "3", "zebra")
STATISTICS = LatentStatistics((0.1, -0.2, 0.3, 0.0), (1.5, 0.5, 1.0, 2.0))


def make(generator=None, shape=(4, 4, 6), names=NAMES, statistics=STATISTICS, **sampling):
    torch.manual_seed(0)
    tokenizer = Tokenizer({**PART, "pretrained": False}, None, PART, 4, 2)
    model = LatentDiffusion({**GENERATOR, **(generator or {})}, tokenizer, statistics, shape, names, sampling)
    for parameter in model.generator.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make(steps=3, cfg_scale=2.0, cfg_interval=(0.1, 1))


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_what_is_saved_is_loaded(model, saved):
    loaded = LatentDiffusion.from_pretrained(saved)
    assert not loaded.training
    written = json.loads((saved / "latent_diffusion.json").read_text())
    assert written == json.loads(json.dumps(model.config)) == json.loads(json.dumps(loaded.config))
    assert (loaded.sampling, loaded.statistics, loaded.condition.class_names) == (model.sampling, STATISTICS, NAMES)
    assert torch.equal(loaded.sample([0, 4], [3, 1]), model.sample([0, 4], [3, 1]))
    loaded.save_pretrained(saved.parent / "again")
    for name in ("generator.safetensors", "latent_diffusion.json", "tokenizer/model.safetensors"):
        assert (saved.parent / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_others_may_read_what_is_saved(saved):
    assert (saved / "generator.safetensors").stat().st_mode == (saved / "latent_diffusion.json").stat().st_mode


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "latent_diffusion.json").unlink(),
            "latent_diffusion.json cannot be read .No such file.*is no saved generator with its tokenizer",
        ),
        (lambda f: (f / "latent_diffusion.json").write_text("{"), "is no saved generator"),
        (lambda f: (f / "latent_diffusion.json").write_text("[1]"), "is no saved generator"),
        (
            lambda f: without(f, "generator"),
            r"cannot be read \(it has no 'generator'\); so the folder is no saved generator",
        ),
        (lambda f: without(f, "statistics"), r"cannot be read \(it has no 'statistics'\)"),
        (lambda f: (f / "generator.safetensors").unlink(), "LightningDiT: no weights at"),
        (
            lambda f: (f / "generator.safetensors").write_bytes(b"1234"),
            r"generator\.safetensors cannot be read \(its SHA",
        ),
        (lambda f: shutil.rmtree(f / "tokenizer"), "cannot load a tokenizer from"),
    ],
)
def test_a_folder_that_lacks_something_is_an_error_that_says_so(saved, spoil, message):
    spoil(saved)
    with pytest.raises(WeightsError, match=message):
        LatentDiffusion.from_pretrained(saved)


def without(folder, key):
    path = folder / "latent_diffusion.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


def test_samples_are_pictures_that_follow_from_label_and_seed(model):
    labels, seeds = [0, 1, 2], [5, 6, 7]
    pictures = model.sample(labels, seeds)
    assert pictures.shape == (3, 3, 8, 12)
    assert pictures.abs().max() <= 1
    torch.testing.assert_close(model.sample([1], [6]), pictures[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.sample([1], [5]), pictures[:1], atol=1e-3)
    latents = model.sample_latents(labels, seeds)
    assert torch.equal(model.decode(latents), pictures)
    mean, std = STATISTICS.tensors()
    torch.testing.assert_close(model.tokenizer.decode(latents * std + mean).clamp(-1, 1), pictures)


def test_settings_and_size_may_be_others(model):
    assert model.sample_latents([0], [0], size=(2, 8)).shape == (1, 4, 2, 8)
    unguided = model.sample_latents([0], [0], sampling=Sampling(steps=3))
    assert not torch.allclose(unguided, model.sample_latents([0], [0]), atol=1e-4)
    led = model.sample_latents([0], [0], sampling=Sampling(steps=3, cfg_scale=2.0), weak=make().generator)
    torch.testing.assert_close(led, unguided, rtol=1e-4, atol=1e-5)  # away from itself is nowhere


def test_an_unconditional_generator_takes_no_heed_of_labels():
    model = make(dict(num_classes=1, class_dropout_prob=0), names=(), steps=2)
    assert not model.condition.conditional
    assert torch.equal(model.sample([0, 0], [1, 2]), model.sample([7, 9], [1, 2]))


@pytest.mark.parametrize(
    ("name", "index"),
    [(0, 0), ("index:4", 4), ("ANT", 0), (" Golden Retriever ", 1), ("N01443537", 2), (np.int64(2), 2), ("index:0", 0)],
)
def test_a_class_is_found_by_number_and_by_name_in_any_case(model, name, index):
    assert model.condition.class_index(name) == index


def test_a_class_that_is_named_like_a_number_is_found_by_its_name():
    """At another place than the number says: "3" at place 3 is the same either way."""
    model = make(names=("Ant", "4", "n01443537", "7", "zebra"))
    assert [model.condition.class_index(name) for name in ("7", "index:2", "4", 0, 2, "zebra")] == [3, 2, 1, 0, 2, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("index:5", "class 5: there are 5, numbered from 0 to 4"),
        (-1, "class -1: there are 5"),
        ("0", "no class named '0'.*; class number 0 is written index:0"),
        ("index:ant", "no class named 'index:ant'"),
        (17, "class 17: there are 5"),
        ("golden retriver", "no class named 'golden retriver'; did you mean 'golden retriever'.* known: Ant, golden"),
        ("-1", "no class named '-1'"),
    ],
)
def test_a_class_that_there_is_not_is_an_error(model, name, message):
    with pytest.raises(ConfigError, match=message):
        model.condition.class_index(name)


def test_text_is_a_name_where_classes_have_names_though_it_looks_like_a_number():
    model = make(names=("10", "2", "3", "Ab", "ab"))
    assert [model.condition.class_index(name) for name in ("2", "3", "index:3", 3, "ab", "Ab")] == [1, 2, 3, 3, 4, 3]
    for wrong in ("1", "AB"):  # the latter might be either
        with pytest.raises(ConfigError, match=f"no class named '{wrong}'"):
            model.condition.class_index(wrong)
    drawn = model.sample_latents(["2", "index:3"], [0, 1])
    assert torch.equal(drawn, model.sample_latents(torch.tensor([1, 3]), [0, 1]))


def test_without_names_there_are_numbers():
    model = make(names=())
    assert model.condition.class_index("3") == model.condition.class_index("index:3") == 3
    with pytest.raises(ConfigError, match="known: no names, only numbers"):
        model.condition.class_index("zebra")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(shape=(8, 4, 6)), r"do not fit: the tokenizer's latent_dim 4, the latents' channels 8, .* must be one"),
        (dict(generator=dict(in_channels=3)), "the generator's in_channels 3"),
        (dict(statistics=LatentStatistics((0, 0), (1, 1))), "the statistics' channels 2"),
        (dict(generator=dict(num_classes=4)), "the data has 5 classes, the generator's num_classes is 4; set"),
        (dict(generator=dict(class_dropout_prob=0), cfg_scale=2.0), r"sampling: cfg_scale=2.0 needs a null class, but"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make(**change)


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [
        ([0, 1], [0], "2 words and 1 seeds were given; give as many, at least one"),
        ([], [], "0 words and 0 seeds"),
        ([0, 5], [0, 1], "class 5: there are 5, numbered from 0 to 4"),
        ([-1], [0], "class -1: there are 5"),
    ],
)
def test_labels_that_cannot_be_drawn_are_refused(model, labels, seeds, message):
    with pytest.raises(ConfigError, match=message):
        model.sample(labels, seeds)


def test_guidance_needs_a_null_class_or_a_weaker_generator():
    model = make(dict(class_dropout_prob=0), steps=2)
    with pytest.raises(ConfigError, match=r"cfg_scale=3.0 needs a null class, .* use 1, .* or guide with a weaker"):
        model.sample([0], [0], sampling=Sampling(steps=2, cfg_scale=3.0))
    assert model.sample([0], [0], sampling=Sampling(steps=2, cfg_scale=3.0), weak=model.generator).shape == (
        1,
        3,
        8,
        12,
    )


@pytest.mark.parametrize(("level", "shown"), [(5.0, 1.0), (-5.0, -1.0), (0.5, 0.5)])
def test_pictures_end_at_black_and_white(level, shown):
    model = make()
    last = model.tokenizer.decoder.conv_out
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(level)
    assert model.decode(torch.zeros(1, 4, 4, 6)).unique().tolist() == [shown]


def test_an_unconditional_generator_may_have_names_of_classes_and_one_of_classes_fewer():
    assert make(dict(num_classes=1), names=NAMES).condition.class_names == NAMES
    assert make(names=NAMES[:2]).condition.class_index("index:4") == 4


def test_classes_that_are_given_serve_the_generator_and_the_tokenizers_parts(saved, model):
    """By the names that the files have for them; a dotted name of a file is never looked up."""
    for path, part in ((saved / "latent_diffusion.json", "generator"), (saved / "tokenizer/config.json", "decoder")):
        content = json.loads(path.read_text())
        content[part]["type"] = f"somebody.{part}"
        path.write_text(json.dumps(content))
    given = {"somebody.generator": LightningDiT, "somebody.decoder": LDMDecoder}
    loaded = LatentDiffusion.from_pretrained(saved, components=given)
    assert torch.equal(loaded.sample([0, 4], [3, 1]), model.sample([0, 4], [3, 1]))
    for name in given:
        with pytest.raises(UnknownComponentError, match=rf"'{name}' stands in a file"):
            LatentDiffusion.from_pretrained(
                saved, components={key: value for key, value in given.items() if key != name}
            )


def test_a_config_that_a_file_brought_names_registered_generators_alone(model):
    config = {**GENERATOR, "type": "aligntok.generators.lightning_dit.LightningDiT"}
    arguments = (model.tokenizer, STATISTICS, (4, 4, 6))
    assert isinstance(LatentDiffusion(config, *arguments).generator, LightningDiT)
    with pytest.raises(UnknownComponentError, match="stands in a file"):
        LatentDiffusion(config, *arguments, trusted=False)


def test_labels_and_statistics_lie_where_the_generator_does(monkeypatch):
    model, seen = make(steps=2, cfg_scale=2.0), []
    model.generator.to("meta")
    monkeypatch.setattr("aligntok.latent_diffusion.draw_samples", lambda generator, y, *rest: seen.append((y, *rest)))
    model.sample_latents(["zebra", 1], [5, 6])
    ((y, seeds, shape, sampling, null, weak),) = seen
    assert (seeds, shape, sampling, weak) == ([5, 6], (4, 4, 6), model.sampling, None)
    assert (y.is_meta, y.shape, null.is_meta, null.shape) == (True, (2,), True, (2,))
    for change in (STATISTICS.normalise, STATISTICS.denormalise):
        assert change(torch.empty(2, 4, 3, 3, device="meta")).is_meta


def test_a_generator_that_is_not_registered_is_told_before_the_tokenizers_parts_are_imported(saved, monkeypatch):
    path = saved / "latent_diffusion.json"
    content = json.loads(path.read_text())
    content["generator"]["type"] = "os.system"
    path.write_text(json.dumps(content))
    monkeypatch.setattr(Tokenizer, "from_pretrained", lambda *given, **named: pytest.fail("looked at the tokenizer"))
    with pytest.raises(UnknownComponentError, match="'os.system' stands in a file"):
        LatentDiffusion.from_pretrained(saved)


# In people's hands


def test_a_line_shows_it(model):
    count = sum(weight.numel() for weight in model.generator.parameters())
    told = f"{count / 1e3:.1f}K" if count < 1e5 else f"{count / 1e6:.1f}M"
    assert repr(model) == f"LatentDiffusion(generator=lightning_dit, f2d4, {told}, float32, cpu)"
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_samples_of_16_bits_are_nearly_those_of_32(model, saved, dtype):
    loaded = aligntok.load_latent_diffusion(saved, dtype=dtype, device="cpu")
    assert {loaded.dtype, loaded.tokenizer.dtype} == {getattr(torch, dtype)}
    latents = loaded.sample_latents([0, 4], [3, 1])
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, model.sample_latents([0, 4], [3, 1]), rtol=0.05, atol=0.1)
    assert len(loaded.tokenizer.processor.to_pil(loaded.sample([0, 4], [3, 1]))) == 2


def test_the_loader_of_generators_refuses_what_that_of_tokenizers_does(saved):
    for options, said in [
        (dict(torch_dtype="bfloat16"), "load_latent_diffusion takes no torch_dtype=; say dtype='bfloat16'"),
        (dict(device="gpu"), "load_latent_diffusion: device='gpu' is not here"),
        (dict(weights="raw"), "choose among a work folder's weights"),
    ]:
        with pytest.raises(ConfigError, match=said):
            aligntok.load_latent_diffusion(saved, **options)
    with pytest.raises(WeightsError, match="no such file or folder: /nowhere/at/all"):
        aligntok.load_latent_diffusion("/nowhere/at/all")


class FakeHub:
    """Stands in for huggingface_hub's client, and keeps what is sent."""

    sent = {}

    def __init__(self, **options):
        pass

    def create_repo(self, repo_id, **options):
        return type("Created", (), {"repo_id": f"someone/{repo_id}"})()

    def upload_folder(self, repo_id, folder_path, **options):
        shutil.copytree(folder_path, self.sent[repo_id])
        return f"https://hub/{repo_id}/commit/1"


@pytest.mark.parametrize("way", ["push", "save"])
def test_all_files_are_sent_to_a_hub_with_a_card_at_the_top(model, tmp_path, monkeypatch, way):
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "sent", {"someone/mine": tmp_path / "sent"})
    if way == "push":
        told = model.push_to_hub("mine")
    else:
        told = model.save_pretrained(tmp_path / "mine", push_to_hub=True, config=None, model_card_kwargs={})
        assert (tmp_path / "mine" / "README.md").read_bytes() == (tmp_path / "sent" / "README.md").read_bytes()
    assert told == "https://hub/someone/mine/commit/1"
    files = {str(path.relative_to(tmp_path / "sent")) for path in (tmp_path / "sent").rglob("*") if path.is_file()}
    parts = ("README.md", "checksums.json", "config.json", "model.safetensors")
    assert files == {"README.md", "checksums.json", "generator.safetensors", "latent_diffusion.json"} | {
        f"tokenizer/{part}" for part in parts
    }
    card = (tmp_path / "sent" / "README.md").read_text()
    assert "aligntok.load_latent_diffusion(" in card
    assert "latent-diffusion" in card
    loaded = LatentDiffusion.from_pretrained(tmp_path / "sent")
    assert torch.equal(loaded.sample([0, 4], [3, 1]), model.sample([0, 4], [3, 1]))


def test_saving_sends_nothing_unless_asked(model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", None)
    assert model.save_pretrained(tmp_path / "mine") is None


def test_a_generator_given_as_a_tokenizer_is_answered_with_where_its_tokenizer_is(saved):
    with pytest.raises(WeightsError, match=f"{saved} is a generator's; the tokenizer that it has is {saved}/tokenizer"):
        aligntok.load_tokenizer(saved)


def test_what_differs_of_its_sampling_is_given_as_keywords(model):
    whole = model.sample([0], seeds=[1], sampling=replace(model.sampling, steps=2))
    assert torch.equal(model.sample([0], seeds=[1], sampling=dict(steps=2)), whole)
    assert not torch.equal(model.sample([0], seeds=[1], sampling=dict(steps=3)), whole)
    for wrong, said in ((dict(steps=0), "steps=0"), (dict(stepz=2), "no key named 'stepz'")):
        with pytest.raises(ConfigError, match=said):
            model.sample([0], seeds=[1], sampling=wrong)


def test_another_sampler_begins_with_its_own_options_and_the_same_one_keeps_those_not_named():
    model = make(steps=2, sampler="ddim", options=dict(eta=0.5, noise="flow"))
    other = model.sample([0], [1], sampling=dict(sampler="heun"))
    assert torch.equal(other, model.sample([0], [1], sampling=Sampling(steps=2, sampler="heun")))
    kept = Sampling(steps=2, sampler="ddim", options=dict(eta=0.2, noise="flow"))
    changed = model.sample([0], [1], sampling=dict(options=dict(eta=0.2)))
    assert torch.equal(changed, model.sample([0], [1], sampling=kept))
    with pytest.raises(ConfigError, match="options"):
        model.sample([0], [1], sampling=dict(options=None))


def test_parts_of_two_writings_are_told_apart(model, saved, monkeypatch):
    """As a kill leaves them after the tokenizer of a second one."""
    other = make()
    with torch.no_grad():
        next(other.tokenizer.decoder.parameters()).add_(1)
    monkeypatch.setattr("aligntok.latent_diffusion.save_tensors", lambda *given, **how: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        other.save_pretrained(saved)
    with pytest.raises(WeightsError, match=r"tokenizer/checksums.json .*; copy the folder again, whole, or save it"):
        LatentDiffusion.from_pretrained(saved)


@pytest.mark.parametrize("seed", ["a", 1.5, 2**32, -1, None])
def test_seeds_that_cannot_be_are_refused(model, seed):
    with pytest.raises(ConfigError, match="seeds hold .*; they are whole numbers from 0 to 2.32 - 1"):
        model.sample([0, 0], seeds=[1, seed])
