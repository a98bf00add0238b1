"""``sample``: pictures from a trained generator."""

from __future__ import annotations

from collections.abc import Sequence

from aligntok.cli.arguments import parse, reporting_errors


@reporting_errors
def sample(arguments: Sequence[str] | None = None) -> int:
    """Draw samples from a trained generator."""
    from aligntok.sampling.settings import SampleRequest

    request = parse(SampleRequest, arguments, "sample", positional=("run",), flat=True)
    if request.guidance_sweep is not None:
        from aligntok.sampling.guidance_sweep import sweep_guidance

        sweep_guidance(request)
        return 0

    from aligntok import sampling

    sampling.sample_images(request)
    return 0
