"""Every way to pack images gives the same training: the same items, order, buckets, and counting of what is broken."""

import pickle
import shutil

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from aligntok.data.images import ImageDataset, assign_buckets, find_buckets
from aligntok.data.loader import contents_of
from aligntok.data.sampler import GlobalBatchSampler, SampleIndex
from aligntok.data.sources import open_source
from aligntok.data.transforms import read_upright_size
from aligntok.errors import DataError

SIZES = [(16, 16), (16, 24), (24, 16)]


@pytest.fixture(params=["shards", "pattern", "parquet", "saved"])
def packed(request):
    """A root with the images of `class_folders`, and what its split is called."""
    kind = "shards" if request.param == "pattern" else request.param
    root = request.getfixturevalue(f"as_{kind}")()
    return f"{root}/photos-train-{{0000..0002}}.tar" if request.param == "pattern" else root


def batches(dataset, steps=5, start_step=0, rank=0, world_size=1, **loader):
    place = {"rank": rank, "world_size": world_size, "num_steps": steps, "start_step": start_step}
    sampler = GlobalBatchSampler(len(dataset), 4, seed=3, buckets=dataset.buckets, **place)
    return list(DataLoader(dataset, batch_sampler=sampler, **loader))


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in ("images", "label", "index")
    )


def test_its_items_are_those_of_the_folder_it_was_packed_from(packed, class_folders):
    dataset, folder = ImageDataset(packed, 16), ImageDataset(class_folders, 16)
    assert len(dataset) == 12
    for index in range(12):
        assert dataset.source.read(index) == folder.source.read(index)
        one, other = dataset[SampleIndex(index, 7)], folder[SampleIndex(index, 7)]
        assert torch.equal(one["images"], other["images"])
        assert (one["label"], one["index"]) == (other["label"], other["index"]) == (index // 4, index)


def test_its_batches_are_those_of_the_folder_also_in_buckets(packed, class_folders):
    for sizes in (16, SIZES):
        assert same(batches(ImageDataset(packed, sizes)), batches(ImageDataset(class_folders, sizes)))


def test_a_later_step_sees_what_it_would_have_seen(packed):
    for sizes in (16, SIZES):
        dataset = ImageDataset(packed, sizes)
        assert same(batches(dataset)[3:], batches(dataset, start_step=3))


def test_two_processes_see_together_what_one_sees(packed):
    whole = batches(ImageDataset(packed, SIZES))
    shares = [batches(ImageDataset(packed, SIZES), rank=rank, world_size=2) for rank in range(2)]
    joined = [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in zip(*shares, strict=True)]
    assert same(whole, joined)


def test_workers_change_nothing(packed):
    dataset = ImageDataset(packed, 16)
    dataset[0]  # opens what there is to open here, before any worker is forked
    assert same(batches(dataset), batches(dataset, num_workers=2, multiprocessing_context="fork"))


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_a_spawned_worker_changes_nothing(kind, request):
    dataset = ImageDataset(request.getfixturevalue(f"as_{kind}")(), 16)
    spawned = batches(dataset, steps=2, num_workers=1, multiprocessing_context="spawn")
    assert same(batches(dataset, steps=2), spawned)


def test_a_pickled_source_reads_the_same_bytes(packed):
    source = open_source(packed)
    expected = [source.read(index) for index in range(12)]
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(index) for index in range(12)] == expected
    assert list(again.names) == list(source.names)
    assert len(set(source.names)) == 12


def test_headers_are_read_by_several_threads(packed):
    source, buckets = open_source(packed), ImageDataset(packed, SIZES).shapes
    assert [read_upright_size(source, index) for index in range(3)] == [(40, 30), (30, 40), (32, 32)]
    requests = list(range(12)) * 100
    expected = [buckets.nearest(*[(40, 30), (30, 40), (32, 32)][index % 3]) for index in requests]
    assert assign_buckets(source, buckets, requests).tolist() == expected


def test_buckets_are_kept_for_another_process_that_opens_the_same(packed, tmp_path, monkeypatch):
    first = find_buckets(ImageDataset(packed, SIZES), tmp_path / "run")
    monkeypatch.setattr("aligntok.data.images.assign_buckets", lambda *a, **k: pytest.fail("looked again"))
    assert find_buckets(ImageDataset(packed, SIZES), tmp_path / "run").tolist() == first.tolist()


def test_a_split_asked_for_by_the_configs_is_found(packed):
    assert len(ImageDataset(packed, 16, split="train")) == 12
    with pytest.raises(DataError, match="'val'"):
        ImageDataset(packed, 16, split="val")


@pytest.fixture
def two_broken_images(class_folders):
    for name in ("ant/01.png", "zebra/11.png"):
        (class_folders / name).write_bytes(b"not an image")


@pytest.mark.usefixtures("two_broken_images")
def test_what_is_broken_is_skipped_counted_and_an_error_past_the_limit(packed, caplog):
    dataset = ImageDataset(packed, 16, max_unreadable=2)
    assert [dataset[index]["index"] for index in range(12)] == [0, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]
    assert dataset.num_unreadable == 2
    assert len(caplog.records) == 2
    strict = ImageDataset(packed, 16, max_unreadable=1)
    with pytest.raises(DataError, match=r"2 of 12 images cannot be read, .*(11\.png|row 11 of) .*1 are allowed"):
        [strict[index] for index in range(12)]


@pytest.mark.usefixtures("two_broken_images")
def test_workers_tell_the_training_process_what_they_could_not_read(packed):
    dataset = ImageDataset(packed, SIZES, max_unreadable=2)
    shown = torch.cat([batch["index"] for batch in batches(dataset, num_workers=2, steps=6)])
    assert dataset.num_unreadable == 2
    assert not {1, 11} & set(shown.tolist())


# What lies at a root


@pytest.mark.parametrize("pair", [("shards", "parquet"), ("shards", "folder"), ("parquet", "folder")])
def test_a_folder_of_two_kinds_is_refused(pair, tmp_path, request):
    for kind in pair:
        if kind == "folder":
            shutil.copytree(request.getfixturevalue("class_folders"), tmp_path / "mixed", dirs_exist_ok=True)
        else:
            request.getfixturevalue(f"as_{kind}")(tmp_path / "mixed")
    with pytest.raises(DataError, match=r"mixed holds images of several kinds: \S+ and \S+; move one kind away"):
        open_source(tmp_path / "mixed")


def test_names_of_files_may_tell_two_kinds_apart(class_folders, as_shards, as_parquet):
    as_shards(class_folders, stem="train")  # beside loose images, which have no split
    as_parquet(class_folders, stem="val")
    assert "train-0000.tar" in open_source(class_folders, "train").names[0]
    assert open_source(class_folders, "val").names[0] == "row 0 of folder:val"


def test_a_subfolder_named_as_the_split_comes_before_files_named_so(class_folders, as_shards, tmp_path):
    as_shards(tmp_path / "set", stem="ILSVRC-train")  # as the archive of ImageNet lies beside what it held
    shutil.copytree(class_folders, tmp_path / "set" / "train")
    assert open_source(tmp_path / "set", "train").class_names == ("ant", "bee", "zebra")


@pytest.mark.parametrize("kind", ["shards", "parquet", "saved"])
def test_a_split_is_a_subfolder(kind, tmp_path, request):
    pack = request.getfixturevalue(f"as_{kind}")
    if kind == "saved":
        pack(tmp_path / "set")
    else:
        pack(tmp_path / "set" / "train", stem="photos")
        pack(tmp_path / "set" / "val", stem="photos")
        with pytest.raises(DataError, match=r"set holds the splits train, val; choose one with `split`"):
            open_source(tmp_path / "set")
    assert len(open_source(tmp_path / "set", "train/")) == 12
    with pytest.raises(DataError, match=r"no split named 'trian'; did you mean 'train'\?"):
        open_source(tmp_path / "set", "trian")


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_of_a_subfolder_every_file_is_taken_whatever_its_name(kind, tmp_path, request):
    for stem in ("photos-train", "photos-test"):
        request.getfixturevalue(f"as_{kind}")(tmp_path / "set" / "train", stem=stem)
    assert len(open_source(tmp_path / "set", "train")) == 24


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_a_split_is_a_word_in_the_names(kind, tmp_path, request):
    pack = request.getfixturevalue(f"as_{kind}")
    pack(tmp_path / "set", stem="photos-train")
    pack(tmp_path / "set", stem="photos_validation")
    pack(tmp_path / "set", stem="restrained")
    for split in ("train", "validation", "val"):
        assert len(open_source(tmp_path / "set", split)) == 12
    with pytest.raises(
        DataError, match=r"no split named 'tests'.* known: train, validation; no file .*: name the files by split"
    ):
        open_source(tmp_path / "set", "tests")
    with pytest.raises(DataError, match=r"holds the splits train, validation; choose one"):
        open_source(tmp_path / "set")


def test_parquet_files_may_lie_under_data_as_in_a_repository_of_the_hub(as_parquet, tmp_path):
    as_parquet(tmp_path / "repository" / "data")
    (tmp_path / "repository" / "README.md").write_text("")
    assert len(open_source(tmp_path / "repository", "train")) == 12


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_one_file_is_a_source(kind, request):
    first = sorted(request.getfixturevalue(f"as_{kind}")().iterdir())[0]
    assert len(open_source(first)) == len(open_source(first, "train")) == {"shards": 5, "parquet": 7}[kind]


@pytest.mark.parametrize("address", ["https://host/train-{0000..0003}.tar", "s3://bucket/set", "pipe:cat train.tar"])
def test_what_cannot_be_sought_is_refused(address):
    with pytest.raises(DataError, match=r"is an address; images are read at any place, so they must lie on a disk"):
        open_source(address)


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [
        ("shards", "webdataset.tariterators", "shards"),
        ("pattern", "webdataset.shardlists", "shards"),
        ("parquet", "datasets", "parquet"),
        ("saved", "datasets", "parquet"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(kind, module, extra, request, monkeypatch):
    root = request.getfixturevalue(f"as_{'shards' if kind == 'pattern' else kind}")()
    for name in {module, module.partition(".")[0]}:
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(DataError, match=rf'None in sys.modules; pip install "aligntok\[{extra}\]"'):
        open_source(f"{root}/photos-train-{{0000..0002}}.tar" if kind == "pattern" else root)


@pytest.mark.parametrize("kind", ["class_folders", "as_shards", "as_parquet", "as_saved"])
def test_a_copy_elsewhere_has_the_same_contents_and_a_part_has_others(kind, request, tmp_path):
    made = request.getfixturevalue(kind)
    here = made if kind == "class_folders" else made()
    shutil.copytree(here, tmp_path / "elsewhere" / here.name)
    one, other = (contents_of(ImageDataset(root, 16)) for root in (here, tmp_path / "elsewhere" / here.name))
    assert one == other
    assert contents_of(ImageDataset(here, 16, fraction=0.3)) != one
    assert contents_of(Subset(ImageDataset(here, 16), [0, 1])) != one
    plain = type("Plain", (), {"source": "a plugin's own", "__len__": lambda self: 3})()
    assert contents_of(plain)["items"] == 3
