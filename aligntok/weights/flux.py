"""FLUX's weights by their two sets of names: Black Forest Labs', which are ours, and diffusers'."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from aligntok.weights.diffusers import write_model

CLASS = "FluxTransformer2DModel"
#: Black Forest Labs' name of a layer, or of a number of layers, to diffusers': several are one matrix there.
LAYERS: Mapping[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    **{
        f"{ours}.{layer}_layer": (f"time_text_embed.{theirs}_embedder.linear_{number}",)
        for ours, theirs in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance"))
        for layer, number in (("in", 1), ("out", 2))
    },
}
BLOCKS: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "double_blocks": (
        "transformer_blocks",
        {
            "img_mod.lin": ("norm1.linear",),
            "txt_mod.lin": ("norm1_context.linear",),
            "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "img_attn.norm.query_norm": ("attn.norm_q",),
            "img_attn.norm.key_norm": ("attn.norm_k",),
            "txt_attn.norm.query_norm": ("attn.norm_added_q",),
            "txt_attn.norm.key_norm": ("attn.norm_added_k",),
            "img_attn.proj": ("attn.to_out.0",),
            "txt_attn.proj": ("attn.to_add_out",),
            "img_mlp.0": ("ff.net.0.proj",),
            "img_mlp.2": ("ff.net.2",),
            "txt_mlp.0": ("ff_context.net.0.proj",),
            "txt_mlp.2": ("ff_context.net.2",),
        },
    ),
    "single_blocks": (
        "single_transformer_blocks",
        {
            "modulation.lin": ("norm.linear",),
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": ("proj_out",),
            "norm.query_norm": ("attn.norm_q",),
            "norm.key_norm": ("attn.norm_k",),
        },
    ),
}
SWAPPED = "final_layer.adaLN_modulation.1."  # shift and scale, which diffusers has the other way round


def diffusers_names(name: str) -> tuple[str, ...]:
    """Return diffusers' names of the tensors that are stacked in the one of Black Forest Labs' `name`."""
    layer, _, kind = name.rpartition(".")
    block = re.fullmatch(r"(double_blocks|single_blocks)\.(\d+)\.(.+)", layer)
    prefix, layers = "", LAYERS
    if block:
        prefix, layers = f"{BLOCKS[block[1]][0]}.{block[2]}.", BLOCKS[block[1]][1]
    kind = "weight" if kind == "scale" else kind
    return tuple(f"{prefix}{each}.{kind}" for each in layers[block[3] if block else layer])


def is_of_diffusers(tensors: Iterable[str]) -> bool:
    """Tell whether names of tensors are diffusers'."""
    return any(name.startswith(("x_embedder.", *(f"{theirs}." for theirs, _ in BLOCKS.values()))) for name in tensors)


def with_bfl_names(tensors: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Return tensors that diffusers has named by Black Forest Labs' names, those of `own`.

    What is missing is left out, and what belongs nowhere keeps its name, for whoever loads them to tell.
    """
    found, rest = dict[str, Tensor](), dict(tensors)
    for name in own:
        names = diffusers_names(name)
        if rest.keys() >= {*names}:
            parts = [rest.pop(each) for each in names]
            whole = torch.cat(parts) if len(parts) > 1 else parts[0]
            found[name] = _swapped(whole) if name.startswith(SWAPPED) else whole
    return {**found, **rest}


def with_diffusers_names(tensors: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return tensors of Black Forest Labs' names, of a model of that `width`, by diffusers'."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = diffusers_names(name)
        sizes = [width] * (len(names) - 1)
        parts = (_swapped(tensor) if name.startswith(SWAPPED) else tensor).split([*sizes, len(tensor) - sum(sizes)])
        found.update(zip(names, parts, strict=True))
    return found


def _swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def write_for_diffusers(
    folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write the folder of a FluxTransformer2DModel: its keywords, and weights by Black Forest Labs' names."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    write_model(folder, {"_class_name": CLASS, **config}, with_diffusers_names(tensors, width))
