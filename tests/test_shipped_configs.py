"""The configs that come with AlignTok: listed with what each is, and copied so that they work elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligntok import cli
from aligntok.configs import listed
from aligntok.evaluation.comparison.plan import read_comparison
from aligntok.training.config import load_config

ROOT = Path(__file__).parents[1]


def test_every_config_is_listed_with_a_line(capsys):
    assert cli.main(["configs", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    files = (path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.py"))
    assert sorted(names) == sorted(path.with_suffix("").as_posix() for path in files if path.parts[0] != "_base_")
    assert all(len(line.split()) > 3 for line in lines)
    assert cli.main(["configs", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listed()


@pytest.mark.parametrize("name", listed())
def test_a_copied_config_is_the_same(name, tmp_path, capsys):
    assert cli.main(["configs", "cp", name, str(tmp_path / "mine"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == str(tmp_path / "mine" / f"{name}.py")
    here = ROOT / "configs" / f"{name}.py"
    if "\ntokenizers = dict(" in here.read_text():  # a comparison
        copied, own = read_comparison(Path(found["config"]), {}), read_comparison(here, {})
        assert copied.settings == own.settings
        assert [arm.name for arm in copied.arms] == [arm.name for arm in own.arms]
    else:
        assert load_config(found["config"]) == load_config(here)


def test_what_is_there_is_kept_unless_forced(tmp_path, capsys):
    copy = ["configs", "cp", "aligntok_mae_f16d32", str(tmp_path)]
    assert cli.main(copy) == 0
    mine = tmp_path / "aligntok_mae_f16d32.py"
    mine.write_text("changed = True\n")
    assert cli.main(copy) == 2
    assert f"{mine} is there and is another one" in capsys.readouterr().err
    assert mine.read_text() == "changed = True\n"
    assert cli.main([*copy, "--force"]) == 0
    assert mine.read_bytes() == (ROOT / "configs/aligntok_mae_f16d32.py").read_bytes()


@pytest.mark.parametrize("name", ["configs/aligntok_mae_f16d32.py", "aligntok_mae_f16d32.py"])
def test_a_name_may_be_the_path(name, tmp_path):
    assert cli.main(["configs", "cp", name, str(tmp_path)]) == 0


@pytest.mark.parametrize("name", ["aligntok_dino_f16d32", "_base_/runtime", "../setup"])
def test_a_name_that_there_is_not_is_answered_with_the_nearest(name, tmp_path, capsys):
    assert cli.main(["configs", "cp", name, str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert f"no config named '{name}'" in told
    assert ("did you mean 'aligntok_dinov2_f16d32'?" in told) == name.startswith("aligntok")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert cli.main(["configs", "cp", "demo/photographs_f8d16", str(tmp_path / "out")]) == 2
    assert "out is no folder that may be written in" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"
