"""Tables and lines on the terminal: one look for all that commands print, of texts that rich takes as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text


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
    (``[bold]``, ``:train:``). console: None for stdout.
    """
    table = Table(title=None if title is None else Text(title), title_justify=title_at)
    for heading in columns:
        is_left = not heading or heading in left
        style = None if heading else "bold"
        table.add_column(Text(heading), justify="left" if is_left else "right", overflow="fold", style=style)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(Text, row))
    (console or Console()).print(table)


def print_line(text: str, console: Console | None = None) -> None:
    """Print a line, which nothing breaks but the terminal; console: None for stdout."""
    (console or Console()).print(Text(text), soft_wrap=True)
