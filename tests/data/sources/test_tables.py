"""Parquet files and Hugging Face data sets: which column holds the images, which the labels, and what is wrong."""

import os
import pickle

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligntok.data.images import ImageDataset
from aligntok.data.sources import open_source
from aligntok.data.sources.tables import RowSource
from aligntok.errors import DataError


@pytest.fixture
def encoded(class_folders):
    return [path.read_bytes() for path in sorted(class_folders.glob("*/*.png"))]


@pytest.fixture
def table(tmp_path):
    """A function that writes one parquet file of the columns given, without what the library says of their types."""

    def write(**columns):
        pq.write_table(pa.table(columns), tmp_path / "table.parquet")
        return tmp_path / "table.parquet"

    return write


def structs(encoded):
    return [{"bytes": data, "path": None} for data in encoded]


# Columns


def test_images_are_structs_with_bytes(table, encoded):
    source = open_source(table(picture=structs(encoded), caption=["text"] * 12))
    assert [source.read(index) for index in range(12)] == encoded
    assert source.labels.tolist() == [-1] * 12
    assert source.class_names == ()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_images_are_a_column_of_bytes_that_decode(table, encoded, kind):
    first_missing = pa.array([None, *encoded[1:]], kind)
    source = open_source(table(jpg=first_missing, embedding=[b"\x00\x01"] * 12))
    assert [source.read(index) for index in range(1, 12)] == encoded[1:]


def test_a_column_of_the_type_image_comes_before_others(as_dataset, encoded):
    both = as_dataset().add_column("raw", encoded).add_column("thumbnail", structs(encoded))
    assert RowSource("both", both).column == "image"


def test_several_columns_that_could_be_the_images_are_an_error(as_dataset, table, encoded):
    two = as_dataset().add_column("depth", structs(encoded), feature=datasets.Image())
    with pytest.raises(DataError, match=r"two: several columns could be the images: image, depth; its columns are"):
        RowSource("two", two)
    with pytest.raises(DataError, match=r"several columns could be the images: a, b; its columns are a \(struct\), b"):
        open_source(table(a=structs(encoded), b=structs(encoded)))


def test_no_column_that_could_be_the_images_is_an_error(table):
    with pytest.raises(DataError, match=r"no column could be the images; its columns are x \(binary\), y \(int64\)\."):
        open_source(table(x=[b"1", b"2"], y=[1, 2]))


def test_no_row_is_an_error(as_dataset):
    with pytest.raises(DataError, match="none holds no image: column 'image' has no rows"):
        RowSource("none", as_dataset().select([]))


def test_only_the_column_of_labels_is_read_for_the_labels(as_dataset, monkeypatch):
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **options: pytest.fail("an image was decoded"))
    monkeypatch.setattr(RowSource, "read", lambda *args: pytest.fail("a row was read"))
    source = RowSource("photos", as_dataset())
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.labels.dtype == np.int32
    assert source.class_names == ("ant", "bee", "zebra")


@pytest.mark.parametrize("name", ["label", "cls"])
def test_labels_may_be_integers(table, encoded, name):
    source = open_source(table(image=structs(encoded), **{name: pa.array([5, None, *range(10)], pa.int16())}))
    assert source.labels.tolist() == [5, -1, *range(10)]
    assert source.class_names == ()


def test_a_label_that_is_neither_integer_nor_text_is_no_label(table, encoded):
    assert set(open_source(table(image=structs(encoded), label=[1.0] * 12)).labels.tolist()) == {-1}


@pytest.mark.parametrize("wrong", [-2, 2**40])
def test_a_label_that_is_no_class_index_is_refused(table, encoded, wrong):
    with pytest.raises(DataError, match=r"column 'label' holds .*; class indices are 0, 1, \.\.\., or -1"):
        open_source(table(image=structs(encoded), label=[wrong] + [0] * 11))


def test_labels_that_no_file_should_have_are_refused(table, encoded, as_dataset):
    text = pa.py_buffer(b"\xff" * 12)  # no UTF-8, which the file says that it is
    places = pa.py_buffer(np.arange(13, dtype=np.int32))
    broken = pa.Array.from_buffers(pa.string(), 12, [None, places, text])
    for labels in (broken, pa.array([2**63 + 5] * 12, pa.uint64())):
        with pytest.raises(DataError, match=r"column 'label' cannot be read .*; correct that column, or choose"):
            open_source(table(image=structs(encoded), label=labels))
    few = as_dataset().cast_column("label", datasets.Value("int64"))
    few = few.cast_column("label", datasets.ClassLabel(names=["ant", "bee", "zebra"]))
    assert RowSource("few", few).class_names == ("ant", "bee", "zebra")
    few.info.features["label"].names = ["ant", "bee"]  # as a file may say, which nobody holds against its rows
    with pytest.raises(DataError, match="labels in column 'label' reach to 2, and there are names of 2 classes"):
        RowSource("few", few)


def test_the_only_class_column_is_taken_whatever_its_name_but_not_one_of_two(as_dataset):
    fine = as_dataset().rename_column("label", "fine")
    assert RowSource("fine", fine).class_names == ("ant", "bee", "zebra")
    both = fine.add_column("coarse", [0] * 12, feature=datasets.ClassLabel(names=["animal"]))
    with pytest.raises(DataError, match="both: labels are in fine and in coarse; choose one"):
        RowSource("both", both)


# Rows


def test_a_row_without_bytes_is_read_from_its_path(class_folders, encoded):
    paths = [str(path) for path in sorted(class_folders.glob("*/*.png"))]
    source = RowSource("paths", datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image()))
    assert [source.read(index) for index in range(12)] == encoded


def test_rows_that_lack_their_image_are_unreadable(table, encoded):
    rows = structs(encoded)
    rows[3], rows[8] = None, {"bytes": None, "path": "nowhere.png"}
    root = table(image=rows)
    source = open_source(root)
    with pytest.raises(ValueError, match="holds neither bytes nor a path"):
        source.read(3)
    with pytest.raises(OSError):
        source.read(8)
    dataset = ImageDataset(root, 16, max_unreadable=1)
    assert dataset[3]["index"] == 4
    with pytest.raises(DataError, match=r"2 of 12 images cannot be read, row 8 of table\.parquet the latest"):
        dataset[8]


def test_rows_of_a_shuffled_data_set_keep_their_labels(as_dataset, encoded):
    shuffled = as_dataset().shuffle(seed=0)
    source = pickle.loads(pickle.dumps(RowSource("shuffled", shuffled)))
    order = [encoded.index(source.read(index)) for index in range(12)]
    assert sorted(order) == list(range(12)) != order
    assert source.labels.tolist() == [place // 4 for place in order]


def test_the_fingerprint_follows_the_rows_and_not_the_time(table, encoded, arrow_cache):
    root = table(image=structs(encoded))
    first = open_source(root).names.digest()
    (file,) = arrow_cache.rglob("*.arrow")
    written = file.stat().st_mtime_ns
    assert open_source(root).names.digest() == first
    assert file.stat().st_mtime_ns == written, "the cache was written again"
    os.utime(root, (1, 1))  # as in the copy of another node
    assert open_source(root).names.digest() == first
    for other in ({"image": structs(encoded[:11])}, {"image": structs([*encoded[:11], encoded[0] * 9])}):
        assert open_source(table(**other)).names.digest() != first
    labelled = [open_source(table(image=structs(encoded), label=[number] * 12)).names.digest() for number in (0, 1)]
    assert len({first, *labelled}) == 3


# What is wrong


def test_a_folder_may_have_a_name_that_looks_like_a_pattern(as_parquet, tmp_path):
    assert len(open_source(as_parquet(tmp_path / "set [v1] * {a}"))) == 12


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", None])
def test_a_damaged_parquet_file_is_one_clear_error(as_parquet, content):
    root = as_parquet()
    file = root / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-50] if content is None else content)
    with pytest.raises(DataError, match=r"parquet cannot be opened \(.*\); copy the files again"):
        open_source(root)


def test_a_damaged_saved_data_set_is_one_clear_error(as_saved):
    root = as_saved()
    (root / "train" / "state.json").unlink()
    for place, split in ((root, "train"), (root / "train", None)):
        with pytest.raises(DataError, match=r"cannot be opened \(.*\); save the data set again with `save_to_disk`"):
            open_source(place, split)


def test_the_split_of_a_saved_dictionary_is_chosen(as_dataset, tmp_path):
    splits = {"train": as_dataset(0, 8), "validation": as_dataset(8, 12)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "both")
    assert len(open_source(tmp_path / "both", "train")) == 8
    assert len(open_source(tmp_path / "both", "val")) == 4
    with pytest.raises(DataError, match="both holds the splits train, validation; choose one with `split`"):
        open_source(tmp_path / "both")
    with pytest.raises(DataError, match=r"no split named 'trian'; did you mean 'train'\? known: train, validation"):
        open_source(tmp_path / "both", "trian")


def test_one_saved_data_set_has_no_splits(as_dataset, tmp_path):
    as_dataset().save_to_disk(tmp_path / "one")
    assert len(open_source(tmp_path / "one")) == 12
    with pytest.raises(DataError, match="one has no split 'train': one data set was saved there"):
        open_source(tmp_path / "one", "train")


# The hub


@pytest.fixture
def hub(as_dataset, monkeypatch):
    """A hub with one data set, `owner/name`, and a list of what was asked of it."""
    asked, splits = [], {"train": as_dataset(0, 8), "validation": as_dataset(8, 12)}

    def load_dataset(name, split=None):
        asked.append((name, split))
        if split is not None and split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return splits if split is None else splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_data_set_of_the_hub_is_asked_for_by_its_name_and_split(hub, encoded):
    dataset = ImageDataset("hf://owner/name", 16, split="train")
    assert hub == [("owner/name", "train")]
    assert len(dataset) == 8
    assert dataset.source.read(3) == encoded[3]
    assert dataset.source.names[3] == "row 3 of name:train"
    assert dataset.class_names == ("ant", "bee", "zebra")


def test_val_is_also_called_validation(hub):
    assert len(open_source("hf://owner/name", "val")) == 4
    assert hub == [("owner/name", "val"), ("owner/name", "validation")]


def test_a_split_that_the_hub_does_not_know_is_an_error_with_those_it_does(hub):
    with pytest.raises(DataError, match=r"hf://owner/name:tset cannot be opened \(Unknown split \"tset\".*\['train'"):
        open_source("hf://owner/name", "tset")
    with pytest.raises(DataError, match="hf://owner/name holds the splits train, validation; choose one with `split`"):
        open_source("hf://owner/name")


@pytest.mark.parametrize("wrong", ["hf://", "hf://name", "hf://owner/name/more", "hf:// owner/name"])
def test_a_name_that_is_none_of_the_hub_is_refused(hub, wrong):
    with pytest.raises(DataError, match="names no data set of the hub; write hf://owner/name"):
        open_source(wrong)
    assert not hub


def test_without_a_connection_the_hub_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf://owner/name:train cannot be opened \(.*owner/name.*\); check the name"):
        open_source("hf://owner/name", "train")
