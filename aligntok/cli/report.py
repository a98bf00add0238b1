"""``report``: a page about runs, samples, sweeps and evaluations."""

from __future__ import annotations

from collections.abc import Sequence

from aligntok.cli.arguments import parse, reporting_errors


@reporting_errors
def report(arguments: Sequence[str] | None = None) -> int:
    """Write one HTML page about runs: curves, pictures, results."""
    from aligntok.evaluation.settings import ReportSettings

    asked = parse(ReportSettings, arguments, "report", positional=("runs",))

    from aligntok.evaluation.report import write_report

    print(f"Report: {write_report(asked)}   (open it in a browser)")
    return 0
