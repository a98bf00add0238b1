"""diffusers' KL autoencoders (Stable Diffusion's, FLUX's): built from their configs, found in folders and on a hub."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import aligntok
from aligntok.errors import AlignTokError, ConfigError, WeightsError, first_line
from aligntok.imports import FAILURES, import_failure, quietly
from aligntok.io.files import DAMAGE, read_bytes, save_tensors, write_checksums, write_json
from aligntok.io.folders import OWN_OF_DIFFUSERS, begin_export
from aligntok.weights.hub import HUB_OPTIONS
from aligntok.weights.load import load_into

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKL"
OURS = "AutoencoderAlignTok"  # a tokenizer of any kind, exported
SUBFOLDERS = ("", "vae")  # the autoencoder alone, or inside a pipeline
#: Stable Diffusion 1's, for keys that a config leaves out.
DEFAULTS: Mapping[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
#: What a part of a layer's name is called in latent diffusion's code, as a pattern, and in diffusers'.
_NAMES = (
    (r"^encoder\.quant_conv", "quant_conv"),
    (r"^decoder\.post_quant_conv", "post_quant_conv"),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.(down|up)\.(\d+)\.", r".\1_blocks.\2."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def complete_config(config: Mapping[str, Any] | None, latent_dim: int | None) -> dict[str, Any]:
    """Return the keywords of diffusers' AutoencoderKL: `config`, as its config.json has it, without its notes.

    `latent_dim`, where given, replaces its latent channels. Raises ConfigError for levels that are no list.
    """
    given = {key: value for key, value in (config or {}).items() if not key.startswith("_")}
    whole = {**DEFAULTS, **given, **({} if latent_dim is None else {"latent_channels": latent_dim})}
    with _config_at_fault():
        levels = len(whole["block_out_channels"])
    whole.setdefault("down_block_types", ["DownEncoderBlock2D"] * levels)
    whole.setdefault("up_block_types", ["UpDecoderBlock2D"] * levels)
    return whole


def with_diffusers_names(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Return the tensors of a tokenizer of latent diffusion's encoder and decoder as those of an AutoencoderKL.

    Levels of the decoder are numbered from the lowest resolution there, and 1x1 convolutions of attention are matrices.
    """
    found = {}
    for name, tensor in tensors.items():
        for ours, theirs in _NAMES:
            name = re.sub(ours, theirs, name)
        name = re.sub(r"(?<=\.up_blocks\.)\d+", lambda level: str(levels - 1 - int(level[0])), name)
        found[name] = tensor.flatten(1) if re.search(r"attentions\.\d+\.to_.*weight$", name) else tensor
    return found


def build_autoencoder(config: Mapping[str, Any]) -> Any:
    """Build a diffusers AutoencoderKL with random weights. Raises ConfigError without diffusers or for wrong keys."""
    with _config_at_fault():
        return _class()(**config)


@contextmanager
def _config_at_fault() -> Iterator[None]:
    """Turn what values that cannot be raise inside, by torch of sizes too, into a ConfigError."""
    try:
        yield
    except AlignTokError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ConfigError(
            f"diffusers cannot build an AutoencoderKL of this config ({first_line(error)}); give the keys of its "
            "config.json"
        ) from error


def write_model(folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the folder of a model of diffusers, of its config.json and its weights by their names."""
    place, said = Path(folder), {**config, OWN_OF_DIFFUSERS: aligntok.__version__}
    begin_export(place, said)
    save_tensors(place / WEIGHTS, tensors, {"format": "pt"}, checksum=False)
    write_json(place / "config.json", said)
    write_checksums(place, [WEIGHTS, "config.json"])


def factor_of(config: Mapping[str, Any]) -> int:
    """Return image pixels per latent pixel along a side: each level but the last halves the image."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


class AutoencoderPart(nn.Module):
    """What the encoder and the decoder share: the units of their latents, and where their weights come from."""

    shift: Tensor
    scale: Tensor

    def finish(self, config: Mapping[str, Any], pretrained: bool | str) -> None:
        """Take units from a complete `config`, in which a generator's latents are z' = (z - shift) * scale, and
        weights if `pretrained` asks for some. Raises ConfigError for units that can't be, WeightsError when there are
        no such weights.
        """
        with _config_at_fault():
            mean, std = config.get("latents_mean"), config.get("latents_std")
            shift = [config.get("shift_factor") or 0.0] if mean is None else list(mean)
            factor = config.get("scaling_factor") or 1.0
            scale = [factor] if std is None else [factor / value for value in std]
            if not all(value > 0 and math.isfinite(value) for value in scale):
                raise ConfigError(
                    f"diffusers AutoencoderKL: scaling_factor={factor}, latents_std={std}; both must be above 0"
                )
            self.register_buffer("shift", torch.tensor(shift).view(1, -1, 1, 1), persistent=False)
            self.register_buffer("scale", torch.tensor(scale).view(1, -1, 1, 1), persistent=False)
        if not pretrained:
            return
        found = None if pretrained is True else find_autoencoder(pretrained)
        if found is None:
            raise WeightsError(
                f"{type(self).__name__}: pretrained={pretrained!r} is no diffusers autoencoder; give the folder or hub "
                "id of one, or False for random weights"
            )
        self.load_weights(read_autoencoder(str(pretrained), found[1]), pretrained)

    def load_weights(self, weights: Mapping[str, Tensor], source: object) -> None:
        """Take this part's weights out of a whole autoencoder's. Raises WeightsError when they do not fit."""
        load_into(self, weights, type(self).__name__, source, spare=True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block, to save memory; gradients stay the same."""
        part: Any
        for part in self.modules():
            if hasattr(part, "gradient_checkpointing"):
                part.gradient_checkpointing = enable
                part._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)


def find_autoencoder(source: str | os.PathLike[str], **options: Any) -> tuple[dict[str, Any], str] | None:
    """Return the config of the diffusers autoencoder at `source`, and its subfolder; None if there is none.

    `source` is a folder or hub id, of an autoencoder or of a pipeline with one in ``vae``. Raises WeightsError for
    diffusers models of another kind.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    for subfolder in SUBFOLDERS:
        name = f"{subfolder}/config.json".lstrip("/")
        try:
            on_hub = not os.path.isdir(source)
            path = hf_hub_download(os.fspath(source), name, **_of_the_hub(options)) if on_hub else Path(source) / name
            config = json.loads(read_bytes(path).decode("utf-8"))
        except (HfHubHTTPError, *DAMAGE):  # it is not to be had: offline, absent, no file of JSON
            continue
        if not isinstance(config, dict):
            continue
        kind = config.get("_class_name")
        if kind is None:
            return None
        if kind not in (CLASS, OURS):
            raise WeightsError(
                f"{source} is a diffusers {kind}; of diffusers' models only an AutoencoderKL is a tokenizer "
                f"here, or an exported {OURS}"
            )
        return config, subfolder
    return None


def _of_the_hub(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in HUB_OPTIONS}


def read_autoencoder(source: str | os.PathLike[str], subfolder: str, **options: Any) -> dict[str, Tensor]:
    """Return the weights of the diffusers autoencoder at `source`, float32, by diffusers' current names.

    Raises as :func:`load_autoencoder` does.
    """
    weights: dict[str, Tensor] = load_autoencoder(_class(), source, subfolder, **options).float().state_dict()
    return weights


def load_autoencoder(kind: Any, source: str | os.PathLike[str], subfolder: str, **options: Any) -> Any:
    """Return the autoencoder at `source`, of a class `kind` of diffusers.

    Nothing is unpickled with code execution. Raises WeightsError when weights are missing, damaged or do not fit.
    """
    try:
        model, info = kind.from_pretrained(
            os.fspath(source),
            subfolder=subfolder or None,
            low_cpu_mem_usage=False,
            ignore_mismatched_sizes=False,
            output_loading_info=True,
            **_of_the_hub(options),
        )
    except AlignTokError:
        raise
    except Exception as error:  # diffusers passes on what hub, safetensors and torch raise
        raise WeightsError(
            f"the diffusers autoencoder in {source} cannot be loaded: {first_line(error)}\n  its folder needs "
            "config.json and diffusion_pytorch_model.safetensors, whole and of one model"
        ) from error
    missing = [*info["missing_keys"], *info["mismatched_keys"]]
    if missing:
        raise WeightsError(
            f"the diffusers autoencoder in {source} lacks {len(missing)} of its weights, such as {missing[0]}; its "
            "file is not of its config.json"
        )
    return model


def _class() -> Any:
    try:
        with quietly():  # diffusers imports xformers
            from diffusers import AutoencoderKL
    except FAILURES as error:
        raise ConfigError(
            f"this tokenizer is a diffusers model, and needs diffusers: {import_failure(error)}"
        ) from error
    return AutoencoderKL
