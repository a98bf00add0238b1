"""LoRA (Hu et al. 2022) on the encoder, as in the paper's ablation: added for a stage, merged where it leaves it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from aligntok.errors import ConfigError
from aligntok.imports import FAILURES, import_failure
from aligntok.io.files import names_of_one_tensor
from aligntok.settings import AboveZero, Share, Width, settings

#: Attention and MLP layers of timm's transformer blocks, also of open_clip's towers that are timm's, and the MLP layers
#: of open_clip's own, whose attention is one module of torch's; other encoders need `targets` of their own.
TARGETS = r".*blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2|c_fc|c_proj))"
_BASE = ".base_layer."


@settings
class LoRASettings:
    """Low-rank updates (LoRA)."""

    rank: Width = 16
    """Rank of the updates."""
    alpha: AboveZero = 32
    """The updates are scaled by alpha / rank."""
    dropout: Share = 0.1
    """Dropout before an update."""
    targets: str = TARGETS
    """Regular expression that the names of the linear layers match as a whole."""


def add_lora(encoder: nn.Module, trainable: Sequence[str], lora: LoRASettings) -> None:
    """Put a low-rank update B A on every linear layer whose name matches `targets`; the layers themselves stay frozen.

    The layer then gives W x + alpha / rank B A x, with A (rank, in) random and B (out, rank) zero at first. `dropout`
    acts on x before A. Only the updates train. Raises ConfigError when the stage does not train the encoder, nothing
    matches, or peft is not installed.
    """
    if "encoder" not in trainable:
        raise ConfigError(f"lora trains the encoder, but this stage trains only {', '.join(trainable)}; set lora=None")
    linear = [name for name, part in encoder.named_modules() if isinstance(part, nn.Linear)]
    matched = [name for name in linear if re.fullmatch(lora.targets, name)]
    if not matched:
        raise ConfigError(
            f"lora: no linear layer of {type(encoder).__name__} matches targets={lora.targets!r} as a whole; "
            f"its layers: {', '.join(linear[:6]) or 'none'}{', ...' * (len(linear) > 6)}"
        )
    same = names_of_one_tensor(encoder.state_dict(keep_vars=True))
    users = Counter(same.values())
    if tied := [name for name in matched if users[same[f"{name}.weight"]] > 1]:
        raise ConfigError(
            f"lora: layer '{tied[0]}' of {type(encoder).__name__} shares its weight with another, and the two would "
            "part once the updates are merged; let lora.targets leave such layers out, or train without lora"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except FAILURES as error:
        raise ConfigError(f"lora needs peft: {import_failure(error)}") from error
    updates: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    config = LoraConfig(**updates, target_modules=lora.targets)
    inject_adapter_in_model(config, encoder)


def with_lora(state: Mapping[str, Tensor], part: nn.Module) -> dict[str, Tensor]:
    """Return a plain state under the names of `part`, whose updates stay as they are."""
    own = part.state_dict()
    if not any(_BASE in name for name in own):
        return dict(state)
    plain = {name.replace(_BASE, "."): name for name in own}
    kept = {name: value for name, value in own.items() if "lora_" in name}
    return {**kept, **{plain.get(name, name): value for name, value in state.items()}}


def without_lora(state: Mapping[str, Tensor], scaling: float | None = None) -> dict[str, Tensor]:
    """Return the state of the plain module: W + scaling B A where there is an update; without `scaling`, W alone."""
    merged: dict[str, Tensor] = {}
    for name, value in state.items():
        if "lora_" in name:
            continue
        if scaling is not None and name.endswith(f"{_BASE}weight"):
            layer = name.removesuffix("base_layer.weight")
            a, b = (state[f"{layer}lora_{x}.default.weight"] for x in "AB")  # (rank, in), (out, rank)
            value = value + scaling * (b @ a)
        merged[name.replace(_BASE, ".")] = value
    return merged


def lora_scaling(settings: Mapping[str, Any]) -> float:
    """Return alpha / rank of a stage's `lora` settings."""
    return float(settings["alpha"] / settings["rank"])
