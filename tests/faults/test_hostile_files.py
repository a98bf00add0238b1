"""Files of strangers: declared sizes, pipes and devices, links round in circles, paths out of the folder."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from aligntok.data.images import ImageDataset, find_buckets
from aligntok.data.latent_shards import MANIFEST, Shard, read_manifest
from aligntok.data.sources import open_source
from aligntok.data.sources.base import OpenFiles, walk
from aligntok.distributed.output_folder import output_folder
from aligntok.engine.checkpoints import finished_steps, read_checkpoint
from aligntok.errors import AlignTokError, CheckpointError, ConfigError, DataError, WeightsError
from aligntok.evaluation.images import Samples
from aligntok.evaluation.references import _read_arrays
from aligntok.evaluation.report import write_report
from aligntok.evaluation.report.blocks import Note
from aligntok.evaluation.report.figures import contact_sheet, pictures
from aligntok.evaluation.results import read_result
from aligntok.evaluation.settings import ReportSettings
from aligntok.io import files as io_files
from aligntok.io.arrays import read_npz
from aligntok.io.files import check_file, load_tensors, read_bytes, read_json, write_json
from aligntok.io.folders import check_links, lock_folder, remove_leftovers
from aligntok.loading import load_latent_diffusion, load_tokenizer
from aligntok.sampling.folder import SampleFolder
from aligntok.weights.load import read_tensors

BIG = 64 << 20  # bytes that nothing here has, and much more than anything here may take


def png(size=(8, 8), colour=0):
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def cheaply(most=BIG // 4):
    """Fail where what is inside takes much memory, of Python's and numpy's."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def at_once(function, *given):
    """Call a function that must not wait for anything; return what it returns or raises."""
    found = []

    def call():
        try:
            found.append(function(*given))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert found, f"{function} waits for ever"
    return found[0]


# Declared sizes


def zipped(path, name, content, declared=None, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/good.png", png())
        archive.writestr(name, content)
    if declared is not None:  # in the list of entries, which is what readers believe
        data = bytearray(path.read_bytes())
        place = data.rfind(b"PK\x01\x02")
        data[place + 24 : place + 28] = struct.pack("<I", declared)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("declared", [None, 10, BIG - 1, BIG + 1])
def test_a_zip_entry_unpacks_to_what_it_declares_and_no_more_than_is_read(tmp_path, monkeypatch, declared):
    monkeypatch.setattr(io_files.check_size, "__defaults__", (BIG // 8,) if declared is None else (2 * BIG,))
    source = open_source(zipped(tmp_path / "x.zip", "a/z.png", bytes(BIG), declared))
    said = "declares" if declared else "not between 0 and"
    with cheaply(3 * BIG if (declared or 0) > 10 else BIG // 4), pytest.raises((OSError, ValueError), match=said):
        source.read(1)
    assert source.read(0) == png()


def test_a_zip_entry_of_an_impossible_size_is_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "x.zip", "a/z.png", png())
    real = zipfile.ZipFile.infolist

    def infolist(archive):
        entries = real(archive)
        entries[-1].file_size = 2**64 - 1
        return entries

    monkeypatch.setattr(zipfile.ZipFile, "infolist", infolist)
    with pytest.raises(DataError, match="declares an impossible size"):
        open_source(path)


@pytest.mark.parametrize(("offset", "wrong"), [(6, b"\x63"), (46, b"\xff")], ids=["a version", "a name in UTF-8"])
def test_a_zip_whose_list_cannot_be_read_is_refused(tmp_path, offset, wrong):
    path = zipped(tmp_path / "x.zip", "a/\u00e9.png", png())
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x01\x02") + offset
    place += 2 * (offset == 46)  # the é of the name
    data[place : place + 1] = wrong
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not a zip archive, or a damaged one"):
        open_source(path)


def test_a_zip_entry_that_cannot_be_unpacked_is_unreadable_and_not_the_end(tmp_path):
    path = zipped(tmp_path / "x.zip", "a/z.png", bytes(BIG))
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x03\x04") + 30 + len("a/z.png")
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a/z\.png in .* cannot be unpacked"):
        open_source(path).read(1)


def test_a_member_of_a_shard_that_declares_more_than_there_is_is_unreadable(tmp_path):
    pytest.importorskip("webdataset")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, size in (("a.png", len(png())), ("b.png", 2 * BIG)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(png()) if size == len(png()) else None)
    with path.open("ab") as file:  # sparse, so that the end mark is where it is declared to be
        file.truncate(2048 + 2 * BIG + 2048)
    source = open_source(path)
    assert len(source) == 2
    OpenFiles().read(path, 0, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io_files.check_size, "__defaults__", (BIG,))
        with cheaply(), pytest.raises(OSError, match="not between 0 and"):
            source.read(1)
    os.truncate(path, 4096)
    with cheaply(3 * BIG), pytest.raises(ValueError, match="ends inside of it"):
        source.read(1)


def test_members_that_lead_back_end_the_listing(tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(png())
        archive.addfile(member, io.BytesIO(png()))
    member = tarfile.TarInfo("a.png")
    monkeypatch.setattr(tarfile.TarFile, "__iter__", lambda self: iter(lambda: member, None))
    with pytest.raises(DataError, match="lies before the one before it"):
        open_source(path)


def test_a_label_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("a.png", png()), ("a.cls", b"1" + b" " * BIG)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with cheaply(1 << 22):
        assert open_source(path).labels.tolist() == [1]


def npz(path, packed=True, **arrays):
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


def test_an_npz_is_as_large_as_it_is(tmp_path, monkeypatch):
    def take(*_):
        return None

    rng = np.random.default_rng(0)
    sound = {
        "a": rng.integers(0, 9, (3, 4), dtype=np.uint8),
        "b": np.asfortranarray(rng.random((5, 2))),
        "c": rng.random(3),
    }
    for packed in (True, False):
        read = read_npz(npz(tmp_path / "x.npz", packed, **sound), ["a", "b", "c", "d"], take, mapped=["a", "b"])
        assert read.keys() == sound.keys()
        assert all(np.array_equal(read[name], sound[name]) and read[name].dtype == sound[name].dtype for name in sound)
        assert isinstance(read["a"], np.memmap) != packed
    monkeypatch.setattr("aligntok.io.arrays.MOST_UNPACKED", BIG // 8)
    path = npz(tmp_path / "x.npz", a=np.zeros(BIG // 4, np.uint8))
    with cheaply(), pytest.raises(OSError, match="not between 0 and"):
        read_npz(path, ["a"], take)
    for name, descr, shape in (
        ("lie", "|u1", (2**40,)),
        ("few", "|u1", (2,)),
        ("object", "|O", (1,)),
        ("less", "|u1", (-4,)),
    ):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(path, "w", method) as archive:
                archive.writestr(f"{name}.npy", header.getvalue() + bytes(8))
            with cheaply(), pytest.raises(ValueError, match=f"{name} is"):
                read_npz(path, [name], take, mapped=[name])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", BIG) + bytes(BIG))
    with cheaply(), pytest.raises(ValueError, match="EOF"):
        read_npz(path, ["a"], take)


def test_samples_and_references_of_strangers_go_through_it(tmp_path):
    header = io.BytesIO()
    shape = (2**20, 256, 256, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
            archive.writestr("arr_0.npy", header.getvalue() + bytes(8))
        with cheaply(), pytest.raises(DataError, match=r"no samples in ADM's format.*arr_0 is uint8"):
            Samples(tmp_path / "x.npz")
        with cheaply(), pytest.raises(DataError, match="is damaged .arr_0 is uint8"):
            _read_arrays(tmp_path / "x.npz")


def test_a_torch_file_whose_parts_are_packed_is_refused(tmp_path):
    torch.save({"format": 2, "step": 1, "w": torch.zeros(4096)}, tmp_path / "plain.pt")
    assert read_tensors(tmp_path / "plain.pt", "who")["w"].shape == (4096,)
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in plain.namelist():
            out.writestr(name, plain.read(name))
    with pytest.raises(WeightsError, match="parts are packed"):
        read_tensors(tmp_path / "x.pt", "who")
    with pytest.raises(CheckpointError, match="parts are packed"):
        read_checkpoint(tmp_path / "x.pt")


def test_buckets_that_declare_more_than_there_is_are_found_anew(tmp_path, caplog):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png())
    dataset = ImageDataset(tmp_path, [(8, 8), (8, 16)])
    (tmp_path / "work").mkdir()
    found = find_buckets(dataset, tmp_path / "work")
    assert found.tolist() == [0, 0, 0]
    (kept,) = (tmp_path / "work").glob("*.npy")
    with kept.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**40,)})
    kept.with_name(kept.name + ".sha256").unlink()
    with cheaply():
        found = find_buckets(ImageDataset(tmp_path, [(8, 8), (8, 16)]), tmp_path / "work")
    assert found.tolist() == [0, 0, 0]
    assert "sizes of images are read again" in caplog.text


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("latents", {"shape": [2, 1, 4, 2**30, 2**30]}),
        ("labels", {"shape": [2**40]}),
        ("labels", {"shape": [1]}),
        ("index", {"shape": ["a"]}),
        ("mean", {"data_offsets": [-8, 0]}),
        ("m2", {"dtype": "X9"}),
    ],
)
def test_a_shard_is_as_large_as_it_is(tmp_path, name, entry):
    import json

    from aligntok.data.latent_shards import write_shard

    path = tmp_path / "shard_00000.safetensors"
    write_shard(path, torch.zeros(2, 1, 4, 2, 2), torch.zeros(2, dtype=torch.int32), torch.arange(2), [])
    assert Shard(path).images == 2
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[name] |= entry
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])
    with cheaply(), pytest.raises(DataError, match="cannot be read"):
        Shard(path)


def test_a_cell_of_a_table_has_a_limit(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pq.write_table(pa.table({"image": [png(), png() + bytes(BIG)]}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    monkeypatch.setattr(io_files.check_size, "__defaults__", (BIG // 8,))
    assert source.read(0) == png()
    with cheaply(), pytest.raises(OSError, match="not between 0 and"):
        source.read(1)


def test_a_file_of_a_folder_has_a_limit(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png())
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(4 << 30)  # sparse: it costs nothing
    source = open_source(tmp_path)
    assert source.read(0) == png()
    with cheaply(), pytest.raises(OSError, match="it is of 4294967296 bytes"):
        source.read(1)
    dataset = ImageDataset(tmp_path, 8, train=False, max_unreadable=1)
    with cheaply():
        assert dataset[1]["index"] == 0


# Paths in tables


def test_a_row_reads_files_of_its_own_folder_only(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/in.png").write_bytes(png(colour=1))
    (tmp_path / "diary.png").write_bytes(png(colour=2))
    (folder / "link.png").symlink_to(tmp_path / "diary.png")
    os.mkfifo(folder / "pipe.png")
    names = [
        "sub/in.png",
        str(folder / "sub/in.png"),
        "../diary.png",
        str(tmp_path / "diary.png"),
        "link.png",
        "pipe.png",
    ]
    names += ["/dev/zero", "sub", "none.png", "/proc/self/environ", ""]
    struct_of = pa.array([{"bytes": None, "path": name} for name in names])
    pq.write_table(pa.table({"image": struct_of}), folder / "x.parquet")
    source = open_source(folder / "x.parquet")
    assert source.read(0) == source.read(1) == png(colour=1)
    for index in range(2, len(names)):
        outcome = at_once(source.read, index)
        assert isinstance(outcome, ValueError | OSError), (names[index], outcome)


# Pipes, devices, links


def plant(path, kind):
    """Put a pipe, a link to a device without end, a link to itself, or a folder in the place of a file."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "circle":
            path.symlink_to(path)
        case "folder":
            path.mkdir()


KINDS = ["pipe", "device", "circle", "folder"]


def listed(path):
    """The path of a file in a checkpoint, which its checksums name."""
    write_json(path.with_name("checksums.json"), {"sha256": {path.name: "0" * 64}})
    return path


def lock(folder):
    with lock_folder(folder):
        pass


READERS = {
    "x.png": [read_bytes, lambda p: pictures([(p.parent, p.name, "w")]), lambda p: contact_sheet(p.parent, "w")],
    "x.json": [lambda p: read_json(p, DataError, "cure"), read_result],
    "x.safetensors": [
        lambda p: check_file(p, DataError, "cure") or None,
        lambda p: load_tensors(p, DataError, "cure"),
        Shard,
        lambda p: read_tensors(p, "who"),
        load_tokenizer,
    ],
    "x.pt": [read_checkpoint, lambda p: read_tensors(p, "who"), load_tokenizer],
    "x.npz": [Samples, _read_arrays, open_source],
    "x.zip": [open_source],
    "x.tar": [open_source],
    "x.parquet": [open_source],
    "x_arrow/dataset_info.json": [lambda p: open_source(p.parent)],
    "config.json": [lambda p: load_tokenizer(p.parent)],
    "model_index.json": [lambda p: load_tokenizer(p.parent)],
    "latent_diffusion.json": [lambda p: load_latent_diffusion(p.parent)],
    "stage.json": [lambda p: load_tokenizer(p.parent), lambda p: load_latent_diffusion(p.parent)],
    "checkpoints/step_00000001.pt": [lambda p: load_tokenizer(p.parents[1]), lambda p: finished_steps(p.parents[1])],
    "checkpoints/step_00000001": [lambda p: load_tokenizer(p.parents[1]), lambda p: finished_steps(p.parents[1])],
    "checkpoints/step_00000001/checksums.json": [lambda p: finished_steps(p.parents[2])],
    "checkpoints/step_00000001/state.json": [lambda p: finished_steps(listed(p).parents[2])],
    "checkpoints/step_00000001/shard-1.safetensors": [lambda p: finished_steps(listed(p).parents[2])],
    MANIFEST: [lambda p: read_manifest(p.parent)],
    "samples.json": [lambda p: Samples(p.parent)],
    "images/000000.png": [lambda p: SampleFolder(p.parents[1], 1, (8, 8), None, {}).read(0)],
    ".lock": [lambda p: lock(p.parent)],
    "report/run.json": [lambda p: write_report(ReportSettings(runs=(p.parent,)))],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_pipe_or_a_device(tmp_path, name, kind):
    path = tmp_path / name
    for read in READERS[name]:
        plant(path, kind)
        outcome = at_once(read, path)
        assert isinstance(outcome, AlignTokError | OSError | ValueError | None | list | Note), outcome


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_no_file_is_unreadable_and_counted(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(png())
    plant(tmp_path / "b.png", kind)
    dataset = at_once(lambda: ImageDataset(tmp_path, [(8, 8), (8, 16)], max_unreadable=1))
    assert at_once(lambda: dataset.buckets).tolist() == [0] * len(dataset)
    for index in range(len(dataset)):
        assert at_once(dataset.__getitem__, index)["index"] == 0
    assert dataset.num_unreadable == len(dataset) - 1
    assert len(dataset) == (1 if kind == "folder" else 2)


def test_links_round_in_circles_list_an_image_once(tmp_path):
    top = tmp_path / "set"
    for name in ("cats", "dogs/small"):
        (top / name).mkdir(parents=True)
        (top / name / "a.png").write_bytes(png())
    (top / "again").symlink_to(".")
    (top / "once_more").symlink_to(top)
    (top / "cats/up").symlink_to("..")
    (top / "cats/dogs").symlink_to("../dogs")
    (top / "dogs/self").symlink_to("self")
    (top / "lost").symlink_to("nowhere")
    source = at_once(open_source, top)
    assert list(source.names) == ["cats/a.png", "dogs/small/a.png"]
    assert source.class_names == ("cats", "dogs")


def test_folders_that_are_linked_from_elsewhere_are_read(tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/a.png").write_bytes(png())
    (tmp_path / "set").mkdir()
    (tmp_path / "set/class").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b.png").symlink_to(tmp_path / "elsewhere/deep/a.png")  # a file may be there twice
    source = open_source(tmp_path / "set")
    assert list(source.names) == ["b.png", "class/deep/a.png"]
    assert source.read(0) == source.read(1) == png()


def test_a_bomb_of_links_is_walked_once(tmp_path):
    for level in range(25):  # 2^25 ways
        (tmp_path / f"{level}").mkdir()
        for name in ("x", "y"):
            (tmp_path / f"{level}/{name}").symlink_to(f"../{level + 1}")
    (tmp_path / "25").mkdir()
    (tmp_path / "25/a.png").write_bytes(png())
    assert at_once(lambda: [*walk(tmp_path / "0")])[-1][1] == ["a.png"]


def test_an_empty_class_folder_is_still_named(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "dogs").mkdir()
    (tmp_path / "cats/a.png").write_bytes(png())
    with pytest.raises(DataError, match="class folder without any image: dogs"):
        open_source(tmp_path)


def test_sweeping_does_not_cross_links(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/.x.0123abcd.tmp").write_text("kept")
    (tmp_path / "work/stage").mkdir(parents=True)
    (tmp_path / "work/stage/.y.0123abcd.tmp").write_text("left")
    (tmp_path / "work/link").symlink_to(tmp_path / "outside")
    (tmp_path / "work/stage/.z.0123abcd.tmp").symlink_to(tmp_path / "outside/.x.0123abcd.tmp")
    remove_leftovers(tmp_path / "work")
    assert (tmp_path / "outside/.x.0123abcd.tmp").read_text() == "kept"
    assert not [*(tmp_path / "work/stage").iterdir()]


def test_a_folder_that_leads_elsewhere_is_refused(tmp_path):
    (tmp_path / "outside").mkdir()
    work = tmp_path / "work"
    (work / "1_align").mkdir(parents=True)
    (work / "inner").mkdir()
    (work / "2_own").symlink_to("inner")  # stays inside
    check_links(work, work / "1_align", work / "2_own", work / "3_none")
    (work / "3_away").symlink_to(tmp_path / "outside")
    (work / "1_align/checkpoints").symlink_to("../../outside")
    for folder, named in (("1_align", "1_align/checkpoints"), ("3_away", "3_away")):
        with pytest.raises(ConfigError, match=f"{named} is a link to .*outside, outside of .*work; files would be"):
            check_links(work, work / folder)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/images").symlink_to(tmp_path / "outside")
    with (
        pytest.raises(ConfigError, match="samples/images is a link to"),
        output_folder(tmp_path / "samples", "samples.json", {}, dict, "other"),
    ):
        pass
    alias = tmp_path / "alias"
    alias.symlink_to(work)  # a work folder itself may be a link
    check_links(alias, alias / "2_own")
