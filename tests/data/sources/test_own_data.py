"""Nothing of a user's own data is dropped, numbered or measured on without a word, whatever they are packed in."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
import types
import unicodedata
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligntok.data import transforms
from aligntok.data.images import ImageDataset
from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource, PackedNames, say_once
from aligntok.data.sources.held_out import check_apart, hold_out
from aligntok.data.sources.tables import RowSource
from aligntok.errors import ConfigError, DataError

TREES = ("folder", "zip")


@pytest.fixture(autouse=True)
def said(caplog):
    """What is said, anew in each test."""
    say_once.cache_clear()
    caplog.set_level(logging.WARNING, "aligntok.data")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def tree(tmp_path, write_tar):
    """A function that packs files, bytes by path, into a folder, a zip or a shard."""

    def pack(kind, files):
        if kind == "folder":
            for name, data in files.items():
                (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "tree" / name).write_bytes(data)
            return tmp_path / "tree"
        if kind == "zip":
            with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
                for name, data in files.items():
                    archive.writestr(name, data)
            return tmp_path / "tree.zip"
        return write_tar(tmp_path / "tree.tar", files.items())

    return pack


@pytest.fixture
def table(tmp_path):
    """A function that packs columns into a parquet file, a saved data set, or one of the hub."""

    def pack(kind, **columns):
        if kind == "parquet":
            pq.write_table(pa.table(columns), tmp_path / "table.parquet")
            return open_source
        return lambda root, **options: RowSource("hub", datasets.Dataset(pa.table(columns)), **options)

    return lambda kind, **columns: lambda **options: pack(kind, **columns)(tmp_path / "table.parquet", **options)


def encoded(value=0, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def images(*names):
    return {name: encoded(number) for number, name in enumerate(names)}


# Images beside class folders


@pytest.mark.parametrize("kind", TREES)
def test_an_image_beside_class_folders_is_left_out_and_counted(kind, tree, said):
    source = open_source(tree(kind, images("cat/a.png", "dog/b.png", "preview.png")))
    assert (source.class_names, source.labels.tolist(), [*source.names]) == (
        ("cat", "dog"),
        [0, 1],
        ["cat/a.png", "dog/b.png"],
    )
    assert [
        text for text in said() if "left out 1 images that lie beside the class folders, such as preview.png" in text
    ]


@pytest.mark.parametrize("kind", TREES)
def test_a_flat_folder_with_a_few_images_in_a_subfolder_stays_whole_and_says_so(kind, tree, said):
    source = open_source(tree(kind, images("a.png", "b.png", "more/c.png")))
    assert (source.class_names, source.labels.tolist()) == ((), [-1] * 3)
    assert [text for text in said() if "no classes: 2 images lie beside folders that hold 1" in text]


@pytest.mark.parametrize("kind", TREES)
def test_splits_beside_another_folder_are_no_classes(kind, tree):
    with pytest.raises(DataError, match="holds the splits train, val; choose one"):
        open_source(tree(kind, images("train/cat/a.png", "val/cat/b.png", "figures/c.png", "d.png")))


@pytest.mark.parametrize("kind", TREES)
def test_a_class_folder_without_images_is_named_though_others_have_a_stray_image_beside(kind, tree):
    files = images("cat/a.png", "dog/b.png", "preview.png") | {"empty/notes.txt": b""}
    with pytest.raises(DataError, match="class folder without any image: empty; fill or remove it"):
        open_source(tree(kind, files))


# What is passed over


@pytest.mark.parametrize("kind", [*TREES, "shard"])
def test_images_are_read_whatever_their_suffix_and_without_one(kind, tree, said):
    files = {f"{i}{suffix}": encoded(i, name) for i, (suffix, name) in enumerate(
        {".avif": "AVIF", ".jfif": "JPEG", ".JPE": "JPEG", ".dib": "BMP", ".pgm": "PPM", "": "WEBP"}.items()
    )}  # fmt: skip
    dataset = ImageDataset(tree(kind, files), image_size=8)
    shown = sorted(round(float((dataset[i]["images"].mean() + 1) * 127.5)) for i in range(len(dataset)))
    assert shown == pytest.approx([0, 1, 2, 3, 4, 5], abs=2)
    assert not said()


@pytest.mark.parametrize("kind", [*TREES, "shard"])
def test_what_is_passed_over_is_counted_by_suffix_once(kind, tree, said):
    files = images("a.png", ".b.png", "._a.png")
    files |= {f"{i}.txt": b"a caption" for i in range(3)} | {
        "a.heic": b"",
        "LICENSE": b"Permission",
        "x.meta.json": b"{}",
    }
    root = tree(kind, files)
    for _ in range(2):
        assert len(open_source(root)) == 1
    (text,) = said()
    assert "passed over 7 files: 3 .txt, " in text
    assert all(
        part in text for part in ("1 .heic", "1 without suffix", "1 hidden", "1 .json", "Pillow opens .heic with")
    )


def test_a_source_without_images_counts_what_there_is(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no image \(1 other files: 1 \.heic\); images end in"):
        open_source(tmp_path)


def test_a_plugin_of_pillow_that_is_installed_is_used(tree, monkeypatch):
    def register_heif_opener():
        Image.register_open("HEIF", Image.OPEN["PNG"][0], Image.OPEN["PNG"][1])

    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = register_heif_opener
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(transforms, "find_spec", lambda name: name == "pillow_heif" or None)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    transforms._load_plugins.cache_clear()
    try:
        assert len(open_source(tree("folder", images("a.heic")))) == 1
    finally:
        transforms._load_plugins.cache_clear()


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_files_beside_shards_and_tables_are_counted(kind, request, said):
    root = request.getfixturevalue(f"as_{kind}")()
    for name in ("captions.csv", "more.tar.gz", "LICENSE", ".hidden"):
        (root / name).write_bytes(b"")
    open_source(root)
    (text,) = said()
    assert "passed over 3 files: " in text
    assert all(part in text for part in ("1 .csv", "1 .gz", "1 without suffix"))


@pytest.mark.parametrize("kind", TREES)
def test_class_folders_within_one_folder_are_told(kind, tree, said):
    source = open_source(tree(kind, images("photos/cat/a.png", "photos/dog/b.png")))
    assert source.class_names == ("photos",)
    assert said()[0].endswith("one class, 'photos', in whose folder are cat, dog; give that if they are classes")


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_columns_that_are_not_read_are_named(kind, table, said):
    table(kind, image=[encoded()], caption=["a cat"], url=["x"], label=[0])()
    assert [text for text in said() if text.endswith("columns that are not read: caption, url")]


# Labels


NAMES = ["zebra", "ant", None, "bee", "ant"]


def as_text(kind, tree, table):
    if kind in ("parquet", "hub"):
        return table(kind, image=[encoded(i) for i in range(5)], label=NAMES)()
    files = {}
    for i, name in enumerate(NAMES):
        files[f"{i}.png"] = encoded(i)
        if name and kind == ".cls":
            files[f"{i}.cls"] = f" {name}\n".encode()
        elif kind == ".json":
            files[f"{i}.json"] = json.dumps({"label": name, "caption": "an animal"}).encode()
    return open_source(tree("shard", files))


@pytest.mark.parametrize("kind", ["parquet", "hub", ".cls", ".json"])
def test_labels_of_text_are_classes_sorted_by_name(kind, tree, table, said):
    source = as_text(kind, tree, table)
    assert source.class_names == ("ant", "bee", "zebra")
    assert source.labels.tolist() == [2, 0, -1, 1, 0]
    if kind != "hub":
        assert [text for text in said() if text.endswith("1 of 5 images have no class")]


def test_numbers_in_json_are_indices(tree):
    files = {f"{i}.png": encoded() for i in range(4)}
    files |= {f"{i}.json": json.dumps({"cls": value}).encode() for i, value in enumerate([3, 0, True, [1]])}
    source = open_source(tree("shard", files))
    assert (source.labels.tolist(), source.class_names) == ([3, 0, -1, -1], ())


@pytest.mark.parametrize("second", [b"cat", b'{"label": "cat"}'])
def test_labels_that_are_numbers_and_names_are_refused(tree, second):
    first, kind = (b"3", "cls") if second == b"cat" else (b'{"label": 3}', "json")
    files = {**images("a.png", "b.png"), f"a.{kind}": first, f"b.{kind}": second}
    with pytest.raises(DataError, match="some labels are numbers, such as 3, and some names, such as 'cat'"):
        open_source(tree("shard", files))


@pytest.mark.parametrize("kind", ["parquet", "hub"])
@pytest.mark.parametrize("names", [("label", "cls"), ("fine_label", "coarse_label"), ("class_id", "class_name")])
def test_of_two_columns_of_labels_one_is_chosen(kind, names, table):
    columns = {names[0]: [3, 4], names[1]: ["b", "a"], "image": [encoded(0), encoded(1)]}
    opened = table(kind, **columns)
    with pytest.raises(DataError, match=f"labels are in {names[0]} and in {names[1]}; choose one with `label`"):
        opened()
    assert opened(label=names[0]).labels.tolist() == [3, 4]
    assert (opened(label=names[1]).labels.tolist(), opened(label=names[1]).class_names) == ([1, 0], ("a", "b"))
    assert opened(label="").labels.tolist() == [-1, -1]
    with pytest.raises(DataError, match=f"no column of numbers or text named 'lable'.*known: {names[0]}, {names[1]}"):
        opened(label="lable")


def test_a_column_of_labels_may_have_another_name(table):
    opened = table("parquet", image=[encoded()], species=["cat"], class_id=[4])
    assert opened().labels.tolist() == [4]
    assert opened(label="species").class_names == ("cat",)


def test_of_two_labels_of_a_shard_one_is_chosen_unless_they_are_the_same(tree):
    def root(inner, **more):
        files = {"a.png": encoded(), "a.cls": b"3", "a.json": json.dumps({"label": inner, **more}).encode()}
        return tree("shard", files)

    assert open_source(root(3)).labels.tolist() == [3]
    with pytest.raises(
        DataError, match=r"labels are in \.cls and in the key 'label' of \.json; choose one with `label`"
    ):
        open_source(root(4))
    chosen = {"cls": [3], "label": [4], "fine": [7], "": [-1]}
    for label, labels in chosen.items():
        assert open_source(root(4, fine=7), label=label).labels.tolist() == labels
    with pytest.raises(DataError, match="no sample has a label 'coarse'"):
        open_source(root(4), label="coarse")


@pytest.mark.parametrize("kind", TREES)
def test_the_classes_of_folders_are_not_chosen_but_may_be_left(kind, tree):
    root = tree(kind, images("cat/a.png"))
    with pytest.raises(DataError, match="label='fine' chooses a column of a table, or a member of shards"):
        open_source(root, label="fine")
    assert (open_source(root, label="").labels.tolist(), open_source(root, label="").class_names) == ([-1], ())


def test_classes_without_an_image_are_named(table, said, tmp_path):
    table("parquet", image=[encoded()] * 2, label=[0, 2])()
    kinds = {"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["a", "b"])}
    named = datasets.Dataset.from_dict({"image": [encoded()], "label": [1]}, datasets.Features(kinds))
    named.to_parquet(tmp_path / "named.parquet")
    open_source(tmp_path / "named.parquet")
    assert [text.rpartition(".parquet: ")[2] for text in said()] == [
        "1 of 3 classes have no image: 1",
        "1 of 2 classes have no image: a",
    ]


# Held out by name


class Listed(ImageSource):
    def __init__(self, names):
        super().__init__("listed", PackedNames(names))

    def read(self, index):
        return self.names[index].encode()


def held(names, fraction=0.05):
    return [*hold_out(Listed(names), fraction, held_out=True).names]


def test_what_is_held_out_follows_from_each_name_alone(said):
    names = [f"img{i:05d}.jpg" for i in range(15_000)]
    first = held(names[:10_000])
    assert len(first) == 498
    assert first == [name for name in held(names) if name in set(names[:10_000])]
    train = hold_out(Listed(names[:10_000]), 0.05, held_out=False)
    assert sorted([*train.names, *first]) == names[:10_000]
    assert said() == ["listed: 9,502 train, 498 held out by name"]
    assert set(first) <= set(held(names[:10_000], 0.1))
    assert train.read(7) == train.names[7].encode()


def test_a_name_is_held_out_in_whatever_way_its_accents_are_written():
    composed = [f"caf\u00e9{i}.jpg" for i in range(300)]
    decomposed = [unicodedata.normalize("NFD", name) for name in composed]
    assert [unicodedata.normalize("NFC", name) for name in held(decomposed)] == held(composed) != []


def test_of_a_few_one_is_held_out_and_one_is_left():
    assert len(held(["a", "b", "c"], 1e-9)) == 1
    assert held(["a", "b", "c"], 1e-9) == held(["c", "a", "b"], 1e-12)
    with pytest.raises(DataError, match=r"all 1 images are held out by fraction=0\.05, none is left"):
        held(["a"])
    with pytest.raises(ConfigError, match="held_out=True takes the images that a fraction holds out; give fraction="):
        open_source("anywhere", held_out=True)
    for wrong in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="it must be above 0 and below 1"):
            held(["a", "b"], wrong)


PACKED = ("folder", "shards", "parquet", "saved")


def packed(kind, class_folders, request):
    return class_folders if kind == "folder" else request.getfixturevalue(f"as_{kind}")()


@pytest.mark.parametrize("kind", PACKED)
def test_every_source_may_hold_out_and_keeps_classes_and_bytes(kind, class_folders, request):
    root = packed(kind, class_folders, request)
    whole, val = open_source(root), ImageDataset(root, 16, train=False, fraction=0.3, held_out=True)
    train = ImageDataset(root, 16, train=False, fraction=0.3)  # how it is cropped is another matter
    assert train.class_names == val.class_names == whole.class_names
    assert 0 < len(val) < len(train) < len(whole) == len(train) + len(val)
    place = {whole.read(index): index for index in range(len(whole))}
    for part in (train, val):
        for index in range(len(part)):
            there = place.pop(part.source.read(index))
            assert part[index]["label"] == whole.labels[there]
            assert part.source.names[index] == whole.names[there]
    assert not place
    marks = dict(zip(whole.names, zip(*whole.marks()[:2], strict=True), strict=True))
    for part in (train.source, val.source):
        assert [marks[name] for name in part.names] == [*zip(*part.marks()[:2], strict=True)]
    assert len({whole.names.digest(), train.source.names.digest(), val.source.names.digest()}) == 3


def test_a_zip_holds_out_what_its_folder_does(class_folders, tmp_path):
    root = shutil.make_archive(str(tmp_path / "photos"), "zip", class_folders)
    assert [*open_source(root, fraction=0.3).names] == [*open_source(class_folders, fraction=0.3).names]


# Training and validation on the same images


@pytest.mark.parametrize("kind", PACKED)
def test_a_source_measured_on_itself_is_refused(kind, class_folders, request, tmp_path):
    root = packed(kind, class_folders, request)
    with pytest.raises(DataError, match="images of .* are measured on that are also trained on, in .*; do this"):
        check_apart(open_source(root), open_source(root), "do this")
    shutil.copytree(root, tmp_path / "other")
    check_apart(open_source(root), open_source(tmp_path / "other"), "")
    check_apart(
        *(open_source(root, fraction=0.3, held_out=held) for held in (False, True)), ""
    ) if kind == "folder" else ""


def test_a_split_within_what_is_trained_on_is_refused(tree, tmp_path):
    root = tree("folder", images("cat/a.png", "cat/val/b.png", "dog/c.png"))
    with pytest.raises(DataError, match="are also trained on"):
        check_apart(open_source(root), open_source(root, "cat/val"), "")
    check_apart(open_source(root, "dog"), open_source(root, "cat"), "")
    for name, target in (("files/cat/b.png", root / "cat/a.png"), ("folders/cat", root / "cat")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(target)
        with pytest.raises(DataError, match="are also trained on"):
            check_apart(open_source(root), open_source(tmp_path / name.split("/")[0]), "")
        with pytest.raises(DataError, match="are also trained on"):
            check_apart(open_source(tmp_path / name.split("/")[0]), open_source(root), "")
    with pytest.raises(DataError, match="are also trained on"):  # both are links to the same
        check_apart(open_source(tmp_path / "files"), open_source(tmp_path / "folders"), "")
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(DataError, match="are also trained on"):
        check_apart(open_source(root), open_source(tmp_path / "link"), "")


def test_one_shard_or_file_in_both_is_enough(as_shards, as_parquet):
    shards, parquet = as_shards(), as_parquet()
    names = sorted(path.name for path in shards.iterdir())
    with pytest.raises(DataError, match="are also trained on"):
        check_apart(open_source(shards), open_source(shards / names[1]), "")
    check_apart(open_source(shards / names[0]), open_source(shards / names[1]), "")
    first, second = sorted(parquet.iterdir())
    with pytest.raises(DataError, match="are also trained on"):
        check_apart(open_source(parquet), open_source(second), "")
    check_apart(open_source(first), open_source(second), "")


@pytest.mark.parametrize(
    ("train", "val", "apart"),
    [
        ("train", "train", False),
        ("train", "train[:5%]", False),
        ("train[5%:]", "train", False),
        ("train[5%:]", "train[:5%]", True),
        ("train", "val", True),
    ],
)
def test_parts_of_a_split_at_the_hub_are_told_apart(train, val, apart, as_dataset, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: as_dataset())
    sources = [open_source("hf://owner/name", split) for split in (train, val)]
    if apart:
        check_apart(*sources, "")
    else:
        with pytest.raises(DataError, match="are also trained on"):
            check_apart(*sources, "")
