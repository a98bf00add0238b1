"""Latent spaces side by side: what is measured of each image, repetitions, pictures, tables, and the command."""

from __future__ import annotations

import copy
import io
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import aligntok
from aligntok.cli import analyze_latents as command
from aligntok.data.images import ImageDataset
from aligntok.errors import ConfigError, DataError, UnknownComponentError
from aligntok.evaluation.latent_analysis import (
    DENSITY,
    Draws,
    LatentModel,
    analyze_latents,
    distinct_names,
    encoder_config,
    map_files,
    on_grid_of,
    tsne,
)
from aligntok.evaluation.metrics.latent_space import cknna, density_measures, spatial_variance, total_variation
from aligntok.evaluation.results import read_result
from aligntok.evaluation.settings import LatentAnalysis
from aligntok.io.pictures import pca_pictures, pca_sheet, tsne_plot
from aligntok.registry import ENCODERS
from aligntok.tokenizer import Tokenizer

NUM = 30
MEASURES = ("spatial variance", "total variation", *DENSITY)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Thirty pictures of three classes, in val/."""
    root = tmp_path_factory.mktemp("images")
    for i in range(NUM):
        folder = root / "val" / ("ant", "bee", "cat")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def encoder():
    """A reference encoder of random weights: no factor, so that it gets the tokenizers'."""
    arguments = dict(depth=1, embed_dim=24, num_heads=2)
    return dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False, model_args=arguments)


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizer, tmp_path_factory):
    """Two saved tokenizers: the tiny one, and one whose latents are three times as large."""
    folder = tmp_path_factory.mktemp("runs") / "larger"
    larger = copy.deepcopy(aligntok.load_tokenizer(tiny_tokenizer))
    with torch.no_grad():
        list(larger.adapter.parameters())[-2].mul_(3)
        list(larger.adapter.parameters())[-1].mul_(3)
    larger.save_pretrained(folder)
    return [str(tiny_tokenizer), str(folder)]


@pytest.fixture(scope="module")
def options(encoder):
    return dict(encoder=encoder, image_size=32, split="val", topk=4, tsne_points=24, seeds=(0, 1), workers=0)


@pytest.fixture(scope="module")
def found(tokenizers, images, options, tmp_path_factory):
    """The folder of an analysis of both tokenizers, and its result."""
    folder = tmp_path_factory.mktemp("analysis") / "out"
    torch.manual_seed(0)
    names = ["tiny", "larger"]
    return folder, analyze(tokenizers, images, folder, names=names, pca_images=3, batch_size=7, **options)


@pytest.fixture(scope="module")
def encoded(tokenizers, images, encoder):
    """The latents of all images: of each tokenizer and the reference encoder."""
    pictures = torch.stack([item["images"] for item in ImageDataset(images, 32, train=False, split="val")])
    torch.manual_seed(0)  # and tokenizers first, as an analysis does: the reference encoder's weights are random
    models = [aligntok.load_tokenizer(source).encode for source in tokenizers]
    models.append(ENCODERS.build({**encoder, "downsample_factor": 8}).eval())
    with torch.no_grad():
        return [torch.cat([model(batch) for batch in pictures.split(7)]) for model in models]


def analyze(tokenizers, data, out, **options):
    return analyze_latents(LatentAnalysis(tokenizers=tokenizers, data=data, out=out, **options))


def rows(result, table="Latent spaces"):
    return {row["model"]: row for row in result.tables[table]}


def test_the_table_has_the_measures_of_each_model_beside_the_reference_encoders(found, encoded):
    table = rows(found[1])
    assert list(table) == ["tiny", "larger", "vit_tiny_patch16_224 (reference)"]
    pooled = [F.normalize(latents.double().mean(dim=(2, 3)), dim=1) for latents in encoded]
    for row, latents, own in zip(table.values(), encoded, pooled, strict=True):
        assert row["CKNNA-vit_tiny_patch16_224"] == pytest.approx(cknna(own, pooled[-1], 4), abs=1e-4)
        assert row["spatial variance"] == pytest.approx(float(spatial_variance(latents).mean()), rel=1e-4)
        assert row["total variation"] == pytest.approx(float(total_variation(latents).mean()), rel=1e-4)
        assert row["latent"] == "x".join(map(str, latents.shape[1:]))
    last = table["vit_tiny_patch16_224 (reference)"]
    assert last["CKNNA-vit_tiny_patch16_224"] == pytest.approx(1, abs=0.01)
    differences = rows(found[1], "Difference from the reference encoder, %")
    assert list(differences) == ["tiny", "larger"]
    for model, row in differences.items():
        for name in MEASURES:
            assert row[name] == pytest.approx(100 * (table[model][name] / last[name] - 1), abs=1e-6)
    assert table["larger"]["total variation"] == pytest.approx(3 * table["tiny"]["total variation"], rel=1e-4)
    assert table["larger"]["spatial variance"] == pytest.approx(9 * table["tiny"]["spatial variance"], rel=1e-4)


def test_densities_are_repeated_over_seeds_with_mean_and_deviation(found, encoded):
    maps = found[1].tables["Density on each t-SNE"]
    assert [row["seed"] for row in maps] == [0, 1] * 3
    assert len({row["density CV"] for row in maps[:2]}) == 2
    for name in DENSITY:
        values = [row[name] for row in maps if row["model"] == "tiny"]
        assert rows(found[1])["tiny"][name] == pytest.approx(np.mean(values))
        assert rows(found[1], "Deviation over seeds")["tiny"][name] == pytest.approx(np.std(values, ddof=1))


def test_a_tsne_is_of_one_latent_of_each_drawn_image(found, encoded):
    draws = Draws.of((0, 1), NUM, 24)
    y, x = (draws.positions[0] * 4).long().T
    points = tsne(encoded[0][draws.rows[0], :, y, x], seed=0)
    expected = density_measures(points)
    first = found[1].tables["Density on each t-SNE"][0]
    assert [first[name] for name in DENSITY] == pytest.approx(list(expected), rel=1e-2)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_collapsed_latent_space_is_refused_and_ends_no_process(tokenizers, images, options, tmp_path, kept):
    collapsed = copy.deepcopy(aligntok.load_tokenizer(tokenizers[0]))
    with torch.no_grad():
        list(collapsed.adapter.parameters())[-2][kept:] = 0
    collapsed.save_pretrained(tmp_path / "collapsed")
    with pytest.raises(DataError, match="the latents of collapsed hardly differ"):
        analyze([str(tmp_path / "collapsed")], images, tmp_path / "out", **{**options, "seeds": (0,)})


def test_metrics_name_the_model_unless_there_is_one(found, tokenizers, images, options, tmp_path):
    names = {"CKNNA-vit_tiny_patch16_224", *MEASURES}
    assert set(found[1].metrics) == {f"{model}/{name}" for model in ("tiny", "larger", "reference") for name in names}
    alone = analyze(tokenizers[:1], images, tmp_path, **{**options, "seeds": (0,)})
    assert set(alone.metrics) == names | {f"reference/{name}" for name in names}
    assert "Density on the t-SNE" in alone.tables
    assert "Deviation over seeds" not in alone.tables


def test_a_result_says_what_it_is_of_and_has_pictures_and_a_report(found):
    folder, result = found
    assert read_result(folder / "latent_space.json") == result
    settings = result.settings
    assert (settings["images"], settings["tsne"]["points"], settings["topk"]) == (NUM, 24, 4)
    assert settings["models"]["reference"]["encoder"]["downsample_factor"] == 8
    assert settings["models"]["tiny"]["latent"] == [4, 4, 4]
    assert set(result.pictures.values()) == {"pca.png", "tsne_tiny.png", "tsne_larger.png", "tsne_reference.png"}
    sizes = {name: Image.open(io.BytesIO((folder / name).read_bytes())).size for name in result.pictures.values()}
    assert sizes["pca.png"] == (4 * (128 + 6) + 6, 25 + 3 * (128 + 6))  # input, two tokenizers, reference
    page = (folder / "report.html").read_text()
    assert "tiny" in page
    assert "larger" in page
    assert list(folder.glob("events.out.tfevents.*"))


def test_batch_size_changes_no_images_numbers(found, tokenizers, images, options, tmp_path):
    torch.manual_seed(0)
    again = analyze(tokenizers, images, tmp_path, names=["tiny", "larger"], batch_size=11, **options)
    for name, value in found[1].metrics.items():
        assert again.metrics[name] == pytest.approx(value, rel=1e-4 if "ariat" in name or "arian" in name else 0.05)


def test_an_unreadable_image_is_left_out(found, tokenizers, images, options, tmp_path):
    shutil.copytree(images, tmp_path / "data")
    (tmp_path / "data/val/ant/00.png").write_bytes(b"")
    torch.manual_seed(0)
    result = analyze(tokenizers[:1], tmp_path / "data", tmp_path / "out", **options)
    assert (result.settings["images"], result.settings["unreadable"]) == (NUM - 1, 1)
    assert result.settings["tsne"]["points"] in (23, 24)
    assert result.metrics["total variation"] == pytest.approx(found[1].metrics["tiny/total variation"], rel=0.1)


# Draws


def test_draws_are_of_different_images_the_same_for_every_model_and_others_for_another_seed():
    draws = Draws.of((3, 4, 3), images=50, points=20)
    assert draws.rows.shape == (3, 20)
    assert all(len(set(row.tolist())) == 20 for row in draws.rows)
    assert torch.equal(draws.rows[0], draws.rows[2])
    assert torch.equal(draws.positions[0], draws.positions[2])
    assert not torch.equal(draws.rows[0], draws.rows[1])
    assert Draws.of((0,), images=7, points=20).rows.sort().values.tolist() == [list(range(7))]


# Pictures


def test_pca_colours_are_the_leading_components_of_all_images_together():
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(4, 3, 8, 8, generator=generator) * torch.tensor([9.0, 5.0, 2.0]).view(1, 3, 1, 1)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:, :3]
    latents = torch.einsum("cd,ndhw->nchw", rotation, parts) + 3
    colours = pca_pictures(latents)
    assert colours.shape == (4, 3, 8, 8)
    assert (colours.min(), colours.max()) == (0, 1)
    for component in range(3):
        pair = torch.stack([colours[:, component].flatten(), parts[:, component].flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) > 0.95
    assert torch.allclose(pca_pictures(5 * latents - 1), colours, atol=1e-4)  # scale and level do not matter


def test_an_outlier_does_not_turn_the_picture_black():
    latents = torch.randn(2, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    latents[0, :, 3, 3] += 500
    assert pca_pictures(latents)[1].std() > 0.1


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_channels_than_colours_leave_grey(channels):
    colours = pca_pictures(torch.randn(2, channels, 4, 4))
    assert colours.shape == (2, 3, 4, 4)
    assert (colours[:, channels:] == 0.5).all()


def test_a_sheet_shows_positions_as_blocks_of_the_inputs_size():
    inputs = torch.full((1, 3, 64, 32), -1.0)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 2)
    sheet = pca_sheet(inputs, ["a rather long name of a tokenizer"], [red])
    assert sheet.size == (2 * (64 + 6) + 6, 25 + 128 + 6)
    pixels = np.asarray(sheet)
    assert (pixels[25:153, 6:70] == 0).all()
    assert (pixels[25:153, 76:140] == (255, 0, 0)).all()
    assert (pixels[:25] < 128).any()  # headings


@pytest.mark.parametrize("labels", [np.arange(40) % 3, np.arange(40), np.full(40, -1)])
def test_points_are_coloured_by_class_where_there_are_classes(labels):
    figure = tsne_plot(np.random.default_rng(0).normal(size=(40, 2)), labels, "tiny")
    (points,) = figure.axes[0].collections
    assert len(points.get_offsets()) == 40
    FigureCanvasAgg(figure).draw()
    assert len({tuple(colour) for colour in points.get_facecolors()}) == len(set(labels))


# Names and encoders


def test_tokenizers_are_called_by_what_tells_them_apart(tmp_path):
    for run in ("a/tokenizer", "b/tokenizer", "c/other"):
        (tmp_path / run).mkdir(parents=True)
    a, b, c = (str(tmp_path / run) for run in ("a/tokenizer", "b/tokenizer", "c/other"))
    assert distinct_names([a]) == ["tokenizer"]
    assert distinct_names([a, c]) == ["tokenizer", "other"]
    assert distinct_names([a, b]) == ["a", "b"]
    assert distinct_names([a, b, c]) == ["a/tokenizer", "b/tokenizer", "c/other"]
    assert distinct_names(["owner/x", "owner/y"]) == ["x", "y"]
    assert distinct_names([a, a], ["once", "twice"]) == ["once", "twice"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "a tokenizer is given twice: x, x"),
        (["one"], "names one for 2 tokenizers"),
        (["one", "one"], "names one, one for 2 tokenizers"),
        (["one", "reference"], "none of them 'reference'"),
    ],
)
def test_names_that_tell_nothing_apart_are_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        distinct_names(["x", "x"], names)


def test_a_seed_that_is_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"seeds=\[0, 2, 0\] has 0 twice; give each once"):
        LatentAnalysis(tokenizers=("a",), data="b", seeds=(0, 2, 0))


def test_a_reference_encoder_is_a_word_and_gets_the_tokenizers_grid():
    assert encoder_config("dinov2") == {"type": "dinov2"}
    assert encoder_config("timm:vit_x") == {"type": "timm", "model_name": "vit_x"}
    assert on_grid_of({"type": "dinov2"}, {8}) == {"type": "dinov2", "downsample_factor": 8}
    assert on_grid_of({"type": "dinov2", "downsample_factor": 14}, {8})["downsample_factor"] == 14
    assert on_grid_of({"type": "dinov2"}, {8, 16}) == {"type": "dinov2"}
    with pytest.raises(ConfigError, match="'open_clip' names no model; write open_clip:MODEL"):
        encoder_config("open_clip")
    with pytest.raises(UnknownComponentError, match="no encoder named 'dinov'; did you mean 'dinov2'"):
        on_grid_of(encoder_config("dinov"), {8})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(num_images=3), ConfigError, "LatentAnalysis: num_images=3; it must be int of at least 20 or None"),
        (dict(tsne_points=5), ConfigError, "tsne_points=5; it must be int of at least 20"),
        (dict(seeds=()), ConfigError, "seeds=\\(\\); it must be list of int of at least 0, 1 or more of them"),
        (dict(topk=29), DataError, "30 images are too few .* give at least 31 for topk=29"),
        (dict(image_size=36), ConfigError, "must be multiples of f = 8"),
        (dict(topk=True), ConfigError, "topk=True is bool; it must be int of at least 1"),
        (dict(num=30), ConfigError, "LatentAnalysis: no key named 'num'; it is called 'num_images' now"),
        (dict(precision="int8"), ConfigError, "precision='int8'; it must be 'fp32', 'tf32', 'bf16', 'fp16' or 'auto'"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_read(
    tokenizers, images, options, tmp_path, change, error, message
):
    with pytest.raises(error, match=message):
        analyze(tokenizers, images, tmp_path / "out", **{**options, **change})
    assert not (tmp_path / "out").exists()


def test_latents_that_are_not_finite_name_the_model_and_the_image(tiny_tokenizer, images, options, tmp_path):
    tokenizer = Tokenizer.from_pretrained(tiny_tokenizer)
    with torch.no_grad():
        next(iter(tokenizer.adapter.parameters())).fill_(torch.nan)
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(DataError, match="broken gives latents of ant/00.png that are not finite"):
        analyze([str(tmp_path / "broken")], images, tmp_path / "out", **options)


# The command


def test_the_command_takes_tokenizers_and_then_the_data(tokenizers, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*tokenizers, str(images), "--encoder", "timm:vit_tiny_patch16_224", "--encoder-options"]
    words += ["pretrained=False", "model_args=dict", "--image-size", "32", "--split", "val", "--workers", "0"]
    words[-7] = "model_args={'depth': 1, 'embed_dim': 24, 'num_heads': 2}"
    assert command([*words, "--topk", "4", "--tsne-points", "20", "--seeds", "0", "--names", "a", "b"]) == 0
    (path,) = (tmp_path / "evaluation").rglob("latent_space.json")
    assert path.parent.relative_to(tmp_path).as_posix() == "evaluation/a_b/latent_space"
    assert set(json.loads(path.read_text())["settings"]["models"]) == {"a", "b", "reference"}
    assert "Report: " in capsys.readouterr().out
    assert command([tokenizers[0], str(images), "--encoder", "timm"]) == 2
    assert "ConfigError: reference encoder 'timm' names no model" in capsys.readouterr().err
    assert command([tokenizers[0], str(images), "--topk", "0"]) == 2
    assert "ConfigError: aligntok analyze-latents: --topk 0; it must be int of at least 1" in capsys.readouterr().err


def test_no_picture_of_a_space_takes_the_file_of_another():
    models = [LatentModel(name, name, F.relu, (1, 1, 1), {}) for name in ("run a", "run_a", "Run A", "run_a_2")]
    assert map_files(models) == ["tsne_run_a.png", "tsne_run_a_3.png", "tsne_Run_A_4.png", "tsne_run_a_2.png"]
