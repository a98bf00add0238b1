"""What the page computes, as functions of pictures and numbers: nothing of a page is here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from aligntok.annotations import checked
from aligntok.condition import ClassCondition
from aligntok.device import device as this_device
from aligntok.errors import ConfigError, unknown
from aligntok.evaluation.metrics.image_quality import psnr
from aligntok.io.pictures import to_picture
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.loading import load_latent_diffusion, load_tokenizer
from aligntok.settings import Pictures, Positive, Seed
from aligntok.tokenizer import Tokenizer

AMPLIFIED = 4  # times, of errors that are shown
MOST_PIXELS = 1024 * 1024  # of an image that is tried; a larger one is made smaller


class Compared(NamedTuple):
    """What a tokenizer makes of a picture: that, the error x4, and in words how near it is and what its latent is."""

    reconstruction: Image.Image
    error: Image.Image
    words: str


@dataclass(frozen=True)
class Models:
    """The models of a page, tokenizers by the names that it shows."""

    tokenizers: Mapping[str, Tokenizer]
    generator: LatentDiffusion | None = None


@checked
def load(
    tokenizers: Sequence[str | os.PathLike[str]],
    generator: str | os.PathLike[str] | None = None,
    device: str | None = None,
    text_encoders: Mapping[str, Any] | None = None,
) -> Models:
    """Load the models, `text_encoders` as :func:`load_latent_diffusion` takes them when the first prompt asks for some.

    Two tokenizers of one name are told apart by where they are. Raises what loading raises, of text encoders, too.
    """
    if not tokenizers:
        raise ConfigError("there is no tokenizer to load; name one at least")
    stems = [Path(each).name or str(each) for each in tokenizers]
    names = [name if stems.count(name) == 1 else str(each) for name, each in zip(stems, tokenizers, strict=True)]
    where = device or this_device()
    loaded = {name: load_tokenizer(each, device=where) for name, each in zip(names, tokenizers, strict=True)}
    if generator is None:
        return Models(loaded)
    drawing = load_latent_diffusion(generator, device=where, text_encoders=text_encoders)
    drawing.condition.check_encoders()  # now, not when somebody asks for a picture
    return Models(loaded, drawing)


@checked
@torch.no_grad()
def compare(models: Models, picture: Image.Image | None) -> dict[str, Compared]:
    """Return what each tokenizer makes of a picture, by name. Raises ConfigError for no picture, or one that is too
    small.
    """
    found: dict[str, Compared] = {}
    for name, tokenizer in models.tokenizers.items():
        images = tokenizer.processor.preprocess(_smaller(picture))
        latent = tokenizer.encode(images)
        decoded = tokenizer.decode(latent).float().cpu()
        shown, made = tokenizer.processor.to_pil(decoded)[0], decoded.clamp(-1, 1)
        error = ((made - images).abs() * AMPLIFIED - 1).clamp(-1, 1)
        shape = " x ".join(map(str, latent.shape[1:]))
        words = f"{name}: PSNR {psnr(images[0], made[0]):.2f} dB, latent {shape}, f{tokenizer.downsample_factor}"
        found[name] = Compared(shown, to_picture(error[0]), words)
    return found


@checked
def sample(
    models: Models, word: str | int, seed: Seed, steps: int, guidance: float, number: Positive = 1, negative: str = ""
) -> list[Image.Image]:
    """Draw so many samples of a class, by number or name, or of a prompt, with seeds `seed`, `seed` + 1, ...

    negative: a prompt that guidance leads away from. Raises ConfigError where there is no generator, and for words and
    numbers that cannot be.
    """
    model = _generator(models)
    sampling = replace(model.sampling, steps=steps, cfg_scale=guidance)
    words = [word.strip() if isinstance(word, str) else word] * number
    away = [negative] * number if negative and takes_prompts(model) else None
    seeds = [seed + i for i in range(number)]
    images = model.sample(words, seeds, sampling=sampling, negative=away)
    return model.tokenizer.processor.to_pil(images)


@checked
@torch.no_grad()
def interpolate(
    models: Models, name: str, first: Image.Image | None, last: Image.Image | None, steps: Pictures = 7
) -> list[Image.Image]:
    """Return what a tokenizer decodes of latents on the line between those of two pictures, both ends among them.

    The second picture is brought to the size of the first. Raises ConfigError for another name than those of `models`.
    """
    if name not in models.tokenizers:
        raise ConfigError(unknown("tokenizer", name, models.tokenizers))
    tokenizer = models.tokenizers[name]
    one = tokenizer.processor.preprocess(_smaller(first))
    other = tokenizer.processor.preprocess(_smaller(last), size=tuple(one.shape[-2:]))
    begin, end = (tokenizer.encode(images) for images in (one, other))
    shares = torch.linspace(0, 1, max(2, steps)).tolist()
    decoded = [tokenizer.decode(torch.lerp(begin, end, share)) for share in shares]
    return [picture for each in decoded for picture in tokenizer.processor.to_pil(each)]


@checked
def takes_prompts(model: LatentDiffusion) -> bool:
    """Tell whether a generator is asked for pictures in words."""
    return not isinstance(model.condition, ClassCondition)


def _generator(models: Models) -> LatentDiffusion:
    if models.generator is None:
        raise ConfigError("this page has no generator; start it with --generator")
    return models.generator


def _smaller(picture: Image.Image | None) -> Image.Image:
    """Return a picture of MOST_PIXELS at most. Raises ConfigError for none."""
    if picture is None:
        raise ConfigError("there is no picture yet; drop one into the field, or choose a file")
    share = (MOST_PIXELS / max(1, picture.width * picture.height)) ** 0.5
    if share >= 1:
        return picture
    return picture.resize((round(picture.width * share), round(picture.height * share)), Image.Resampling.BICUBIC)
