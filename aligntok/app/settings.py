"""What the page is told."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from aligntok.settings import settings


@settings
class AppRequest:
    """Open a page on this machine to try tokenizers, side by side, and a generator.

    aligntok app work_dirs/my_run
    aligntok app my_tokenizer another_tokenizer --generator work_dirs/my_run --port 7861
    """

    tokenizers: Annotated[tuple[str | Path, ...], Field(min_length=1)]
    """Work folders or stages, saved tokenizers, published checkpoints, hub ids."""
    generator: str | Path | None = None
    """A work folder with a trained generator, or a saved one."""
    text_encoders: dict[str, str] = field(default_factory=dict)
    """Where the text encoders of a saved generator are: tokens=FOLDER, pooled=FOLDER."""
    port: Annotated[int, Field(ge=1, le=65535)] = 7860
    """Where the page is: http://127.0.0.1:PORT."""
    device: str | None = None
    """Such as cpu, cuda:1, mps; None: a GPU if there is one."""
