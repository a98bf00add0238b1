"""``analyze-latents``: tokenizers' latent spaces beside one another and a reference encoder's."""

from __future__ import annotations

from collections.abc import Sequence

from aligntok.cli.arguments import parse, reporting_errors


@reporting_errors
def analyze_latents(arguments: Sequence[str] | None = None) -> int:
    """Compare the latent spaces of tokenizers with one another and a reference encoder's."""
    from aligntok.evaluation.settings import LatentAnalysis

    settings = parse(LatentAnalysis, arguments, "analyze-latents", positional=("tokenizers", "data"))

    from aligntok.evaluation import latent_analysis

    latent_analysis.analyze_latents(settings)
    return 0
