"""Published tokenizers, read into ours: VA-VAE and its like in LDM's layout, diffusers' AutoencoderKL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from aligntok.errors import WeightsError
from aligntok.io.files import reading
from aligntok.tokenizer import Tokenizer
from aligntok.weights.diffusers import (
    OURS,
    complete_config,
    factor_of,
    find_autoencoder,
    load_autoencoder,
    read_autoencoder,
)
from aligntok.weights.load import load_into, read_tensors

WHO = "published autoencoder"
_OURS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_NEEDED = {
    *("encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "decoder.conv_out.weight"),
    *("quant_conv.weight", "post_quant_conv.weight"),
}
# The published 1x1 convolutions stand beside encoder and decoder; ours are inside them.
_RENAMED = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}


def load_ldm_autoencoder(path: str | os.PathLike[str], resolution: int = 256) -> Tokenizer:
    """Load a published VA-VAE (or LDM KL autoencoder) checkpoint, ``.pt``, ``.ckpt`` or ``.safetensors``.

    Weights may be nested (see ``read_tensors``); those of losses and of the foundation model are ignored; every width
    is read off the shapes. `resolution` is the image side it was trained at, which places its attention. Nothing is
    unpickled with code execution. Returns a variational Tokenizer in eval mode.

    Raises WeightsError when the file is damaged, unsafe, or no such autoencoder.
    """
    weights = read_tensors(path, WHO)
    ours = {key: value for key, value in weights.items() if key.startswith(_OURS)}
    if missing := _NEEDED - set(ours):
        raise WeightsError(
            f"{path} is no LDM-style autoencoder: it lacks {', '.join(sorted(missing))}; "
            f"its keys begin with {', '.join(sorted({key.split('.')[0] for key in weights})[:8])}"
        )
    with reading(path, WeightsError, "give a whole checkpoint of LDM's KL autoencoder or of a VA-VAE"):
        widths = _widths(ours, resolution)
    tokenizer = _tokenizer({"type": "ldm_cnn", **widths}, widths["latent_dim"], 2 ** (len(widths["ch_mult"]) - 1))
    load_into(tokenizer, {_our_name(key): value.float() for key, value in ours.items()}, WHO, path)
    return tokenizer.eval()


def load_diffusers_autoencoder(source: str | os.PathLike[str], **options: Any) -> Tokenizer | None:
    """Load a diffusers AutoencoderKL, such as Stable Diffusion's or FLUX's; None if `source` has none.

    `source` is a folder or hub id, of the autoencoder or of a pipeline; `options` are the hub's (`revision`, `token`,
    `cache_dir`, `local_files_only`). Latents are in the units that pipelines train on, (z - shift_factor) *
    scaling_factor. Returns a variational Tokenizer in eval mode, float32.

    Raises WeightsError when the weights are missing, damaged or of another kind, ConfigError without diffusers.
    """
    found = find_autoencoder(source, **options)
    if found is None:
        return None
    if found[0]["_class_name"] == OURS:
        from aligntok.diffusers import AutoencoderAlignTok

        tokenizer: Tokenizer = load_autoencoder(AutoencoderAlignTok, source, found[1], **options).model
        return tokenizer.eval()
    config = complete_config(found[0], None)
    tokenizer = _tokenizer({"type": "diffusers_kl", "config": config}, config["latent_channels"], factor_of(config))
    weights = read_autoencoder(source, found[1], **options)
    tokenizer.encoder.load_weights(weights, source)
    tokenizer.decoder.load_weights(weights, source)
    return tokenizer.eval()


def _tokenizer(part: Mapping[str, Any], latent_dim: int, factor: int) -> Tokenizer:
    """Return a variational tokenizer whose encoder and decoder are configured alike."""
    adapter = {"type": "identity"}
    return Tokenizer({**part}, adapter, {**part}, latent_dim, downsample_factor=factor, variational=True)


def _our_name(key: str) -> str:
    for published, ours in _RENAMED.items():
        if key.startswith(published):
            return ours + key[len(published) :]
    return key


def _widths(weights: Mapping[str, Tensor], resolution: int) -> dict[str, Any]:
    """Read the keywords of our LDM encoder and decoder off the shapes of the published tensors."""
    ch = weights["encoder.conv_in.weight"].shape[0]
    levels = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("encoder.down."))
    blocks = len({key.split(".")[4] for key in weights if key.startswith("encoder.down.0.block.")})
    multipliers = [weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // ch for i in range(levels)]
    attended = [i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in weights]
    return {
        "ch": ch,
        "ch_mult": multipliers,
        "num_res_blocks": blocks,
        "attn_resolutions": [resolution // 2**i for i in attended],
        "resolution": resolution,
        "latent_dim": weights["post_quant_conv.weight"].shape[1],
    }
