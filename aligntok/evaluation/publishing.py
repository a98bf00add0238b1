"""The end of every evaluation: the result on disk and in TensorBoard, a report to read, a table on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from aligntok.distributed import is_first
from aligntok.errors import ConfigError
from aligntok.evaluation.results import Result
from aligntok.io.files import check_writable


def check_out(folder: Path) -> None:
    """Raise ConfigError, in the first process, unless it can write in `folder`: before the work, not after it.

    A training's folder is none to write in: what says how a generator was trained has the name of a result.
    """
    if not is_first():
        return
    check_writable(folder)
    if (folder / "generation.json").is_file() and (folder / "checkpoints").is_dir():
        raise ConfigError(
            f"{folder} is a training's own folder, whose generation.json would be lost; give another --out"
        )


def publish(result: Result, folder: Path, console: Console | None = None) -> Path:
    """Write ``<kind>.json``, TensorBoard's line and ``report.html`` into `folder`, print the metrics; return the JSON.

    For the first process. Tables and pictures that the result names are in the folder already.
    """
    from aligntok.evaluation.report import write_report  # matplotlib and jinja2 load when there is something to write

    path = result.write(folder)
    print_metrics(result, console)  # first: a report that cannot be written is no reason not to see the numbers
    report = write_report([folder], folder / "report.html")
    print(f"Result: {path}\nReport: {report}")
    return path


def print_metrics(result: Result, console: Console | None = None) -> None:
    """Print the metrics as a table."""
    to = console or Console()
    to.print(f"{result.kind.replace('_', ' ').capitalize()} of {result.subject}", soft_wrap=True)
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.5g}")
    to.print(table)
