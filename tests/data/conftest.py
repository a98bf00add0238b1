"""The same few images, packed in every way that a data set may be."""

from __future__ import annotations

import io
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

SHAPES = [(40, 30), (30, 40), (32, 32)]
CLASSES = ("ant", "bee", "zebra")


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path, monkeypatch):
    """The folder where parquet files are unpacked."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow_cache"))
    return tmp_path / "arrow_cache"


@pytest.fixture
def class_folders(tmp_path):
    """Twelve images of three shapes in three class folders."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "folder" / CLASSES[number // 4] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*SHAPES[number % 3], 3), dtype=np.uint8)).save(path)
    return tmp_path / "folder"


def _members(folder):
    """The images of class folders in order, as (name, bytes, class index)."""
    paths = sorted(folder.glob("*/*.png"))
    return [(path.name, path.read_bytes(), CLASSES.index(path.parent.name)) for path in paths]


@pytest.fixture(scope="session")
def write_tar():
    """A function that writes a tar from (name, bytes) pairs."""

    def write(path, members):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for name, data in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def as_shards(class_folders, tmp_path, write_tar):
    """A function that packs the images into a folder of three shards of unequal length."""

    def pack(folder=tmp_path / "shards", stem="photos-train"):
        members = _members(class_folders)
        for number, (first, last) in enumerate([(0, 5), (5, 6), (6, 12)]):
            entries = []
            for name, data, label in members[first:last]:
                entries += [(name, data), (name.replace(".png", ".cls"), str(label).encode())]
            write_tar(folder / f"{stem}-{number:04d}.tar", entries)
        return folder

    return pack


@pytest.fixture
def as_dataset(class_folders):
    """A function that makes a data set of the images, whose classes have names."""

    def make(first=0, last=12):
        names, encoded, labels = zip(*_members(class_folders)[first:last], strict=True)
        images = [{"bytes": data, "path": name} for name, data in zip(names, encoded, strict=True)]
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
        return datasets.Dataset.from_dict({"image": images, "label": list(labels)}, datasets.Features(kinds))

    return make


@pytest.fixture
def as_parquet(as_dataset, tmp_path):
    """A function that packs the images into a folder of two parquet files."""

    def pack(folder=tmp_path / "parquet", stem="train"):
        folder.mkdir(parents=True, exist_ok=True)
        for number, (first, last) in enumerate([(0, 7), (7, 12)]):
            as_dataset(first, last).to_parquet(folder / f"{stem}-{number:05d}-of-00002.parquet")
        return folder

    return pack


@pytest.fixture
def as_saved(as_dataset, tmp_path):
    """A function that saves the images as a dictionary of one split."""

    def pack(folder=tmp_path / "saved", split="train"):
        datasets.DatasetDict({split: as_dataset()}).save_to_disk(folder)
        return folder

    return pack
