"""Latent diffusion = generator + tokenizer: a label and a seed to a picture; saved and loaded as one folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import aligntok
from aligntok.data.latent_shards import LatentStatistics
from aligntok.diffusion.sampling import draw_samples
from aligntok.diffusion.settings import Sampling
from aligntok.errors import ConfigError, WeightsError, unknown
from aligntok.io.files import check_file, read_json, reading, save_tensors, write_checksums, write_json
from aligntok.registry import GENERATORS
from aligntok.tokenizer import Tokenizer

_BY_NUMBER = "index:"  # begins the number of a class where classes have names


class LatentDiffusion(nn.Module):
    """A generator on the latents of a tokenizer, complete: what turns labels and seeds into pictures.

    Args:
        generator: ``dict(type=name, ...)`` of the generator registry.
        tokenizer: decodes the latents.
        statistics: mean and deviation of each latent channel, by which the generator's latents are normalised.
        latent_shape: (C, h, w) of the latents it was trained on, the default size of a sample.
        class_names: the name of each class, where they are known.
        sampling: keywords of :class:`aligntok.diffusion.sampling.Sampling`, the defaults of `sample`.
        trusted: False for a generator's config that a file brings: of those only registered names are taken.
        components: classes by name, taken beside the registered ones.

    Raises ConfigError when these do not fit one another.
    """

    def __init__(
        self,
        generator: Mapping[str, Any],
        tokenizer: Tokenizer,
        statistics: LatentStatistics,
        latent_shape: Sequence[int],
        class_names: Sequence[str] = (),
        sampling: Mapping[str, Any] | None = None,
        trusted: bool = True,
        components: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.generator_config = dict(generator)
        self.generator = GENERATORS.build(self.generator_config, trusted=trusted, components=components)
        self.tokenizer = tokenizer
        self.statistics = statistics
        self.latent_shape = tuple(latent_shape)
        self.class_names = tuple(class_names)
        self.sampling = Sampling(**(sampling or {}))
        self._check_fit()

    def _check_fit(self) -> None:
        channels = {
            "the tokenizer's latent_dim": self.tokenizer.latent_dim,
            "the latents' channels": self.latent_shape[0],
            "the generator's in_channels": self.generator.in_channels,
            "the statistics' channels": len(self.statistics.mean),
        }
        if len(set(channels.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in channels.items())
            raise ConfigError(f"generator, latents and tokenizer do not fit: {told}; all must be one number")
        classes = self.generator.num_classes
        if classes > 1 and len(self.class_names) > classes:
            raise ConfigError(
                f"the data has {len(self.class_names)} classes, the generator's num_classes is {classes}; "
                "set generator.num_classes to the data's, or to 1 for an unconditional generator"
            )
        check_null_class(self.sampling.cfg_scale, self.generator, "sampling")

    @property
    def conditional(self) -> bool:
        """Whether it takes classes at all."""
        return bool(self.generator.num_classes > 1)

    @torch.no_grad()
    def sample_latents(
        self,
        labels: Sequence[int | str],
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        size: tuple[int, int] | None = None,
        weak: nn.Module | None = None,
    ) -> Tensor:
        """Draw normalised latents (N, C, h, w), float32: sample i from labels[i] and seeds[i] alone.

        labels: classes by number, or by name as in `class_index`; an unconditional generator takes no heed of them.
        size: (h, w), by default that of the training latents. weak: a weaker generator, for autoguidance. Raises
        ConfigError for labels that there are not, or guidance without a null class.
        """
        chosen = sampling or self.sampling
        if len(labels) != len(seeds) or not len(labels):
            raise ConfigError(f"{len(labels)} labels and {len(seeds)} seeds were given; give as many, at least one")
        check_null_class(chosen.cfg_scale, self.generator, "sampling", weak)
        where = next(self.generator.parameters()).device
        y = torch.tensor([self.class_index(label) if self.conditional else 0 for label in labels], device=where)
        shape = (self.latent_shape[0], *(size or self.latent_shape[1:]))
        return draw_samples(self.generator, y, seeds, shape, chosen, self.generator.null_class, weak)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Turn normalised latents (N, C, h, w) into images (N, 3, h f, w f), clamped to [-1, 1]."""
        return self.tokenizer.decode(self.statistics.denormalise(latents)).clamp(-1, 1)

    def sample(self, labels: Sequence[int | str], seeds: Sequence[int], **options: Any) -> Tensor:
        """Draw images (N, 3, H, W) in [-1, 1]; options as in `sample_latents`."""
        return self.decode(self.sample_latents(labels, seeds, **options))

    forward = sample

    def class_index(self, name: str | int) -> int:
        """Return the class of a name, in any case, or of a number: text is a name where classes have names, and
        ``index:3`` a number anywhere. Raises ConfigError for one that there is not.
        """
        text = name.strip() if isinstance(name, str) else f"{_BY_NUMBER}{int(name)}"
        number = text.removeprefix(_BY_NUMBER)
        if (number != text or not self.class_names) and number.removeprefix("-").isdecimal():
            classes = self.generator.num_classes
            if 0 <= int(number) < classes:
                return int(number)
            raise ConfigError(f"class {number}: there are {classes}, numbered from 0 to {classes - 1}")
        if text in self.class_names:  # before another one that differs in its case alone
            return self.class_names.index(text)
        folded = [known.casefold() for known in self.class_names]
        if folded.count(text.casefold()) == 1:
            return folded.index(text.casefold())
        raise ConfigError(
            unknown("class", text, self.class_names or ["no names, only numbers"], shown=8)
            + (f"; class number {text} is written {_BY_NUMBER}{text}" if text.isdecimal() else "")
        )

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds this around its tokenizer (JSON types)."""
        return {
            "generator": self.generator_config,
            "statistics": asdict(self.statistics),
            "latent_shape": list(self.latent_shape),
            "class_names": list(self.class_names),
            "sampling": asdict(self.sampling),
            "aligntok_version": aligntok.__version__,
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``generator.safetensors``, ``tokenizer/``, ``latent_diffusion.json`` and, last, their checksums.

        Raises WriteError when the disk does not take them.
        """
        path = Path(folder)
        self.tokenizer.save_pretrained(path / "tokenizer")
        save_tensors(path / "generator.safetensors", self.generator.state_dict(), checksum=False)
        write_json(path / "latent_diffusion.json", self.config)
        write_checksums(path, ["generator.safetensors", "latent_diffusion.json"])

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], components: Mapping[str, Any] | None = None
    ) -> LatentDiffusion:
        """Load what `save_pretrained` wrote, in eval mode on the CPU; `components` as of a tokenizer's.

        Raises WeightsError when it is not there, or damaged, UnknownComponentError for a part that is neither
        registered nor among `components`.
        """
        path = Path(folder)
        cure = "so the folder is no saved generator with its tokenizer: a training writes one, its latent_diffusion"
        described = path / "latent_diffusion.json"
        fields = read_json(described, WeightsError, cure, described_fields)
        GENERATORS.check_registered(fields["generator"], components)  # before the tokenizer's parts are imported
        tokenizer = Tokenizer.from_pretrained(path / "tokenizer", components=components)
        with reading(described, WeightsError, cure):
            model = cls(tokenizer=tokenizer, trusted=False, components=components, **fields)
        check_file(path / "generator.safetensors", WeightsError, "copy the folder again, whole")
        model.generator.load_weights(path / "generator.safetensors")
        return model.eval()


def check_null_class(cfg_scale: float, generator: Any, where: str, weak: Any = None) -> None:
    """Raise ConfigError for guidance with nothing to be guided away from: no `weak` generator, and a generator that
    learns no null class.
    """
    if cfg_scale != 1 and generator.null_class is None and weak is None:
        raise ConfigError(
            f"{where}: cfg_scale={cfg_scale} needs a null class, but with class_dropout_prob=0 the generator learns "
            "none; use 1, train with class_dropout_prob=0.1, or guide with a weaker generator"
        )


def described_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of :class:`LatentDiffusion`, but for its tokenizer, of a file that describes a generator.

    Raises KeyError, TypeError or ValueError for a file that does not.
    """
    fields = {key: content[key] for key in ("generator", "latent_shape", "class_names", "sampling")}
    return {**fields, "statistics": LatentStatistics(**content["statistics"])}
