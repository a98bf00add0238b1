"""A folder without splits is trained on with some of it held out, and never measured on what it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from aligntok.data.sources.base import say_once
from aligntok.errors import ConfigError, DataError
from aligntok.training.alignment import expand_stages
from aligntok.training.config import config_diff


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i:02d}.png")
    return tmp_path / "photos"


@pytest.fixture
def build(tiny, photos):
    """A function that opens the data of a stage's config."""

    def build_data(root=photos, val=None, **train):
        given = dict(data=dict(train=dict(image_size=32, **train), val=val and dict(image_size=32, **val)), workers=0)
        config = dict(work_dir="runs/x", seed=7, data_root=str(root), model=tiny["model"], losses=tiny["losses"])
        (stage,) = expand_stages({**config, "data": given["data"], "stages": [dict(name="only", steps=1)]})
        return stage.build_data()

    return build_data


@pytest.mark.parametrize("split", [{}, {"split": "val"}])  # that of the shipped configs, which are not asked
def test_a_share_is_held_out_by_name(build, photos, caplog, split):
    say_once.cache_clear()
    data = build(val=dict(fraction=0.2, **split), split=None)
    train, val = set(data.train.source.names), set(data.val.source.names)
    assert train.isdisjoint(val)
    assert train | val == {path.name for path in photos.iterdir()}
    assert f"{len(train)} train, {len(val)} held out by name" in caplog.text
    for i in range(40, 60):
        (photos / f"{i}.png").write_bytes(b"")
    more = build(val=dict(fraction=0.2), split=None)
    assert val == {name for name in more.val.source.names if int(name[:2]) < 40}


@pytest.mark.parametrize("val", [{}, {"split": None}])
def test_a_flat_folder_is_not_measured_on_what_it_is_trained_on(build, val):
    with pytest.raises(DataError, match=r"data\.val\.fraction=0\.05, .*data\.val\.split, .*data\.val=None"):
        build(val={"root": str(build().train.source.folder), **val})
    assert build(val=None).val is None


@pytest.mark.parametrize("there", [[], ["train"]])
def test_a_split_that_is_lacking_says_how_to_do_without(build, photos, there):
    for split in there:
        (photos / split).mkdir()
        (photos / "00.png").rename(photos / split / "00.png")
    with pytest.raises(DataError, match=r"no split named .* set data\.train\.split=None data\.val\.fraction=0\.05"):
        build(val=dict(split="val"), split="train")


def test_what_is_held_out_has_no_root_of_its_own(build, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.val\.fraction=0\.2 holds out some .*root of its own"):
        build(val=dict(fraction=0.2, root=str(tmp_path)))
    with pytest.raises(ConfigError, match="it must be above 0 and below 1"):
        build(val=dict(fraction=1.5))


def test_another_share_held_out_is_another_training():
    before, after = ({"data": {"val": {"fraction": share, "image_size": 32}}} for share in (0.1, 0.2))
    assert config_diff(before, after) == {"data.val.fraction": (0.1, 0.2)}


def test_a_fraction_of_the_training_s_own_does_not_hide_what_is_measured(build):
    with pytest.raises(DataError, match="are also trained on"):
        build(fraction=0.3, val={})
