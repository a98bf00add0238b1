"""Frozen networks that judge a picture with its prompt: the base of all, and those that are a CLIP."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from aligntok.data.transforms import center_crop, resize_to_cover
from aligntok.errors import WeightsError
from aligntok.io.checksums import sha256
from aligntok.text_encoders.pretrained import PromptTokenizer
from aligntok.weights.load import load_into, read_tensors
from aligntok.weights.names import CONFIG, PROCESSOR
from aligntok.weights.transformers import (
    build_model,
    load_tokenizer,
    read_config,
    read_weights,
    tokenizer_files,
    weight_files,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
#: What is published under a name, by the SHA-256 of its weights; those of other models are not known here.
PUBLISHED = {
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": "clip-vit-large-patch14",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0": "sac+logos+ava1-l14-linearMSE",
}


class Source(NamedTuple):
    """Where weights came from: what numbers on them are called after, and the SHA-256 of each file by name.

    name: the published one where the files are known by their SHA-256, else the file's or folder's with its beginning.
    """

    name: str
    files: Mapping[str, str]

    @classmethod
    def of(cls, path: Path, who: str) -> Source:
        """Return what is at a path, a file or a model's folder."""
        if not path.is_dir():
            return cls.of_files(path.stem, [path], {})
        others = tokenizer_files(path, who, [CONFIG, *PROCESSOR])
        return cls.of_files(path.resolve().name, weight_files(path, who), others)

    @classmethod
    def of_files(cls, name: str, weights: Sequence[Path], others: Mapping[str, bytes]) -> Source:
        """Return what weights and other files are; the name is shown with the beginning of the weights' SHA-256."""
        files = {each.name: sha256(each) for each in weights}
        whole = next(iter(files.values())) if len(files) == 1 else _digest(files)
        files |= {each: hashlib.sha256(content).hexdigest() for each, content in others.items()}
        return cls(PUBLISHED.get(whole, f"{re.sub(r'[^A-Za-z0-9.+-]', '_', name)[:80]}-{whole[:8]}"), files)

    @property
    def published(self) -> bool:
        """Whether the weights are known to be those of that name."""
        return self.name in PUBLISHED.values()


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Sample(NamedTuple):
    """A picture's file, its prompt, and its turn among those of the same prompt, 0 for the first.

    Of the prompt set: the category, all that each line about the prompt says, and where the first of them is, in words.
    """

    file: str
    prompt: str
    turn: int
    category: str = ""
    said: Sequence[Mapping[str, Any]] = ()
    where: str = ""


class Scorer(nn.Module):
    """Base: pictures with their prompts to numbers, K a picture, each better the higher it is.

    columns: what the K numbers are called; each names the model. preprocessing: what is done to a picture before, in
    words. sources: what it is on. see: a picture (RGB) to a tensor; processes that load data call it, and get nothing
    else of the module. by_category: whether the score is the mean of the categories' means.
    """

    columns: tuple[str, ...]
    preprocessing: str
    sources: Sequence[Source]
    see: Callable[[Image.Image], Tensor]
    by_category = False

    def forward(self, seen: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        """Return the numbers (N, K), float32, of what was seen of N pictures and of their samples."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(seen, samples)")

    def check(self, sample: Sample) -> None:
        """Raise DataError for a sample whose prompt it has no questions for."""

    def describe(self) -> dict[str, Any]:
        """Return what fixes its numbers, as JSON types, with an identity: SHA-256 of all of it."""
        files = {source.name: dict(source.files) for source in self.sources}
        told = {"columns": list(self.columns), "preprocessing": self.preprocessing, "files": files}
        return {**told, "identity": _digest(told)}

    def finish(self) -> None:
        """Freeze it."""
        self.eval().requires_grad_(False)


# What is seen of a picture


def normalised(pixels: Tensor) -> Tensor:
    """Return pixels (3, h, w) in [0, 1] less CLIP's mean, over its deviation."""
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def covered(image: Image.Image, side: int, rounded: bool = True) -> Tensor:
    """Return the middle of a picture, its short side brought to `side` (Pillow's bicubic), normalised (3, side, side).

    rounded: whether an odd pixel goes where round() sends it, as in torchvision, or before, as in transformers.
    """
    whole = resize_to_cover(image, (side, side))
    if rounded:
        return normalised(to_tensor(center_crop(whole, (side, side))))
    left, top = ((length - side) // 2 for length in whole.size)
    return normalised(to_tensor(whole.crop((left, top, left + side, top + side))))


def fitted(image: Image.Image, side: int) -> Tensor:
    """Return a whole picture, its long side brought to `side` (torch's bicubic), black around it, normalised.

    HPSv2's way, as its package does it with torchvision 0.17 or later, whose bicubic filter is antialiased.
    """
    pixels = to_tensor(image)
    scale = side / max(pixels.shape[1:])
    height, width = (max(1, round(length * scale)) for length in pixels.shape[1:])
    if scale != 1:
        pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
    up, left = (side - height) // 2, (side - width) // 2
    return normalised(F.pad(pixels, (left, side - width - left, up, side - height - up)))


def untouched(image: Image.Image) -> Tensor:
    """Return a picture as it is, uint8 (H, W, 3)."""
    return torch.from_numpy(np.array(image))


# What is on a CLIP


class CLIP(nn.Module):
    """A CLIP model of transformers in a folder, as embeddings of length 1."""

    def __init__(self, folder: Path, who: str) -> None:
        super().__init__()
        config = read_config(folder, who)
        self.source = Source.of(folder, who)
        self.model = build_model(config, {"clip": "CLIPModel"}, read_weights(folder, who), torch.float32, who)
        held, text = tokenizer_files(folder, who), self.model.config.text_config
        tokenizer = load_tokenizer(held, self.model.config, folder, who)
        self.tokenize = PromptTokenizer(tokenizer, text.max_position_embeddings, self.model.config, who)
        self.side = int(self.model.config.vision_config.image_size)
        self.width = int(self.model.config.projection_dim)

    def images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings (N, D) of what was seen of pictures (N, 3, side, side)."""
        found = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(found), dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (N, D) of texts."""
        where = self.model.logit_scale.device
        tokens = {name: each.to(where) for name, each in self.tokenize(texts).items()}
        return F.normalize(self.model.text_projection(self.model.text_model(**tokens).pooler_output), dim=-1)


def _seen_by_clip(side: int, rounded: bool) -> str:
    odd = "as torchvision's" if rounded else "as transformers'"
    return f"short side to {side} (Pillow's bicubic), centre crop {odd}, CLIP's mean and deviation"


class CLIPScore(Scorer):
    """100 max(cos, 0) of the embeddings of picture and prompt (Hessel et al. 2021, as torchmetrics scales it)."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip, self.sources = clip, (clip.source,)
        self.columns = (f"CLIPScore-{clip.source.name}",)
        self.see, self.preprocessing = partial(covered, side=clip.side, rounded=False), _seen_by_clip(clip.side, False)
        self.finish()

    def forward(self, seen: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        texts = self.clip.texts([sample.prompt for sample in samples])
        return 100 * (self.clip.images(torch.stack([*seen])) * texts).sum(1, keepdim=True).clamp(min=0)


class PickScore(CLIPScore):
    """exp(logit scale) cos of a CLIP that was trained on choices (Kirstain et al. 2023)."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__(clip)
        self.columns = (f"PickScore-{clip.source.name}",)

    def forward(self, seen: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        texts = self.clip.texts([sample.prompt for sample in samples])
        cosine = (self.clip.images(torch.stack([*seen])) * texts).sum(1, keepdim=True)
        return self.clip.model.logit_scale.exp() * cosine


def linear_stack(width: int) -> nn.Sequential:
    """Return five linear layers without anything between them, named as where dropouts were (LAION's predictor)."""
    sizes = [(width, 1024), None, (1024, 128), None, (128, 64), None, (64, 16), (16, 1)]
    return nn.Sequential(*(nn.Identity() if size is None else nn.Linear(*size) for size in sizes))


class Aesthetic(Scorer):
    """LAION's predictor, linear layers on the embedding of OpenAI's ViT-L/14 of length 1; the prompt plays no part."""

    def __init__(self, file: Path, clip: CLIP, who: str) -> None:
        super().__init__()
        self.clip, source = clip, Source.of(file, who)
        self.sources = (source, clip.source)
        known = source.published and clip.source.name == "clip-vit-large-patch14"
        self.columns = (f"Aesthetic-{source.name}" + ("" if known else f"-other-{clip.source.name}"),)
        self.layers = linear_stack(clip.width)
        load_into(self.layers, {k.removeprefix("layers."): v for k, v in read_tensors(file, who).items()}, who, file)
        self.see, self.preprocessing = partial(covered, side=clip.side), _seen_by_clip(clip.side, True)
        self.finish()

    def forward(self, seen: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        found: Tensor = self.layers(self.clip.images(torch.stack([*seen])))
        return found


class HPSv2(Scorer):
    """The cosine, not a hundred times it, of an open_clip ViT-H-14 that was trained on choices (Wu et al. 2023)."""

    def __init__(self, file: Path, version: str, who: str, architecture: str = "ViT-H-14") -> None:
        super().__init__()
        own = "2.1" if "2.1" in file.name else "2.0" if file.name == "HPS_v2_compressed.pt" else version
        if own != version:
            metric = f"hpsv{own.removesuffix('.0')}"
            raise WeightsError(
                f"{who}: {file.name} is of version {own}; ask for metric '{metric}', or give the other file"
            )
        import open_clip  # takes seconds

        source = Source.of(file, who)
        self.model: Any = open_clip.CLIP(**open_clip.get_model_config(architecture))
        load_into(self.model, read_tensors(file, who), who, file)
        self.tokenize = open_clip.get_tokenizer(architecture)
        version = {"2.0": "2"}.get(version, version)
        self.sources, self.columns = (source,), (f"HPSv{version}-{source.name}",)
        side = self.model.visual.image_size
        side = side if isinstance(side, int) else side[0]
        self.see = partial(fitted, side=side)
        self.preprocessing = (
            f"long side to {side} (torch's antialiased bicubic), black around it, CLIP's mean, deviation"
        )
        self.finish()

    def forward(self, seen: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        pixels = torch.stack([*seen])
        tokens = self.tokenize([sample.prompt for sample in samples]).to(pixels.device)
        images = self.model.encode_image(pixels, normalize=True)
        return (images * self.model.encode_text(tokens, normalize=True)).sum(1, keepdim=True)
