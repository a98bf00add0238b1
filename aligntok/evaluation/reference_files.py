"""A .safetensors file with named tensors, what is said about them, and a checksum over both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aligntok.errors import DataError, first_line
from aligntok.io.files import save_tensors

FORMAT = "aligntok reference 1"
SUFFIX = ".safetensors"


def write_checked(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Path:
    """Write tensors and their description, whole or not at all. Raises WriteError when the disk does not take them."""
    if path.suffix != SUFFIX:
        raise DataError(f"a reference is a {SUFFIX} file, out is {path}; give {path.with_suffix(SUFFIX)}")
    content = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    said = json.dumps(described, sort_keys=True)
    metadata = {"format": FORMAT, "reference": said, "checksum": checksum(content, said)}
    save_tensors(path, content, metadata)
    return path


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and description. Raises DataError for a file that is damaged or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise DataError(f"the reference {path} is damaged ({first_line(error)}); fetch or make it again") from error
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path} is no reference of this version (its format is {metadata.get('format')!r}, not {FORMAT!r}); make "
            "one with `tools/evaluate.py make-reference`"
        )
    if checksum(tensors, metadata["reference"]) != metadata["checksum"]:
        raise DataError(f"the reference {path} is damaged (its checksum differs); fetch or make it again")
    return tensors, json.loads(metadata["reference"])


def checksum(tensors: Mapping[str, Tensor], said: str) -> str:
    """SHA-256 of tensors (CPU, contiguous), their names, types and shapes, and of what is said about them."""
    digest = hashlib.sha256(said.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
