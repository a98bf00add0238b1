"""An index has the samples of its shards, wherever these lie, however often its making was stopped."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from aligntok.data.index import Index, domain_of
from aligntok.data.index import build as building
from aligntok.data.index.build import merge_indexes
from aligntok.data.remote import RemoteFiles
from aligntok.data.settings import MergeRequest, RemoteSettings
from aligntok.errors import ConfigError, DataError

spec = importlib.util.spec_from_file_location("packing", Path(__file__).with_name("packing.py"))
packing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(packing)
SAMPLES, EACH, N = packing.SAMPLES, packing.EACH, len(packing.SAMPLES)


def holds_all(index, read=None):
    """Whether an index of tar shards says of each sample what it is."""
    read = read or RemoteFiles().read
    assert len(index) == N
    for number, (begin, end) in enumerate(zip(*index.spans(np.arange(N)), strict=True)):
        image, sides, known = SAMPLES[number]
        place = index.shards.place(int(index.shard_of([number])[0]))
        assert read(place, int(begin), int(end - begin)) == image
        assert (index.column("height")[number], index.column("width")[number]) == sides
        begin, size = index.column("caption_offset")[number], index.column("caption_size")[number]
        caption = read(place, int(begin), int(size)).decode()
        assert (json.loads(caption)["caption"] if index.caption.startswith("json:") else caption) == known["caption"]
    holds_metadata(index)


def holds_metadata(index):
    known = [about for *_, about in SAMPLES]
    np.testing.assert_array_equal(
        index.column("AESTHETIC_SCORE"), np.array([each["AESTHETIC_SCORE"] for each in known], np.float32)
    )
    missing = np.isnan(index.column("pwatermark"))
    assert missing.tolist() == [each["pwatermark"] is None for each in known]
    assert index.columns["hits"] == "i8"
    assert index.column("hits").tolist() == [each["hits"] for each in known]
    assert index.column("domain").tolist() == [domain_of(f"host{number % 2}.org") for number in range(N)]


def test_tars_with_a_table_beside_each_as_img2dataset_writes_them(shards, build):
    index = build(shards)
    assert (index.kind, index.caption) == ("tar", "txt")
    holds_all(index)
    assert not (index.folder.parent / "index.parts").exists()
    assert {path.name for path in index.folder.iterdir()} == {"index.json", "shards.json", "columns", "checksums.json"}
    assert str(shards) not in (index.folder / "index.json").read_text()  # the root is what leads there


def test_metadata_and_captions_may_be_in_the_samples_json(shards, build):
    for number in range(3):
        (shards / f"{number:05d}.parquet").unlink()
        packing.write_tar(shards / f"{number:05d}.tar", packing.members_of(number, texts=False))
    index = build(shards)
    assert index.caption == "json:caption"
    holds_all(index)


def test_keys_in_folders_are_found_in_the_table_by_their_names(shards, build):
    members = [(f"some/where/{name}", data) for name, data in packing.members_of(0, known=False)]
    packing.write_tar(shards / "00000.tar", members)
    holds_all(build(shards))


def test_captions_that_say_the_same_twice_are_those_of_the_text_and_others_are_asked_about(shards, build):
    packing.write_tar(shards / "00001.tar", packing.members_of(1))
    holds_all(build(shards))
    broken = [(name, b"other" if name == "00009.txt" else data) for name, data in packing.members_of(1)]
    packing.write_tar(shards / "00001.tar", broken)
    with pytest.raises(DataError, match="captions are in json:caption and in txt; choose one with --caption"):
        build(shards)
    index = build(shards / "00001.tar", caption="caption")
    assert index.caption == "json:caption"
    assert build(shards, caption=None).caption is None


def packed(tmp_path, *texts):
    picture = SAMPLES[0][0]
    images = [(f"{number}.jpg", picture) for number in range(2)]
    return packing.write_tar(tmp_path / "own/0.tar", [*images, *texts])


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (
            [("0.txt", b"a"), ("1.json", b'{"caption": "b"}')],
            "captions are in json:caption and in txt; choose one with",
        ),
        (
            [("0.txt", b"a"), ("0.json", b'{"caption": "b"}')],
            "captions are in json:caption and in txt; choose one with",
        ),
        ([("0.txt", b"a"), ("0.txt", b"b")], "sample '0' has its caption twice, 0.txt the second; pack it once"),
        ([("0.json", b'{"hits": 1}'), ("0.json", b'{"hits": 2}')], "sample '0' has its metadata twice, 0.json the sec"),
    ],
)
def test_no_caption_is_lost_to_another(tmp_path, build, texts, told):
    with pytest.raises(DataError, match=told):
        build(packed(tmp_path, *texts), columns=())


def test_the_same_caption_in_several_places_is_one(tmp_path, build):
    twice = [("0.txt", b"a "), ("0.json", b'{"caption": ["a", ""]}'), ("0.txt", b"a "), ("9.json", b'{"caption": "b"}')]
    index = build(packed(tmp_path, *twice), columns=())
    assert (index.caption, index.column("caption_size").tolist()) == ("txt", [2, 0])


def test_a_table_s_rows_and_what_is_known_of_them(tables, build):
    index = build(tables)
    assert (index.kind, index.caption, len(index)) == ("parquet", "caption", N)
    assert [(index.column("row_group")[i], index.column("row")[i]) for i in range(EACH)] == [
        *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0))
    ]
    for number, (image, sides, known) in enumerate(SAMPLES):
        assert (index.column("height")[number], index.column("width")[number]) == sides
        assert index.column("size")[number] == len(image)
        assert index.column("caption_size")[number] == len(known["caption"])
    holds_metadata(index)


@pytest.mark.parametrize("packed", ["shards", "tables"])
def test_shards_by_http_give_the_same_index_at_every_fault(request, packed, build, serve):
    folder = request.getfixturevalue(packed)
    server = serve(folder)
    server.fail("503", every=7)
    words = f"{server.url}/{{00000..00002}}.tar" if packed == "shards" else f"{server.url}/{{0..2}}.parquet"
    soon = RemoteSettings(pause=0.001)
    index, local = build(words, remote=soon, out="far"), build(folder)
    assert index.columns == local.columns
    for name in index.columns:
        np.testing.assert_array_equal(index.column(name), local.column(name))
    assert index.shards.root == f"{server.url}/"
    assert sum(status == 503 for *_, status in server.asked) >= 1
    if packed == "shards":
        holds_all(index, RemoteFiles(soon).read)


def test_a_store_that_refuses_what_is_not_there_has_no_tables_beside(shards, build, serve, server_module, monkeypatch):
    answer = server_module._Handler.answer

    def refusing(self, asked, fault, body):
        there = (self.owner.folder / self.path.lstrip("/")).is_file()
        return answer(self, asked, None if there else "403", body)

    monkeypatch.setattr(server_module._Handler, "answer", refusing)
    (shards / "00002.parquet").unlink()
    found = build(f"{serve(shards).url}/00002.tar", columns=())
    assert len(found) == len(build(shards / "00002.tar", columns=(), out="near"))


def test_a_shard_far_away_is_never_held_whole(shards, build, serve, monkeypatch):
    import aligntok.data.remote as remote

    monkeypatch.setattr(remote.RemoteFiles.open, "__defaults__", (4096,))
    server = serve(shards)
    build(f"{server.url}/00002.tar")
    sizes = [asked[1] - asked[0] + 1 for path, asked, _ in server.asked if path.endswith(".tar")]
    assert max(sizes) <= 4096
    assert len(sizes) > 3
    assert sum(sizes) < 1.5 * (shards / "00002.tar").stat().st_size


def test_what_another_start_has_read_is_not_read_again(shards, build, monkeypatch):
    read = []
    real = building._READ["tar"]

    def reading(files, place, *given):
        read.append(place[-9:])
        if len(read) == 3:
            raise KeyboardInterrupt
        return real(files, place, *given)

    monkeypatch.setitem(building._READ, "tar", reading)
    with pytest.raises(KeyboardInterrupt):
        build(shards)
    assert not (shards.parent / "index").exists()
    parts = sorted((shards.parent / "index.parts").glob("*.npz"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:-100])  # cut off, and read again
    digest = build(shards).digest
    assert len(read) == 3 + 2
    monkeypatch.undo()
    assert build(shards, out="again").digest == digest


def test_processes_give_the_same(shards, build):
    assert build(shards, workers=2, out="two").digest == build(shards).digest


def test_parts_that_are_merged_are_what_one_start_makes(shards, tmp_path, build):
    whole = build(shards)
    parts = [build(shards, out=f"part{i}", part=f"{i}/2") for i in (1, 2)]
    assert [len(part) for part in parts] == [EACH, 2 * EACH]
    folders = tuple(str(part.folder) for part in reversed(parts))
    merged = merge_indexes(MergeRequest(parts=folders, out=tmp_path / "merged"))
    assert merged.digest == whole.digest
    holds_all(merged)
    with pytest.raises(ConfigError, match=r"00000.tar is in .+ and in .+; merge each shard once"):
        merge_indexes(MergeRequest(parts=(str(whole.folder), folders[1]), out=tmp_path / "twice"))
    with pytest.raises(ConfigError, match="is one of the parts"):
        merge_indexes(MergeRequest(parts=folders, out=folders[0]))
    other = build(shards, out="other", part="1/2", columns=("hits",))
    with pytest.raises(ConfigError, match="has the columns AESTHETIC_SCORE, .+; make the parts alike"):
        merge_indexes(MergeRequest(parts=(folders[0], str(other.folder)), out=tmp_path / "no"))
    without = build(shards, out="without", part="1/2", caption=None)
    with pytest.raises(ConfigError, match="has captions in txt, and .* None"):
        merge_indexes(MergeRequest(parts=(folders[0], str(without.folder)), out=tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_whole_numbers_of_which_some_are_missing_keep_their_digits_and_mixed_ones_are_floats(tmp_path, build):
    image = SAMPLES[0][0]
    rows = [{"a": 2**40, "b": 1, "c": None}, {"a": None, "b": 2, "c": None}, {"b": 2, "c": 0.5, "a": True}]
    for number, row in enumerate(rows):
        packing.write_tar(tmp_path / f"{number}.tar", [("x.jpg", image), ("x.json", json.dumps(row).encode())])
    index = build(f"{tmp_path}/{{0..2}}.tar", columns=("a", "b", "c"))
    assert index.columns == {**index.columns, "a": "f8", "b": "i8", "c": "f4"}
    np.testing.assert_array_equal(index.column("a"), [2.0**40, np.nan, 1])
    np.testing.assert_array_equal(index.column("c"), np.array([np.nan, np.nan, 0.5], np.float32))


def test_images_and_captions_that_cannot_be_read_are_there_and_counted_as_such(tmp_path, build):
    strip = io.BytesIO()
    from PIL import Image

    Image.new("L", (2000, 3)).save(strip, "PNG")
    members = [("a.jpg", b"no image"), ("b.png", strip.getvalue()), ("c.jpg", SAMPLES[2][0]), ("d.txt", b"alone")]
    members += [("c.txt", b"\xff\xfe"), ("e.jpg", SAMPLES[3][0]), ("e.txt", b" \n"), ("b.txt", b"of b")]
    packing.write_tar(tmp_path / "a.tar", members)
    index = build(tmp_path / "a.tar", columns=())
    assert index.column("height").tolist() == [0, 0, SAMPLES[2][1][0], SAMPLES[3][1][0]]
    assert index.column("caption_size").tolist() == [0, 4, 0, 0]
    assert "domain" not in index.columns


def test_a_caption_that_is_none_does_not_cost_what_else_its_json_says(tmp_path, build):
    texts = ['{"caption": 3, "a": 1}', '{"caption": "x", "a": 2}', '{"caption": [], "a": 3}', '{"caption": ["", "y"]}']
    texts += ['{"caption": "%s"}' % ("z" * 70_000), "{"]
    images = [(f"{number}.jpg", SAMPLES[0][0]) for number in range(len(texts))]
    known = [(f"{number}.json", text.encode()) for number, text in enumerate(texts)]
    packing.write_tar(tmp_path / "all.tar", images + known)
    index = build(tmp_path / "all.tar", columns=("a",))
    assert index.column("caption_size").tolist() == [0, len(texts[1]), 0, len(texts[3]), 0, 0]
    np.testing.assert_array_equal(index.column("a"), [1, 2, 3, np.nan, np.nan, np.nan])


def test_shards_without_a_sample_and_captions_that_no_shard_has_are_told(shards, tmp_path, build):
    packing.write_tar(tmp_path / "empty.tar", [("a.txt", b"alone")])
    with pytest.raises(DataError, match="1 shards hold no sample"):
        build(tmp_path / "empty.tar")
    index = build(tmp_path / "empty.tar", shards / "00000.tar", out="two")
    assert [index.shards.first.tolist(), index.caption] == [[0, EACH, EACH], "txt"]
    with pytest.raises(DataError, match="no shard has captions 'text'"):
        build(shards, caption="text", out="none")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-6000])


def compressed(path):
    with tarfile.open(path, "w:gz"):
        pass


def two_images(path):
    packing.write_tar(path, [("a.jpg", SAMPLES[0][0]), ("a.png", SAMPLES[0][0])])


BROKEN = {
    "cut off": (cut_off, "or a damaged one"),
    "compressed": (compressed, "is not an uncompressed tar file"),
    "two images": (two_images, "sample 'a' has two images"),
    "gone": (lambda path: path.unlink(), "is not there"),
    "table": (lambda path: path.with_suffix(".parquet").write_bytes(b"PAR1"), "00001.parquet cannot be read"),
    "column": (
        lambda path: packing.write_table(path.with_suffix(".parquet"), [{"key": "1"}]),
        "no column named 'AESTHETIC_SC",
    ),
    "text": (
        lambda path: packing.write_table(
            path.with_suffix(".parquet"), [{"key": "00007", "AESTHETIC_SCORE": "5", "pwatermark": 1, "hits": 1}]
        ),
        "AESTHETIC_SCORE = '5', which is no number",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_shard_is_named_once_all_others_are_read(shards, build, fault, caplog):
    words = f"{shards}/{{00000..00002}}.tar"
    spoil, said = BROKEN[fault]
    spoil(shards / "00001.tar")
    with pytest.raises(DataError, match="1 of 3 shards cannot be indexed, the first for this: .+00001.+leave them out"):
        build(words)
    assert said in caplog.text
    assert not (shards.parent / "index").exists()
    assert len([*(shards.parent / "index.parts").glob("*.npz")]) == 2
    index = build(words, max_broken=1)
    assert len(index) == 2 * EACH
    assert [path[-9:] for path in index.shards.paths] == ["00000.tar", "00002.tar"]


def test_a_shard_that_was_mended_is_read_again(shards, build):
    whole = build(shards).digest
    kept = (shards / "00001.tar").read_bytes()
    cut_off(shards / "00001.tar")
    with pytest.raises(DataError, match="cannot be indexed"):
        build(shards)
    assert Index.open(shards.parent / "index").digest == whole  # the one before stays
    (shards / "00001.tar").write_bytes(kept)
    assert build(shards).digest == whole
    cut_off(shards / "00001.tar")
    with pytest.raises(DataError, match="cannot be indexed"):
        build(shards)
    packing.write_tar(shards / "00000.tar", packing.members_of(2))  # another one since it was read
    (shards / "00001.tar").write_bytes(kept)
    assert build(shards).column("height")[0] == SAMPLES[2 * EACH][1][0]


REFUSED = {
    "twice": (("data", "data/00001.tar"), {}, "is given twice"),
    "no shard": (("chek",), {}, "chek is no shard: shards end in .tar or .parquet"),
    "kinds": (("data/00001.tar", "data/00001.parquet"), {}, "together are of two kinds"),
    "places": (("data/00001.tar", "http://a.org/x.tar"), {}, "files and addresses together"),
    "empty": (("none",), {}, "has no files that end in"),
    "a secret": (("https://me:secret@a.org/{0..3}.tar",), {}, "is given with a user"),
    "own": (("data",), dict(columns=("width",)), "every index has its own"),
    "a path": (("data",), dict(columns=("../x",)), "names are letters"),
    "same": (("data",), dict(columns=("hits", "hits")), "each once"),
    "part": (("data",), dict(part="0/2"), "parts are 1/2 to 2/2"),
    "parts": (("data",), dict(part="1/9"), "so this part has none"),
    "a word": (("data",), dict(part="half"), "part"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_cannot_be_is_refused_before_anything_is_read(shards, build, monkeypatch, case):
    words, given, said = REFUSED[case]
    (shards.parent / "none").mkdir()
    monkeypatch.chdir(shards.parent)
    with pytest.raises(ConfigError, match=said) as caught:
        build(*words, **given)
    assert "me:" not in str(caught.value)
    assert not (shards.parent / "index.parts").exists()
