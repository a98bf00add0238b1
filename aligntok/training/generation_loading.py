"""Trained generators from wherever they are: a saved folder, a training work folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligntok.engine.checkpoints import list_checkpoints, load_parts, read_parts
from aligntok.errors import CheckpointError, ConfigError, WeightsError
from aligntok.io.files import read_json
from aligntok.latent_diffusion import LatentDiffusion, described_fields
from aligntok.registry import GENERATORS
from aligntok.tokenizer import Tokenizer
from aligntok.training.generation_settings import DESCRIPTION, NAME

UNKNOWN = "so the generator is unknown: copy the folder whole; starting its training again writes that file"


def load_latent_diffusion(
    source: str | os.PathLike[str],
    weights: str | None = None,
    average: float | None = None,
    components: Mapping[str, Any] | None = None,
) -> LatentDiffusion:
    """Load a generator with its tokenizer, in eval mode on the CPU.

    `source` is a folder that ``LatentDiffusion.save_pretrained`` wrote, a training work folder, or its ``generation``
    folder. Of the latter two the newest checkpoint is taken: `weights` "raw", or "ema" (None: where it is kept), of the
    width or decay `average` (None: that of the config's `ema.inference`).

    `components` are classes by the names that its files give them, for parts that no plugin registers.

    Raises WeightsError or CheckpointError when there is none there, or it is damaged, UnknownComponentError for a part
    that is neither registered nor given.
    """
    path = Path(source)
    if (path / "latent_diffusion.json").is_file():
        if weights is not None or average is not None:
            raise ConfigError(f"--weights and --average choose among a work folder's weights; {source} is none")
        return LatentDiffusion.from_pretrained(path, components)
    folder = generation_folder(path)
    has_ema, fields = read_json(
        folder / DESCRIPTION, CheckpointError, UNKNOWN, lambda said: (bool(said["ema"]), described_fields(said))
    )
    GENERATORS.check_registered(fields["generator"], components)  # before the tokenizer's parts are imported
    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer", components=components)
    model = LatentDiffusion(tokenizer=tokenizer, trusted=False, components=components, **fields)
    states = read_parts(folder, weights or ("ema" if has_ema else "raw"), average)
    load_parts({"generator": model.generator}, states, f"the newest checkpoint in {folder}")
    return model.eval()


def generation_folder(path: Path) -> Path:
    """Return the folder of a generator's training: itself, or the one in a work folder. Raises WeightsError."""
    for folder in (path, path / NAME):
        if (folder / DESCRIPTION).is_file() and list_checkpoints(folder):
            return folder
    there = ", ".join(sorted(os.listdir(path))[:10]) if path.is_dir() else "no such folder"
    raise WeightsError(
        f"{path} has no trained generator: neither a saved one (latent_diffusion.json) nor a work folder with a "
        f"checkpoint of its generation; it has: {there or 'nothing'}"
    )
