"""Tables and lines on the terminal: one look for all that commands print, of texts that rich takes as they are.

Results go to stdout, by :func:`print_table`, :func:`print_line` and print. What a command tells of its work goes to
stderr, by :func:`say`, and how much of it :func:`speaking` sets.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

_manner = {"quiet": False, "verbose": False}


@contextmanager
def speaking(quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Let what runs inside tell nothing of its work but warnings and errors, or everything that its log has."""
    before = dict(_manner)
    _manner.update(quiet=quiet, verbose=verbose)
    try:
        yield
    finally:
        _manner.update(before)


def is_quiet() -> bool:
    """Tell whether neither talk nor progress is wanted."""
    return _manner["quiet"]


def is_verbose() -> bool:
    """Tell whether everything that goes to a log is wanted on the terminal, too."""
    return _manner["verbose"]


def is_colored() -> bool:
    """Tell whether stderr is a terminal that takes colours (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def say(text: str) -> None:
    """Tell something of a command's work, on stderr; nothing where it is to be quiet."""
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)


def beside() -> Console:
    """Return where tables that belong to the talk are printed."""
    return Console(stderr=True, quiet=is_quiet())


def print_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str] | None],
    left: Collection[str] = (),
    console: Console | None = None,
    title_at: JustifyMethod = "left",
) -> None:
    """Print rows of texts under the headings of their columns; a row that is None is a line across.

    Columns stand to the right, as numbers do, but those whose headings are in `left`; one without a heading names the
    rows, in bold, to the left. What is too wide for the terminal is folded, never cut off, and nothing is rich's markup
    (``[bold]``, ``:train:``). Words stay whole where all that are the longest of their column fit beside one another.
    console: None for stdout.
    """
    console, listed = console or Console(), list(rows)
    table = Table(title=None if title is None else Text(title), title_justify=title_at)
    widths = _widths([columns, *filter(None, listed)], console.width - 3 * len(columns) - 1)
    for heading, width in zip(columns, widths, strict=False):
        at = "left" if not heading or heading in left else "right"
        style = None if heading else "bold"
        table.add_column(Text(heading), justify=at, overflow="fold", style=style, width=width)  # type: ignore[arg-type]
    for row in listed:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(Text, row))
    console.print(table)


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int | None]:
    """Return how wide each column is to be, so that no word is broken; None for all where that, or anything, fits."""
    cells = [*zip_longest(*rows, fillvalue="")]
    whole = [max(cell_len(line) for text in column for line in text.splitlines() or [""]) for column in cells]
    least = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in cells]
    spare = room - sum(least)
    if sum(whole) <= room or spare < 0:
        return [None] * len(cells)
    found = list(least)
    for place in sorted(range(len(cells)), key=lambda i: whole[i] - least[i]):  # whole as many as can be
        more = min(whole[place] - least[place], spare)
        found[place] += more
        spare -= more
    return [*found]


def print_line(text: str, console: Console | None = None) -> None:
    """Print a line, which nothing breaks but the terminal; console: None for stdout."""
    (console or Console()).print(Text(text), soft_wrap=True)
