"""Tokenizer = encoder + adapter + decoder: images to latents and back, saved and shared as one folder."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy.typing as npt
import torch
from huggingface_hub import PyTorchModelHubMixin
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

import aligntok
from aligntok.annotations import checked
from aligntok.cards import TOKENIZER_CARD, write_card
from aligntok.device import is_traced
from aligntok.errors import AlignTokError, ConfigError, UnknownComponentError, WeightsError, first_line
from aligntok.imports import lacks
from aligntok.io.files import DAMAGE, check_file, read_json, save_tensors, write_checksums, write_json
from aligntok.io.folders import begin_export
from aligntok.processor import ImageProcessor, Picture, Pictures, as_batch, check_latents, check_reach, output, placed
from aligntok.registry import ADAPTERS, DECODERS, ENCODERS, without_weights
from aligntok.settings import Width
from aligntok.weights.hub import HUB_OPTIONS, fetch_folder
from aligntok.weights.load import weights_hash, weights_in_words

_REGISTRIES = {"encoder": ENCODERS, "adapter": ADAPTERS, "decoder": DECODERS}
PARTS = tuple(_REGISTRIES)
_OF_THE_HUB = (*HUB_OPTIONS, "force_download")
#: What a tokenizer's config says that its latents do not depend on: how they are decoded, and by what it was written.
_WITHOUT_EFFECT = ("decoder", "plugins", "aligntok_version")


class Tokenizer(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="aligntok",
    tags=["aligntok", "image-tokenizer", "autoencoder"],
    model_card_template=TOKENIZER_CARD,
):
    """An image tokenizer for latent diffusion (paper, Sec. 3.2): z = A(E(x)), x_hat = D(z).

    Args:
        encoder: ``dict(type=name, ...)`` of the encoder registry, or a module that keeps the encoder contract.
        adapter: the same for the adapter; ``in_dim`` is filled in from the encoder.
        decoder: the same for the decoder.
        latent_dim: channels d of a latent.
        downsample_factor: f, image pixels per latent pixel along a side.
        variational: the adapter gives mean and log-variance (2 d channels) of a Gaussian posterior, as in the VAE
            baselines. AlignTok itself has none.
        plugins: where each component came from when the tokenizer was saved; used to explain what is missing.
        trusted: False for configs that a file brings: of those only registered names are taken.
        components: classes by name, taken beside the registered ones.

    Raises:
        ConfigError: encoder, adapter and decoder do not fit one another.
        UnknownComponentError: a component is not installed.
    """

    @checked
    def __init__(
        self,
        encoder: Mapping[str, Any] | nn.Module,
        adapter: Mapping[str, Any] | nn.Module | None = None,
        decoder: Mapping[str, Any] | nn.Module | None = None,
        latent_dim: Width = 32,
        downsample_factor: Width = 16,
        variational: bool = False,
        plugins: Mapping[str, Any] | None = None,
        trusted: bool = True,
        components: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.downsample_factor = downsample_factor
        self.variational = variational
        given = {"encoder": encoder, "adapter": adapter or {"type": "mlp"}, "decoder": decoder or {"type": "ldm_cnn"}}
        build = functools.partial(_build, given, trusted, components)
        configs: dict[str, dict[str, Any] | None] = {}
        try:
            if not trusted:  # all of them before the first is imported
                for part, registry in _REGISTRIES.items():
                    registry.check_registered(given[part], components)
            sizes = {"latent_dim": latent_dim, "downsample_factor": downsample_factor}
            self.encoder, configs["encoder"] = build("encoder", **sizes)
            adapted = {"in_dim": self.encoder.out_dim, "latent_dim": latent_dim * (1 + variational)}
            self.adapter, configs["adapter"] = build("adapter", **adapted)
            self.decoder, configs["decoder"] = build("decoder", latent_dim=latent_dim)
        except UnknownComponentError as error:  # here the packages help that the tokenizer was made with
            others = {(p["distribution"], p["version"]) for p in (plugins or {}).values()}
            needed = ", ".join(f"{d}=={v}" for d, v in sorted(others) if d != "aligntok")
            if not needed:
                raise
            raise UnknownComponentError(f"{error}\n  this tokenizer was saved with: {needed}; install it") from error
        self._check_fit()
        self._has_looked = False  # at numbers of images on an accelerator
        self._hub_mixin_config = self._describe(configs)

    def _check_fit(self) -> None:
        for part, factor in (("encoder", self.encoder.downsample_factor), ("decoder", self.decoder.upsample_factor)):
            if factor != self.downsample_factor:
                raise ConfigError(
                    f"{part} {type(getattr(self, part)).__name__} scales by {factor}, "
                    f"but the tokenizer's downsample_factor is {self.downsample_factor}; "
                    "set downsample_factor and the decoder's ch_mult (2 ** (levels - 1)) to one value"
                )
        for part, channels in (("adapter", self.latent_dim * (1 + self.variational)), ("decoder", self.latent_dim)):
            own = getattr(getattr(self, part), "latent_dim", channels)
            if own != channels:
                raise ConfigError(
                    f"{part} {type(getattr(self, part)).__name__} has latent_dim {own}, but the tokenizer's latent_dim "
                    f"{self.latent_dim} asks for {channels}; leave it out of the {part}'s, or give both one value"
                )

    def _describe(self, configs: Mapping[str, dict[str, Any] | None]) -> dict[str, Any] | None:
        """Return what rebuilds this tokenizer without pretrained weights, or None if a part came as a module."""
        if any(config is None for config in configs.values()):
            return None
        plugins = {}
        for part, registry in _REGISTRIES.items():
            origin = registry.origins.get((configs[part] or {})["type"])
            if origin:
                plugins[part] = {"distribution": origin.distribution, "version": origin.version}
        return {
            **configs,
            "latent_dim": self.latent_dim,
            "downsample_factor": self.downsample_factor,
            "variational": self.variational,
            "plugins": plugins,
            "aligntok_version": aligntok.__version__,
        }

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds this tokenizer (JSON types). Raises ConfigError if a part was given as a module."""
        if self._hub_mixin_config is None:
            raise ConfigError(
                "this tokenizer has a part that was given as a module, so no config can describe it; "
                "register the class in a plugin and build it by dict(type=name, ...)"
            )
        return cast("dict[str, Any]", self._hub_mixin_config)

    @property
    def identity(self) -> str:
        """SHA-256 of the weights and the config of encoder and adapter, 64 hexadecimal digits: which latents it gives.

        The same for every copy of a tokenizer, wherever it is loaded from and on whatever device. The decoder is left
        out: refining it, as stage 3 does, changes no latent. Raises ConfigError if a part was given as a module.
        """
        config = {key: value for key, value in self.config.items() if key not in _WITHOUT_EFFECT}
        return weights_hash(config, encoder=self.encoder, adapter=self.adapter)

    def moments(self, images: Tensor) -> Tensor:
        """Return the adapter's output: latents, or mean and log-variance along channels if variational."""
        return output("adapter", self.adapter, output("encoder", self.encoder, images))

    def latents_from(self, moments: Tensor, sample: bool = False, noise: Tensor | None = None) -> Tensor:
        """Return the latents (N, d, h, w) of an adapter's output: itself, or the posterior's mean or a sample of it.

        `noise`, standard normal numbers (N, d, h, w), makes it the sample that these numbers give.
        """
        if not self.variational:
            return moments
        mean, log_variance = moments.chunk(2, dim=1)
        if not sample and noise is None:
            return mean
        noise = torch.randn_like(mean) if noise is None else noise
        return mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise

    def encode(self, images: Pictures, sample: bool = False, noise: Tensor | None = None) -> Tensor:
        """Turn images (N, 3, H, W) in [-1, 1], H and W multiples of f, into latents (N, d, H/f, W/f).

        Pillow images, paths, uint8 arrays and tensors, and lists of them go through :attr:`processor` first, which cuts
        their sides to multiples of f. Floats are taken as they are, in the tokenizer's type and on its device: those
        from 0 to 1 are a bright image in [-1, 1], which nothing can tell from a mistake. `sample` draws from the
        posterior of a variational tokenizer instead of taking its mean, with torch's global random numbers or with
        `noise` (N, d, H/f, W/f).

        Raises ConfigError for what is no image, and for floats beyond +-1.5 or NaN: on an accelerator, which would be
        waited for, these are looked for at the first call alone, and nothing is while torch traces, compiles, exports.
        """
        moments = self.moments(cast("Tensor", images) if is_traced() else self._images(images))
        if noise is not None and self.variational and not is_traced():
            check_latents(noise, self.latent_dim, "noise", moments)
        return self.latents_from(moments, sample, noise)

    def _images(self, images: Pictures) -> Tensor:
        """Return what `encode` is given as the encoder takes it."""
        if isinstance(images, Tensor) and images.is_floating_point():
            batch = as_batch(images)
            if batch.device.type == "cpu" or not self._has_looked:
                check_reach(batch)
                self._has_looked = True
        else:
            batch = self.processor.preprocess(images)
        return placed(batch, "images", self.device, self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (N, d, h, w) into images (N, 3, h f, w f), nominally in [-1, 1] and not clamped.

        Latents go to the decoder's device, and without autocast to its type. Raises ConfigError for what are none.
        """
        if not is_traced():
            check_latents(latents, self.latent_dim)
            own = next(self.decoder.parameters(), latents)  # the encoder may be elsewhere: drawing needs none
            kept = latents.is_meta or torch.is_autocast_enabled(latents.device.type)
            latents = placed(latents, "latents", own.device, latents.dtype if kept else own.dtype)
        return output("decoder", self.decoder, latents)

    @overload
    def reconstruct(self, images: Tensor) -> Tensor: ...
    @overload
    def reconstruct(self, images: Image.Image | str | os.PathLike[str]) -> Image.Image: ...  # type: ignore[overload-overlap]
    @overload
    def reconstruct(self, images: npt.NDArray[Any] | Sequence[Picture]) -> list[Image.Image]: ...
    def reconstruct(self, images: Pictures) -> Any:
        """Encode and decode images: of a tensor (N, 3, H, W) in [-1, 1], or of uint8, a tensor, not clamped.

        Of a Pillow image or a path it is a Pillow image, and of an array or a list a list of these; their sides are
        multiples of f. Raises what `encode` does.
        """
        if isinstance(images, Tensor) or is_traced():
            return self.decode(self.encode(images))
        with torch.no_grad():
            pictures = self.processor.to_pil(self.decode(self.encode(images)))
        return pictures[0] if isinstance(images, Image.Image | str | os.PathLike) else pictures

    def forward(self, images: Tensor) -> Tensor:
        """Encode and decode images (N, 3, H, W) in [-1, 1] that nothing looks at first, as a training does."""
        return self.decode(self.latents_from(self.moments(images)))

    @property
    def processor(self) -> ImageProcessor:
        """Makes pictures into what `encode` takes, and what `decode` gives into pictures."""
        return ImageProcessor(self.downsample_factor)

    @property
    def device(self) -> torch.device:
        """Where the weights are; move them with ``to``."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, and of latents."""
        return next(each.dtype for each in self.parameters() if each.is_floating_point())

    def __repr__(self) -> str:
        """One line; ``torch.nn.Module.__repr__(tokenizer)`` is every layer."""
        size = f"f{self.downsample_factor}d{self.latent_dim}"
        return f"Tokenizer(encoder={self._encoder_name()}, {size}, {weights_in_words(self)})"

    def _encoder_name(self) -> str:
        """Return the encoder's registered name, with that of its model in a library; of a module its class's."""
        described = cast("dict[str, Any]", self._hub_mixin_config or {})
        config = described.get("encoder") or {"type": type(self.encoder).__name__}
        return ":".join(str(config[key]) for key in ("type", "model_name") if config.get(key))

    @classmethod
    @checked
    def from_config(cls, config: Mapping[str, Any], *, components: Mapping[str, Any] | None = None) -> Tokenizer:
        """Build a tokenizer of a :attr:`config`, its weights random. Raises as the class itself does.

        A config may have come with a file: of its names only registered ones are taken, and those of `components`.
        """
        known = {key: value for key, value in config.items() if key != "aligntok_version"}
        return cls(**{**known, "trusted": False, "components": components})

    @checked
    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> str | None:
        """Write model.safetensors, config.json and a model card; each file is replaced whole, their checksums last.

        Takes the keywords of huggingface_hub's ``ModelHubMixin.save_pretrained``; returns the commit's address if
        ``push_to_hub=True``. Raises ConfigError if a part was given as a module, WriteError when the disk does not
        take it.
        """
        config = self.config
        folder = Path(save_directory).expanduser()
        push, repo_id, _ = (kwargs.pop(name, None) for name in ("push_to_hub", "repo_id", "config"))  # of ours
        begin_export(folder, config)
        save_tensors(folder / "model.safetensors", self.state_dict(), checksum=False)
        write_card(folder, self, kwargs.get("model_card_kwargs"))
        write_json(folder / "config.json", config)
        write_checksums(folder, ["model.safetensors", "config.json"])  # a card is for its owner to change
        return self.push_to_hub(repo_id or folder.name, **kwargs) if push else None

    @classmethod
    @checked
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, components: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Tokenizer:
        """Load a saved tokenizer, in eval mode, from a folder or a hub id, of which keywords are huggingface_hub's.

        `components` are classes by the names that its config gives them, for parts that no plugin registers. Raises
        WeightsError when neither is there, the hub cannot be reached, or the weights do not fit the config,
        UnknownComponentError for a part that is neither registered nor given.
        """
        source = os.path.expanduser(str(pretrained_model_name_or_path))
        if not os.path.isdir(source):
            source = str(fetch_folder(source, "a tokenizer", **{name: kwargs.pop(name, None) for name in HUB_OPTIONS}))
        if not os.path.isfile(os.path.join(source, "config.json")):
            found = ", ".join(sorted(os.listdir(source))[:10]) or "nothing"
            raise WeightsError(f"{source} has no config.json, so it is no saved tokenizer; found: {found}")
        read_json(Path(source) / "config.json", WeightsError, "copy or download the folder again")
        try:
            return super().from_pretrained(source, **{**kwargs, "trusted": False, "components": components})
        except AlignTokError:
            raise
        except DAMAGE as error:
            raise WeightsError(
                f"cannot load a tokenizer from '{source}': {first_line(error)}; copy it again"
            ) from error
        except RuntimeError as error:
            raise WeightsError(f"the tokenizer in '{source}' can't be built here: {first_line(error)}") from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, strict: bool = True, map_location: str = "cpu", **kwargs: Any
    ) -> Tokenizer:
        """Build and fill a tokenizer of a local folder; huggingface_hub 2.4's own method prints on stdout."""
        given = {name: value for name, value in kwargs.items() if name not in _OF_THE_HUB}
        model = cls(**{**given, "trusted": False})
        file = os.path.join(model_id, "model.safetensors")
        check_file(file, WeightsError, "copy or download the folder again")
        try:
            return cls._load_as_safetensor(model, file, map_location, strict).eval()
        except (RuntimeError, SafetensorError) as error:
            raise WeightsError(f"the weights in '{file}' are damaged, or not of its config.json: {error}") from error


def _build(
    parts: Mapping[str, Any], trusted: bool, components: Mapping[str, Any] | None, part: str, **defaults: Any
) -> tuple[Any, dict[str, Any] | None]:
    """Build a part, with those defaults filled in that it takes; also return the config that rebuilds it."""
    registry, given = _REGISTRIES[part], parts[part]
    if isinstance(given, nn.Module) and not lacks(given, registry.contract, registry.asked):
        return given, None
    if not isinstance(given, Mapping) or "type" not in given:
        has = ", ".join(registry.asked)
        raise ConfigError(f"{part} must be dict(type=name, ...), or a module that has {has}; it is {str(given)[:100]}")
    parameters = inspect.signature(registry.find(given["type"], components)).parameters
    config = {**{key: value for key, value in defaults.items() if key in parameters}, **given}
    built = registry.build(config, trusted=trusted, components=components)
    return built, json.loads(json.dumps(without_weights(registry, config, components)))
