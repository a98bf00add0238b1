"""What AlignTok finds where it is installed: versions, plugins, devices, kernels. For a report that something is wrong.

Nothing here needs the rest to work: a part that cannot be found out is told with the reason, and versions are read
without importing anything.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import aligntok
from aligntok.errors import AlignTokError, first_line
from aligntok.imports import FAILURES, folder_of, import_failure, installing, is_here, version_of

#: Distributions whose versions are told, by a module of each.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "xformers": "xformers",
    "timm": "timm",
    "open_clip": "open_clip_torch",
    "mmengine": "mmengine",
    "numpy": "numpy",
    "PIL": "pillow",
    "diffusers": "diffusers",
    "peft": "peft",
    "webdataset": "webdataset",
    "datasets": "datasets",
    "fsspec": "fsspec",
    "aiohttp": "aiohttp",
}
#: Variables of the environment that change what is computed, where, or from what.
VARIABLES = (
    *("ALIGNTOK_ATTENTION", "ALIGNTOK_LOAD_PLUGINS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG"),
    *("HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "PYTHONPATH", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR"),
)
HEADS = ((64, "bfloat16"), (72, "bfloat16"), (64, "float32"), (72, "float32"))  # of ViTs, and of LightningDiT-XL


def describe() -> dict[str, Any]:
    """Return what is here, part by part; of one that cannot be found out ``{"error": why}``."""
    parts: dict[str, Callable[[], Any]] = {
        "aligntok": lambda: {"version": aligntok.__version__, "folder": str(Path(aligntok.__file__).parent)},
        "python": lambda: {"version": platform.python_version(), "on": platform.platform(), "program": sys.executable},
        "packages": _packages,
        "variables": lambda: {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "torch": _torch,
        "devices": _devices,
        "attention": _attention,
        "compile_cache": _compile_cache,
        "plugins": _plugins,
    }
    found: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except AlignTokError as error:
            found[name] = {"error": str(error)}
        except FAILURES as error:
            found[name] = {"error": import_failure(error)}
    return found


def as_text(found: Mapping[str, Any], indent: str = "") -> str:
    """Return what was found as indented lines, for people."""
    lines = []
    for name, value in found.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}", as_text(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {'none' if value in (None, '') or value == {} else value}")
    return "\n".join(lines)


def _packages() -> dict[str, str]:
    found = {}
    for module, name in PACKAGES.items():
        at = version_of(name)
        found[name] = at or f"not installed: {installing(module)}"
        if at and not is_here(module):
            found[name] = f"{at}, without its module {module}: reinstall it"
    if version_of("xformers") and (built := _xformers_built_for()):
        found["xformers"] += f", built for torch {built}"
    return found


def _xformers_built_for() -> str | None:
    with suppress(
        AlignTokError, OSError, ValueError, LookupError, TypeError
    ):  # older releases say it elsewhere, or not
        told = folder_of("xformers", "its kernels") / "cpp_lib.json"
        return str(json.loads(told.read_bytes())["version"]["torch"])
    return None


def _torch() -> dict[str, Any]:
    import torch

    return {
        "CUDA": torch.version.cuda or torch.version.hip or "built without",
        "cuDNN": torch.backends.cudnn.version() if torch.cuda.device_count() else None,
        "threads": torch.get_num_threads(),
    }


def _devices() -> dict[str, str]:
    from aligntok.device import devices

    return devices()


def _attention() -> dict[str, str]:
    """Say what attends here, and why nothing else does, by attending."""
    import torch

    from aligntok.device import device
    from aligntok.ops.attention import attention, kernels_taken

    found = {}
    for width, dtype in HEADS:
        x = torch.zeros(1, 2, 16, width, dtype=getattr(torch, dtype), device=device())
        try:
            kernels_taken()  # of those before
            attention(x, x, x, who="it")
            told = kernels_taken().removeprefix("it: ")
        except FAILURES as error:  # a forced kernel that cannot run, or a broken driver
            told = str(error) if isinstance(error, AlignTokError) else first_line(error)
        found[f"{dtype}, heads of {width}"] = told
    return found


def _compile_cache() -> dict[str, str]:
    """Say where torch.compile keeps what it made, and whether it can."""
    from aligntok.engine.compile import compiled_folder

    folder = compiled_folder()
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    can = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return {"folder": str(folder), "state": "can be written" if can else f"cannot be written: {there} refuses"}


def _plugins() -> dict[str, Any]:
    """Return what became of each plugin, by its name; of others than our own every component is imported."""
    try:
        from aligntok.plugins import list_plugins

        records = list_plugins()
    except FAILURES as error:  # not even ours is loaded: who is installed is told all the same
        reason = f"not loaded: {import_failure(error)}"
        known = [(point.name, point.dist) for point in entry_points(group="aligntok")]
        return {name: {"of": of and f"{of.name} {of.version}", "error": reason} for name, of in known}
    found: dict[str, Any] = {}
    for record in records:
        told = {"error": record.error} if record.error else {"components": len(record.components)}
        found[record.name] = {"of": f"{record.distribution} {record.version}", **told}
        if record.distribution != "aligntok" and (broken := _broken(record.components)):
            found[record.name]["broken"] = broken
    return found


def _broken(components: Sequence[str]) -> dict[str, str]:
    """Return why components, written 'shelf:name', cannot be imported."""
    from aligntok.registry import shelves

    found = {}
    for component in components:
        shelf, _, name = component.partition(":")
        try:
            shelves()[shelf].get(name)
        except AlignTokError as error:
            found[component] = str(error)
    return found
