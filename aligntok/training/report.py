"""The table at the end of a run: what each stage reached, and what it took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aligntok.errors import CheckpointError
from aligntok.io.files import read_json
from aligntok.training.stages import Stage

_HEADINGS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "st_lpips": "ST-LPIPS", "images": "held-out images"}


def read_results(stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Return what the finished stages measured: ``{stage: dict(step, seconds, metrics)}``."""
    found = {stage.name: stage.folder / "result.json" for stage in stages}
    return {name: read_result(path) for name, path in found.items() if path.is_file()}


def read_result(path: Path) -> dict[str, Any]:
    """Return what a stage's ``result.json`` holds, dict(step, seconds, metrics). Raises CheckpointError."""
    cure = "remove that file and start the same command again: the stage is measured anew"
    return read_json(
        path, CheckpointError, cure, lambda said: {key: said[key] for key in ("step", "seconds", "metrics")}
    )


def print_summary(stages: Sequence[Stage], console: Console | None = None) -> None:
    """Print PSNR, perceptual distance and seconds of every stage that has been validated; nothing without any."""
    results = read_results(stages)
    if not results:
        return
    names = list(dict.fromkeys(name for result in results.values() for name in result["metrics"]))
    table = Table(title="Reconstruction of held-out images", title_justify="left")
    for heading in ("stage", "steps", *(_HEADINGS.get(name.split("/")[-1], name) for name in names), "seconds"):
        table.add_column(heading, justify="left" if heading == "stage" else "right", overflow="fold")
    for stage, result in results.items():
        values = [_format(name, result["metrics"].get(name)) for name in names]
        table.add_row(stage, f"{result['step']:,}", *values, f"{result['seconds']:,.0f}")
    (console or Console()).print(table)


def _format(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return {"images": f"{value:.0f}", "psnr": f"{value:.2f}"}.get(name.split("/")[-1], f"{value:.4f}")
