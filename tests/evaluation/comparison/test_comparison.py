"""A comparison: one command trains and measures all, at one budget, and goes on where it stopped."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from PIL import Image

from aligntok.cli import compare
from aligntok.data.sampler import evenly_spaced
from aligntok.data.sources import open_source
from aligntok.evaluation import comparison as comparison_module
from aligntok.evaluation.comparison import budget
from aligntok.evaluation.comparison.records import read_record
from aligntok.evaluation.comparison.summary import over_seeds, show_samples, shown
from aligntok.evaluation.generation import evaluate_generation
from aligntok.evaluation.latent_analysis import analyze_latents
from aligntok.evaluation.results import read_result
from aligntok.evaluation.settings import GenerationSettings, LatentAnalysis

SPLITS = dict(
    train=dict(type="images", split="train", image_size=32),
    val=dict(type="images", split="val", image_size=32),
    workers=0,
)
VARIANTS = dict(guided=dict(cfg_scale=2.0), unguided=dict(cfg_scale=1.0), unconditional=dict(cfg_scale=0))
BETWEEN = dict(variants=["guided", "unguided"], extractors=["tiny_extractor.TinyExtractor"])
OTHER = """
import torch
from tiny_extractor import TinyExtractor


class Second(TinyExtractor):
    title = "Second"
"""


@pytest.fixture(scope="module", autouse=True)
def one_timed_step():
    """The estimate of each training from one step: it takes less of the test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "TIMED_STEPS", 1)
        yield


@pytest.fixture(scope="module")
def config(config_source, generation_source, labelled, extractors, tmp_path_factory):
    """A comparison of two tiny tokenizers, with two seeds."""
    folder = tmp_path_factory.mktemp("comparison")
    (extractors / "second_extractor.py").write_text(OTHER)
    one = dict(name="all", steps=3)
    three = [dict(name="first", steps=1, trainable=["adapter", "decoder"]), dict(name="rest", steps=2)]
    three[1]["init_from"] = dict(stage="first")
    for name, stages in (("one", [one]), ("two", three)):
        text = config_source(data=SPLITS, stages=stages, ema=None, log=dict(every=1, pictures=0))
        (folder / f"{name}.py").write_text(text)
    generator = generation_source(steps=4, sampling=dict(steps=2))
    (folder / "generator.py").write_text(generator.replace("'num_classes': 3", "'num_classes': 2"))
    settings = dict(
        data_root=str(labelled),
        tokenizers=dict(one="one.py", two="two.py"),
        generator="generator.py",
        seeds=[0, 1],
        image_size=32,
        perceptual=[dict(type="l1")],
        extractors=["tiny_extractor.TinyExtractor", "second_extractor.Second"],
        reference_encoder=dict(
            type="timm",
            model_name="vit_tiny_patch16_224",
            pretrained=False,
            model_args=dict(depth=1, embed_dim=48, num_heads=3),
        ),
        probe=dict(epochs=1),
        workers=0,
        samples=dict(num_samples=12, every=2, batch_size=6, variants=VARIANTS, between=BETWEEN),
        results="results",
        criterion=dict(
            arm="two",
            metrics=["unguided/FD-Tiny", "unconditional/KD-Second"],
            reconstruction=dict(against="one", metrics=["reconstructions/FD-Tiny"], times=1.5),
        ),
    )
    lines = "".join(f"{key} = {value!r}\n" for key, value in settings.items())
    (folder / "comparison.py").write_text('"""Two tiny tokenizers."""\n' + lines)
    return folder / "comparison.py"


@pytest.fixture(scope="module")
def finished(config):
    """The work folder of the finished comparison, begun with one of its tokenizers."""
    folder = config.parent / "out"
    assert compare([str(config), "--work-dir", str(folder), "--only", "two"]) == 0
    assert not any((folder / name).exists() for name in ("one", "comparison.json", "latent_space"))
    assert (folder / "two" / "seed_1" / "generator").is_dir()
    assert compare([str(config), "--work-dir", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_the_table_has_every_column_of_every_tokenizer(finished):
    result = read_result(finished / "comparison.json")
    tokenizers, generators, more, steps, criterion = result.tables.values()
    assert [row["tokenizer"] for row in tokenizers] == ["one", "two"]
    measured = {"psnr", "l1", "rFD-Tiny", "rFD-Second", "top1", "spatial variance"}
    assert measured <= set(tokenizers[0]), tokenizers[0]
    assert any(name.startswith("CKNNA") for name in tokenizers[0])
    kinds = ["reconstructions", *VARIANTS]
    distances = [f"{kind}/{name}-{title}" for name in ("FD", "KD") for title in ("Tiny", "Second") for kind in kinds]
    columns = list(generators[0])
    assert columns == ["tokenizer", "samples", "rFD-Tiny", *distances[:4], "rFD-Second", *distances[4:]]
    assert [row["samples"] for row in generators] == ["12"] * 3
    assert {"guided/precision-Tiny", "unguided/KD_se-Second"} <= {row["metric"] for row in more}
    assert [row["metric"] for row in criterion[::2]] == [
        "unguided/FD-Tiny",
        "unconditional/KD-Second",
        "reconstructions/FD-Tiny",
    ]
    assert {"unguided/FD-Tiny", "guided/KD-Tiny"} <= set(steps[0])
    assert {"unconditional/KD-Tiny", "guided/FD-Second"} <= set(steps[1]) - set(steps[0])  # after the last step alone
    assert all("±" in generators[0][name] for name in ("guided/FD-Tiny", "unguided/FD-Second"))
    assert [(row["tokenizer"], row["step"]) for row in steps] == [
        ("one", "2"),
        ("one", "4"),
        ("two", "2"),
        ("two", "4"),
    ]


@pytest.mark.slow
def test_distances_of_real_images_and_reconstructions_are_yardsticks(finished, labelled, tmp_path):
    names = open_source(labelled, "val").names
    for place in evenly_spaced(len(names), 12):
        shutil.copy(labelled / "val" / names[place], tmp_path / f"{place:02d}.png")
    (row,) = read_result(finished / "comparison.json").tables["Generators on them, after the last step"][2:]
    assert row["tokenizer"] == "real images"
    distances = {f"reconstructions/{kind}-{title}" for kind in ("FD", "KD") for title in ("Tiny", "Second")}
    assert set(row) == {"tokenizer", "samples", *distances}
    found = evaluate_generation(
        GenerationSettings(
            samples=tmp_path,
            reference=finished / "references" / "Tiny.safetensors",
            out=tmp_path / "out",
            extractor="tiny_extractor.TinyExtractor",
            workers=0,
        )
    )
    for name in ("FD-Tiny", "KD-Tiny"):
        assert float(row[f"reconstructions/{name}"]) == pytest.approx(found.metrics[name], rel=1e-3)
    own = [
        read_result(finished / "one" / f"seed_{seed}/evaluation/against_references/generation.json") for seed in (0, 1)
    ]
    values = over_seeds([{"v": each.metrics["reconstructions/FD-Tiny"]} for each in own])["v"]
    (one, *_) = read_result(finished / "comparison.json").tables["Generators on them, after the last step"]
    assert one["reconstructions/FD-Tiny"] == shown(values)
    assert values[0] > found.metrics["FD-Tiny"]


@pytest.mark.slow
def test_a_mean_is_over_the_seeds_runs(finished):
    runs = [finished / "one" / f"seed_{seed}" for seed in (0, 1)]
    read = [json.loads((run / "generator/generation/result.json").read_text())["metrics"] for run in runs]
    psnr = [read_result(run / "evaluation/reconstruction_Tiny/reconstruction.json").metrics["psnr"] for run in runs]
    tables = read_result(finished / "comparison.json").tables
    assert tables["Tokenizers"][0]["psnr"] == shown(over_seeds([{"v": value} for value in psnr])["v"])
    values = over_seeds([{"v": each["guided/FD-Tiny"]} for each in read])["v"]
    assert tables["Generators on them, after the last step"][0]["guided/FD-Tiny"] == shown(values)
    assert psnr[0] != psnr[1]


@pytest.mark.slow
def test_latents_of_one_arm_are_what_they_are_beside_another(finished, labelled, tmp_path):
    arms = [finished / name / "seed_0" for name in ("one", "two")]
    encoder = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False)
    beside = analyze_latents(
        LatentAnalysis(
            tokenizers=tuple(str(arm / "tokenizer" / "tokenizer") for arm in arms),
            names=("one", "two"),
            out=tmp_path,
            encoder=encoder | dict(model_args=dict(depth=1, embed_dim=48, num_heads=3)),
            data=labelled,
            split="val",
            num_images=None,
            image_size=32,
            workers=0,
        )
    ).metrics
    for name, arm in zip(("one", "two"), arms, strict=True):
        alone = read_result(arm / "evaluation/latent_space/latent_space.json").metrics
        own = [key for key in alone if not key.startswith(("reference/", "CKNNA"))]  # this encoder's weights are random
        assert len(own) == 5
        assert {key: beside[f"{name}/{key}"] for key in own} == {key: alone[key] for key in own}


@pytest.mark.slow
def test_pictures_page_and_tables_are_there(finished):
    for name in ("convergence.png", "samples.png"):
        assert min(Image.open(io.BytesIO((finished / name).read_bytes())).size) > 50
    assert "| two |" in (finished / "comparison.md").read_text()
    page = (finished / "report.html").read_text()
    assert "FD-Tiny" in page
    assert page.count("data:image/png;base64") >= 2


def test_samples_lie_three_a_row_under_their_names(tmp_path):
    grids = {f"arm_{i}": tmp_path / f"arm_{i}.png" for i in range(4)}
    for i, path in enumerate(grids.values()):
        Image.new("RGB", (64, 64), (0, 60 * i, 255)).save(path)
    show_samples(tmp_path / "samples.png", {**grids, "drew none": None})
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (3 * (64 + 8) + 8, 2 * (30 + 64 + 8))  # 8 pixels between them, a title of 30 above
        places = [(8, 30), (80, 30), (152, 30), (8, 30 + 102)]
        assert [sheet.getpixel(place) for place in places] == [(0, 60 * i, 255) for i in range(4)]


@pytest.mark.slow
def test_kept_results_alone_make_the_same_summary_on_a_machine_without_the_data(
    finished, config, tmp_path, capsys, monkeypatch
):
    kept = config.parent / "results"
    names = [f"{name}_seed_{seed}" for name in ("one", "two") for seed in (0, 1)]
    assert sorted(path.name for path in kept.iterdir()) == sorted(
        ["real_images.json", *(f"{name}.{end}" for name in names for end in ("json", "png"))]
    )
    assert all(str(config.parent) not in path.read_text() for path in kept.glob("*.json"))
    again = ["--work-dir", str(tmp_path / "elsewhere"), "--cfg-options", "data_root=None"]
    checked = []
    monkeypatch.setattr(comparison_module, "check_out", checked.append)
    assert compare([str(config), *again]) == 0
    told = capsys.readouterr()
    assert told.err.count("skipped") == 4
    assert checked == [tmp_path / "elsewhere"]  # what is kept may lie where nothing can be written
    assert not (tmp_path / "elsewhere" / "one").exists()
    assert "Training takes about" not in told.out
    one, two = (read_result(folder / "comparison.json") for folder in (finished, tmp_path / "elsewhere"))
    assert one.tables == two.tables
    assert one.metrics == two.metrics
    assert (tmp_path / "elsewhere" / "samples.png").is_file()


@pytest.mark.slow
def test_what_is_kept_of_an_arm_says_what_it_took_and_what_made_it(finished, config):
    record = read_record(config.parent / "results" / "two_seed_1.json")
    assert record.seconds.keys() == {"tokenizer", "evaluation", "latents", "generator"}
    assert min(record.seconds.values()) > 0
    assert record.machine["threads"] >= 1
    assert record.machine["torch"]
    assert record.made.settings["tokenizer.rest.steps"] == 2
    assert record.made.settings["generator.steps"] == 4
    assert record.made.settings["measuring.samples.num_samples"] == 12
    marks = {"unguided/FD-Tiny": {2, 4}, "unguided/FD-Second": {4}, "unconditional/FD-Tiny": {4}}
    assert {name: set(record.curves[name]) for name in marks} == marks


@pytest.mark.slow
def test_results_of_other_settings_are_told_and_what_they_left_is_not_gone_on_with(finished, config, capsys):
    changed = ["--work-dir", str(finished), "--cfg-options", "probe.epochs=2"]
    before = (finished / "one" / "seed_0" / "made_with.json").read_text()
    assert compare([str(config), *changed]) == 2
    told = capsys.readouterr().err
    assert "one_seed_0.json is of other settings, and made anew (measuring.probe.epochs: 1 -> 2)" in told
    assert f"set them back, or remove {finished / 'one' / 'seed_0' / 'evaluation'} to make it anew" in told
    assert (finished / "one" / "seed_0" / "made_with.json").read_text() == before


@pytest.mark.slow
def test_a_verdict_is_printed_and_stands_in_the_result(finished, config, capsys):
    assert compare([str(config), "--work-dir", str(finished)]) == 0
    verdict = read_result(finished / "comparison.json").settings["verdict"]
    told = capsys.readouterr().out
    assert f"Criterion: {verdict}." in told
    assert "Criterion: after the last step, two is below one on unguided/FD-Tiny, unconditional/KD-Second" in told
    assert f"Verdict: {verdict}" in (finished / "comparison.md").read_text()


@pytest.mark.slow
def test_started_again_it_does_only_what_is_missing(finished, config, capsys):
    kept = {path: path.stat().st_mtime_ns for path in finished.rglob("*.json") if "evaluation" in path.parts}
    probe = finished / "two" / "seed_1" / "evaluation" / "linear_probe" / "linear_probe.json"
    before = read_result(finished / "comparison.json").tables
    probe.unlink()
    assert compare([str(config), "--work-dir", str(finished), "--cfg-options", "results=None"]) == 0
    assert "finished already, skipped" in capsys.readouterr().err
    assert probe.is_file()
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path != probe)
    assert read_result(finished / "comparison.json").tables == before


@pytest.mark.slow
def test_tokenizers_alone_are_compared_without_a_generator(config, tmp_path, capsys):
    criterion = dict(
        _delete_=True,
        arm="two",
        at_least=[dict(metric="top1", against="one", times=9.0)],
        reconstruction=dict(metrics=["reconstructions/FD-Tiny"], at_most=1e6),
    )
    options = ["generator=None", "seeds=[0]", "results=alone", f"criterion={criterion!r}"]
    assert compare([str(config), "--work-dir", str(tmp_path), "--cfg-options", *options]) == 0
    told = capsys.readouterr().out
    assert "Criterion: not met: 1 of 1 comparisons of tokenizers fail, and 0 of 1 of reconstructions." in told
    result = read_result(tmp_path / "comparison.json")
    assert [*result.tables] == ["Tokenizers", "Reconstructions beside real images", "Criterion"]
    rows = result.tables["Reconstructions beside real images"]
    assert [row["tokenizer"] for row in rows] == ["one", "two", "real images"]
    assert all("reconstructions/FD-Tiny" in row for row in rows)
    assert not (tmp_path / "one" / "seed_0" / "generator").exists()
    again = read_record(config.parent / "alone" / "two_seed_0.json")
    assert not any(key.startswith("generator") for key in again.made.settings)
    assert again.curves == {}


def test_the_budget_is_told_before_and_a_dry_run_ends_there(config, tmp_path, capsys):
    assert compare([str(config), "--work-dir", str(tmp_path / "out"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "Training takes about" in told
    assert "5 x 12 samples drawn and measured" in told
    assert "Criterion: after the last step, two is below one" in told
    assert "1 + 2" in told
    assert not list((tmp_path / "out").glob("one"))


def test_a_tokenizer_that_is_not_there_is_refused(config, tmp_path, capsys):
    assert compare([str(config), "--work-dir", str(tmp_path / "out"), "--only", "one", "three"]) == 2
    assert "no tokenizer named 'three'; known: one, two" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unequal_budgets_are_refused(config, tmp_path, capsys):
    other = config.parent / "longer.py"
    other.write_text((config.parent / "one.py").read_text().replace("'steps': 3", "'steps': 4"))
    options = ["--cfg-options", f"tokenizers={dict(one='one.py', longer='longer.py')!r}"]
    assert compare([str(config), "--work-dir", str(tmp_path), *options]) == 2
    assert "one 12, two 12, longer 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("extractor=['tiny']", "no key named 'extractor'"),
        ("extractors=[]", "extractors=[]; it must be list of anything, 1 or more of them"),
        ("tokenizers={'one':'none.py'}", "no config file"),
        ("samples.number=3", "no key named 'number'"),
        ("generator=one.py", "trains no generator"),
        ("criterion.arm=tow", "criterion: no tokenizer named 'tow'; did you mean 'two'?"),
        ("criterion.below=['two']", "criterion: 'two' is compared with itself"),
        ("criterion.metrics=['unguided/FD-Tinny']", "no metric named 'unguided/FD-Tinny'; did you mean"),
        ("criterion.metrics=['reconstructions/FD-Tiny']", "no metric named 'reconstructions/FD-Tiny'"),
        ("criterion.reconstruction.metrics=['unguided/FD-Tiny']", "criterion.reconstruction.metrics: no metric"),
        ("criterion.reconstruction.against=None", "criterion.reconstruction has no limit"),
        ("criterion={'_delete_': True, 'arm': 'two'}", "criterion asks for nothing"),
        ("criterion.at_least=[{'metric': 'top1', 'against': 'tow'}]", "no tokenizer named 'tow'; did you mean 'two'?"),
        ("generator=None", "criterion.metrics are of samples, and no generator draws any"),
        ("results=comparison.py/kept", "comparison.py/kept"),
        ("val_split=train", "train_split and val_split are both 'train'"),
        (
            "extractors=['tiny_extractor.TinyExtractor', {'type': 'tiny_extractor.TinyExtractor', 'width': 4}]",
            "FD-Tiny",
        ),
        ("reference_encoder.sise=2", "reference_encoder: encoder 'timm'"),
        ("perceptual=[{'type': 'l11'}]", "no loss named 'l11'"),
        ("samples.variants.unguided.cfg_scal=2", "samples.variants.unguided"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(config, tmp_path, capsys, option, message):
    assert compare([str(config), "--work-dir", str(tmp_path / "out"), "--cfg-options", option]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_deviation_is_that_of_the_sample_and_none_of_one_run():
    assert over_seeds([{"a": 1.0}, {"a": 3.0, "b": 2.0}]) == {"a": (2.0, 2**0.5)}
    assert shown((2.0, 2**0.5)) == "2 ± 1.4"
    assert shown(over_seeds([{"a": 12.3456}])["a"]) == "12.35"
