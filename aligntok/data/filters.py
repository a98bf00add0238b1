"""Which samples of an index a training wants: a condition on its columns in words, and hosts that are left out.

    AESTHETIC_SCORE >= 5 and pwatermark < 0.8 and not (width < 256 or height < 256)

A condition compares columns with numbers (``< <= > >= == !=``), asks whether they are ``in (1, 2)``, and joins such
comparisons by ``and``, ``or``, ``not`` and parentheses. It is parsed, and never run as code. A value that is missing
(NaN) passes no comparison, and no negation of one: what nobody knows of a sample does not let it pass.
"""

from __future__ import annotations

import ast
import operator
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from aligntok.data.index import domain_of
from aligntok.errors import ConfigError, first_line, suggestion, unknown
from aligntok.io.files import read_bytes, reading

Columns: TypeAlias = Mapping[str, npt.NDArray[Any]]
Flags: TypeAlias = npt.NDArray[np.bool_]

#: Conditions by name. "laion" takes what LAION's own subsets have been cut by, as far as its tables say it: aesthetic
#: score, watermark, what is unsafe. The paper filters by the same things and gives no thresholds: these are ours.
PRESETS = {"laion": "AESTHETIC_SCORE >= 5 and pwatermark < 0.8 and punsafe < 0.5"}
_LONGEST, _DEEPEST = 4096, 32
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_SIGNS: dict[type[ast.cmpop], str] = {
    **dict(zip(_COMPARED, ("<", "<=", ">", ">=", "==", "!="), strict=True)),
    ast.In: "in",
    ast.NotIn: "not in",
}
_LANGUAGE = "a condition is made of columns, numbers, < <= > >= == !=, in (..), and, or, not and parentheses"


class Verdict(NamedTuple):
    """Of which samples a condition is true, and of which false, (n,) each; neither where a value is missing."""

    true: Flags
    false: Flags


class Filter:
    """A condition, or the name of one of PRESETS.

    ``text`` is the condition in one spelling, ``columns`` what it asks for. Raises ConfigError, with the place and what
    is there, for what is no condition.
    """

    def __init__(self, where: str) -> None:
        given = " ".join(where.split())
        given = PRESETS.get(given, given)
        self._given = given
        if not given:
            raise ConfigError(f"where={where!r} is empty; {_LANGUAGE}, or one of {', '.join(PRESETS)}; None takes all")
        if len(given) > _LONGEST or "#" in given:
            raise self._refused(f"a condition has at most {_LONGEST} characters, not {len(given)}, and no '#'")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Python's about numbers that run into words
                self._tree = ast.parse(given, mode="eval").body
        except SyntaxError as error:
            raise self._refused(f"{error.msg} at character {error.offset}; {_LANGUAGE}") from None
        except (ValueError, MemoryError, RecursionError) as error:
            raise self._refused(f"{first_line(error)}; {_LANGUAGE}") from None
        self._check(self._tree)
        self.text = _text(self._tree)
        self.columns = sorted({node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)})

    def check(self, columns: Collection[str]) -> None:
        """Raise ConfigError for a column that is not among those of an index."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name) and node.id not in columns:
                raise self._refused(unknown("column", node.id, sorted(columns)), node)

    def passes(self, columns: Columns) -> Flags:
        """Tell which samples pass, (n,): columns are (n,) each, by name."""
        return _passes(self._tree, columns)

    def parts(self) -> list[tuple[str, Callable[[Columns], Flags]]]:
        """Return the conditions that it joins by ``and``, each as a text and what tells who passes it alone."""
        is_joined = isinstance(self._tree, ast.BoolOp) and isinstance(self._tree.op, ast.And)
        joined: Sequence[ast.expr] = self._tree.values if is_joined else [self._tree]  # type: ignore[attr-defined]
        return [(_text(part), partial(_passes, part)) for part in joined]

    def _check(self, node: ast.expr, depth: int = 1) -> None:
        """Raise ConfigError for what is no condition."""
        if depth > _DEEPEST:
            raise self._refused(f"it has more than {_DEEPEST} levels of parentheses and 'not'", node)
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self._check(value, depth + 1)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._check(node.operand, depth + 1)
        elif isinstance(node, ast.Compare):
            self._check_comparison(node)
        elif isinstance(node, ast.Name):
            near = suggestion(node.id, PRESETS)
            raise self._refused(f"a column alone is no condition: compare it, as in {node.id} >= 1; {near}", node)
        else:
            raise self._refused(_LANGUAGE, node)

    def _check_comparison(self, node: ast.Compare) -> None:
        if len(node.ops) > 1:
            raise self._refused("one comparison at a time: write 'a < b and b < c' for 'a < b < c'", node)
        (kind,), (right,) = node.ops, node.comparators
        if isinstance(kind, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
                raise self._refused("'in' is followed by numbers in parentheses, such as (1, 2)", right)
            if not isinstance(node.left, ast.Name) or not all(_number(each) is not None for each in right.elts):
                raise self._refused("'in' stands between a column and numbers", node)
            return
        if type(kind) not in _COMPARED:
            raise self._refused(_LANGUAGE, node)
        for side in (node.left, right):
            if not isinstance(side, ast.Name) and _number(side) is None:
                raise self._refused("a column or a number belongs here", side)
        if not any(isinstance(side, ast.Name) for side in (node.left, right)):
            raise self._refused("two numbers are compared, and no column", node)

    def _refused(self, reason: str, node: ast.expr | None = None) -> ConfigError:
        if node is None:
            return ConfigError(f"where={self._given[:200]!r} is no condition: {reason}")
        begin = len(self._given.encode()[: node.col_offset].decode())
        told = (ast.get_source_segment(self._given, node) or "")[:80]
        return ConfigError(f"where={self._given[:200]!r}, at character {begin + 1}, '{told}': {reason.rstrip('; ')}")


def _number(node: ast.expr) -> int | float | None:
    """Return the number that a node is, None where it is none, or one that no column can have."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        inner = _number(node.operand)
        return None if inner is None else -inner
    value = node.value if isinstance(node, ast.Constant) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if not abs(value) < 2**63:  # infinity is not, either
        return None
    return int(value) if value == int(value) else value


def _text(node: ast.expr) -> str:
    """Write a condition as it is written once, whatever its spaces and parentheses were."""
    if isinstance(node, ast.BoolOp):
        word = " and " if isinstance(node.op, ast.And) else " or "
        return word.join(f"({_text(each)})" if isinstance(each, ast.BoolOp) else _text(each) for each in node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return f"not ({_text(node.operand)})"
    if isinstance(node, ast.Compare):
        return f"{_text(node.left)} {_SIGNS[type(node.ops[0])]} {_text(node.comparators[0])}"
    if isinstance(node, ast.Tuple | ast.List):
        return f"({', '.join(map(_text, node.elts))})"
    return node.id if isinstance(node, ast.Name) else repr(_number(node))


def _verdict(node: ast.expr, columns: Columns) -> Verdict:
    if isinstance(node, ast.BoolOp):
        found = _verdict(node.values[0], columns)
        for value in node.values[1:]:
            other = _verdict(value, columns)
            joined = found.true & other.true, found.false | other.false
            either = found.true | other.true, found.false & other.false
            found = Verdict(*(joined if isinstance(node.op, ast.And) else either))
        return found
    if isinstance(node, ast.UnaryOp):
        true, false = _verdict(node.operand, columns)
        return Verdict(false, true)
    assert isinstance(node, ast.Compare)  # as _check has it
    left, right, kind = node.left, node.comparators[0], node.ops[0]
    if isinstance(right, ast.Tuple | ast.List):
        value = _value(left, columns)
        among = np.logical_or.reduce([value == _number(each) for each in right.elts])
        verdict, known = among == isinstance(kind, ast.In), ~_is_missing(value)
    else:
        sides = [_value(side, columns) for side in (left, right)]
        verdict = _COMPARED[type(kind)](*sides)
        known = ~(_is_missing(sides[0]) | _is_missing(sides[1]))
    return Verdict(verdict & known, ~verdict & known)


def _passes(node: ast.expr, columns: Columns) -> Flags:
    return _verdict(node, columns).true


def _is_missing(value: Any) -> Any:
    return np.isnan(value) if np.asarray(value).dtype.kind == "f" else np.zeros(np.shape(value), dtype=bool)


def _value(node: ast.expr, columns: Columns) -> Any:
    return columns[node.id] if isinstance(node, ast.Name) else _number(node)


class BlockedDomains:
    """Hosts whose samples are left out: a text file, one a line, '#' before a remark.

    An index knows hosts by a hash of the whole name, without "www.", so each line blocks that very host:
    ``example.com`` blocks ``www.example.com``, and not ``img.example.com``. Raises ConfigError for a file that cannot
    be read, and for a line that is no host's name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        cure = "blocked_domains is a text file, one host a line"
        with reading(path, ConfigError, cure):
            text = read_bytes(path).decode("utf-8-sig")
        hosts = {line.partition("#")[0].strip().lower().rstrip(".") for line in text.splitlines()} - {""}
        for host in hosts:
            if len(host) > 253 or set(host) & set("/:@?* \t"):
                raise ConfigError(f"{path}: {host[:80]!r} is no host's name, such as img.example.com; {cure}")
        self.hashes = np.unique(np.array([domain_of(host.removeprefix("www.")) for host in hosts], dtype=np.uint64))

    def __len__(self) -> int:
        return len(self.hashes)

    def passes(self, domains: npt.NDArray[np.uint64]) -> Flags:
        """Tell which samples are of no such host, (n,), by the hashes of theirs."""
        return ~np.isin(domains, self.hashes)
