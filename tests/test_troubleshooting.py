"""docs/troubleshooting.md has an entry for every error and warning of the package, and none that is gone from it.

A text is read off the code, with `…` for what is filled in; the message of an entry is one, shortened at its end.
"""

from __future__ import annotations

import ast
import copy
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from aligntok import errors

ROOT = Path(__file__).parents[1]
PACKAGE = {}  # what `trees` has, for all that is read off it
TABLE = re.compile(r"^\| message \| cause \| cure \|\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
CODE = re.compile(r"(`+) ?(.+?) ?\1(?!`)")
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
SAID = {"warning", "error", "_say", "say_once"}  # calls that tell the user something and raise nothing
SHARED = "unknown"  # the sentence that a call fills in: an entry is of what the call says
FEWEST_LETTERS = 8  # of an entry: a shorter one would stand for texts that it was not written for
#: Texts that are put together far from the call that raises or logs them, by that call.
ELSEWHERE = {
    "ProcessError(reason)": ["process … on … failed: …", "an exchange with another process broke off (…); …"],
    "ProcessError(ORPHANED)": ["the torchrun that started this process was killed"],
    "logger.warning('%s', text)": [],  # of say_once, which is told what to say
    "ImageError(first_line(error))": [],  # what Pillow says of a damaged file, in a message that names it
    "own.error('%s: %s', type(error).__name__, error)": [],  # any error at all, on its way out
}


@pytest.fixture(autouse=True, scope="module")
def package(trees):
    PACKAGE.update(trees)


@cache
def returns():
    """What each function returns, by its name: some put a message together."""
    functions = [n for tree in PACKAGE.values() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return {f.name: [n.value for n in ast.walk(f) if isinstance(n, ast.Return)] for f in functions}


def called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""


def texts(node):
    """The texts that an expression may give, with `…` for what only the run knows."""
    match node:
        case ast.Constant():
            return [re.sub(r"%[sd]", "…", str(node.value))]
        case ast.JoinedStr():
            return joined(node.values)
        case ast.FormattedValue(value=ast.IfExp() | ast.BinOp(op=ast.Mult())):
            return texts(node.value)
        case ast.FormattedValue(value=ast.Call() | ast.Constant() | ast.JoinedStr()) if filled_in(node.value):
            return texts(node.value)
        case ast.Call() if called(node) == SHARED:
            return texts(sentence(node))
        case ast.IfExp():
            return texts(node.body) + texts(node.orelse)
        case ast.BinOp(op=ast.Add()):
            return joined([node.left, node.right])
        case ast.BinOp(op=ast.Mult(), left=ast.Constant(value=str(text))):  # a plural's s, or nothing
            return [text, ""]
        case ast.Call(args=[ast.List(elts=parts)]) if called(node) == "join":
            return joined(parts)
        case ast.Call() if called(node) not in ERRORS and called(node) in returns():
            return [text for value in returns()[called(node)] for text in texts(value)]
    return ["…"]


def filled_in(node):
    return not isinstance(node, ast.Call) or called(node) == SHARED


def sentence(call):
    """What the shared sentence returns, with the call's first argument, if it is a text, in its place."""
    kind = call.args[0]
    place = {"kind": kind} if isinstance(kind, ast.Constant | ast.JoinedStr) else {}

    class Filled(ast.NodeTransformer):
        def visit_Name(self, name):
            return place.get(name.id, name)

    return Filled().visit(copy.deepcopy(returns()[SHARED][0]))


def joined(nodes):
    return ["".join(parts) for parts in product(*map(texts, nodes))]


def bare(text):
    """A text without markup, line breaks, what stands for the place that it is about, and its open end."""
    return re.sub(r"(… ?)+…", "…", " ".join(re.sub(r"[`\\]", "", text).split())).lstrip("…:, ").rstrip("… ")


def spoken(trees):
    """(place, text) of every error that is made and every line that is said."""
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if called(node) in ERRORS | SAID and node.args:
                for text in ELSEWHERE.get(ast.unparse(node), texts(node.args[0])):
                    yield f"{path}:{node.lineno}", bare(text) or ast.unparse(node)


def entries():
    """The messages of the page's tables: one or several, in backquotes, in the first column of each row."""
    rows = "".join(TABLE.findall((ROOT / "docs/troubleshooting.md").read_text())).splitlines()
    return [message for row in rows for _, message in CODE.findall(row.split(" | ")[0])]


def without_entry(trees):
    known = tuple(map(bare, entries()))
    return [f"{place}: {text}" for place, text in spoken(trees) if not text.startswith(known)]


def test_every_error_and_warning_has_an_entry():
    missing = without_entry(PACKAGE)
    assert not missing, "docs/troubleshooting.md has no entry for\n" + "\n".join(missing)


def test_every_entry_is_of_a_text_that_there_is():
    strings = [n for tree in PACKAGE.values() for n in ast.walk(tree) if isinstance(n, ast.Constant | ast.JoinedStr)]
    known = {bare(text) for node in strings for text in texts(node)} | {text for _, text in spoken(PACKAGE)}
    beginnings = {entry: bare(entry) for entry in entries()}
    gone = [entry for entry, begins in beginnings.items() if not any(text.startswith(begins) for text in known)]
    assert not gone, "nothing in aligntok says any more\n" + "\n".join(gone)


def test_entries_are_many_different_and_long_enough_to_know_a_text_by():
    assert len(set(entries())) == len(entries()) > 150
    assert not [entry for entry in entries() if len(re.findall("[a-z]", bare(entry))) < FEWEST_LETTERS]


def test_a_new_error_is_found_out():
    code = """
raise ConfigError(f"{who}: {count} apple{'s' * (count > 1)} " f"of {kind!r}" + (f" in {place}" if place else ""))
logger.warning("%s: apples of %s", who, place)
raise DataError(apples)
"""
    said = [
        "2: apples of … in",
        "2: apples of",
        "2: apple of … in",
        "2: apple of",
        "3: apples of",
        "4: DataError(apples)",
    ]
    assert without_entry({"new.py": ast.parse(code)}) == [f"new.py:{text}" for text in said]
