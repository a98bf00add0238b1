"""Shards as img2dataset writes them, and as parquet files, of a few images of several sizes with captions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from aligntok.data.index.build import build_index
from aligntok.data.settings import IndexRequest

_spec = importlib.util.spec_from_file_location("packing", Path(__file__).with_name("packing.py"))
packing = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(packing)


@pytest.fixture
def shards(tmp_path):
    """A folder of tar shards, with a parquet file beside each."""
    for shard in range(packing.SHARDS):
        packing.write_tar(tmp_path / f"data/{shard:05d}.tar", packing.members_of(shard, known=False))
        known = [about for *_, about in packing.SAMPLES[shard * packing.EACH : (shard + 1) * packing.EACH]]
        lost = dict.fromkeys(known[0]) | dict(
            key="99999", url="https://a.org", status="failed"
        )  # as those that were not there
        packing.write_table(tmp_path / f"data/{shard:05d}.parquet", [lost, *reversed(known)])
    return tmp_path / "data"


@pytest.fixture
def tables(tmp_path):
    """A folder of parquet shards with the images in them."""
    for shard in range(packing.SHARDS):
        some = packing.SAMPLES[shard * packing.EACH : (shard + 1) * packing.EACH]
        rows = [{"image": {"bytes": image, "path": None}, **about} for image, _, about in some]
        packing.write_table(tmp_path / f"tables/{shard}.parquet", rows)
    return tmp_path / "tables"


@pytest.fixture
def build(tmp_path):
    """A function that builds an index of some words in this process, and opens it."""

    def build(*words, out="index", columns=packing.COLUMNS, **given):
        words = tuple(map(str, words))
        request = IndexRequest(shards=words, out=tmp_path / out, columns=columns, **{"workers": 0, **given})
        return build_index(request)

    return build
