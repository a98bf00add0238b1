"""A file is whole or absent."""

from __future__ import annotations

import json

import pytest

from aligntok.io.files import replacing, write_atomically, write_json


def test_a_file_appears_whole_in_a_folder_that_is_made_for_it(tmp_path):
    target = tmp_path / "a" / "b" / "file.txt"
    write_atomically(target, lambda path: path.write_text("whole"))
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


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_whatever_is_raised_leaves_the_old_one_and_no_rubbish(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail(path):
        path.write_text("half")
        raise error

    with pytest.raises(error):
        write_atomically(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_that_writes_nothing_is_an_error_and_not_an_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "file.txt", lambda path: None)
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_the_same_way(tmp_path):
    write_json(tmp_path / "a.json", {"steps": 3, "folder": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {"steps": 3, "folder": str(tmp_path)}
