"""The size and tidiness that the code base keeps."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("aligntok", "plugins", "tools", "configs", "benchmarks")
FILES = sorted(
    path
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if not any(part.startswith(".") or part in ("build", "dist") for part in path.relative_to(ROOT).parts)
)
PACKAGE = [path for path in FILES if path.is_relative_to(ROOT / "aligntok")]


TESTS = sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "plugins").glob("*/tests/*.py"))


def name(path):
    return str(path.relative_to(ROOT))


def functions(path):
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node):
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return node.end_lineno - first + 1


def test_there_is_something_to_look_at():
    assert len(PACKAGE) > 40
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"aligntok", "plugins", "tools", "configs"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_fit_on_a_screen_or_few(path):
    assert len(path.read_text().splitlines()) <= 350, f"{name(path)} is too long"
    long = {node.name: length(node) for node in functions(path) if length(node) > 60}
    assert not long, f"{name(path)}: functions of over 60 lines"


def test_most_functions_are_short():
    lengths = sorted(length(node) for path in PACKAGE for node in functions(path))
    assert lengths[len(lengths) // 2] <= 12
    assert lengths[int(len(lengths) * 0.9)] <= 35


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_the_package_has_no_loose_ends(path):
    text = path.read_text()
    for word in ("TODO", "FIXME", "XXX", "/work", "shared/", "/tmp", "/home/", "pdb.set_trace", "breakpoint("):
        assert word not in text, f"{name(path)} has {word!r}"
    assert not set(path.relative_to(ROOT).with_suffix("").parts) & {"utils", "util", "misc", "helpers", "common"}
    assert ast.get_docstring(ast.parse(text)), f"{name(path)} does not say what it is for"


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_the_package_knows_no_plugin_by_name(path):
    plugins = [folder.name.replace("-", "_") for folder in (ROOT / "plugins").glob("aligntok-*")]
    assert plugins
    assert not re.search(rf"^\s*(import|from)\s+({'|'.join(plugins)})\b", path.read_text(), flags=re.MULTILINE)


def test_stages_are_data_and_never_asked_for_by_name():
    for path in PACKAGE:
        assert not re.search(r"if .*\bstage(\.name|_name)?\s*==", path.read_text()), name(path)


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "configs")], ids=name)
def test_a_config_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name(path)} has no docstring"


def test_tools_are_thin():
    for path in (ROOT / "tools").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 100, name(path)


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_a_file_of_tests_says_what_it_holds(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name(path)} has no docstring"


def test_tests_mirror_the_tree():
    rooms = {path.parent.relative_to(ROOT / "tests") for path in TESTS if path.is_relative_to(ROOT / "tests")}
    assert len(rooms) > 20
    strangers = {str(room) for room in rooms if not (ROOT / "aligntok" / room / "__init__.py").is_file()}
    assert strangers == {"faults", "fuzz", "golden", "mutation", "wheels"}, (
        "a folder of tests/ is named after the package that it tests"
    )
    untested = {path.parent.name for path in (ROOT / "aligntok").glob("*/__init__.py")} - {str(room) for room in rooms}
    assert not untested, "packages without a folder in tests/"
