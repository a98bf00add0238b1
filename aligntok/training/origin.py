"""What started a run, noted in its folder for those who read it later: config, options, versions, machine."""

from __future__ import annotations

import ast
import os
import platform
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import aligntok
from aligntok.device import device
from aligntok.distributed import world
from aligntok.io.files import write_json

NAME = "run.json"


def origin_of(config: str | os.PathLike[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what starts a run: the config file with its docstring, and the options given beside it."""
    return {"config": str(config), "docstring": read_docstring(config), "options": dict(options)}


def read_docstring(config: str | os.PathLike[str]) -> str:
    """Return a config's own words about itself, empty where it has none or cannot be read."""
    try:
        return ast.get_docstring(ast.parse(Path(config).read_text(encoding="utf-8"))) or ""
    except (OSError, ValueError, SyntaxError):
        return ""


def note_origin(work_dir: str | os.PathLike[str], origin: Mapping[str, Any]) -> None:
    """Write ``run.json`` into a work folder: the newest start's origin, with versions, machine and time."""
    cuda = device().type == "cuda"
    here = {
        "started": datetime.now().isoformat(timespec="seconds"),
        "aligntok_version": aligntok.__version__,
        "torch_version": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else platform.machine() + " CPU",
        "processes": world()[1],
    }
    write_json(Path(work_dir) / NAME, {**origin, **here})
