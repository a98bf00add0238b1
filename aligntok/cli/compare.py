"""``compare``: tokenizers at one budget, a generator on each, all measured alike."""

from __future__ import annotations

from collections.abc import Sequence

from aligntok.cli.arguments import parse, reporting_errors


@reporting_errors
def compare(arguments: Sequence[str] | None = None) -> int:
    """Train and measure several tokenizers, and a generator on each, at one budget."""
    from aligntok.evaluation.settings import ComparisonRequest

    asked = parse(ComparisonRequest, arguments, "compare", positional=("config",))

    from aligntok.evaluation import comparison

    comparison.compare(asked)
    return 0
