"""WebDataset shards: what a sample is, what is wrong with a tar, and how few files are held open."""

import gzip
import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch.distributed
import webdataset
from PIL import Image
from webdataset import tariterators

from aligntok.data.sources import open_source
from aligntok.data.sources.base import FilePart, OpenFiles
from aligntok.distributed.job import progress_bar
from aligntok.errors import DataError


def png(value=0, side=8):
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def shard(tmp_path, write_tar):
    """A function that writes one shard from names, each member holding its own name or the bytes given."""

    def write(*members):
        pairs = [member if isinstance(member, tuple) else (member, member.encode()) for member in members]
        return write_tar(tmp_path / "one.tar", pairs)

    return write


# Samples


def library_samples(shard):
    with shard.open("rb") as stream:
        files = tariterators.tar_file_expander([{"url": shard.name, "stream": stream}])
        return list(tariterators.group_by_keys(files))


def test_samples_are_those_that_webdataset_sees(as_shards):
    root = as_shards()
    source = open_source(root)
    samples = [sample for shard in sorted(root.iterdir()) for sample in library_samples(shard)]
    seen = [(f"{s['__url__']}/{s['__key__']}.png", s["png"], int(s["cls"])) for s in samples]
    assert seen == [(name, source.read(i), source.labels[i]) for i, name in enumerate(source.names)]


def test_what_webdataset_wrote_is_read(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number}", "image.png": png(number), "cls": number, "json": {"a": 1}})
    source = open_source(tmp_path)
    assert list(source.names) == [f"a.tar/{number}.image.png" for number in range(3)]
    assert source.labels.tolist() == [0, 1, 2]
    assert source.read(2) == png(2)


def test_a_sample_is_found_by_the_key_up_to_the_first_dot(shard):
    path = shard("b.jpg", "a.cls.txt", "./dir.x/c.image.JPG", ("b.cls", b" 7\n"), "a.webp", ("dir.x/c.cls", b"-1"))
    source = open_source(path)
    assert list(source.names) == ["one.tar/b.jpg", "one.tar/dir.x/c.image.JPG", "one.tar/a.webp"]
    assert source.labels.tolist() == [7, -1, -1]
    assert source.class_names == ()
    assert [source.read(index) for index in range(3)] == [b"b.jpg", b"./dir.x/c.image.JPG", b"a.webp"]


def test_other_members_and_hidden_ones_are_passed_over(shard):
    path = shard("readme", "a.json", "._a.jpg", "d/._a.jpg", "__MACOSX/a.jpg", "b.notjpg", "a.jpg.txt", "z.jpg")
    assert list(open_source(path).names) == ["one.tar/z.jpg"]


def test_shards_of_several_folders_are_told_apart(tmp_path, write_tar):
    for part in ("x", "y"):
        write_tar(tmp_path / part / "0.tar", [("a.png", png())])
    assert list(open_source(f"{tmp_path}/{{x,y}}/0.tar").names) == ["x/0.tar/a.png", "y/0.tar/a.png"]


def test_names_that_are_not_utf8_survive(shard):
    assert list(open_source(shard(("caf\udce9.png", png()))).names) == ["one.tar/caf\udce9.png"]


def test_a_pattern_may_name_the_shards_of_both_splits(as_shards, tmp_path):
    as_shards(stem="train")
    as_shards(stem="val")
    as_shards(tmp_path / "shards" / "test", stem="photos")
    root = f"{tmp_path}/shards/{{train-{{0000..0002}},val-{{0000..0001}},test/photos-0000}}.tar"
    assert [len(open_source(root, split)) for split in ("train", "val", "test")] == [12, 6, 5]
    with pytest.raises(DataError, match="holds the splits train, val; choose one"):
        open_source(root)
    with pytest.raises(
        DataError, match=r"no split named 'vall'; .* 'val'\? known: train, val; no file name has .*: name the"
    ):
        open_source(root, "vall")


# What is wrong


def test_a_sample_of_two_images_is_refused(shard):
    with pytest.raises(DataError, match=r"sample 'a' has two images, a\.jpg and a\.mask\.png; it may have one"):
        open_source(shard("a.jpg", "a.mask.png"))


def test_a_sample_of_two_labels_is_refused(shard):
    same = shard("a.png", ("a.cls", b"1"), ("a.cls", b"1 "), "b.png", ("b.cls", b"2"))
    assert open_source(same).labels.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"sample 'a' has its label twice, a\.cls the second; pack it once"):
        open_source(shard("a.png", ("a.cls", b"1"), ("a.cls", b"2")))


@pytest.mark.parametrize("text", [b"", b"1.5", b"-2", b"12345678901", b"\xffcat", b"cat" * 99])
def test_a_class_that_is_neither_index_nor_name_is_refused(shard, text):
    with pytest.raises(DataError, match=r"one\.tar: a\.cls holds b'.*'; a \.cls member holds a class index"):
        open_source(shard("a.jpg", ("a.cls", text)))


def test_shards_without_an_image_say_what_counts_as_one(shard):
    with pytest.raises(DataError, match=r"no sample with an image in 1 shard; images are members that end in \.jpg"):
        open_source(shard("a.json", "b.cls.txt"))


@pytest.mark.parametrize("kept", [0, 100, 512, 1000, 1536, 3000, 3072])
def test_a_truncated_shard_is_one_clear_error(shard, kept):
    path = shard(("a.png", bytes(1000)), ("b.png", bytes(1000)))  # ends at 3072, the end mark after it
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"one\.tar is not an uncompressed tar file, or a damaged one .*; copy or pack"):
        open_source(path)


@pytest.mark.parametrize("damage", ["header", "compressed", "text"])
def test_a_damaged_shard_is_one_clear_error(shard, damage):
    path = shard("a.png", "b.png", "c.png")
    content = bytearray(path.read_bytes())
    content[1024 + 5] ^= 0xFF  # in the second member's header: tarfile alone would stop there as if it were the end
    path.write_bytes({"header": content, "compressed": gzip.compress(content), "text": b"no tar" * 999}[damage])
    with pytest.raises(DataError, match=r"one\.tar is not an uncompressed tar file, or a damaged one"):
        open_source(path)


def test_of_many_shards_the_damaged_one_is_named(as_shards):
    root = as_shards()
    (root / "photos-train-0001.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"photos-train-0001\.tar is not"):
        open_source(root)


def test_a_pattern_with_missing_shards_names_the_first(as_shards):
    root = as_shards()
    with pytest.raises(DataError, match=r"2 of the 5 shards it names are not there, .*-0003\.tar the first"):
        open_source(f"{root}/photos-train-{{0000..0004}}.tar")


@pytest.mark.parametrize("pattern", ["{0..3", "${AWAY}{0..1}"])
def test_a_pattern_that_is_none_says_how_to_write_one(as_shards, pattern):
    with pytest.raises(DataError, match=r"is no pattern of shards .*; write it like /data/train-\{0000\.\.0127\}\.tar"):
        open_source(f"{as_shards()}/{pattern}.tar")


def test_a_shard_that_shrinks_is_unreadable_images(shard):
    path = shard("a.png", ("b.png", bytes(5000)))
    source = open_source(path)
    os.truncate(path, 3000)
    with pytest.raises(ValueError, match=r"one\.tar ends inside of it"):
        source.read(1)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        pickle.loads(pickle.dumps(source)).read(0)


# Open files


def open_paths():
    return {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


def test_few_shards_are_held_open_and_none_in_a_copy(tmp_path, write_tar):
    folder = tmp_path / "many"
    for number in range(70):
        write_tar(folder / f"{number:02d}.tar", [("a.png", bytes([number]))])
    source = open_source(folder)
    assert [source.read(index)[0] for index in range(70)] == list(range(70))
    assert open_paths() >= {str(folder / f"{number:02d}.tar") for number in range(6, 70)}
    assert not open_paths() & {str(folder / f"{number:02d}.tar") for number in range(6)}
    copy = pickle.loads(pickle.dumps(source))
    del source
    assert not any(path.startswith(str(folder)) for path in open_paths())
    assert copy.read(0) == bytes([0])


def test_threads_read_the_same_shard_without_moving_under_one_another(shard):
    source = open_source(shard(*((f"{number}.png", bytes([number]) * 100_000) for number in range(8))))
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(source.read, [*range(8)] * 50)] == [bytes([number]) * 100_000 for number in range(8)] * 50


def test_a_header_is_read_without_the_rest_of_its_image(shard, monkeypatch):
    path = shard(("a.png", png(side=64) + bytes(1_000_000)), "b.png")
    read, readinto = [], FilePart.readinto
    monkeypatch.setattr(FilePart, "readinto", lambda part, b: read.append(readinto(part, b)) or read[-1])
    with open_source(path).open(0) as file, Image.open(file) as image:
        assert image.size == (64, 64)
    assert 0 < sum(read) < 100_000


def test_a_part_of_a_file_ends_where_it_ends(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with io.BufferedReader(FilePart(OpenFiles(), tmp_path / "file", offset=10, size=20)) as part:
        assert part.read() == bytes(range(10, 30))
        assert part.seek(-5, os.SEEK_END) == 15
        assert part.read(100) == bytes(range(25, 30))
        assert (part.seek(50), part.read()) == (50, b"")
        assert (part.seek(3), part.seek(4, os.SEEK_CUR), part.tell(), part.read(2)) == (3, 7, 7, b"\x11\x12")


def test_progress_is_shown_by_one_process_only(monkeypatch):
    assert not progress_bar(1, "listing shards", "shard").disable
    assert progress_bar(1, "listing shards", "shard", show=False).disable
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert progress_bar(1, "listing shards", "shard").disable
