"""What the page computes is what the models give, without a page."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import aligntok
from aligntok import cli
from aligntok.app import functions, page
from aligntok.data.latent_shards import LatentStatistics
from aligntok.errors import ConfigError
from aligntok.io.pictures import to_picture
from aligntok.latent_diffusion import LatentDiffusion

SIDE = 32


@pytest.fixture(scope="module")
def models(tiny_tokenizer, tmp_path_factory):
    """Two tokenizers, the second with an offset in its last bias, and a generator of three classes on the first."""
    root = tmp_path_factory.mktemp("models")
    first = aligntok.load_tokenizer(tiny_tokenizer)
    other = copy.deepcopy(first)
    with torch.no_grad():
        [*other.decoder.parameters()][-1].add_(0.1)
    other.save_pretrained(root / "other")
    generator = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=4)
    statistics = LatentStatistics((0.0,) * 4, (1.0,) * 4)
    torch.manual_seed(0)
    model = LatentDiffusion({**generator, "num_classes": 3}, first, statistics, (4, 4, 4))
    model.save_pretrained(root / "generator")
    return functions.load([tiny_tokenizer, root / "other"], root / "generator", "cpu")


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE + 5, SIDE + 2, 3), dtype=np.uint8))


def test_a_picture_goes_through_every_tokenizer(models, picture):
    found = functions.compare(models, picture)
    assert list(found) == list(models.tokenizers)
    for name, tokenizer in models.tokenizers.items():
        assert found[name].reconstruction.tobytes() == tokenizer.reconstruct(picture).tobytes()
        image = np.asarray(to_picture(tokenizer.processor.preprocess(picture)[0]), float)
        made = np.asarray(found[name].reconstruction, float)
        error = np.asarray(found[name].error, float)
        assert np.abs(error - np.minimum(4 * np.abs(made - image), 255)).max() <= 4  # what rounding to 8 bits leaves
        near = 10 * np.log10(255**2 / ((made - image) ** 2).mean())
        assert found[name].words == f"{name}: PSNR {near:.2f} dB, latent 4 x 4 x 4, f8"
    assert len({each.words for each in found.values()}) == 2


def test_a_huge_picture_is_made_smaller(models, monkeypatch):
    monkeypatch.setattr(functions, "MOST_PIXELS", 64 * 64)
    found = functions.compare(models, Image.new("RGB", (256, 128)))
    assert next(iter(found.values())).reconstruction.size == (88, 40)


def test_samples_are_the_models_of_that_class_seed_steps_and_guidance(models):
    drawn = functions.sample(models, "2", seed=5, steps=3, guidance=1.5, number=2)
    sampling = functions.replace(models.generator.sampling, steps=3, cfg_scale=1.5)
    expected = models.generator.sample([2, 2], [5, 6], sampling=sampling)
    assert [each.tobytes() for each in drawn] == [to_picture(image).tobytes() for image in expected]
    other = functions.sample(models, "1", seed=5, steps=3, guidance=1.5)
    assert other[0].size == drawn[0].size


def test_a_class_is_the_one_of_that_name_where_names_are_numbers(models):
    own = models.generator
    named = LatentDiffusion(own.generator_config, own.tokenizer, own.statistics, (4, 4, 4), ("1", "2", "3"))
    named.load_state_dict(own.state_dict())
    drawn = functions.sample(functions.replace(models, generator=named), "1", seed=5, steps=3, guidance=1.0)
    expected = own.sample([0], [5], sampling=dict(steps=3, cfg_scale=1.0))
    assert drawn[0].tobytes() == to_picture(expected[0]).tobytes()


def test_what_lies_between_begins_and_ends_at_the_reconstructions(models, picture):
    name, tokenizer = next(iter(models.tokenizers.items()))
    last = Image.new("RGB", picture.size, (200, 30, 90))
    between = functions.interpolate(models, name, picture, last, 5)
    assert len(between) == 5
    assert between[0].tobytes() == tokenizer.reconstruct(picture).tobytes()
    assert np.abs(np.asarray(between[-1], int) - np.asarray(tokenizer.reconstruct(last), int)).max() <= 1
    latents = [tokenizer.encode(each) for each in (picture, last)]
    middle = tokenizer.decode((latents[0] + latents[1]) / 2)[0].detach()
    assert np.abs(np.asarray(between[2], int) - np.asarray(to_picture(middle), int)).max() <= 1


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda models: functions.compare(models, None), "there is no picture yet"),
        (lambda models: functions.compare(models, Image.new("RGB", (3, 3))), "smaller than f = 8"),
        (lambda models: functions.sample(models, "7", 0, 2, 1.0), "7"),
        (lambda models: functions.sample(models, "1", 0, 0, 1.0), "steps"),
        (lambda models: functions.sample(functions.Models(models.tokenizers), "1", 0, 2, 1.0), "has no generator"),
    ],
    ids=["no picture", "small", "class", "steps", "generator"],
)
def test_what_cannot_be_is_said_in_a_sentence(ask, said, models):
    with pytest.raises(ConfigError, match=said):
        ask(models)


def test_what_is_not_finite_is_no_picture(models, picture, tmp_path):
    name, tokenizer = next(iter(models.tokenizers.items()))
    broken = copy.deepcopy(tokenizer)
    with torch.no_grad():
        [*broken.decoder.parameters()][-1].fill_(torch.nan)
    generator = copy.deepcopy(models.generator)
    generator.tokenizer = broken
    both = functions.Models({name: broken}, generator)
    for ask in (
        lambda: functions.compare(both, picture),
        lambda: functions.interpolate(both, name, picture, picture),
        lambda: functions.sample(both, "1", 0, 2, 1.0),
    ):
        with pytest.raises(ConfigError, match="images hold NaN"):
            ask()


def test_tokenizers_of_one_name_are_told_apart(tiny_tokenizer, tmp_path):
    aligntok.load_tokenizer(tiny_tokenizer).save_pretrained(tmp_path / tiny_tokenizer.name)
    both = [tiny_tokenizer, tmp_path / tiny_tokenizer.name]
    assert list(functions.load(both, device="cpu").tokenizers) == [str(each) for each in both]


def test_the_command_is_told_where_text_encoders_are(monkeypatch):
    asked = []
    monkeypatch.setattr(page, "_gradio", lambda: None)
    monkeypatch.setattr(page, "_check_port", lambda port: None)
    monkeypatch.setattr(page, "page", lambda models: SimpleNamespace(launch=lambda **how: None))
    monkeypatch.setattr(functions, "load", lambda *given: asked.extend(given))
    assert cli.main(["app", "t", "--generator", "g", "--text-encoders", "tokens=a", "pooled=b"]) == 0
    assert asked == [("t",), "g", None, dict(tokens="a", pooled="b")]


def test_without_gradio_the_line_that_installs_it_is_given(tiny_tokenizer, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["app", str(tiny_tokenizer)]) == 2
    assert 'pip install "aligntok[app]"' in capsys.readouterr().err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), ConfigError("no picture")])
def test_the_page_answers_a_mistake_or_a_full_memory_in_a_sentence(error):
    class Gradio:
        class Error(Exception):
            pass

    def work():
        raise error

    with pytest.raises(Gradio.Error, match="no picture|these pictures at once do not fit .*--device"):
        page._answering(Gradio, work)()
