"""A folder that cannot be listed is told of, and never passed over: what is in it would be missing without a word."""

from __future__ import annotations

import errno
import os

import pytest
from PIL import Image

from aligntok.check import CheckRequest, check_folder
from aligntok.data.sources import open_source, packed_files
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.report.collect import find
from aligntok.io.folders import check_links


@pytest.fixture
def closed(tmp_path, monkeypatch):
    """A folder of class folders a, b and c, of which b cannot be listed; nor can root, who may list anything."""
    for name in "abc":
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / f"data/{name}/1.png")

    def refuse(real):
        def list_it(path="."):
            if os.path.basename(os.fspath(path)) == "b":
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return real(path)

        return list_it

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    return tmp_path / "data"


def test_a_class_is_not_lost_and_later_ones_not_renumbered(closed):
    with pytest.raises(DataError, match=r"the folder .*/b cannot be listed \(Permission denied\)"):
        open_source(closed)


@pytest.mark.parametrize("take", [open_source, packed_files])
def test_nor_are_shards(closed, take):
    with pytest.raises(DataError, match="cannot be listed"):
        take(closed / "b")
    with pytest.raises(DataError, match="cannot be listed"):
        open_source(closed / "b" / "imagess")


def test_a_check_has_it_as_a_problem(closed, capsys):
    (problem,) = check_folder(CheckRequest(folder=closed))
    assert (problem.path, problem.reason) == (closed / "b", "cannot be listed (Permission denied)")
    assert "1 problem, 2 of 2 files" in capsys.readouterr().out
    assert len(check_folder(CheckRequest(folder=closed / "b"))) == 1


def test_a_report_says_that_it_is_missing(closed):
    with pytest.raises(DataError, match=r"holds nothing to report \(not found: .*/b cannot be listed \(Permission"):
        find(closed)


def test_links_that_lead_out_may_be_in_it(closed, tmp_path):
    with pytest.raises(ConfigError, match="cannot be listed"):
        check_links(tmp_path, closed)
    check_links(tmp_path, tmp_path / "not there yet", closed / "a/1.png")
