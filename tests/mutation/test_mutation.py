"""The tool that asks whether tests can fail: what it changes, and that it leaves the tree as it is."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '''"""A module: 1 + 1."""

SIZES = {"S": (384, 12)}


def clipped(values: list[int | None], bound: float = 0.5, *, strict: bool = True) -> float:
    """Return at most 2 of them."""
    total = 0.0
    for value in values:
        if value is not None and value < bound:
            total += -value * 2
    values.sort(reverse=True)
    if not strict:
        raise ValueError(f"{total + 1} is above {3 * bound}")
    return max(total, bound) if values else abs(total).clamp(max=1.0)
'''


@pytest.fixture(scope="module")
def tool():
    """The functions of the tool, whose files find one another as those of a script do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        modules = [importlib.import_module(name) for name in ("files", "changes", "trying", "run")]
    yield SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})
    for module in modules:
        del sys.modules[module.__name__]


def test_each_change_is_one_place_of_what_computes(tool):
    found = tool.changes(SOURCE)
    told = {change.told for change in found}
    branches = "max(total, bound) if values else abs(total).clamp(max=1.0)"
    assert told >= {
        "384  ->  385",  # tables
        "0.5  ->  1.0",  # defaults
        "True  ->  False",
        "value is not None and value < bound  ->  value is not None or value < bound",
        "value is not None and value < bound  ->  value is not None",
        "value < bound  ->  value <= bound",
        "value is not None  ->  value is None",
        "total += -value * 2  ->  pass",
        "-value * 2  ->  -value / 2",
        "-value * 2  ->  -value",
        "-value  ->  value",
        "2  ->  1",
        "values.sort(reverse=True)  ->  pass",
        "values.sort(reverse=True)  ->  values.sort()",
        "max(total, bound)  ->  min(total, bound)",
        "abs(total).clamp(max=1.0)  ->  abs(total)",
        f"{branches}  ->  abs(total).clamp(max=1.0) if values else max(total, bound)",
    }
    lines = SOURCE.splitlines()
    for change in found:
        assert tool.is_other_code(change, SOURCE)
        others = change.source.splitlines()
        assert sum(a != b for a, b in zip(lines, others, strict=True)) == 1
        assert lines[change.line - 1] != others[change.line - 1]
    changed = {change.line for change in found}
    assert not changed & {1, 2, 7, 14}, "texts, docstrings and errors compute nothing"


def test_a_seed_draws_the_same_ones_of_a_file_whatever_else_is_tried(tool):
    first = tool.chosen(["rng", "device"], 3, 4, [])
    assert len(first) == 8
    assert tool.chosen(["device"], 3, 4, []) == first[4:]
    assert tool.chosen(["rng", "device"], 4, 4, []) != first
    assert len(tool.chosen(["device"], None, 4, [])) > 20


def test_every_file_and_test_that_it_names_is_there(tool):
    for module, (own, more) in tool.MODULES.items():
        assert (ROOT / f"aligntok/{module}.py").is_file(), module
        assert own
        for name in (*own, *more, tool.OF_ALL):
            assert (ROOT / f"tests/{name}.py").is_file(), name


@pytest.mark.nightly
def test_it_tells_what_is_killed_from_what_survives_and_leaves_the_tree_alone():
    """In the device's module: `whole` of the precision is looked at, how often an error is looked through is not."""
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "aligntok").rglob("*.py")}
    line = next(
        i for i, text in enumerate((ROOT / "aligntok/device.py").read_text().splitlines(), 1) if "rounded =" in text
    )
    words = ["--only", "device", "--line", str(line), "--jobs", "1"]
    done = subprocess.run([sys.executable, "tests/mutation/run.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("3 of 3 killed, 0 survived"), done.stdout
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "aligntok").rglob("*.py")} == before
