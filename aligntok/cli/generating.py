"""Verbs that make images."""

from __future__ import annotations

from typing import Any

from aligntok.app.settings import AppRequest
from aligntok.cli.commands import Outcome, verb
from aligntok.evaluation.settings import ReconstructRequest
from aligntok.sampling.settings import SampleRequest


@verb("sample", "run")
def sample(asked: SampleRequest) -> Any:
    """Draw samples from a trained generator."""
    if asked.guidance_sweep is not None:
        from aligntok.sampling.guidance_sweep import sweep_guidance as draw
    else:
        from aligntok.sampling import sample_images as draw

    return {"folder": draw(asked)}


@verb("reconstruct", "tokenizer", "images")
def reconstruct(asked: ReconstructRequest) -> Outcome:
    """Encode and decode pictures of your own, and tell how near each comes back."""
    from aligntok.evaluation.own_pictures import reconstruct_pictures

    found = reconstruct_pictures(asked)
    return Outcome(found, int(bool(found["unreadable"])))


@verb("app", "tokenizers", works=False, gives=False)
def app(asked: AppRequest) -> None:
    """Open a page on this machine to try tokenizers and a generator."""
    from aligntok.app.page import serve

    serve(asked)
