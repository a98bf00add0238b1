"""A tokenizer, and a generator of classes, as models of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput, Transformer2DModelOutput
from torch import Tensor, nn

from aligntok.device import dtype_named
from aligntok.errors import ConfigError
from aligntok.registry import GENERATORS
from aligntok.tokenizer import Tokenizer

#: diffusers gives a flow's times, from noise at the first to data at 0, in thousandths.
TIMES = 1000


class _Built(ModelMixin, ConfigMixin):
    """A model that computes tables where it is built, which must not be on the meta device."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a folder, or what a hub has, with the keywords of diffusers' models, `torch_dtype` among them."""
        # In this type diffusers would compute the tables, too.
        given = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
        named = [each for each in given if each is not None]
        dtypes = [each if isinstance(each, torch.dtype) else dtype_named(each, cls.__name__) for each in named]
        model = super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "low_cpu_mem_usage": False})
        for dtype in dtypes:
            model = nn.Module.to(model, dtype=dtype)
        return model


class AutoencoderAlignTok(_Built):
    """A tokenizer as an autoencoder of diffusers, to be the `vae` of a pipeline.

    tokenizer: its config. block_out_channels: pipelines take f from its length. latents_mean, latents_std: by which a
    generator's latents are normalised, channel by channel; pipelines that do not know them take scaling_factor alone.
    `encode` and `decode` take and give what the tokenizer does, whatever these say. Raises what building one does.
    """

    @register_to_config
    def __init__(
        self,
        tokenizer: Mapping[str, Any],
        latent_channels: int,
        block_out_channels: Sequence[int],
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        self.model = Tokenizer(**{**described(tokenizer), "trusted": False})

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Return the posterior of images (N, 3, H, W) in [-1, 1]; of a tokenizer without one it is its very latents."""
        moments = self.model.moments(x)
        certain = not self.model.variational
        parameters = torch.cat([moments, torch.zeros_like(moments)], dim=1) if certain else moments
        posterior = DiagonalGaussianDistribution(parameters, deterministic=certain)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Return images (N, 3, h f, w f) of latents (N, d, h, w)."""
        images = self.model.decode(z)
        return DecoderOutput(sample=images) if return_dict else (images,)

    def forward(self, sample: Tensor, sample_posterior: bool = False, return_dict: bool = True) -> Any:
        """Encode and decode images (N, 3, H, W)."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample() if sample_posterior else posterior.mode(), return_dict)


class LightningDiTModel(_Built):
    """A generator of classes as a transformer of diffusers, for its schedulers of flow matching.

    generator: ``dict(type=name, ...)`` of a registered one. in_channels, sample_size: channels and (h, w) of latents.
    """

    @register_to_config
    def __init__(self, generator: Mapping[str, Any], in_channels: int, sample_size: Sequence[int]) -> None:
        super().__init__()
        self.model = GENERATORS.build(dict(generator), trusted=False)
        if self.model.conditioned_on != "classes":
            raise ConfigError(f"{type(self.model).__name__} is no generator of classes, and has another class here")

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True) -> Any:
        """Return noise - data, which diffusers' flows go against: latents (N, C, h, w), times (N,) from 1000 to 0."""
        t = 1 - timestep.to(torch.float32) / TIMES
        found = -self.model(hidden_states.to(self.dtype), t, class_labels)  # times keep float32, whatever the weights
        return Transformer2DModelOutput(sample=found) if return_dict else (found,)


def described(tokenizer: Any) -> dict[str, Any]:
    """Return the keywords of a tokenizer in its config. Raises ConfigError where that is none."""
    if not isinstance(tokenizer, Mapping) or "encoder" not in tokenizer:
        raise ConfigError("AutoencoderAlignTok: 'tokenizer' of its config describes none; export the tokenizer anew")
    return {key: value for key, value in tokenizer.items() if key not in ("aligntok_version", "trusted", "components")}
