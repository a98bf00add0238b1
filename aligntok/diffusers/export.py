"""The folders that diffusers loads, written without it: an autoencoder, or a pipeline of a generator of classes."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aligntok
from aligntok.adapters import IdentityAdapter
from aligntok.data.latent_shards import LatentStatistics
from aligntok.decoders.ldm_cnn import LDMDecoder
from aligntok.diffusion.times import shift_of
from aligntok.encoders.ldm_cnn import LDMEncoder
from aligntok.errors import ConfigError
from aligntok.io.checksums import CHECKSUMS
from aligntok.io.files import write_checksums, write_json
from aligntok.io.folders import OWN_OF_DIFFUSERS
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.tokenizer import Tokenizer
from aligntok.weights import diffusers as kl

PIPELINE, PARTS = "model_index.json", ("vae", "transformer", "scheduler")
#: Where diffusers looks for our classes: modules that have been imported by then.
MODELS = "aligntok.diffusers.models"


def write_autoencoder(
    folder: str | os.PathLike[str], tokenizer: Tokenizer, statistics: LatentStatistics | None = None
) -> str:
    """Write a tokenizer as a folder that diffusers loads, and return the class that does.

    A convolutional one of latent diffusion is an AutoencoderKL; any other is ours. statistics: mean and deviation of
    its latents, for its config. Raises ConfigError if a part was given as a module, or its factor is no power of 2.
    """
    said: dict[str, Any] = {"scaling_factor": 1.0, "shift_factor": None, "in_channels": 3, "out_channels": 3}
    said |= {f"latents_{name}": list(each) for name, each in asdict(statistics).items()} if statistics else {}
    said["latent_channels"], tensors = tokenizer.latent_dim, tokenizer.state_dict()
    shape = _kl_shape(tokenizer)
    if shape is not None:
        theirs = kl.with_diffusers_names(tensors, len(shape["block_out_channels"]))
        kl.write_model(folder, {"_class_name": kl.CLASS, **said, **shape}, theirs)
        return kl.CLASS
    levels = tokenizer.downsample_factor.bit_length()
    if tokenizer.downsample_factor != 2 ** (levels - 1):
        raise ConfigError(
            f"diffusers has autoencoders of factors 2, 4, 8, 16 and so on, and this tokenizer's is "
            f"{tokenizer.downsample_factor}; leave --format diffusers out"
        )
    said |= {"tokenizer": tokenizer.config, "block_out_channels": [1] * levels}  # its length alone is asked for
    ours = {f"model.{name}": tensor for name, tensor in tensors.items()}
    kl.write_model(folder, {"_class_name": kl.OURS, **said}, ours)
    return kl.OURS


def write_pipeline(folder: str | os.PathLike[str], model: LatentDiffusion) -> None:
    """Write a generator of classes with its tokenizer as the folder of a LightningDiTPipeline.

    Its scheduler is Euler's, with the model's own shift of times. Raises ConfigError as `write_autoencoder` does.
    """
    place, sampling = Path(folder), asdict(model.sampling)
    vae = write_autoencoder(place / "vae", model.tokenizer, model.statistics)
    shape = {"in_channels": model.latent_shape[0], "sample_size": list(model.latent_shape[1:])}
    tensors = {f"model.{name}": tensor for name, tensor in model.generator.state_dict().items()}
    described = {"_class_name": "LightningDiTModel", "generator": model.generator_config, **shape}
    kl.write_model(place / "transformer", described, tensors)
    # diffusers' times are 1 - t: a shift there is the inverse of ours.
    shift = 1 / (shift_of(model.sampling.shift, model.latent_shape[1:], model.generator) or 1.0)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": shift}
    write_json(place / "scheduler" / "scheduler_config.json", scheduler)
    write_checksums(place / "scheduler", ["scheduler_config.json"])
    index = {
        "_class_name": "LightningDiTPipeline",
        OWN_OF_DIFFUSERS: aligntok.__version__,
        "transformer": [MODELS, "LightningDiTModel"],
        "vae": ["diffusers" if vae == kl.CLASS else MODELS, vae],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "id2label": {str(number): name for number, name in enumerate(model.condition.class_names)},
        "sampling": sampling,
    }
    write_json(place / PIPELINE, index)
    write_checksums(place, [PIPELINE, *(f"{part}/{CHECKSUMS}" for part in PARTS)])  # of this writing, all of them


def _kl_shape(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Return what is an AutoencoderKL's alone in its config; None for a tokenizer that is none."""
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    kinds = (type(encoder), type(tokenizer.adapter), type(decoder))
    if kinds != (LDMEncoder, IdentityAdapter, LDMDecoder) or not tokenizer.variational or decoder.tanh_out:
        return None
    levels = [[*encoder.down], [*decoder.up]]
    widths, deeper = ([level.block[-1].conv2.out_channels for level in each] for each in levels)
    blocks, more = ({len(level.block) for level in each} for each in levels)
    groups = {encoder.norm_out.num_groups, decoder.norm_out.num_groups}
    paths = encoder.linear_path is not None or decoder.linear_path is not None
    colours = decoder.conv_out.out_channels
    narrow = encoder.conv_in.out_channels != widths[0]  # a first level of another width than the first layer
    if paths or narrow or colours != 3 or widths != deeper or len(groups) > 1 or {n + 1 for n in blocks} != more:
        return None
    down = [f"{'Attn' if len(level.attn) else ''}DownEncoderBlock2D" for level in levels[0]]
    up = [f"{'Attn' if len(level.attn) else ''}UpDecoderBlock2D" for level in reversed(levels[1])]
    shape = {"block_out_channels": widths, "layers_per_block": blocks.pop(), "norm_num_groups": groups.pop()}
    return {**shape, "down_block_types": down, "up_block_types": up, "act_fn": "silu"}
