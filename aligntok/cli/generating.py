"""Verbs that make images."""

from __future__ import annotations

from typing import Any

from aligntok.cli.commands import verb
from aligntok.sampling.settings import SampleRequest


@verb("sample", "run")
def sample(asked: SampleRequest) -> Any:
    """Draw samples from a trained generator."""
    if asked.guidance_sweep is not None:
        from aligntok.sampling.guidance_sweep import sweep_guidance as draw
    else:
        from aligntok.sampling import sample_images as draw

    return {"folder": draw(asked)}
