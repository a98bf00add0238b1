"""Weights from a local file into a module, with errors that say what does not fit. No file can run code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from aligntok.errors import WeightsError


def read_tensors(path: str | Path, who: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of one saved by torch (a state dict, or one under `state_dict`).

    who: the component that wants them, for the messages. Raises WeightsError when the file is missing, is damaged, or
    holds objects other than tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{who}: no weights at {path}; place the file there")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{who}: {path} cannot be read as weights ({reason}); place a sound file there") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{who}: {path} holds a {type(content).__name__}, not a state dict")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


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
