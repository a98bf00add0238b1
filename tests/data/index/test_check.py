"""`aligntok index check` finds a shard that changed or is gone, a place that is none, and columns that were changed."""

from __future__ import annotations

import os

import numpy as np
import pytest

from aligntok import cli
from aligntok.data.index.check import check_index
from aligntok.data.settings import IndexCheck, RemoteSettings
from aligntok.io.files import write_checksums


def checked(index, **given):
    return check_index(IndexCheck(index=index.folder, remote=RemoteSettings(pause=0.001, attempts=2), **given))


@pytest.fixture(params=["shards", "tables"])
def packed(request):
    return request.getfixturevalue(request.param)


def of(folder, number):
    return sorted([*folder.glob("*.tar")] or folder.glob("*.parquet"))[number]


def test_an_index_that_fits_has_no_problem(packed, build):
    index = build(packed)
    problems, told = checked(index)
    assert problems == []
    assert told == "21 samples of 3 shards, 21 of them read; 0 had no readable image when it was made"
    assert checked(index, blocks=0)[1].startswith("21 samples of 3 shards, 0 of them read")


def test_a_shard_that_is_gone_or_another_is_named(packed, build, capsys):
    index = build(packed)
    first, _, last = (of(packed, i) for i in range(3))
    first.unlink()
    with last.open("ab") as file:
        file.write(b"more")
    problems, _ = checked(index)
    assert len(problems) == 2
    assert f"{first} is not there" in problems[0]
    assert f"{last}: has " in problems[1]
    assert "when it was indexed" in problems[1]
    assert cli.main(["index", "check", str(index.folder)]) == 2
    assert "2 problems, 21 samples of 3 shards" in capsys.readouterr().out


def test_other_content_of_the_same_size_is_read_where_the_time_says_so_and_a_copy_is_none(shards, build):
    index = build(shards)
    os.utime(of(shards, 1), ns=(1, 1))
    assert checked(index, blocks=0)[0] == []
    content = bytearray(of(shards, 1).read_bytes())
    begin = int(index.column("offset")[7])
    content[begin : begin + 4] = b"none"
    of(shards, 1).write_bytes(content)
    problems, _ = checked(index, blocks=0)
    assert len(problems) == 1
    assert "sample 7 is of 0 x 0 pixels" in problems[0]


def test_a_shard_far_away_that_was_replaced_is_told_by_its_tag(shards, build, serve):
    server = serve(shards)
    index = build(f"{server.url}/{{00000..00002}}.tar")
    assert checked(index)[0] == []
    content = of(shards, 1).read_bytes()
    of(shards, 1).write_bytes(content)
    os.utime(of(shards, 1), ns=(1, 1))
    problems, _ = checked(index)
    assert [f"{server.url}/00001.tar: is another file than was indexed" in line for line in problems] == [True]
    server.close()
    assert len(checked(index)[0]) == 3


CHANGES = {
    "offset": ([("offset", 16, 10**9)], "sample 16 would lie at byte 1,000,000,000"),
    "size": ([("size", 16, 3)], "sample 16 is of 0 x 0 pixels in 3 bytes"),
    "height": ([("height", 3, 7)], "and 7 x "),
    "caption": ([("caption_offset", 20, -1)], "sample 20 would lie at byte -1"),
    "a caption": ([("caption_size", 14, 2), ("caption_offset", 14, 1536)], "holds no caption that can be read"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_column_is_found_by_its_checksum_and_else_by_what_lies_there(shards, build, change):
    index, (changes, said) = build(shards), CHANGES[change]
    for name, place, value in changes:
        np.load(index.folder / f"columns/{name}.npy", mmap_mode="r+")[place] = value
    problems, _ = checked(index)
    assert "its SHA-256 is not the one in checksums.json" in problems[0]
    write_checksums(index.folder / "columns", [path.name for path in (index.folder / "columns").glob("*.npy")])
    problems, _ = checked(index)
    assert said in " ".join(problems)
    (index.folder / "columns/checksums.json").unlink()
    assert "has no checksum" in checked(index)[0][0]


def test_the_command_line_builds_merges_and_checks(shards, tmp_path, capsys):
    words = [str(shards), "--columns", "AESTHETIC_SCORE", "--workers", "0"]
    for part in ("1/2", "2/2"):
        assert cli.main(["index", *words, "--out", f"{tmp_path}/{part[0]}", "--part", part]) == 0
    assert f"Index: {tmp_path}/2 (14 samples of 2 shards; captions in txt)" in capsys.readouterr().out
    assert cli.main(["index", "merge", f"{tmp_path}/1", f"{tmp_path}/2", "--out", f"{tmp_path}/all"]) == 0
    assert f"Index: {tmp_path}/all (21 samples of 3 shards; captions in txt)" in capsys.readouterr().out
    assert cli.main(["index", "check", f"{tmp_path}/all"]) == 0
    assert "21 samples of 3 shards" in capsys.readouterr().out
    assert cli.main(["check", f"{tmp_path}/all"]) == 0  # the checksums are those that `aligntok check` knows
    assert " files are as they were written\n" in capsys.readouterr().out
    assert cli.main(["index"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {verb} " in listed for verb in ("SHARDS ...", "check", "merge"))
    assert cli.main(["index", "chek", str(tmp_path), "--out", f"{tmp_path}/x"]) == 2
    assert "chek is no shard" in capsys.readouterr().err
