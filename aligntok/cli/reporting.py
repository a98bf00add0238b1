"""``report``: a page about runs, samples, sweeps and evaluations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from aligntok.cli.arguments import reporting_errors


@reporting_errors
def report(arguments: Sequence[str] | None = None) -> int:
    """Write one HTML page about runs: curves, pictures, results."""
    parser = argparse.ArgumentParser(
        prog="report",
        description="Write one self-contained HTML page about everything found in work folders: training curves, "
        "reconstructions, samples, guidance sweeps and results of evaluations; several are shown side by side.",
    )
    add = parser.add_argument
    add(
        "runs", nargs="+", metavar="RUN", help="a work folder, samples, a sweep, an evaluation, or a result's JSON file"
    )
    add("--out", metavar="FILE", help="the page to write (default: report.html in the first RUN)")
    add("--title", metavar="T", help="of the page (default: the names of the runs)")
    given = parser.parse_args(arguments)
    first = Path(given.runs[0]).expanduser()
    out = Path(given.out) if given.out else (first.parent if first.is_file() else first) / "report.html"

    from aligntok.evaluation.report import write_report

    print(f"Report: {write_report(given.runs, out, given.title)}   (open it in a browser)")
    return 0
