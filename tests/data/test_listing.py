"""What changed in a data set between two starts is counted, whatever it is packed in; a copy of it has not changed."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from aligntok.data import listing
from aligntok.data.images import ImageDataset, find_buckets
from aligntok.data.listing import LISTING, Changes, Listing, must_not_change
from aligntok.data.sources import open_source
from aligntok.errors import DataError

NAMES = [f"{label}/{i:02d}.bmp" for label in ("ant", "bee") for i in range(10)]  # a bitmap's size is its pixels'


def image(value, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "BMP")
    return file.getvalue()


def folder(path, images):
    shutil.rmtree(path, ignore_errors=True)
    for name, data in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def archive(path, images):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in images.items():
            file.writestr(name, data)
    return path.with_suffix(".zip")


def shards(path, images):
    with tarfile.open(path.with_suffix(".tar"), "w") as file:
        for name, data in images.items():
            for member, content in ((name, data), (name.replace("bmp", "cls"), b"0" if "ant" in name else b"1")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path.with_suffix(".tar")


def table(path, images):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [*images.values()], "label": [int("bee" in name) for name in images]}
    datasets.Dataset.from_dict(rows).to_parquet(str(path.with_suffix(".parquet")))
    return path.with_suffix(".parquet")


@pytest.fixture
def images():
    return {name: image(i) for i, name in enumerate(NAMES)}


def later(path):
    """Every file a minute younger: as a copy, or as what was written anew."""
    for file in [path, *path.rglob("*")]:
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 60 * 10**9))
    return path


def compare(before, path):
    source = open_source(path)
    return before.changes(Listing.of(source), source)


@pytest.mark.parametrize("pack", [folder, archive, shards, table])
def test_what_changed_is_counted_whatever_holds_it(tmp_path, images, pack, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    before = Listing.of(open_source(pack(tmp_path / "data", images)))
    assert compare(before, tmp_path / f"data{'' if pack is folder else open_suffix(pack)}") is None
    replaced = {**images, NAMES[3]: image(200), NAMES[15]: image(201)}
    found = compare(before, later(pack(tmp_path / "data", replaced)))
    assert (found.changed, found.added, found.removed, found.relabelled) == (2, 0, 0, 0)
    assert compare(before, later(pack(tmp_path / "data", images))) is None


def open_suffix(pack):
    return {archive: ".zip", shards: ".tar", table: ".parquet"}[pack]


def test_new_ones_lost_ones_and_other_sizes_are_counted_and_one_is_named(tmp_path, images):
    before = Listing.of(open_source(folder(tmp_path / "data", images)))
    now = {name: data for name, data in images.items() if name not in NAMES[:3]}
    now |= {"bee/x.bmp": image(1), NAMES[12]: image(7, (9, 9))}
    found = compare(before, folder(tmp_path / "data", now))
    assert found == Changes(changed=1, added=1, removed=3, relabelled=0, first=NAMES[12])
    assert str(found) == f"1 changed, 1 new, 3 gone, {NAMES[12]} among them"


def test_another_class_of_the_same_image_is_told_apart(tmp_path, images):
    before = Listing.of(open_source(shards(tmp_path / "data", images)))
    source = open_source(tmp_path / "data.tar")
    source.labels = 1 - source.labels
    assert before.changes(Listing.of(source), source).relabelled == 20


def test_images_move_between_a_folder_and_an_archive(tmp_path, images):
    one, other = open_source(folder(tmp_path / "data", images)), open_source(archive(tmp_path / "packed", images))
    assert Listing.of(one).changes(Listing.of(other), other) is None
    assert Listing.of(other).changes(Listing.of(one), one) is None
    changed = open_source(archive(tmp_path / "packed", {**images, NAMES[0]: image(99)}))
    assert Listing.of(one).changes(Listing.of(changed), changed).changed == 1


def test_of_many_images_a_few_are_looked_at_and_stand_for_the_rest(tmp_path, images, monkeypatch):
    monkeypatch.setattr(listing, "SAMPLED", 10)
    before = Listing.of(open_source(folder(tmp_path / "data", images)))
    assert compare(before, later(tmp_path / "data")) is None  # a copy
    half = {name: image(100 + i) if i >= 10 else data for i, (name, data) in enumerate(images.items())}
    assert compare(before, later(folder(tmp_path / "data", half))).changed == 10  # five of ten looked at, and so of 20
    before = Listing.of(open_source(folder(tmp_path / "data", images)))
    (tmp_path / "data" / NAMES[1]).write_bytes(image(90))  # nobody looked at it, and its time alone says so
    assert compare(before, tmp_path / "data").changed == 1


def test_a_listing_is_kept_and_read_again_and_refused_when_damaged(tmp_path, images):
    source = open_source(folder(tmp_path / "data", images))
    made = Listing.of(source)
    made.write(tmp_path)
    found = Listing.read(tmp_path)
    assert found.digest == made.digest
    assert found.described() == {"digest": made.digest, "images": 20, "class_names": ["ant", "bee"]}
    assert found.changes(made, source) is None
    assert Listing.read(tmp_path / "data") is None
    content = bytearray((tmp_path / LISTING).read_bytes())
    content[200] ^= 1
    (tmp_path / LISTING).write_bytes(content)
    with pytest.raises(DataError, match=r"listing\.npz cannot be read \(its SHA-256 .*remove that file to go on"):
        Listing.read(tmp_path)


SPOILED = {
    "sizes": np.zeros(1, dtype=np.int64),
    "names": np.zeros((20, 1), dtype=np.int64),
    "labels": np.array(["a"] * 20),
    "marks": np.zeros(20),
    "sampled": np.array([10**9] * 20),
    "digests": np.zeros(3, dtype=np.int64),
    "captions": np.zeros(3, dtype=np.int64),
    "by_content": np.zeros(2, dtype=bool),
    "class_names": np.frombuffer(b"[1, 2]", dtype=np.uint8),
}


@pytest.mark.parametrize("name", [*SPOILED, "gone", "packed"])
def test_columns_of_other_types_and_lengths_are_told(tmp_path, images, name):
    Listing.of(open_source(folder(tmp_path / "data", images))).write(tmp_path)
    (tmp_path / f"{LISTING}.sha256").unlink()
    with np.load(tmp_path / LISTING) as file:
        held = dict(file)
    if name == "packed":  # a file of some bytes that would fill the memory
        np.savez_compressed(tmp_path / LISTING, **{**held, "captions": np.zeros(10**6, dtype=np.int64)})
    elif name == "gone":
        np.savez(tmp_path / LISTING, **{key: value for key, value in held.items() if key != "marks"})
    else:
        np.savez(tmp_path / LISTING, **{**held, name: SPOILED[name]})
    with pytest.raises(DataError, match=r"listing\.npz cannot be read \(.*\); remove that file to go on without"):
        Listing.read(tmp_path)
    np.savez(tmp_path / LISTING, **held)
    assert len(Listing.read(tmp_path).names) == 20


def test_a_folder_is_refused_for_other_images_or_classes(tmp_path, images):
    made = tmp_path / "made"
    source = open_source(folder(tmp_path / "data", images))
    must_not_change(made, source)
    must_not_change(made, source)
    source.class_names = ("ant", "wasp")
    with pytest.raises(DataError, match=r"made was begun with other images .*\(classes ant, bee, now ant, wasp\)"):
        must_not_change(made, source)
    (tmp_path / "data" / NAMES[0]).unlink()
    with pytest.raises(DataError, match=r"\(1 gone\); put them back, or make it anew in another folder"):
        must_not_change(made, open_source(tmp_path / "data"))


def test_buckets_follow_the_images(tmp_path, images, caplog):
    """Replaced by ones of another shape, or damaged: the headers are read again."""
    sizes, kept = [(8, 8), (8, 16)], tmp_path / "run"

    def found():
        return find_buckets(ImageDataset(tmp_path / "data", image_size=sizes), kept).tolist()

    folder(tmp_path / "data", images)
    assert found() == [0] * 20
    folder(tmp_path / "data", {**images, NAMES[4]: image(1, (16, 8))})
    assert found() == [int(i == 4) for i in range(20)]
    (file,) = kept.glob("*.npy")
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    assert found() == [int(i == 4) for i in range(20)]
    assert f"sizes of images are read again: {file} is damaged (its SHA-256 is not the one in" in caplog.text
    assert np.load(file).tolist() == found()
    for wrong in (np.full(20, 7, dtype=np.uint8), np.zeros(21, dtype=np.uint8), np.zeros(20)):
        file.with_name(f"{file.name}.sha256").unlink(missing_ok=True)
        np.save(file, wrong)
        assert found() == [int(i == 4) for i in range(20)]
