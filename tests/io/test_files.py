"""A file is whole or absent."""

from __future__ import annotations

import json
import os
import stat

import pytest

from aligntok.errors import ConfigError, WriteError
from aligntok.io import checksums, files
from aligntok.io.files import put_in_place, remove, replacing, write_json, writing_text
from aligntok.io.folders import check_links, check_writable, lock_folder


def test_a_file_appears_whole_in_a_folder_that_is_made_for_it(tmp_path):
    target = tmp_path / "a" / "b" / "file.txt"
    with replacing(target) as temporary:
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_until_it_is_whole_the_old_one_is_there(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == target.parent  # a rename between file systems would not be atomic
    assert target.read_text() == "new"


def half_of(path, error):
    path.write_text("half")
    raise error


@pytest.mark.parametrize(("error", "raised"), [(OSError, WriteError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_whatever_is_raised_leaves_the_old_one_and_no_rubbish(tmp_path, error, raised):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(raised), replacing(target) as temporary:
        half_of(temporary, error)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_that_writes_nothing_is_an_error_and_not_an_empty_file(tmp_path):
    with (
        pytest.raises(WriteError, match=r"file\.txt could not be written \(No such file"),
        replacing(tmp_path / "file.txt"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["flush", "rename", "folder"])
def test_an_error_of_the_disk_says_file_reason_and_cure(tmp_path, monkeypatch, step):
    target = tmp_path / "folder" / "file.txt"

    def full(*_):
        raise OSError(28, "No space left on device")

    if step == "folder":
        target.parent.write_text("a file in its place")
    else:
        target.parent.mkdir()
        target.write_text("old")
        monkeypatch.setattr(files, "_flush", full) if step == "flush" else monkeypatch.setattr(
            files.os, "replace", full
        )
    reason = "File exists" if step == "folder" else "No space left on device"
    with (
        pytest.raises(WriteError, match=rf"folder/file\.txt could not be written \({reason}\); buy a disk$"),
        replacing(target, "buy a disk") as temporary,
    ):
        temporary.write_text("new")
    assert step == "folder" or ([*target.parent.iterdir()] == [target] and target.read_text() == "old")


def test_a_claim_is_not_written_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigError, match="cannot write in"), lock_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


def test_what_a_device_or_a_pipe_is_stays_that(tmp_path):
    """Renamed over, /dev/null would be a file from then on, for every program of the machine."""
    os.mkfifo(pipe := tmp_path / "pipe")
    (link := tmp_path / "link").symlink_to("/dev/null")
    for place in (pipe, link):
        with pytest.raises(WriteError, match="could not be written \\(it is no regular file\\)"):
            write_json(place, {})
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()
    (made := tmp_path / "made").mkdir()
    with pytest.raises(OSError, match="it is no folder"):
        put_in_place(made, pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_to_nowhere_or_in_a_circle_is_no_place_to_write_in(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("/nowhere/at/all")
    for place in ("circle", "circle/inner", "nowhere"):
        with pytest.raises(ConfigError, match="is no folder that may be written in"):
            check_writable(tmp_path / place)
    check_links(tmp_path / "circle", tmp_path / "circle")


def test_json_is_written_the_same_way(tmp_path):
    write_json(tmp_path / "a.json", {"steps": 3, "folder": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {"steps": 3, "folder": str(tmp_path)}


def test_what_is_not_there_is_removed_without_a_word_below_a_file_too(tmp_path):
    (tmp_path / "file").write_text("mine")
    remove(tmp_path / "nothing")
    remove(tmp_path / "file/below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_checksum_is_beside_a_file_whose_name_is_no_text(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.json")
    write_json(path, {}, checksum=True)
    checksums.forget()
    assert checksums.verify(path)
    assert (tmp_path / os.fsdecode(b"caf\xe9.json.sha256")).read_bytes().endswith(b"  caf\xe9.json\n")


@pytest.mark.parametrize("cut", [False, True])
def test_text_is_whole_utf_8_or_absent(cut, tmp_path):
    def write():
        with writing_text(tmp_path / "a.md") as file:
            file.write("猫 caf\udce9 \ud800\r\n")
            if cut:
                raise RuntimeError

    if cut:
        with pytest.raises(RuntimeError):
            write()
        assert not [*tmp_path.iterdir()]
    else:
        write()
        assert (tmp_path / "a.md").read_bytes().decode("utf-8") == "猫 caf\\udce9 \\ud800\r\n"
