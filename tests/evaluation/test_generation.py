"""The evaluation of samples: against a named reference, as they were saved, in training as afterwards."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from aligntok.cli import evaluate, sample, train
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.generation import evaluate_generation
from aligntok.evaluation.images import Samples
from aligntok.evaluation.metrics.features import FeatureCollector, build_extractor, compare
from aligntok.evaluation.references import make_reference
from aligntok.evaluation.report.collect import read_history
from aligntok.evaluation.settings import GenerationSettings, ReferenceSettings

TINY = "tiny_extractor.TinyExtractor"
SOME = dict(type="generation", reference="none.npz", extractor=TINY)  # a metric, never built


@pytest.fixture(scope="module")
def reference(pictures, tiny_extractor, tmp_path_factory):
    """A reference of the forty real pictures, made by the command."""
    path = tmp_path_factory.mktemp("reference") / "real.safetensors"
    words = ["make-reference", str(pictures / "real"), str(path), "--image-size", "32", "--extractor", tiny_extractor]
    assert evaluate([*words, "--workers", "0"]) == 0
    return path


@pytest.fixture(scope="module")
def found(pictures, reference, tiny_extractor, tmp_path_factory):
    """The folder of an evaluation of the thirty drawn pictures, and its result."""
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    options = dict(extractor=tiny_extractor, batch_size=4, workers=0)
    return folder, evaluate_generation(
        GenerationSettings(samples=pictures / "drawn", reference=reference, out=folder, **options)
    )


def features(folder, extractor):
    """What is compared, collected in one batch."""
    paths = sorted(folder.glob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
    collector = FeatureCollector(build_extractor(extractor), keep_features=True)
    collector.add(pixels, range(len(paths)))
    return collector.combine()


def test_the_numbers_are_those_of_the_pictures_and_carry_the_extractors_name(found, pictures, tiny_extractor):
    drawn, real = (features(pictures / name, tiny_extractor) for name in ("drawn", "real"))
    expected = compare(drawn, real)
    assert {"FD-Tiny", "sFD-Tiny", "IS-Tiny", "KD-Tiny", "precision-Tiny", "recall-Tiny"} <= set(expected)
    assert found[1].metrics == pytest.approx({**expected, "images": 30}, rel=1e-6)
    assert not [name for name in found[1].metrics if "FID" in name or name in ("KID", "IS", "precision")]


def test_real_pictures_are_at_no_distance_from_themselves(pictures, reference, tiny_extractor, tmp_path):
    result = evaluate_generation(
        GenerationSettings(
            samples=pictures / "real", reference=reference, out=tmp_path, extractor=tiny_extractor, workers=0
        )
    )
    assert result.metrics["FD-Tiny"] == pytest.approx(0, abs=1e-6)
    assert result.metrics["precision-Tiny"] == result.metrics["recall-Tiny"] == 1


def test_an_evaluation_adds_nothing_to_the_pictures_that_the_next_is_of(
    found, pictures, reference, tiny_extractor, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        result = evaluate_generation(
            GenerationSettings(samples=pictures / "drawn", reference=reference, extractor=tiny_extractor, workers=0)
        )
        assert result.metrics == pytest.approx(found[1].metrics, rel=1e-6)
    assert (tmp_path / "evaluation" / "drawn" / "generation_real" / "generation.json").is_file()


def test_a_references_name_leads_nowhere(pictures, tiny_extractor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ReferenceSettings(
        data=pictures / "real", out="r.safetensors", image_size=32, extractor=tiny_extractor, name="a/../../../b"
    )
    make_reference(asked)
    how = dict(samples=pictures / "drawn", reference="r.safetensors", extractor=tiny_extractor, workers=0)
    evaluate_generation(GenerationSettings(**how))
    assert (tmp_path / "evaluation/drawn/generation_a_.._.._.._b/generation.json").is_file()


def test_a_folder_that_cannot_be_written_in_is_told_before_any_sample_is_measured(
    pictures, reference, tiny_extractor, monkeypatch
):
    monkeypatch.setattr(Samples, "__iter__", lambda _: pytest.fail("samples were read"))
    with pytest.raises(ConfigError, match="cannot write in .*real.safetensors/out: .* give another folder"):
        evaluate_generation(
            GenerationSettings(
                samples=pictures / "drawn",
                reference=reference,
                out=reference / "out",
                extractor=tiny_extractor,
                workers=0,
            )
        )


def test_a_compressed_array_is_read_as_well(pictures, tmp_path):
    rows = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "small.npz", rows)
    np.savez(tmp_path / "plain.npz", arr_0=rows, arr_1=np.arange(5))
    for name in ("small.npz", "plain.npz"):
        batches = list(Samples(tmp_path / name, batch_size=2, workers=0))
        assert torch.equal(torch.cat([batch.pixels for batch in batches]).permute(0, 2, 3, 1), torch.from_numpy(rows))
        assert [place for batch in batches for place in batch.indices] == list(range(5))


@pytest.mark.parametrize(
    ("num", "places"), [(5, [0, 2, 4, 6, 8]), (3, [0, 3, 6]), (10, [*range(10)]), (None, [*range(10)])]
)
def test_some_of_the_samples_are_evenly_spread_over_all_of_them(tmp_path, num, places):
    rows = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    np.savez(tmp_path / "samples.npz", rows)
    samples = Samples(tmp_path / "samples.npz", num, batch_size=2, workers=0)
    batches = list(samples)
    assert torch.cat([batch.pixels for batch in batches])[:, 0, 0, 0].tolist() == places
    assert [place for batch in batches for place in batch.indices] == [*range(len(samples))] == [*range(len(places))]


@pytest.mark.parametrize(
    "array", [np.zeros((3, 8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_an_array_that_is_no_set_of_pictures_is_refused(array, tmp_path):
    np.savez(tmp_path / "samples.npz", array)
    with pytest.raises(DataError, match=r"no samples in ADM's format: arr_0, uint8 \(N, H, W, 3\)"):
        Samples(tmp_path / "samples.npz")


def test_pictures_of_another_size_are_refused_and_none_is_resized(pictures, reference, tiny_extractor, tmp_path):
    for i, size in enumerate(((24, 24), (24, 24), (32, 24))):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="sample 2 has 24 x 32 pixels, the first one 24 x 24"):
        list(Samples(tmp_path, workers=0))
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match="24"):
        evaluate_generation(
            GenerationSettings(
                samples=tmp_path, reference=reference, out=tmp_path / "out", extractor=tiny_extractor, workers=0
            )
        )
    assert not (tmp_path / "out").exists()


def test_a_damaged_picture_is_no_sample_less(pictures, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:30])
    with pytest.raises(DataError, match=r"cannot read sample 1\.png"):
        list(Samples(tmp_path, workers=0))


@pytest.fixture(scope="module")
def run(generation_source, reference, tiny_extractor, tmp_path_factory):
    """The work folder of a generator that was measured on the way, every other step."""
    root = tmp_path_factory.mktemp("run")
    metric = dict(type="generation", reference=str(reference), extractor=tiny_extractor)
    validation = dict(num_samples=10, every=2, batch_size=4, labels="balanced", metrics=[metric])
    validation["variants"] = dict(guided={}, unguided=dict(cfg_scale=1.0))
    (root / "tiny.py").write_text(generation_source(steps=4, validation=validation))
    assert train([str(root / "tiny.py"), "--work-dir", str(root / "run")]) == 0
    return root / "run"


def test_online_and_offline_are_the_same_numbers(run, reference, tiny_extractor, tmp_path):
    online = json.loads((run / "generation" / "result.json").read_text())["metrics"]
    for variant, more in (("guided", []), ("unguided", ["--cfg-scale", "1"])):
        out = tmp_path / variant
        words = ["--num-samples", "10", "--labels", "balanced", "--batch-size", "4", "--out", str(out)]
        assert sample([str(run), *words, *more]) == 0
        offline = evaluate_generation(
            GenerationSettings(samples=out, reference=reference, extractor=tiny_extractor, workers=0)
        )
        own = {name.removeprefix(f"{variant}/"): v for name, v in online.items() if name.startswith(f"{variant}/")}
        assert offline.metrics == pytest.approx({**own, "images": 10}, rel=1e-5)
        assert offline.settings["samples"]["num"] == 10
    assert online["guided/FD-Tiny"] != online["unguided/FD-Tiny"]


def test_the_distance_is_logged_over_training(run):
    (file,) = (run / "generation").rglob("scalars.json")
    steps = [row["step"] for row in map(json.loads, file.read_text().splitlines()) if "guided/FD-Tiny" in row]
    assert steps == [2, 4]


def test_measuring_changes_nothing_of_the_training(run, generation_source, tmp_path):
    (tmp_path / "tiny.py").write_text(generation_source(steps=4))
    assert train([str(tmp_path / "tiny.py"), "--work-dir", str(tmp_path / "run")]) == 0
    same = [folder / "latent_diffusion" / "generator.safetensors" for folder in (run, tmp_path / "run")]
    assert same[0].read_bytes() == same[1].read_bytes()


def test_samples_that_are_not_all_drawn_are_not_evaluated(run, reference, tiny_extractor, tmp_path):
    out = tmp_path / "samples"
    assert sample([str(run), "--num-samples", "4", "--out", str(out)]) == 0
    (out / "images" / "000002.png").unlink()
    with pytest.raises(DataError, match="should have 4 samples, and has 3"):
        Samples(out)
    described = json.loads((out / "samples.json").read_text())
    (out / "samples.json").write_text(json.dumps({**described, "finished": False}))
    with pytest.raises(DataError, match="has not all of its 4 samples yet"):
        Samples(out)
    with pytest.raises(DataError, match="10 samples, fewer than|fewer than the 50 asked for"):
        Samples(run.parent, num=50) if not out else Samples(out / "images", num=50)


def test_a_sweep_measures_the_distance_of_each_combination(run, reference, tiny_extractor, tmp_path):
    words = ["--guidance-sweep", "2", "--num-samples", "10", "--labels", "balanced", "--batch-size", "4"]
    words += ["--reference", str(reference), "--extractor", tiny_extractor, "--out", str(tmp_path / "sweep")]
    assert sample([str(run), *words]) == 0
    header, *rows = [line.split(",") for line in (tmp_path / "sweep" / "sweep.csv").read_text().splitlines()]
    found = {float(row[0]): float(row[header.index("FD-Tiny")]) for row in rows}
    online = json.loads((run / "generation" / "result.json").read_text())["metrics"]
    assert found[2.0] == pytest.approx(online["guided/FD-Tiny"], rel=1e-5)
    assert found[1.0] == pytest.approx(online["unguided/FD-Tiny"], rel=1e-5)


def test_less_is_measured_before_the_last_step_where_a_config_says_so(
    write_generation, reference, tiny_extractor, tmp_path
):
    variants = dict(guided=dict(cfg_scale=2.0), unguided=dict(cfg_scale=1.0))
    metric = dict(type="generation", reference=str(reference), extractor=tiny_extractor)
    measured = dict(num_samples=6, every=1, batch_size=4, variants=variants, metrics=[metric])
    found = {}
    for name, between in (
        ("all", None),
        ("unguided", dict(variants=["unguided"])),
        ("bare", dict(metrics=[dict(metric, features=False, variants=["guided"])])),
        ("none", dict(variants=["unguided"], metrics=[dict(metric, variants=["guided"])])),
    ):
        config = write_generation(steps=2, validation=dict(measured, between=between), log=dict(every=1, pictures=0))
        assert train([config, "--work-dir", str(tmp_path / name)]) == 0
        found[name] = read_history(tmp_path / name / "generation").measured
    first = {name: {key for key, curve in own.items() if 1 in curve} for name, own in found.items()}
    assert {key.partition("/")[0] for key in first["unguided"]} == {"unguided"}
    assert first["unguided"] == {key for key in first["all"] if key.startswith("unguided/")}
    assert first["none"] == set()
    assert "guided/FD-Tiny" in first["bare"]
    assert not first["bare"] & {"unguided/FD-Tiny", "guided/KD-Tiny"}  # the latter is of the features
    for name, own in found.items():
        assert {key: curve[2] for key, curve in own.items()} == {key: curve[2] for key, curve in found["all"].items()}
        assert {key: own[key][1] for key in first[name]} == {key: found["all"][key][1] for key in first[name]}


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (dict(num_samples=4), "validation draws 4 samples for no metric"),
        (dict(num_samples=-1), "validation.num_samples=-1; it must be int of at least 0"),
        (dict(num_samples=4, labels="all"), "validation.labels='all'; it must be 'random' or 'balanced'"),
        (
            dict(num_samples=4, metrics=[{}], variants=dict(a=dict(scale=1))),
            "validation.variants.a: no key named 'scale'; did you mean 'cfg_scale'? known: cfg",
        ),
        (dict(num_samples=4, metrics=[dict(type="generation", reference="none.npz", extractor=TINY)]), "none.npz"),
        (
            dict(num_samples=4, every=2, metrics=[SOME], between=dict(variants=["guided"])),
            "no validation.between.variants named 'guided'; known: generation",
        ),
        (
            dict(num_samples=4, every=2, metrics=[SOME], between=dict(metrics=[])),
            "validation.between has an empty list",
        ),
        (dict(num_samples=4, metrics=[SOME], between=dict(variants=["generation"])), "but nothing is; give"),
        (
            dict(num_samples=4, every=2, metrics=[SOME], between=dict(metrics=["oth"])),
            "validation.between.metrics",
        ),
    ],
)
@pytest.mark.usefixtures("extractors")
def test_a_validation_that_cannot_be_is_refused_before_training(
    write_generation, tmp_path, capsys, validation, message
):
    assert train([write_generation(validation=validation), "--work-dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "generation" / "checkpoints").exists()


def test_of_prompts_online_and_offline_are_the_same_numbers(
    generation_source, classes, tiny_tokenizer, text_model, reference, tiny_extractor, tmp_path
):
    shutil.copytree(classes, images := tmp_path / "images")
    for path in images.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"a photo of {path.parent.name}")
    (tmp_path / "prompts.txt").write_text("a red apple\na cat on a dog\ndog\n")
    encoder = dict(type="hf_text", path=str(text_model("bert")), max_tokens=32)
    generator = dict(type="flux_dit", in_channels=4, hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1)
    metric = dict(type="generation", reference=str(reference), extractor=tiny_extractor)
    source = generation_source(
        data_root=str(images),
        tokenizer=str(tiny_tokenizer),
        generator=dict(generator, context_in_dim=32, vec_in_dim=0, text=dict(tokens=encoder)),
        data=dict(train=dict(type="images", split="train", image_size=32)),
        validation=dict(num_samples=7, batch_size=4, prompts=str(tmp_path / "prompts.txt"), metrics=[metric]),
        log=dict(every=1, pictures=0),
    )
    (tmp_path / "tiny.py").write_text(source)
    run, out = tmp_path / "run", tmp_path / "out"
    assert train([str(tmp_path / "tiny.py"), "--work-dir", str(run)]) == 0
    online = json.loads((run / "generation" / "result.json").read_text())["metrics"]
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--num-samples", "7", "--batch-size", "4", "--out", str(out)]
    assert sample([str(run), *words]) == 0
    offline = evaluate_generation(
        GenerationSettings(samples=out, reference=reference, extractor=tiny_extractor, workers=0)
    )
    own = {name.removeprefix("generation/"): value for name, value in online.items()}
    assert offline.metrics == pytest.approx({**own, "images": 7}, rel=1e-5)
