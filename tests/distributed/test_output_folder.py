"""A folder that is filled over several starts: gone on with by the same settings, and by nothing else."""

from __future__ import annotations

import json
import os

import pytest

from aligntok.distributed.output_folder import found_by_first, output_folder
from aligntok.errors import ConfigError, DataError


def compared(settings):
    return {key: value for key, value in settings.items() if key != "where"}


def hold(path, goes_on=True, **settings):
    with output_folder(path, "made.json", settings, compared, "another model", goes_on):
        (path / "made.json").write_text(json.dumps(settings))


def test_a_folder_is_gone_on_with_by_what_it_was_begun_with(tmp_path):
    hold(tmp_path / "out", steps=3, where="here")
    hold(tmp_path / "out", steps=3, where="there")
    assert json.loads((tmp_path / "out/made.json").read_text()) == {"steps": 3, "where": "there"}


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (dict(steps=4, where="here"), r"\(steps 3, now 4\)"),
        (dict(where="here"), r"\(steps 3, now none\)"),
        (dict(steps=3, name="x" * 70), r"\(name none, now x{16}\.\.\.\)"),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path, now, told):
    hold(tmp_path, steps=3, where="here")
    with pytest.raises(ConfigError, match=rf"was begun otherwise {told}; give what it was begun with, or another"):
        hold(tmp_path, **now)
    assert json.loads((tmp_path / "made.json").read_text()) == {"steps": 3, "where": "here"}
    hold(tmp_path, goes_on=False, **now)  # work that begins anew


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_file_and_a_folder_with_other_things_are_left_alone(tmp_path, goes_on):
    (tmp_path / "thesis.tex").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ConfigError, match=r"has other things in it, and no made\.json; give a new folder"):
            hold(path, goes_on, steps=3)
    (tmp_path / "made.json").write_text("{")
    if goes_on:
        with pytest.raises(DataError, match="so how the files beside it were made is unknown"):
            hold(tmp_path, steps=3)


def test_the_folder_is_locked_while_it_is_held_and_what_the_first_process_finds_is_told(tmp_path):
    with output_folder(tmp_path, "made.json", {}, compared, "another model"):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert found_by_first(lambda: [3, 0, 5], 3) == [3, 0, 5]
