"""A training that goes on sees that its data changed: told with numbers, or refused where labels matter."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from PIL import Image

import aligntok
from aligntok.caching import CacheRequest, cache_latents
from aligntok.cli import main, train


@pytest.fixture
def start(tmp_path, capfd):
    """Train so many steps more; return the status and what was logged."""

    def run(config, steps, *options):
        capfd.readouterr()
        status = train([config, "--work-dir", str(tmp_path / "run"), "--cfg-options", steps, *options])
        logs = "".join(path.read_text() for path in (tmp_path / "run").rglob("*.log"))
        return status, "".join(capfd.readouterr()) + logs

    return run


def test_changed_images_are_counted_in_a_warning_and_a_copy_is_not(photographs, write_config, start, tmp_path, caplog):
    data = shutil.copytree(photographs, tmp_path / "data")
    stages = [dict(name="align", trainable=["adapter", "decoder"], steps=2)]
    images = dict(train=dict(split="train", image_size=32), val=None, workers=0)
    parts = dict(losses=dict(l1=dict(type="l1")), discriminator=None)
    config = write_config(stages=stages, **parts, data_root=str(data), data=images)
    assert start(config, "stages.0.steps=2")[0] == 0
    said = json.loads((tmp_path / "run/1_align/stage.json").read_text())["source"]
    assert (said["images"], said["class_names"], len(said["digest"])) == (20, [], 64)
    for file in data.rglob("*.png"):
        os.utime(file, (0, 0))  # as a copy has other times: nothing changed
    Image.new("RGB", (50, 40)).save(data / "train/03.png")
    (data / "train/07.png").unlink()
    assert start(config, "stages.0.steps=4")[0] == 0
    told = "was trained on other images so far (1 changed, 1 gone, 03.png among them); it goes on with those"
    assert caplog.text.count(told) == 1
    assert start(config, "stages.0.steps=6")[0] == 0
    assert caplog.text.count("was trained on other images") == 1  # they are the ones of before now


def test_a_generator_that_knows_classes_refuses_others_and_one_without_goes_on(
    classes, tiny_tokenizer, write_generation, start, tmp_path, caplog
):
    data = shutil.copytree(classes, tmp_path / "data")
    options = dict(data_root=str(data), tokenizer=str(tiny_tokenizer))
    images = dict(train=dict(type="images", split="train", image_size=32), workers=0, statistics_images=None)
    config = write_generation(**options, data=images, log=dict(pictures=0))
    assert start(config, "steps=2")[0] == 0
    (data / "train/bee").rename(data / "train/wasp")  # zebra keeps its number, and wasp has bee's
    (data / "train/ant").rename(data / "train/zz")
    status, printed = start(config, "steps=4")
    assert status == 2
    assert "was trained with other classes (10 new, 10 gone, 5 of another class" in printed
    assert "classes gone: ant, bee; classes new: wasp, zz" in printed
    assert "put the data back, or remove the folder" in printed
    unconditional = write_generation(
        name="one", **options, data=images, log=dict(pictures=0), sampling=dict(cfg_scale=1.0)
    )
    shutil.rmtree(tmp_path / "run")
    one = ["generator.num_classes=1", "generator.class_dropout_prob=0"]
    assert start(unconditional, "steps=2", *one)[0] == 0
    (data / "train/wasp").rename(data / "train/fly")
    assert start(unconditional, "steps=4", *one)[0] == 0
    assert "was trained on other images so far (5 new, 5 gone" in caplog.text


def test_a_cache_made_anew_is_noticed_and_a_damaged_shard_refused(
    classes, tiny_tokenizer, tiny_cache, write_generation, start, tmp_path, caplog
):
    cache = shutil.copytree(tiny_cache, tmp_path / "cache")
    config = write_generation(data_root=str(cache), log=dict(pictures=0))
    assert start(config, "steps=2")[0] == 0
    assert json.loads((tmp_path / "run/generation/stage.json").read_text())["source"]["shards"] == 3
    assert main(["check", str(tmp_path / "run")]) == 0
    shutil.rmtree(cache)
    request = dict(tokenizer=tiny_tokenizer, data=classes, split="train", image_size=32, batch_size=5, workers=0)
    cache_latents(CacheRequest(**request, out=cache, shard_size=6, precision="bf16"))
    assert start(config, "steps=4")[0] == 0
    assert "was trained on other shards so far (3 changed); it goes on" in caplog.text

    shard = cache / "shard_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    status, printed = start(config, "steps=6")
    assert status == 2
    assert f"{shard} cannot be read (its SHA-256 is not the one in" in printed
    assert "remove it and start the command that made the cache again, which encodes it" in printed
    with pytest.raises(aligntok.errors.DataError, match=r"shard_00001"):
        aligntok.data.latents.LatentDataset(cache)
