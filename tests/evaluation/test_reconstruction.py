"""The evaluation of reconstructions: one command, the numbers of training, whatever the batches and processes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import aligntok
from aligntok.cli import evaluate, train
from aligntok.cli.arguments import parse
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.metrics.image_quality import psnr
from aligntok.evaluation.metrics.online import ImageRow
from aligntok.evaluation.reconstruction import evaluate_reconstruction, write_table
from aligntok.evaluation.settings import ReconstructionSettings


@pytest.fixture(scope="module")
def options(tiny_extractor):
    return dict(image_size=32, split="train", perceptual=[dict(type="l1")], extractor=tiny_extractor, workers=0)


@pytest.fixture(scope="module")
def found(tiny_tokenizer, photographs, options, tmp_path_factory):
    """The folder of an evaluation of twenty photographs, and its result."""
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    return folder, evaluate_reconstruction(
        ReconstructionSettings(tokenizer=tiny_tokenizer, data=photographs, out=folder, **options, batch_size=3)
    )


def test_the_numbers_are_means_of_what_each_image_has(found, tiny_tokenizer, photographs):
    from aligntok.data.images import ImageDataset

    tokenizer = aligntok.load_tokenizer(tiny_tokenizer)
    images = [item["images"] for item in ImageDataset(photographs, 32, train=False, split="train")]
    with torch.no_grad():
        made = [tokenizer.reconstruct(image[None])[0] for image in images]
    values = [psnr(image, reconstruction) for image, reconstruction in zip(images, made, strict=True)]
    metrics = found[1].metrics
    assert metrics["images"] == 20
    assert metrics["psnr"] == pytest.approx(sum(values) / 20, abs=1e-4)
    assert metrics["l1"] == pytest.approx(
        sum(float((x - y.clamp(-1, 1)).abs().mean()) for x, y in zip(images, made, strict=True)) / 20, rel=1e-4
    )
    assert 0 < metrics["ssim"] < 1
    rows = list(csv.DictReader((found[0] / "per_image.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [f"{i:02d}.png" for i in range(20)]
    assert [float(row["psnr"]) for row in rows] == pytest.approx(values, abs=1e-3)


def test_only_inception_makes_an_fid(found):
    assert "rFD-Tiny" in found[1].metrics
    assert not [name for name in found[1].metrics if "FID" in name]
    assert found[1].metrics["rFD-Tiny"] > 0.01


def test_batch_size_does_not_change_the_numbers(found, tiny_tokenizer, photographs, options, tmp_path):
    again = evaluate_reconstruction(
        ReconstructionSettings(tokenizer=tiny_tokenizer, data=photographs, out=tmp_path, **options, batch_size=7)
    )
    assert again.metrics == pytest.approx(found[1].metrics, rel=1e-6)


def test_the_folder_has_a_report_and_the_worst_and_the_best(found):
    rows = sorted(
        csv.DictReader((found[0] / "per_image.csv").read_text().splitlines()), key=lambda row: float(row["psnr"])
    )
    assert float(rows[0]["psnr"]) < float(rows[-1]["psnr"])
    sizes = {name: Image.open(io.BytesIO((found[0] / name).read_bytes())).size for name in ("worst.png", "best.png")}
    assert sizes["worst.png"] == sizes["best.png"]
    page = (found[0] / "report.html").read_text()
    assert f"{found[1].metrics['psnr']:.2f}" in page
    assert list(found[0].glob("events.out.tfevents.*"))


def test_online_and_offline_are_the_same_numbers(write_config, photographs, tmp_path, tiny_extractor):
    validation = dict(perceptual=[dict(type="l1")], extractor=tiny_extractor, batch_size=4)
    config = write_config(steps=2, validation=validation)
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 0
    (online,) = [json.loads(path.read_text())["metrics"] for path in (tmp_path / "run").glob("3_*/result.json")]
    options = dict(image_size=32, split="val", perceptual=[dict(type="l1")], extractor=tiny_extractor, workers=0)
    offline = evaluate_reconstruction(
        ReconstructionSettings(tokenizer=tmp_path / "run", data=photographs, **options, batch_size=5)
    )
    assert offline.metrics == pytest.approx({k.removeprefix("reconstruction/"): v for k, v in online.items()}, rel=1e-6)
    assert (tmp_path / "run" / "evaluation" / f"reconstruction_{photographs.name}_val" / "report.html").is_file()


def test_unreadable_images_are_left_out_and_counted_or_too_many(tiny_tokenizer, photographs, options, tmp_path):
    shutil.copytree(photographs / "train", tmp_path / "images" / "train")
    (tmp_path / "images" / "train" / "03.png").write_bytes(struct.pack("<Q", 3))
    result = evaluate_reconstruction(
        ReconstructionSettings(tokenizer=tiny_tokenizer, data=tmp_path / "images", out=tmp_path / "out", **options)
    )
    assert (result.metrics["images"], result.settings["unreadable"]) == (19, 1)
    (tmp_path / "images" / "train" / "04.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 20 images cannot be read"):
        evaluate_reconstruction(
            ReconstructionSettings(tokenizer=tiny_tokenizer, data=tmp_path / "images", out=tmp_path / "out", **options)
        )


def test_a_tokenizer_whose_reconstructions_are_not_finite_has_no_numbers(
    tiny_tokenizer, photographs, options, tmp_path
):
    broken = aligntok.load_tokenizer(tiny_tokenizer)
    with torch.no_grad():
        list(broken.decoder.parameters())[-1].fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(DataError, match="the reconstruction of image 0 is not finite; take --precision fp32"):
        evaluate_reconstruction(
            ReconstructionSettings(
                tokenizer=tmp_path / "broken", data=photographs, out=tmp_path / "out", **{**options, "extractor": None}
            )
        )


def test_no_image_that_can_be_read_is_too_few(tiny_tokenizer, options, tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "train" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        evaluate_reconstruction(
            ReconstructionSettings(tokenizer=tiny_tokenizer, data=tmp_path / "images", out=tmp_path / "out", **options)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(image_size=33), "image_size .33, 33.; its sides must be multiples of f = 8"),
        (dict(table="xlsx"), "table='xlsx'; it must be 'csv' or 'parquet'"),
        (dict(precision="fp8"), "precision='fp8'; .*it must be 'fp32'"),
        (dict(num=0), "no key named 'num'; it is called 'num_images' now"),
        (dict(num_images=0), "num_images=0; it must be int of at least 1 or None"),
        (dict(out=__file__), "cannot write in .*test_reconstruction.py: .* give another folder"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tiny_tokenizer, photographs, options, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_reconstruction(
            ReconstructionSettings(
                tokenizer=tiny_tokenizer, data=photographs, **{"out": tmp_path / "out", **options, **change}
            )
        )
    assert not (tmp_path / "out").exists()


def test_a_parquet_table_has_the_same_rows(found, tiny_tokenizer, photographs, options, tmp_path):
    import pyarrow.parquet as pq

    evaluate_reconstruction(
        ReconstructionSettings(
            tokenizer=tiny_tokenizer, data=photographs, out=tmp_path / "out", **options, table="parquet"
        )
    )
    rows = list(csv.DictReader((found[0] / "per_image.csv").read_text().splitlines()))
    assert pq.read_table(tmp_path / "out" / "per_image.parquet")["name"].to_pylist() == [row["name"] for row in rows]


def test_none_is_no_distance_and_stands_alone(tiny_tokenizer, tmp_path, capsys):
    asked = parse(ReconstructionSettings, ["a", "b", "--perceptual", "none"], "evaluate", ("tokenizer", "data"))
    assert asked.perceptual is None
    assert evaluate(["reconstruction", str(tiny_tokenizer), str(tmp_path), "--perceptual", "none", "lpips"]) == 2


@pytest.mark.parametrize("table", ["csv", "parquet"])
def test_a_name_that_is_no_text_is_in_the_table_by_its_code(table, tmp_path):
    images = SimpleNamespace(source=SimpleNamespace(names=[os.fsdecode(b"caf\xe9.png"), "猫.png"]))
    metric = SimpleNamespace(distances={}, rows=[ImageRow(place, 30.0, 0.9, ()) for place in (0, 1)])
    write_table(tmp_path / f"t.{table}", metric, images)
    if table == "csv":
        rows = list(csv.DictReader((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()))
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "t.parquet").to_pylist()
    assert [row["name"] for row in rows] == [r"caf\udce9.png", "猫.png"]
