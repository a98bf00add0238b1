"""Weights from a local file into a module, with errors that say what does not fit. No file can run code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aligntok.errors import WeightsError

#: Where a checkpoint keeps its weights, in the order of preference; the averaged ones are what models are released for.
CONTAINERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "teacher")
WRAPPERS = ("_orig_mod.", "module.")  # what torch.compile and DistributedDataParallel put before every name


def read_tensors(path: str | os.PathLike[str], who: str) -> dict[str, Tensor]:
    """Return tensors by name from a .safetensors file, or from a torch file (.bin, .pth, .pt, .ckpt) without its code.

    A nested checkpoint gives its weights (`CONTAINERS`), and wrapper prefixes are taken off the names. `who` names
    the component that wants them in the error. Raises WeightsError when the file is missing, is damaged, holds
    objects other than tensors and plain data, or holds no tensors by name.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(f"{who}: no weights at {file}; place the file there, a .safetensors, .bin or .pth")
    try:
        content = _read(file)
    except Exception as error:  # damaged files raise whatever the format's reader happens to
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
        raise WeightsError(
            f"{who}: {file} cannot be read as weights ({type(error).__name__}: {reason}); place a sound file there\n"
            "  allowed: safetensors, or a torch file of plain tensors; nothing in it is ever executed"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{who}: {file} holds a {type(content).__name__}, not a state dict")
    named = {str(key): value for key, value in _inner(content).items() if isinstance(value, Tensor)}
    tensors = {_unwrapped(name): value for name, value in named.items()}
    if not tensors:
        raise WeightsError(f"{who}: {file} holds no tensors by name; a state dict is needed")
    return tensors


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _inner(content: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in CONTAINERS:
        if isinstance(content.get(name), Mapping):
            return _inner(content[name])
    return content


def _unwrapped(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    return key


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], who: str, source: object) -> None:
    """Load `tensors` into `module`; raise WeightsError naming what is missing, unknown or of another shape."""
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    faults = [f"missing {key}" for key in own if key not in given]
    faults += [f"unknown {key}" for key in given if key not in own]
    faults += [f"{key} is {given[key]}, not {own[key]}" for key in own if given.get(key, own[key]) != own[key]]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(
            f"{who}: {source} does not fit ({'; '.join(faults[:3])}{more}); check the model's options against the file"
        )
    module.load_state_dict(dict(tensors))
