"""What started a run, noted in its folder, and the table of what its stages reached."""

from __future__ import annotations

import ast
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import aligntok
from aligntok.device import device
from aligntok.distributed import world
from aligntok.errors import CheckpointError
from aligntok.io.console import print_table
from aligntok.io.files import read_json, write_json
from aligntok.io.places import without_places
from aligntok.io.values import count, number

if TYPE_CHECKING:
    from aligntok.training.stages import Stage


def run_info_of(config: str | os.PathLike[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what starts a run, and when: the config file with its docstring, and the options given beside it."""
    own = re.search(r"(?:^|/)(configs/.*)", str(config))  # where a checkout lies says nothing
    what = {"config": own[1] if own else str(config), "docstring": read_docstring(config), "options": dict(options)}
    return {**what, "started": datetime.now().isoformat(timespec="seconds")}


def read_docstring(config: str | os.PathLike[str]) -> str:
    """Return a config's own words about itself, empty where it has none or cannot be read."""
    try:
        return ast.get_docstring(ast.parse(Path(config).read_text(encoding="utf-8"))) or ""
    except (OSError, ValueError, SyntaxError):
        return ""


def write_run_info(work_dir: str | os.PathLike[str], run_info: Mapping[str, Any]) -> None:
    """Write ``run.json`` into a work folder: the newest start's run_info, with versions, machine and time."""
    cuda = device().type == "cuda"
    here = {
        "aligntok_version": aligntok.__version__,
        "torch_version": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else platform.machine() + " CPU",
        "processes": world()[1],
    }
    write_json(Path(work_dir) / "run.json", {**without_places(run_info, work_dir), **here})


_HEADINGS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "st_lpips": "ST-LPIPS", "images": "held-out images"}


def read_result(path: Path) -> dict[str, Any]:
    """Return what a stage's ``result.json`` holds, dict(step, seconds, metrics). Raises CheckpointError."""
    cure = "remove that file and start the same command again: the stage is measured anew"

    def parse(said: dict[str, Any]) -> dict[str, Any]:
        metrics = {name: number(value) for name, value in said["metrics"].items()}
        return {"step": count(said["step"]), "seconds": number(said["seconds"]), "metrics": metrics}

    return read_json(path, CheckpointError, cure, parse)


def print_summary(stages: Sequence[Stage]) -> None:
    """Print PSNR, perceptual distance and seconds of every stage that has been validated; nothing without any."""
    files = {stage.name: stage.folder / "result.json" for stage in stages}
    results = {name: read_result(path) for name, path in files.items() if path.is_file()}
    if not results:
        return
    names = list(dict.fromkeys(name for result in results.values() for name in result["metrics"]))
    columns = ["stage", "steps", *(_HEADINGS.get(name.split("/")[-1], name) for name in names), "seconds"]
    rows = [
        [stage, f"{found['step']:,}", *(_format(n, found["metrics"].get(n)) for n in names), f"{found['seconds']:,.0f}"]
        for stage, found in results.items()
    ]
    print_table("Reconstruction of held-out images", columns, rows, left=["stage"])


def _format(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return {"images": f"{value:.0f}", "psnr": f"{value:.2f}"}.get(name.split("/")[-1], f"{value:.4f}")
