"""The image data set: listing, clear errors, unreadable files, and randomness that follows from the sample number."""

import logging
import multiprocessing
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from aligntok.data.images import ImageDataset
from aligntok.data.sampler import GlobalBatchSampler, SampleIndex
from aligntok.data.sources import open_source
from aligntok.errors import ConfigError, DataError
from aligntok.registry import DATASETS


def write_images(folder, count, seed=0, size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def classes(tmp_path):
    for seed, name in enumerate(["zebra", "ant", "bee"]):
        write_images(tmp_path / "photos" / name, 4, seed)
    return tmp_path / "photos"


def pack(folder, archive, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(archive, "w", method) as target:
        for path in sorted(folder.rglob("*"), reverse=True):
            target.write(path, path.relative_to(folder))
    return archive


def spoil(folder, names):
    for name in names:
        (folder / name).write_bytes(b"not an image")


def same_items(first, second):
    return all(
        torch.equal(a["images"], b["images"]) and (a["label"], a["index"]) == (b["label"], b["index"])
        for a, b in zip(first, second, strict=True)
    )


def test_class_folders_give_labels_in_the_order_of_names(classes):
    dataset = ImageDataset(classes, image_size=16)
    assert dataset.class_names == ("ant", "bee", "zebra")
    assert [dataset[i]["label"] for i in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    item = dataset[5]
    assert item["images"].shape == (3, 16, 16)
    assert item["images"].min() >= -1
    assert item["images"].max() <= 1
    assert item["index"] == 5


def test_a_flat_folder_has_no_labels_and_is_read_at_any_depth(tmp_path):
    write_images(tmp_path, 2)
    write_images(tmp_path / "more" / "still", 1)
    write_images(tmp_path / ".thumbnails", 1)
    (tmp_path / "notes.txt").write_text("no image")
    dataset = ImageDataset(tmp_path, image_size=(16, 24))
    assert len(dataset) == 3
    assert dataset.class_names == ()
    assert dataset[2]["label"] == -1
    assert dataset[2]["images"].shape == (3, 16, 24)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_the_items_of_the_folder_it_was_made_from(classes, tmp_path, method):
    archive = pack(classes, tmp_path / "photos.zip", method)
    assert same_items(ImageDataset(archive, 16), ImageDataset(classes, 16))


def test_a_split_is_a_subfolder_of_a_folder_or_zip(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        write_images(tmp_path / "set" / split / "ant", count)
    archive = pack(tmp_path / "set", tmp_path / "set.zip")
    for root in (tmp_path / "set", archive):
        assert len(ImageDataset(root, 16, split="train")) == 3
        assert len(ImageDataset(root, 16, split="val/")) == 2
        with pytest.raises(
            DataError,
            match=r"no split named 'vall'; did you mean 'val'\? known: train, val, by the names of its folders",
        ):
            ImageDataset(root, 16, split="vall")
        with pytest.raises(DataError, match=r"holds the splits train, val; choose one"):
            ImageDataset(root, 16)


def test_it_is_built_by_its_registry_name(classes):
    assert isinstance(DATASETS.build({"type": "images", "root": str(classes), "image_size": 16}), ImageDataset)


def test_a_missing_root_names_its_neighbour(classes):
    with pytest.raises(DataError, match=r"no file or folder of images at .*fotos; did you mean 'photos'\?"):
        ImageDataset(classes.parent / "fotos")


def test_a_folder_without_images_says_what_counts_as_one(tmp_path):
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no image \(1 other files: 1 \.txt\); images end in \.jpg"):
        ImageDataset(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_an_empty_class_folder_is_named(classes, tmp_path, zipped):
    (classes / "cat").mkdir()
    with pytest.raises(DataError, match="class folder without any image: cat; fill or remove it"):
        ImageDataset(pack(classes, tmp_path / "photos.zip") if zipped else classes)


@pytest.mark.parametrize("kept", [0, 100, -30])
def test_a_damaged_zip_is_one_clear_error(classes, tmp_path, kept):
    archive = pack(classes, tmp_path / "photos.zip")
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(DataError, match="not a zip archive, or a damaged one"):
        ImageDataset(archive)


def test_a_zip_packed_by_another_method_says_how_to_pack_it(classes, tmp_path):
    with pytest.raises(DataError, match="stored and deflated"):
        ImageDataset(pack(classes, tmp_path / "photos.zip", zipfile.ZIP_BZIP2))


def test_a_damaged_zip_entry_is_skipped_like_an_unreadable_file(classes, tmp_path):
    archive = pack(classes, tmp_path / "photos.zip", zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        content[opened.getinfo("ant/0.png").header_offset + 200] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"checksum of ant/0\.png in .* does not match"):
        open_source(archive).read(0)
    dataset = ImageDataset(archive, 16)
    assert dataset[0]["index"] == 1
    assert dataset.num_unreadable == 1


def test_an_unreadable_image_is_replaced_by_the_next_counted_and_logged_once(classes, caplog):
    spoil(classes, ["ant/3.png", "bee/0.png", "zebra/3.png"])
    dataset = ImageDataset(classes, 16, max_unreadable=3)
    with caplog.at_level(logging.WARNING, logger="aligntok.data"):
        shown = [dataset[i]["index"] for i in (3, 3, 11, 4)]
    assert shown == [5, 5, 0, 5]
    assert dataset[3]["label"] == 1
    assert dataset.num_unreadable == 3
    assert [record.args[1] for record in caplog.records] == ["ant/3.png", "bee/0.png", "zebra/3.png"]


def test_a_file_that_vanishes_is_an_unreadable_image(classes):
    dataset = ImageDataset(classes, 16)
    shutil.rmtree(classes / "ant")
    (classes / "ant").mkdir()
    with pytest.raises(DataError, match=r"2 of 12 images cannot be read, ant/1\.png the latest .* 1 are allowed"):
        dataset[0]


def test_only_unreadable_images_are_an_error_whatever_the_limit(tmp_path):
    write_images(tmp_path, 3)
    spoil(tmp_path, ["0.png", "1.png", "2.png"])
    with pytest.raises(DataError, match="not one of 3 images can be read"):
        ImageDataset(tmp_path, 16, max_unreadable=10)[0]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_the_training_process_sees_what_its_workers_could_not_read(classes, tmp_path, start_method):
    spoil(classes, ["ant/3.png", "bee/0.png"])
    dataset = ImageDataset(pack(classes, tmp_path / "photos.zip"), 16, max_unreadable=4)
    dataset[0]  # opens the archive here, before any worker does
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context=start_method)
    plain = torch.cat([batch["images"] for batch in DataLoader(ImageDataset(classes, 16, max_unreadable=4), 3)])
    assert torch.equal(torch.cat([batch["images"] for batch in loader]), plain)
    assert dataset.num_unreadable == 2


def test_workers_stop_the_run_past_the_limit(classes):
    spoil(classes, ["ant/0.png", "bee/0.png"])
    with pytest.raises(DataError, match="2 of 12 images cannot be read"):
        list(DataLoader(ImageDataset(classes, 16, max_unreadable=1), batch_size=12, num_workers=1))


def test_crops_and_flips_follow_from_seed_and_sample_number(classes):
    def views(seed, numbers):
        dataset = ImageDataset(classes, 16, seed=seed)
        return [dataset[SampleIndex(2, number)] for number in numbers]

    assert same_items(views(0, range(4)), views(0, range(4)))
    assert not same_items(views(0, range(4)), views(0, range(4, 8)))
    assert not same_items(views(0, range(4)), views(1, range(4)))


def test_batches_do_not_depend_on_workers_or_on_a_resume(classes):
    dataset = ImageDataset(classes, 16)

    def batches(num_workers, start_step=0):
        sampler = GlobalBatchSampler(len(dataset), 8, seed=1, num_steps=4, start_step=start_step)
        return [batch["images"] for batch in DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers)]

    alone = batches(num_workers=0)
    assert len(alone) == 4
    assert torch.equal(torch.stack(alone), torch.stack(batches(num_workers=2)))
    assert torch.equal(torch.stack(alone[2:]), torch.stack(batches(num_workers=1, start_step=2)))


def test_evaluation_is_the_centre_without_randomness(classes):
    dataset = ImageDataset(classes, 16, train=False)
    assert same_items([dataset[SampleIndex(2, 0)]], [dataset[SampleIndex(2, 99)]])


def test_hflip_can_be_switched_off(tmp_path):
    write_images(tmp_path, 1, size=(16, 16))  # no room to crop: only flips are left
    kept, mirrored = ImageDataset(tmp_path, 16, hflip=False), ImageDataset(tmp_path, 16)
    original = ImageDataset(tmp_path, 16, train=False)[0]["images"]
    assert all(torch.equal(kept[SampleIndex(0, n)]["images"], original) for n in range(16))
    assert any(torch.equal(mirrored[SampleIndex(0, n)]["images"], original.flip(-1)) for n in range(16))


def test_indices_behave_like_a_sequences(classes):
    dataset = ImageDataset(classes, 16)
    assert dataset[-1]["index"] == 11
    for wrong in (12, SampleIndex(12, 0)):
        with pytest.raises(IndexError):
            dataset[wrong]
    assert dataset.num_unreadable == 0


@pytest.mark.parametrize(("name", "wrong"), [("image_size", 0), ("max_unreadable", -1), ("seed", -1)])
def test_wrong_options_are_refused(classes, name, wrong):
    with pytest.raises(ConfigError, match=f"{name}.*{wrong}"):
        ImageDataset(classes, **{name: wrong})


def test_a_pickled_source_reads_the_same_bytes(classes, tmp_path):
    source = open_source(pack(classes, tmp_path / "photos.zip"))
    data = source.read(7)
    assert pickle.loads(pickle.dumps(source)).read(7) == data == (classes / "bee" / "3.png").read_bytes()
    assert list(source.names) == list(open_source(classes).names)


def test_processes_of_a_fork_do_not_move_under_one_another(classes, tmp_path):
    source = open_source(pack(classes, tmp_path / "photos.zip"))
    expected = [source.read(index) for index in range(len(source))]  # the archive is open before the fork
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(source.read, [*range(len(source))] * 50, chunksize=1) == expected * 50


def test_names_that_are_not_utf8_survive(tmp_path):
    write_images(tmp_path, 1)
    os.rename(tmp_path / "0.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    assert ImageDataset(tmp_path, 16)[0]["index"] == 0


def test_tiny_imagenet_is_listed_by_class(shared_dir):
    dataset = ImageDataset(shared_dir / "data" / "tiny_imagenet_50c_64px.zip", 64, split="val", train=False)
    assert (len(dataset), len(dataset.class_names)) == (2500, 50)
    assert dataset[2499]["label"] == 49
    assert dataset[0]["images"].shape == (3, 64, 64)


def test_a_plain_number_asks_for_that_image_with_that_sample_number(classes):
    dataset = ImageDataset(classes, 16, seed=4)
    assert same_items([dataset[3], dataset[-1]], [dataset[SampleIndex(3, 3)], dataset[SampleIndex(11, 11)]])


@pytest.mark.parametrize(("number", "allowed"), [(99, 1), (100, 1), (101, 2), (200, 2), (201, 3)])
def test_one_percent_of_the_images_may_be_unreadable_rounded_up(monkeypatch, number, allowed):
    class Source(list):
        class_names = ()

    monkeypatch.setattr("aligntok.data.images.open_source", lambda *given: Source(range(number)))
    assert ImageDataset("x", 16).max_unreadable == allowed
    assert ImageDataset("x", 16, max_unreadable=0).max_unreadable == 0


@pytest.mark.parametrize(
    ("options", "side"),
    [({}, 48), (dict(short_side=30), 60), (dict(short_side=24), 48), (dict(train=False), None)],
)
def test_a_training_reads_images_at_twice_their_size_and_an_evaluation_whole(classes, monkeypatch, options, side):
    asked = []

    def read(source, index, draft_side, max_aspect_ratio):
        asked.append((draft_side, max_aspect_ratio))
        return Image.new("RGB", (60, 60))

    monkeypatch.setattr("aligntok.data.images.read_image", read)
    assert ImageDataset(classes, (16, 24), **options)[0]["images"].shape == (3, 16, 24)
    assert ImageDataset(classes, (16, 24), max_aspect_ratio=1, **options)[0]["images"].shape == (3, 16, 24)
    assert asked == [(side, 50.0), (side, 1)]


@pytest.mark.parametrize("wrong", [dict(max_aspect_ratio=0.9), dict(image_size=(16, 24), short_side=23)])
def test_what_no_image_could_be_is_refused(classes, wrong):
    with pytest.raises(ConfigError):
        ImageDataset(classes, **wrong)
