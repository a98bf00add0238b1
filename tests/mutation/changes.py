"""The mutants of a source: each with one place of what computes changed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARED |= {ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
CALCULATED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
CALCULATED |= {ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.MatMult: ast.Mult}
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
#: Methods that are left out of a chain.
CHAINED = (
    "clamp",
    "clip",
    "square",
    "sqrt",
    "abs",
    "exp",
    "norm",
    "sort",
    "flip",
    "float",
    "double",
    "detach",
    "clone",
)
CHAINED += ("expanduser", "casefold", "strip", "logical_not", "eval", "union", "clear", "max", "mean", "sum")
#: Messages, logs and bounds of a profiler: another changes nothing that is computed.
SILENT = ("logger", "record_function", "warn", "print", "check_same_shape", "cast", "unknown", "first_line")
NO_MATTER = ("strict", "non_blocking", "retain_graph", "allow_unused", "encoding", "desc", "who")


class Change(NamedTuple):
    """A mutant: the file's source with one place changed, the line of that, and what was changed, for people."""

    source: str
    line: int
    told: str


def changes(source: str) -> list[Change]:
    """Return all mutants of a source: operators, numbers, defaults, branches, keywords, statements, in its order."""
    raw, tree = source.encode(), ast.parse(source)
    starts = [0]
    for line in raw.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: dict[str, Change] = {}
    for place, new in (pair for node in _computing(tree) for pair in _others(node)):
        begin, end = starts[place.lineno - 1] + place.col_offset, starts[place.end_lineno - 1] + place.end_col_offset
        text, before = ast.unparse(ast.fix_missing_locations(new)), " ".join(raw[begin:end].decode().split())
        put = text if isinstance(new, ast.stmt) else f"({text})"
        mutated = (raw[:begin] + put.encode() + raw[end:]).decode()
        found.setdefault(mutated, Change(mutated, place.lineno, f"{before[:80]}  ->  {text[:80]}"))
    return sorted(found.values(), key=lambda change: change.line)


def is_other_code(change: Change, source: str) -> bool:
    """Tell whether a mutant is Python, and other than its source: a place in a pattern, say, takes no parentheses."""
    try:
        return ast.dump(ast.parse(change.source)) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what computes: no annotations, docstrings, texts, errors."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Call) and _name(node.func) in SILENT:
        return
    if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list", "bases"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and getattr(child, "arg", None) not in NO_MATTER:
                    yield from _computing(child)


def _name(node: ast.AST) -> str:
    """Return the name that an expression begins with, or a silent one in it."""
    while isinstance(node, ast.Attribute | ast.Call):
        if isinstance(node, ast.Attribute) and node.attr in SILENT:
            return node.attr
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def _others(node: Any) -> Iterator[tuple[Any, ast.AST]]:
    """Yield what may stand elsewhere instead: pairs of (the place, what comes there)."""
    if isinstance(node, ast.Constant):
        yield from ((node, ast.Constant(value)) for value in _other_values(node.value))
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        yield node, _changed(node, ops=[COMPARED[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BinOp) and type(node.op) in CALCULATED:
        yield node, _changed(node, op=CALCULATED[type(node.op)]())
        yield node, node.left
    elif isinstance(node, ast.UnaryOp):
        yield node, node.operand
    elif isinstance(node, ast.BoolOp):
        yield node, _changed(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
        for i in range(len(node.values)):
            kept = node.values[:i] + node.values[i + 1 :]
            yield node, kept[0] if len(kept) == 1 else _changed(node, values=kept)
    elif isinstance(node, ast.IfExp):
        yield node, _changed(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.If | ast.While):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and _is_done(node.value)):
        yield node, ast.Pass()
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield node.ifs[0], ast.Constant(True)
    elif isinstance(node, ast.Call):
        yield from ((node, other) for other in _other_calls(node))


def _is_done(value: ast.AST) -> bool:
    return isinstance(value, ast.Call) and _name(value) not in SILENT


def _other_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, *([value - 1] if value > 1 else [])]
    if isinstance(value, float):
        return [value * 2 if value else 1.0]
    return []


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in RENAMED:
        yield _changed(node, func=ast.Name(RENAMED[function.id]))
    if isinstance(function, ast.Attribute):
        if function.attr in RENAMED:
            yield _changed(node, func=_changed(function, attr=RENAMED[function.attr]))
        if function.attr in CHAINED:
            yield function.value
    for keyword in node.keywords:
        if keyword.arg is not None and keyword.arg not in NO_MATTER:
            yield _changed(node, keywords=[other for other in node.keywords if other is not keyword])


def _changed(node: Any, **fields: Any) -> Any:
    """Return a copy of a node with other fields."""
    return deepcopy(type(node)(**{**dict(ast.iter_fields(node)), **fields}))
