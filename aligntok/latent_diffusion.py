"""Latent diffusion = generator + tokenizer: a label or prompt, and a seed, to a picture; saved as one folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

import aligntok
from aligntok.annotations import check_values, checked
from aligntok.cards import GENERATOR_CARD, write_card
from aligntok.condition import (
    check_described_text,
    check_text_registered,
    condition_of,
    paths_of,
    same_length,
    saved_encoders,
    split_text,
)
from aligntok.data.latent_shards import LatentStatistics
from aligntok.device import meeting
from aligntok.diffusion.sampling import draw_samples
from aligntok.diffusion.settings import Sampling, changed
from aligntok.errors import ConfigError, WeightsError
from aligntok.io.checksums import CHECKSUMS
from aligntok.io.files import check_file, read_json, reading, save_tensors, write_checksums, write_json
from aligntok.io.values import count
from aligntok.processor import check_latents
from aligntok.registry import GENERATORS
from aligntok.rng import SEEDS
from aligntok.settings import Positive
from aligntok.tokenizer import Tokenizer
from aligntok.weights.hub import fetch_folder
from aligntok.weights.load import weights_in_words


class LatentDiffusion(
    nn.Module,
    ModelHubMixin,
    library_name="aligntok",
    tags=["aligntok", "image-generation", "latent-diffusion"],
    model_card_template=GENERATOR_CARD,
):
    """A generator on the latents of a tokenizer, complete: what turns labels, or prompts, and seeds into pictures.

    Args:
        generator: ``dict(type=name, ...)`` of the generator registry; `text` in it is taken off, as the one below.
        tokenizer: decodes the latents.
        statistics: mean and deviation of each latent channel, by which the generator's latents are normalised.
        latent_shape: (C, h, w) of the latents it was trained on, the default size of a sample.
        class_names: the name of each class, where they are known.
        sampling: keywords of :class:`aligntok.diffusion.sampling.Sampling`, the defaults of `sample`.
        trusted: False for a generator's config that a file brings: of those only registered names are taken.
        components: classes by name, taken beside the registered ones.
        text: what encodes a generator's prompts, :class:`aligntok.condition.text_models.TextSettings`.
        text_encoders: where they are, "tokens" and "pooled", if `text` does not say.

    Raises ConfigError when these do not fit one another.
    """

    @checked
    def __init__(
        self,
        generator: Mapping[str, Any],
        tokenizer: Tokenizer | nn.Module,
        statistics: LatentStatistics,
        latent_shape: tuple[Positive, Positive, Positive],
        class_names: Sequence[str] = (),
        sampling: Mapping[str, Any] | None = None,
        trusted: bool = True,
        components: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        text_encoders: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.generator_config, own = split_text(generator)
        self.generator = GENERATORS.build(self.generator_config, trusted=trusted, components=components)
        paths = {**paths_of(own if text else None), **(text_encoders or {})}
        how: dict[str, Any] = {"trusted": trusted, "components": components, "paths": paths}
        self.condition = condition_of(self.generator, class_names, text or own, **how)
        self.tokenizer = cast("Tokenizer", tokenizer)  # a training plans with what only says its sizes
        self.statistics = statistics
        self.latent_shape = tuple(latent_shape)
        self.sampling = Sampling(**(sampling or {}))
        self._check_fit()

    def _check_fit(self) -> None:
        channels = {
            "the tokenizer's latent_dim": getattr(self.tokenizer, "latent_dim", None),
            "the latents' channels": self.latent_shape[0],
            "the generator's in_channels": self.generator.in_channels,
            "the statistics' channels": len(self.statistics.mean),
        }
        if len(set(channels.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in channels.items())
            raise ConfigError(f"generator, latents and tokenizer do not fit: {told}; all must be one number")
        self.condition.check_guidance(self.sampling.cfg_scale, "sampling")

    @torch.no_grad()
    def sample_latents(
        self,
        words: Sequence[int | str],
        seeds: Sequence[int],
        sampling: Sampling | Mapping[str, Any] | None = None,
        size: tuple[Positive, Positive] | None = None,
        weak: nn.Module | None = None,
        negative: Sequence[int | str] | None = None,
    ) -> Tensor:
        """Draw normalised latents (N, C, h, w), float32: sample i from words[i] and seeds[i] alone.

        words: prompts; or classes by number or name, of which an unconditional generator takes no heed. size: (h, w),
        by default that of the training latents. sampling: another one than the model's, or what differs of it, such as
        ``dict(steps=20, cfg_scale=2)``. weak: a weaker generator, for autoguidance. negative: words that
        guidance leads away from instead of the null condition. Raises ConfigError for words that there are not, or
        guidance without a null condition.
        """
        condition, (words, seeds) = self.condition, (_listed(words, "words"), _listed(seeds, "seeds"))
        chosen = Sampling(**changed(self.sampling, sampling)) if isinstance(sampling, Mapping) else sampling
        chosen = self.sampling if chosen is None else chosen
        check_values(LatentDiffusion.sample_latents, {"sampling": chosen, "size": size, "weak": weak}, "sample")
        if len(words) != len(seeds) or not len(words):
            raise ConfigError(f"{len(words)} words and {len(seeds)} seeds were given; give as many, at least one")
        whole = [isinstance(seed, Integral) and not isinstance(seed, bool) for seed in seeds]
        if wrong := [s for s, is_one in zip(seeds, whole, strict=True) if not is_one or not 0 <= int(s) < SEEDS]:
            raise ConfigError(f"seeds hold {wrong[0]!r}; they are whole numbers from 0 to 2^32 - 1")
        if negative is not None and len(negative := _listed(negative, "negative")) != len(words):
            raise ConfigError(f"{len(words)} words and {len(negative)} in negative were given; give as many")
        where, null = next(self.generator.parameters()).device, None
        y = condition.from_words(words, where)
        if negative is None:
            condition.check_guidance(chosen.cfg_scale, "sampling", weak)
        if chosen.cfg_scale != 1 and weak is None:
            away = condition.null(len(words), where) if negative is None else condition.from_words(negative, where)
            y, null = same_length(y, away)
        shape = (self.latent_shape[0], *(size or self.latent_shape[1:]))
        with meeting(self.dtype, where):
            return draw_samples(self.generator, y, seeds, shape, chosen, null, weak)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn normalised latents (N, C, h, w) into images (N, 3, h f, w f), clamped to [-1, 1].

        Raises ConfigError for what are no such latents.
        """
        check_latents(latents, self.tokenizer.latent_dim)
        return self.tokenizer.decode(self.statistics.denormalise(latents)).clamp(-1, 1)

    def sample(
        self, words: Sequence[int | str] | int | str, seeds: Sequence[int] | None = None, **options: Any
    ) -> Tensor:
        """Draw images (N, 3, H, W) in [-1, 1], one of each word, or of a single one; options as in `sample_latents`.

        seeds: one an image; None: those of `aligntok sample` with seed 0 for the same words in the same order.
        """
        each = [words] if isinstance(words, Integral | str) else _listed(words, "words")
        seeds = [self.condition.seed(0, i, 0) for i in range(len(each))] if seeds is None else seeds
        return self.decode(self.sample_latents(each, seeds, **options))

    forward = sample

    @property
    def device(self) -> torch.device:
        """Where the generator's weights are; move it with ``to``, the tokenizer too."""
        return next(self.generator.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the generator's weights; samples are integrated in float32 whatever it is."""
        return next(each.dtype for each in self.generator.parameters() if each.is_floating_point())

    def __repr__(self) -> str:
        """One line; ``torch.nn.Module.__repr__(model)`` is every layer."""
        size = f"f{self.tokenizer.downsample_factor}d{self.tokenizer.latent_dim}"
        name = self.generator_config.get("type")
        return f"LatentDiffusion(generator={name}, {size}, {weights_in_words(self.generator)})"

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds this around its tokenizer (JSON types)."""
        return {
            "generator": self.generator_config,
            "statistics": asdict(self.statistics),
            "latent_shape": list(self.latent_shape),
            **self.condition.describe(),
            "sampling": asdict(self.sampling),
            "aligntok_version": aligntok.__version__,
        }

    @checked
    def save_pretrained(  # type: ignore[override]
        self,
        folder: str | os.PathLike[str],
        include_text_encoders: bool = False,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_options: Any,
    ) -> str | None:
        """Write ``generator.safetensors``, ``tokenizer/``, ``latent_diffusion.json``, a card and, last, checksums.

        include_text_encoders: write ``text_encoders/``, too, of a generator of prompts; else whoever loads it brings
        them. push_to_hub: send the folder to the hub's repository `repo_id` (None: called as the folder) as well, and
        return the commit's address; push_options are those of huggingface_hub's ``ModelHubMixin.push_to_hub``. config:
        what it hands back; the model says its own. Raises WriteError when the disk does not take them.
        """
        path = Path(folder)
        if include_text_encoders:
            self.condition.save_encoders(path / "text_encoders")
        self.tokenizer.save_pretrained(path / "tokenizer")
        save_tensors(path / "generator.safetensors", self.generator.state_dict(), checksum=False)
        write_json(path / "latent_diffusion.json", self.config)
        write_card(path, self, model_card_kwargs)
        write_checksums(path, ["generator.safetensors", "latent_diffusion.json", f"tokenizer/{CHECKSUMS}"])
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or path.name, model_card_kwargs=model_card_kwargs, **push_options)

    @classmethod
    @checked
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | os.PathLike[str],
        components: Mapping[str, Any] | None = None,
        text_encoders: Mapping[str, Any] | None = None,
        **hub: Any,
    ) -> LatentDiffusion:
        """Load what `save_pretrained` wrote, from a folder or a hub id, in eval mode; `components` as a tokenizer.

        text_encoders: where those are whose path the folder does not say, "tokens" and "pooled". hub: `revision`,
        `token`, `cache_dir`, `local_files_only`.

        Raises WeightsError when it is not there, or damaged, UnknownComponentError for a part that is neither
        registered nor among `components`.
        """
        path = Path(source)
        if not path.is_dir():
            path = fetch_folder(str(source), "a generator", **hub)
        cure = "so the folder is no saved generator with its tokenizer: a training writes one, its latent_diffusion"
        described = path / "latent_diffusion.json"
        fields = read_json(described, WeightsError, cure, described_fields)
        check_registered(fields, components)  # before the tokenizer's parts are imported
        check_file(path / "tokenizer" / CHECKSUMS, WeightsError, "copy the folder again, whole, or save it again")
        tokenizer = Tokenizer.from_pretrained(path / "tokenizer", components=components)
        if fields.get("text"):
            text_encoders = {**saved_encoders(path / "text_encoders", fields["text"]), **(text_encoders or {})}
        with reading(described, WeightsError, cure):
            model = cls(
                tokenizer=tokenizer, trusted=False, components=components, text_encoders=text_encoders, **fields
            )
        check_file(path / "generator.safetensors", WeightsError, "copy the folder again, whole")
        model.generator.load_weights(path / "generator.safetensors")
        return model.eval()


def _listed(given: Any, what: str) -> list[Any]:
    """Return what may be a list, a tuple, an array or a tensor as a list. Raises ConfigError for what is none."""
    if not isinstance(given, Iterable) or isinstance(given, str | Mapping) or getattr(given, "ndim", 1) == 0:
        raise ConfigError(f"{what}={given!r}; it must be a list, one an image")
    return [each.item() if isinstance(each, Tensor) and each.numel() == 1 else each for each in given]


def check_registered(fields: Mapping[str, Any], components: Mapping[str, Any] | None) -> None:
    """Raise UnknownComponentError unless what a file describes names registered parts only, or some of `components`."""
    GENERATORS.check_registered(split_text(fields["generator"])[0], components)
    if fields.get("text") is not None:
        check_text_registered(fields["text"], components)


def described_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of :class:`LatentDiffusion`, but for its tokenizer, of a file that describes a generator.

    Raises KeyError, TypeError or ValueError for a file that does not.
    """
    named = "text" if "text" in content else "class_names"
    if named == "text":
        check_described_text(content["text"])
    fields = {key: content[key] for key in ("sampling", named)}
    channels, height, width = (count(side, least=1) for side in content["latent_shape"])
    statistics = LatentStatistics(**content["statistics"])
    if not len(statistics.mean) == len(statistics.std) == channels:
        raise ValueError(f"its statistics are not of {channels} channels")
    if not isinstance(generator := content["generator"], Mapping) or type(generator.get("num_classes", 1)) is not int:
        raise ValueError(f"its generator is {generator!r}")
    return {**fields, "generator": generator, "latent_shape": [channels, height, width], "statistics": statistics}
