"""An extractor's keywords reach it from every command that takes one, and are told from its own."""

from __future__ import annotations

import dataclasses

import pytest

import aligntok.evaluation.settings
import aligntok.sampling.settings
from aligntok.cli import evaluate, sample, train
from aligntok.errors import ConfigError
from aligntok.evaluation.comparison.criterion import distance_names
from aligntok.evaluation.comparison.settings import ComparisonSettings
from aligntok.evaluation.metrics.features import build_extractor, extractor_config, title_of_encoder
from aligntok.evaluation.reconstruction import evaluate_reconstruction
from aligntok.evaluation.settings import ReconstructionSettings
from aligntok.registry import ENCODERS, EXTRACTORS, with_keywords


def test_whoever_takes_an_extractor_takes_its_keywords():
    rooms = (aligntok.evaluation.settings, aligntok.sampling.settings)
    found = [each for room in rooms for each in vars(room).values() if dataclasses.is_dataclass(each)]
    taking = [each for each in found if "extractor" in {field.name for field in dataclasses.fields(each)}]
    assert len(taking) == 4
    assert all("extractor_options" in {field.name for field in dataclasses.fields(each)} for each in taking)


@pytest.mark.parametrize(
    ("given", "registry", "config"),
    [
        ("inception_v3:/a/file.pth", EXTRACTORS, dict(type="inception_v3", pretrained="/a/file.pth")),
        (
            dict(type="timm:resnet18", pretrained=False),
            EXTRACTORS,
            dict(type="timm", model="resnet18", pretrained=False),
        ),
        (dict(type="inception_v3", pretrained=False), EXTRACTORS, dict(type="inception_v3", pretrained=False)),
        (dict(type="dinov2", size="base"), ENCODERS, dict(type="dinov2", size="base")),
        (dict(pretrained=False), EXTRACTORS, dict(pretrained=False)),
    ],
)
def test_a_config_names_an_extractor_as_a_word_does(given, registry, config):
    assert extractor_config(given) == (registry, config)


@pytest.mark.parametrize(
    ("config", "title"),
    [
        (dict(type="dinov2"), "dinov2"),
        (dict(type="mae", size="base", pretrained=False), "mae-size=base-random"),
        (dict(size="base", pretrained="/data/of mine/w.pth", type="mae"), "mae-size=base-w"),
        (dict(type="ldm_cnn", ch_mult=(1, 2), ch=32), "ldm_cnn-ch=32-ch_mult=_1_2_"),
    ],
)
def test_an_encoders_keywords_are_in_its_title_which_can_be_a_files_name(config, title):
    assert title_of_encoder(config) == title


def test_an_encoders_title_is_what_a_comparison_expects(tmp_path):
    config = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
    settings = ComparisonSettings(tokenizers=dict(a="a.py"), extractors=[config], reference_encoder="dinov2")
    assert distance_names(settings)[0] == f"FD-{build_extractor(config).title}"


def test_keywords_of_nothing_are_refused():
    assert with_keywords("a", {}, "here") == "a"
    assert with_keywords(dict(type="a", b=1), dict(b=2), "here") == dict(type="a", b=2)
    with pytest.raises(ConfigError, match=r"extractor_options \{'size': 96\} are of no component; name one, or leave"):
        with_keywords(None, dict(size=96), "extractor_options")


def test_reconstructions_are_compared_on_the_extractor_as_it_was_asked_for(
    tiny_tokenizer, photographs, tiny_extractor, tmp_path
):
    def distance(folder, extractor, **more):
        asked = ReconstructionSettings(
            tokenizer=tiny_tokenizer, data=photographs, out=tmp_path / folder, extractor=extractor, **more, **options
        )
        return evaluate_reconstruction(asked).metrics["rFD-Tiny"]

    options = dict(image_size=32, split="train", perceptual=None, workers=0)
    narrow = distance("one", tiny_extractor, extractor_options=dict(width=4))
    assert narrow == distance("two", dict(type=tiny_extractor, width=4))
    assert narrow != distance("three", tiny_extractor)


def test_samples_and_sweeps_are_measured_on_the_extractor_of_their_reference(
    generation_source, pictures, tiny_extractor, tmp_path, capsys
):
    (tmp_path / "tiny.py").write_text(generation_source(steps=1))
    run, out, reference = tmp_path / "run", tmp_path / "samples", tmp_path / "real.safetensors"
    assert train([str(tmp_path / "tiny.py"), "--work-dir", str(run)]) == 0
    features = ["--extractor", tiny_extractor]
    narrow = [*features, "--extractor-options", "width=4"]
    words = [str(pictures / "real"), str(reference), "--image-size", "32", "--workers", "0"]
    assert evaluate(["make-reference", *words, *narrow]) == 0
    assert sample([str(run), "--num-samples", "4", "--out", str(out)]) == 0
    for name, status, of in (("narrow", 0, narrow), ("own", 2, features)):
        words = [str(out), "--reference", str(reference), "--out", str(tmp_path / name), "--workers", "0", *of]
        assert evaluate(["generation", *words]) == status
        words = ["--guidance-sweep", "2", "--num-samples", "4", "--reference", str(reference), *of]
        assert sample([str(run), *words, "--out", str(tmp_path / f"sweep_{name}")]) == status
    assert capsys.readouterr().err.count("but this evaluation uses") == 2
