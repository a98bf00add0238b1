"""A generator of classes with its tokenizer, as a pipeline of diffusers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from aligntok.condition import condition_of
from aligntok.data.latent_shards import LatentStatistics
from aligntok.diffusers.export import PARTS
from aligntok.diffusers.models import TIMES, LightningDiTModel
from aligntok.diffusion.sampling import guided_velocity
from aligntok.diffusion.settings import Sampling
from aligntok.errors import ConfigError, WeightsError
from aligntok.io.checksums import CHECKSUMS
from aligntok.io.files import check_file


class LightningDiTPipeline(DiffusionPipeline):
    """Classes to pictures: transformer, vae, and a scheduler of flow matching.

    vae: an AutoencoderAlignTok or AutoencoderKL whose config has latents_mean and latents_std. id2label: names of the
    classes by number, where they have some. sampling: keywords of :class:`aligntok.diffusion.settings.Sampling`, for
    calls that say nothing else; its shift is the scheduler's, its sampler the scheduler itself.
    """

    model_cpu_offload_seq: Any = "transformer->vae"
    transformer: Any
    vae: Any
    scheduler: Any
    config: Any

    def __init__(
        self,
        transformer: LightningDiTModel,
        vae: Any,
        scheduler: Any,
        id2label: Mapping[str, str] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=dict(id2label or {}), sampling=dict(sampling or {}))
        self.image_processor = VaeImageProcessor(vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **keywords: Any) -> Any:
        """Load a pipeline as diffusers does. Raises WeightsError for a folder whose parts two exports have left."""
        for part in PARTS:
            place = Path(pretrained_model_name_or_path, part, CHECKSUMS)
            check_file(place, WeightsError, "export the generator again, or copy the folder again, whole")
        return super().from_pretrained(pretrained_model_name_or_path, **keywords)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw a picture of each class, by number or name; the scales and steps left out are the config's `sampling`.

        generator: of the noise, one, or one an image. latents: the noise itself, (N, C, h, w), of which the sides may
        be others than those trained on. output_type: "pil", "np" or "pt", in [0, 1]; "latent". Raises ConfigError for
        classes that there are not, and for guidance without a null class.
        """
        words = [class_labels] if isinstance(class_labels, int | str) else list(class_labels)
        if not words:
            raise ConfigError("LightningDiTPipeline: class_labels is empty; give one class at least")
        where, config = self._execution_device, self.transformer.config
        shape = (len(words), config.in_channels, *config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=where, dtype=torch.float32)
        velocity = self._velocity(words, guidance_scale, where)
        steps = (self._sampling() if num_inference_steps is None else self._sampling(steps=num_inference_steps)).steps
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1], device=where)
        x = latents.to(where, torch.float32)
        for t in self.progress_bar(self.scheduler.timesteps):
            x = self.scheduler.step(-velocity(x, 1 - t.float().expand(len(x)) / TIMES), t, x, return_dict=False)[0]
        images: Any = x if output_type == "latent" else self._decode(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sampling(self, **changes: Any) -> Sampling:
        return Sampling(**{**self.config.sampling, **changes})

    def _velocity(self, words: Sequence[int | str], scale: float | None, where: torch.device) -> Any:
        """Return the guided velocity, from noise to data, of latents (N, C, h, w) and times (N,) from 0 to 1."""
        sampling = self._sampling() if scale is None else self._sampling(cfg_scale=scale)
        named = self.config.id2label
        names = [named.get(str(number), "") for number in range(len(named))]
        condition = condition_of(self.transformer.model, names)
        condition.check_guidance(sampling.cfg_scale, "guidance_scale")
        null = None if sampling.cfg_scale == 1 else condition.null(len(words), where)
        return guided_velocity(sampling, self._against, condition.from_words(words, where), null)

    def _against(self, x: Tensor, t: Tensor, y: Any) -> Tensor:
        return -self.transformer(x, (1 - t) * TIMES, y).sample.float()

    def _decode(self, x: Tensor, output_type: str) -> Any:
        config = self.vae.config
        if config.latents_mean is None or config.latents_std is None:
            raise ConfigError("the vae's config has no latents_mean and latents_std; set those of the training")
        found = LatentStatistics(config.latents_mean, config.latents_std).denormalise(x / config.scaling_factor)
        images = self.vae.decode(found.to(self.vae.dtype)).sample
        return self.image_processor.postprocess(images.float().clamp(-1, 1), output_type)
