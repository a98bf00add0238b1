"""Captions are found in every kind of source, and what is wrong with them is one sentence before any training."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from aligntok.data.images import ImageDataset
from aligntok.data.listing import Listing, must_not_change, report_changes
from aligntok.data.sampler import SampleIndex
from aligntok.data.sources import open_source
from aligntok.data.sources.captions import caption_columns, captions_of_column
from aligntok.errors import ConfigError, DataError

CAPTIONS = {
    "ant/0.png": ["a red ant"],
    "ant/1.png": ["zwei Käfer, grün", "two beetles"],
    "bee/2.png": ['a "bee"\nat rest'],
}


def png(value, side=8):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


IMAGES = {name: png(place) for place, name in enumerate(CAPTIONS)}


def as_csv(columns=("file", "caption"), captions=CAPTIONS):
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(columns)
    table.writerows((name, each) for name, several in captions.items() for each in several)
    return text.getvalue().encode()


def as_jsonl(columns=("file", "caption"), captions=CAPTIONS):
    rows = ({columns[0]: name, columns[1]: each if len(each) > 1 else each[0]} for name, each in captions.items())
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_json(key="caption", captions=CAPTIONS):
    return {name.replace(".png", ".json"): json.dumps({key: each, "id": 1}).encode() for name, each in captions.items()}


def as_txt(captions=CAPTIONS):
    return {name.replace(".png", ".txt"): f"{each[0]}\n".encode() for name, each in captions.items()}


def folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def archive(path, files):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path.with_suffix(".zip")


TABLES = {
    "captions.csv": as_csv(),
    "captions.jsonl": as_jsonl(),
    "metadata.csv": as_csv(("file_name", "text")),
    "metadata.jsonl": as_jsonl(("file_name", "text")),
}


def found(root, caption="auto", **options):
    source = open_source(root, caption=caption, **options)
    return {name.rpartition("0.tar/")[2]: list(each) for name, each in zip(source.names, source.captions, strict=True)}


@pytest.mark.parametrize("pack", [folder, archive])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_at_the_root_of_a_folder_or_zip(tmp_path, pack, table):
    root = pack(tmp_path / "set", {**IMAGES, table: TABLES[table]})
    assert found(root) == found(root, table) == CAPTIONS


@pytest.mark.parametrize("pack", [folder, archive])
def test_few_captioned_images_beside_many_in_folders_are_taken_too(tmp_path, pack):
    captions = {name: CAPTIONS[first] for first in [*CAPTIONS][:1] for name in ("a.png", "trip/b.png", "trip/c.png")}
    images = dict.fromkeys(captions, png(0))
    assert found(pack(tmp_path / "set", {**images, "captions.csv": as_csv(captions=captions)})) == captions
    assert len(open_source(pack(tmp_path / "plain", images))) == 2


@pytest.mark.parametrize("pack", [folder, archive])
def test_texts_beside_the_images_of_a_folder_or_zip(tmp_path, pack, caplog):
    root = pack(tmp_path / "json", {**IMAGES, **as_json()})
    assert found(root) == found(root, "caption") == CAPTIONS
    assert found(pack(tmp_path / "key", {**IMAGES, **as_json("prompt")}), "prompt") == CAPTIONS
    root = pack(tmp_path / "txt", {**IMAGES, **as_txt()})
    assert found(root) == found(root, "txt") == {name: each[:1] for name, each in CAPTIONS.items()}
    assert "passed over" not in caplog.text


def test_members_of_shards(tmp_path, write_tar, caplog):
    def members(texts):
        return sorted((name.replace("/", "_"), content) for name, content in {**IMAGES, **texts}.items())

    expected = {name.replace("/", "_"): each for name, each in CAPTIONS.items()}
    root = write_tar(tmp_path / "json" / "0.tar", members(as_json())).parent
    assert found(root) == found(root, "caption") == expected
    root = write_tar(tmp_path / "txt" / "0.tar", members(as_txt())).parent
    assert found(root) == found(root, "txt") == {name: each[:1] for name, each in expected.items()}
    assert "passed over" not in caplog.text
    write_tar(root / "1.tar", [("x.txt", b"alone"), ("y.png", png(9)), ("y.txt", b"y")])
    assert {**found(root)}["1.tar/y.png"] == ["y"]


@pytest.mark.parametrize("kind", ["text", "list", "large"])
def test_a_column_of_a_table(tmp_path, kind):
    several = [*CAPTIONS.values()]
    given = several if kind == "list" else [each[0] for each in several]
    text = datasets.Value("large_string" if kind == "large" else "string")
    features = {"image": datasets.Image(), "text": datasets.Sequence(text) if kind == "list" else text}
    rows = {"image": [{"bytes": data, "path": None} for data in IMAGES.values()], "text": given}
    table = datasets.Dataset.from_dict(rows, datasets.Features(features))
    table.to_parquet(tmp_path / "set" / "train.parquet")
    table.save_to_disk(tmp_path / "saved")
    table.rename_column("text", "prompt").save_to_disk(tmp_path / "named")
    expected = several if kind == "list" else [each[:1] for each in several]
    for root, caption in [("set", "auto"), ("set", "text"), ("saved", "auto"), ("named", "prompt")]:
        assert [*found(tmp_path / root, caption).values()] == expected


def test_names_match_however_they_are_written(tmp_path):
    files = {"Ka\u0308fer.png": png(1), "b.png": png(2)}
    table = "\ufefffile,caption\r\n./b.png,b\r\nK\u00e4fer.png,ein K\u00e4fer\r\n".encode()
    assert found(folder(tmp_path, {**files, "captions.csv": table})) == {
        "Ka\u0308fer.png": ["ein Käfer"],
        "b.png": ["b"],
    }


def test_what_editors_leave_in_files_is_no_part_of_a_caption(tmp_path, caplog):
    texts = {name: b"\xef\xbb\xbf" + content for name, content in as_txt().items()}
    root = folder(tmp_path / "txt", {**IMAGES, **texts, "ant/0.json": b"{}"})
    assert found(root, "txt") == {name: each[:1] for name, each in CAPTIONS.items()}
    assert "passed over 1 files: 1 .json" in caplog.text, "what is not taken is not read"
    lines = b"\xef\xbb\xbf\n" + as_jsonl().replace(b"\n", b"\r\n\r\n")
    assert found(folder(tmp_path / "jsonl", {**IMAGES, "captions.jsonl": lines})) == CAPTIONS


def test_columns_of_every_arrow_type_of_text():
    pa = pytest.importorskip("pyarrow")
    texts = [["left out"], [" a ", None, "b"], [None], ["c"], None]
    for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.string(), pa.large_string()):
        nested = pa.types.is_nested(kind)
        values = texts if nested else [each and each[0] if each else None for each in texts]
        chunks = pa.chunked_array([pa.array(values, kind)[1:], pa.array(["z"] if not nested else [["z"]], kind)])
        assert caption_columns("x", pa.schema([("caption", kind)]), "auto") == ["caption"]
        several = [("a", "b"), (), ("c",), (), ("z",)] if nested else [("a",), (), ("c",), (), ("z",)]
        assert [*captions_of_column("x", "caption", chunks)] == several
    for kind in (pa.int64(), pa.binary(), pa.list_(pa.int64()), pa.struct([("en", pa.string())])):
        with pytest.raises(DataError, match="no column of captions named 'caption or text'"):
            caption_columns("x", pa.schema([("caption", kind)]), "auto")


def test_lists_that_lead_out_of_their_text_are_refused():
    pa = pytest.importorskip("pyarrow")
    ends = np.array([0, 1, 2], dtype="<i4")
    buffers = [None, pa.py_buffer(ends)]
    lists = pa.Array.from_buffers(pa.list_(pa.string()), 2, buffers, children=[pa.array(["a", "b"])])
    ends[2] = 2**30  # as a file may have it, of which Arrow believes what it says
    with pytest.raises(DataError, match=r"column 'caption', rows 0 to 1 holds no caption that can be read"):
        captions_of_column("x", "caption", pa.chunked_array([lists]))


def test_another_column_of_a_table_can_be_chosen(tmp_path):
    root = folder(tmp_path, {**IMAGES, "metadata.csv": as_csv(("file_name", "prompt"))})
    assert found(root, "metadata.csv:prompt") == CAPTIONS
    with pytest.raises(DataError, match=r"no column named 'text'; known: file_name, prompt"):
        found(root)


def test_without_being_asked_nothing_is_looked_for(tmp_path, caplog):
    root = folder(tmp_path, {**IMAGES, "captions.csv": b"\xff no table"})
    assert open_source(root).captions is None
    assert "caption" not in ImageDataset(root, 8)[0]
    assert "passed over 1 files: 1 .csv" in caplog.text


def test_an_item_has_its_caption(tmp_path):
    root = folder(tmp_path, {**IMAGES, "captions.jsonl": as_jsonl()})
    dataset = ImageDataset(root, 8, caption="auto", seed=3)
    assert [dataset[place]["caption"] for place in range(3)] == [each[0] for each in CAPTIONS.values()]
    drawn = np.random.default_rng((4, 3, 0)).random(4096)
    for number in (0, 1, 2, 4095):
        assert dataset[SampleIndex(1, number)]["caption"] == CAPTIONS["ant/1.png"][int(2 * drawn[number])]
    held = ImageDataset(root, 8, train=False, caption="auto", seed=3)
    assert {held[SampleIndex(1, number)]["caption"] for number in range(8)} == {CAPTIONS["ant/1.png"][0]}
    (root / "ant/0.png").write_bytes(b"damaged")
    shown = dataset[SampleIndex(0, 5)]
    assert shown["index"] == 1
    assert shown["caption"] in CAPTIONS["ant/1.png"]  # of the picture that is shown


def test_images_held_out_keep_their_captions(tmp_path):
    names = [f"{place:02d}.png" for place in range(20)]
    table = as_csv(captions={name: [f"number {name}"] for name in names})
    root = folder(tmp_path, {**{name: png(1) for name in names}, "captions.csv": table})
    parts = [found(root, fraction=0.3, held_out=held) for held in (False, True)]
    assert all(len(part) > 2 for part in parts)
    assert parts[0] | parts[1] == {name: [f"number {name}"] for name in names}


# Several places


def test_several_places_that_differ_are_named(tmp_path, write_tar):
    files = {**IMAGES, **TABLES, **as_txt(), **as_json()}
    root = folder(tmp_path / "set", files)
    with pytest.raises(DataError, match=r"captions are in .*captions.csv.* and in txt.*; choose one with `caption`"):
        found(root)
    assert found(root, "captions.csv") == found(root, "caption") == CAPTIONS
    (root / "captions.jsonl").write_bytes(as_jsonl(captions={**CAPTIONS, "bee/2.png": ["another"]}))
    for name in (*as_txt(), *as_json(), "metadata.csv", "metadata.jsonl"):
        (root / name).unlink()
    with pytest.raises(DataError, match=r"captions are in captions.csv and in captions.jsonl; choose"):
        found(root)
    shard = write_tar(tmp_path / "0.tar", [("a.png", png(0)), ("a.txt", b"a"), ("a.json", b'{"caption": "b"}')])
    with pytest.raises(DataError, match=r"captions are in caption and in txt; choose"):
        found(shard)
    table = {"image": [png(0)], "caption": ["a"], "text": ["b"]}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"captions are in caption and in text; choose"):
        found(tmp_path / "x.parquet")


def test_several_places_that_say_the_same_are_one(tmp_path):
    assert found(folder(tmp_path / "tables", {**IMAGES, **TABLES})) == CAPTIONS
    one = {name: each[:1] for name, each in CAPTIONS.items()}  # as img2dataset writes both
    assert found(folder(tmp_path / "beside", {**IMAGES, **as_txt(one), **as_json(captions=one)})) == one


# What is wrong


def three(table):
    return {**IMAGES, "captions.csv": table} if isinstance(table, bytes) else {**IMAGES, **table}


def jsonl(*lines):
    return {"captions.jsonl": b"\n".join([*as_jsonl().splitlines()[1:], *lines])}


WRONG = {
    "nowhere": ({}, r"set: no captions; they may be in captions.csv or captions.jsonl with the columns file and"),
    "lacking": (
        as_csv(captions={"ant/1.png": ["x"]}),
        r"2 of 3 images have no caption, such as ant/0.png, bee/2.png; wr",
    ),
    "null": (jsonl(b'{"file": "ant/0.png", "caption": null}'), r"1 of 3 images have no caption, such as ant/0.png; "),
    "strangers": (
        as_csv(captions={**CAPTIONS, "../../etc/passwd": ["x"], "/etc/hosts": ["y"]}),
        r"captions.csv has 2 captions of files that are no images of it, ../../etc/passwd in line \d the first; paths",
    ),
    "columns": (
        b"file,captoin\nant/0.png,x\n",
        r"captions.csv: no column named 'caption'; did you mean 'captoin'\? kno",
    ),
    "file column": (jsonl(b'{"flie": "x"}'), r"captions.jsonl, line 3: no column named 'file'; did you mean 'flie'\?"),
    "many columns": (
        ",".join(f"c{i}{'x' * 100}" for i in range(9_000)).encode(),
        r"no column named 'file'; .* and 92 mo",
    ),
    "empty table": (b"", r"captions.csv: no column named 'file'; known: none"),
    "comma": (
        b"file,caption\nant/0.png,a red, small ant\n",
        r"captions.csv, line 2 holds no .*3 fields, and the first line 2",
    ),
    "quote": (
        b'file,caption\nant/0.png,"a red\n',
        r"captions.csv, line 2 holds no caption that can be read \(unexpected end",
    ),
    "long quote": (b'file,caption\nant/0.png,"' + b"x\n" * 99_999, r"captions.csv, line \d+ holds .*field larger than"),
    "megabyte": (as_csv(captions={"ant/0.png": ["x" * 10**6]}), r"captions.csv, line 2 holds .*field larger than"),
    "hundred KB": (
        as_csv(captions={"ant/0.png": ["x" * 10**5]}),
        r"line 2 holds no .*\(it has 100,000 bytes\); one is",
    ),
    "long line": (jsonl(b" " * 2**21), r"captions.jsonl, line 3 holds no .*the line has more than 1,048,576 bytes"),
    "no UTF-8": (
        b"file,caption\nant/0.png,x\nant/1.png,caf\xe9\n",
        r"captions.csv, line 3 holds no .*byte 0xe9 is not of UTF-8",
    ),
    "no JSON": (
        jsonl(b"{'file': 1}"),
        r"captions.jsonl, line 3 holds no caption that can be read \(it is no JSON: Expect",
    ),
    "deep JSON": (jsonl(b"[" * 10**5), r"captions.jsonl, line 3 holds no .*it is no JSON"),
    "no object": (jsonl(b'["ant/0.png"]'), r"captions.jsonl, line 3 holds no .*JSON of list, and no object"),
    "key twice": (
        jsonl(b'{"file": "ant/0.png", "caption": "a", "caption": "b"}'),
        r"line 3 holds no .*a key is there tw",
    ),
    "no name": (jsonl(b'{"file": 3, "caption": "x"}'), r"line 3 holds no .*its file is int"),
    "number": (jsonl(b'{"file": "ant/0.png", "caption": 3}'), r"line 3 holds no .*it is int, and no text"),
    "surrogate": (jsonl(rb'{"file": "ant/0.png", "caption": "\ud800"}'), r"line 3 holds no .*surrogates not allowed"),
    "txt of Latin-1": (
        {**as_txt(), "ant/0.txt": b"x\ncaf\xe9"},
        r"ant/0.txt, line 2 holds no .*byte 0xe9 is not of UTF-8",
    ),
    "txt of UTF-16": (
        {**as_txt(), "ant/0.txt": "ant".encode("utf-16")},
        r"ant/0.txt, line 1 holds no .*byte 0xff is not",
    ),
    "txt of 1 MB": ({**as_txt(), "ant/0.txt": b"x" * 10**6}, r"ant/0.txt holds no .*it has 1,000,000 bytes"),
    "txt of 2 MB": ({**as_txt(), "ant/0.txt": b" " * 2**21}, r"ant/0.txt holds no .*more than 1,048,576 bytes"),
    "no JSON beside": ({**as_json(), "ant/0.json": b"{"}, r"ant/0.json holds no .*it is no JSON"),
    "two images": ({**as_txt(), "ant/0.webp": png(7)}, r"ant/0.txt lies beside two images of its name; give each"),
}


@pytest.mark.parametrize("pack", [folder, archive])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_captions_is_told_in_a_sentence(tmp_path, pack, case):
    files, expected = WRONG[case]
    root = pack(tmp_path / "set", three(files))
    with pytest.raises(DataError, match=expected.replace("set: ", r"set(\.zip)?: ")) as error:
        found(root)
    assert len(str(error.value)) < 500 + len(str(root))
    assert len(open_source(root)) >= 3, "captions that nobody asks for are no matter"


@pytest.mark.parametrize(
    ("members", "caption", "expected"),
    [
        ([], "auto", r"0.tar: no captions; a sample has them in a .txt, or in a .json with the key caption"),
        ([("a.txt", b"a")], "prompt", r"0.tar: no captions 'prompt'; a sample has them in a .txt"),
        ([("b.png", png(1)), ("b.txt", b"b")], "auto", r"1 of 2 images have no caption, such as 0.tar/a.png; write"),
        ([("a.txt", b"a"), ("a.txt", b"b")], "auto", r"0.tar: sample 'a' has its caption twice, a.txt the second"),
        ([("a.txt", b"\xff")], "auto", r"0.tar: a.txt, line 1 holds no caption that can be read \(byte 0xff"),
        ([("a.txt", b"x" * 10**6)], "auto", r"0.tar: sample 'a' holds no .*it has 1,000,000 bytes"),
        ([("a.txt", b"x" * 2**21)], "auto", r"0.tar: a.txt holds no .*it has more than 1,048,576 bytes"),
        ([("a.json", b'{"caption": {"en": "x"}}')], "auto", r"0.tar: sample 'a' holds no .*it is dict, and no text"),
        ([("a.json", b"{")], "caption", r"0.tar: a.json holds no .*it is no JSON"),
    ],
)
def test_what_is_wrong_in_shards_is_told_in_a_sentence(tmp_path, write_tar, members, caption, expected):
    root = write_tar(tmp_path / "0.tar", [("a.png", png(0)), *members])
    with pytest.raises(DataError, match=expected):
        found(root, caption)
    assert len(open_source(root)) >= 1


def test_what_is_wrong_in_tables_is_told_in_a_sentence(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def table(**columns):
        pq.write_table(pa.table({"image": [png(0), png(1)], **columns}), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    for column, caption, expected in [
        ({"caption": ["a", None]}, "auto", r"1 of 2 images have no caption, such as row 1 of x.parquet"),
        ({"caption": [["a"], []]}, "auto", r"1 of 2 images have no caption"),
        ({"caption": pa.array([None, None], "string")}, "auto", r"no captions; column 'caption' is empty"),
        ({"caption": ["a", "x" * 10**6]}, "auto", r"column 'caption', rows 0 to 1 holds no .*one has 1,000,000 bytes"),
        ({"caption": [1, 2]}, "auto", r"no column of captions named 'caption or text'; known: none; `caption` chooses"),
        ({"prompt": ["a", "b"]}, "promt", r"no column of captions named 'promt'; did you mean 'prompt'\?"),
    ]:
        with pytest.raises(DataError, match=expected):
            found(table(**column), caption)
    latin = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], "<i4")), pa.py_buffer(b"a\xff")]
    )
    with pytest.raises(
        DataError, match=r"column 'caption', rows 0 to 1 holds no caption that can be read \(Invalid UTF8"
    ):
        found(table(caption=latin))


def test_an_empty_choice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="caption='' names no place of captions"):
        found(folder(tmp_path, IMAGES), "")


def test_empty_captions_are_counted(tmp_path, caplog):
    root = folder(tmp_path, {**IMAGES, "captions.csv": as_csv(captions={**CAPTIONS, "bee/2.png": ["", " "]})})
    assert found(root)["bee/2.png"] == ["", ""]
    assert "2 of 5 captions are empty" in caplog.text


@pytest.mark.parametrize("pack", [folder, archive])
def test_some_images_without_a_caption_can_be_left_out(tmp_path, pack, caplog):
    some = {name: each for name, each in CAPTIONS.items() if name != "ant/1.png"}
    root = pack(tmp_path / "set", {**IMAGES, "captions.csv": as_csv(captions=some)})
    with pytest.raises(DataError, match=r"1 of 3 images have no caption, .* leave them out with max_uncaptioned=1"):
        found(root)
    assert found(root, max_uncaptioned=1) == some
    assert "left out 1 images that have no caption, such as ant/1.png" in caplog.text
    dataset = ImageDataset(root, 8, caption="auto", max_uncaptioned=2)
    assert [(item["label"], item["caption"]) for item in map(dataset.__getitem__, range(2))] == [
        (0, "a red ant"),
        (1, CAPTIONS["bee/2.png"][0]),
    ]
    assert dataset.source.read(1) == IMAGES["bee/2.png"]
    one = pack(tmp_path / "one", {**IMAGES, "captions.csv": as_csv(captions={"ant/0.png": ["x"]})})
    with pytest.raises(DataError, match="leave them out with max_uncaptioned=2"):
        found(one, max_uncaptioned=1)


def test_a_split_has_its_own(tmp_path):
    for split in ("train", "val"):
        texts = {name: [f"{split} {each[0]}"] for name, each in CAPTIONS.items()}
        folder(tmp_path / split, {**IMAGES, "metadata.jsonl": as_jsonl(("file_name", "text"), texts)})
    assert found(tmp_path, split="val")["ant/0.png"] == ["val a red ant"]


# Hostile


@pytest.mark.parametrize("name", ["captions.csv", "ant/0.txt"])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    root = folder(tmp_path, IMAGES)
    os.mkfifo(root / name)
    with pytest.raises(DataError, match=rf"{name} cannot be read \(it is no regular file\)"):
        found(root)
    (root / name).unlink()
    (root / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=rf"{name} cannot be read \(it is no regular file\)"):
        found(root)
    (root / name).unlink()
    (root / name).touch()
    os.truncate(root / name, 1 << 40)  # sparse: it costs nothing
    with pytest.raises(DataError, match=rf"{name}(, line 1)? holds no caption that can be read .*1,048,576 bytes"):
        found(root)


def test_an_archive_that_unpacks_for_ever_is_left_soon(tmp_path):
    root = archive(tmp_path / "set", {**IMAGES, "captions.csv": b"file,caption\n" + b"ant/0.png,x\n" * 100_000})
    with pytest.raises(DataError, match=r"captions.csv, line 3002 holds no .*with it they are 3,001 for 3 images"):
        found(root)


def test_a_damaged_archive_is_one_clear_error(tmp_path):
    root = archive(tmp_path / "set", {**IMAGES, "captions.csv": os.urandom(1000).hex().encode()})
    content = bytearray(root.read_bytes())
    content[content.index(b"captions.csv") + 200] ^= 0xFF
    root.write_bytes(content)
    with pytest.raises(DataError, match=r"captions.csv"):
        found(root)


# Changes


@pytest.mark.parametrize("pack", [folder, archive])
def test_changed_captions_are_noticed(tmp_path, pack, caplog):
    root = pack(tmp_path / "set", {**IMAGES, "captions.csv": as_csv()})
    before = open_source(root, caption="auto")
    listing = Listing.of(before)
    must_not_change(tmp_path, before)
    assert Listing.read(tmp_path).digest == listing.digest != Listing.of(open_source(root)).digest
    must_not_change(tmp_path, open_source(root))  # who does not ask for captions sees no others
    root = pack(tmp_path / "set", {**IMAGES, "captions.csv": as_csv(captions={**CAPTIONS, "ant/1.png": ["x"]})})
    now = open_source(root, caption="auto")
    changes = listing.changes(Listing.of(now), now)
    assert (changes.changed, changes.recaptioned, changes.first) == (0, 1, "ant/1.png")
    with pytest.raises(DataError, match=r"begun with other images .*\(1 of another caption, ant/1.png among them\)"):
        must_not_change(tmp_path, now)
    report_changes(tmp_path, "generation", ImageDataset(root, 8, caption="auto"), conditional=True)
    assert "was trained on other images so far (1 of another caption, ant/1.png among them)" in caplog.text


def test_listings_of_before_are_read(tmp_path):
    root = folder(tmp_path / "set", {**IMAGES, "captions.csv": as_csv()})
    listing = Listing.of(open_source(root))
    listing.write(tmp_path)
    with np.load(tmp_path / "listing.npz") as kept:
        arrays = {name: kept[name] for name in kept.files if name != "captions"}
    np.savez(tmp_path / "listing.npz", **arrays)
    (tmp_path / "listing.npz.sha256").unlink()
    assert Listing.read(tmp_path).digest == listing.digest
    must_not_change(tmp_path, open_source(root, caption="auto"))
