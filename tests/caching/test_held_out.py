"""A cache leaves out by name what a tokenizer's training held out, evaluations take that alone; labels are chosen."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligntok.caching.cache import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.data.images import ImageDataset
from aligntok.data.latents import LatentDataset
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.images import EvaluationImages
from aligntok.evaluation.settings import ImageSettings


def test_what_is_left_out_of_a_cache_is_what_an_evaluation_takes(classes, tiny_tokenizer, tmp_path):
    held = EvaluationImages(ImageSettings(data=classes, split="train", image_size=32, workers=0, val_fraction=0.3))
    kept = dict(
        tokenizer=tiny_tokenizer, data=classes, split="train", out=tmp_path / "latents", image_size=32, workers=0
    )
    cache_latents(CacheRequest(**kept, val_fraction=0.3))
    assert len(LatentDataset(tmp_path / "latents")) + len(held) == 15
    assert held.described["val_fraction"] == 0.3
    trained = ImageDataset(classes, 32, split="train", fraction=0.3).source
    assert {*trained.names}.isdisjoint(held.source.names)
    with pytest.raises(ConfigError, match="was begun otherwise .data of 9 images"):  # without those held out
        cache_latents(CacheRequest(**kept))


def test_a_cache_of_other_labels_is_another(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    images = [buffer.getvalue()] * 2
    pq.write_table(pa.table(dict(image=images, fine=["b", "a"], label=[0, 0], cls=[4, 5])), tmp_path / "t.parquet")
    kept = dict(
        tokenizer=tiny_tokenizer, data=tmp_path / "t.parquet", out=tmp_path / "latents", image_size=32, workers=0
    )
    with pytest.raises(DataError, match="labels are in label and in cls; choose one with `label`"):
        cache_latents(CacheRequest(**kept))
    cache_latents(CacheRequest(**kept, label="fine"))
    made = LatentDataset(tmp_path / "latents")
    assert (made.labels.tolist(), made.class_names) == ([1, 0], ("a", "b"))
    with pytest.raises(ConfigError, match="was begun otherwise .*label fine, now cls"):
        cache_latents(CacheRequest(**kept, label="cls"))
