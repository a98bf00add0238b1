"""The model that a generator's training trains: a diffusion transformer, on latents from a cache or a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.profiler import record_function
from typing_extensions import Self

from aligntok.caching.encoder import check_posterior, latent_shape, posterior_noise
from aligntok.condition import Given
from aligntok.device import computing, multiplying
from aligntok.diffusion.flow import direction_loss, interpolate, path_velocity, velocity_mse
from aligntok.diffusion.times import sample_times, shift_of
from aligntok.distributed.parallel import Unit
from aligntok.engine.ahead import beside
from aligntok.engine.checkpoints import load_parts
from aligntok.engine.compile import listed_blocks
from aligntok.errors import DivergenceError
from aligntok.io.pictures import to_uint8
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.rng import rng
from aligntok.training.generator_settings import GeneratorSettings
from aligntok.training.stages import MicroBatch, TrainedModel


class Draws(NamedTuple):
    """The random numbers of samples: uniform `times` (N,), uniform `drops` (N,), standard normal `noise`."""

    times: Tensor
    drops: Tensor
    noise: Tensor


@MODELS.register_module()
class GenerationModel(TrainedModel):
    """A generator in training by flow matching (paper, Eqs. 2 and 3), on normalised latents.

    diffusion: generator, tokenizer and statistics. Only the generator is trained; its weights, optimiser and averages
    stay float32 in any precision. A batch has `latents` (N, C, h, w), normalised, or `images` (N, 3, H, W) to encode;
    and what the condition is made of: `label` (N,), or captions. Raises ConfigError for settings, DataError for labels,
    that do not fit.
    """

    def __init__(self, diffusion: LatentDiffusion, settings: GeneratorSettings, seed: int = 0) -> None:
        super().__init__(settings, seed)
        check_posterior(settings.data.posterior, diffusion.tokenizer)
        self.diffusion = diffusion
        self.diffusion.tokenizer.requires_grad_(False)
        self.generator.set_grad_checkpointing(settings.grad_checkpointing)
        self.compile_parts(self.generator, diffusion.tokenizer)
        self._encoding: ThreadPoolExecutor | None = None
        self.train()

    @property
    def encodes_ahead(self) -> bool:
        """Whether the prompts of the next step, encoded as they come, are encoded beside the present one.

        Not with "tf32": that is a setting of the whole process, and encoders are to compute without it.
        """
        return self.diffusion.condition.encodes and self.precision != "tf32"

    @property
    def prepares(self) -> bool:
        return self.encodes_ahead or super().prepares

    def prepare(self, step: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Begin with a step's micro-batches, their prompts too; return them, with what comes of it."""
        if self.encodes_ahead:
            self._encoding = self._encoding or ThreadPoolExecutor(1)
            where, pool = self.device(), self._encoding
            encode = partial(beside, where, self.diffusion.condition.of)
            step = [{**batch, "given": pool.submit(encode, batch, where)} for batch in step]
        return super().prepare(step)

    @property
    def generator(self) -> Any:
        """What is trained."""
        return self.diffusion.generator

    def trained_parts(self) -> dict[str, nn.Module]:
        """Return the generator."""
        return {"generator": self.generator}

    averaged_parts = trained_parts

    def frozen_parts(self) -> dict[str, nn.Module]:
        """Return nothing: the tokenizer lies in a folder of its own."""
        return {}

    parts = trained_parts

    def units(self) -> list[Unit]:
        """Return the generator and the parts of the tokenizer."""
        return [Unit(part, listed_blocks(part)) for part in (self.generator, *self.diffusion.tokenizer.children())]

    def bytes_beside(self) -> dict[str, int]:
        """Return those of what encodes the prompts, whole in every process."""
        return self.diffusion.condition.encoder_bytes()

    def load_start(self, states: Any) -> None:
        """Begin with the weights of another training, or as the generator was built. Raises CheckpointError."""
        if states is not None:
            load_parts(self.trained_parts(), states, "what the generator starts from")

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the tokenizer stays in eval mode."""
        super().train(mode)
        self.diffusion.tokenizer.eval()
        return self

    def backward(self, batch: Mapping[str, Any], place: MicroBatch) -> dict[str, Tensor]:
        """Do one backward pass; among what it returns is `time_bins` (2, bins): the sum of losses, and their number, in
        each part of the time axis.
        """
        latents = self.latents(batch, self.posterior_noise(batch, place))
        given = batch["given"].result()() if "given" in batch else self.diffusion.condition.of(batch, self.device())
        draws = self.draws(place, latents)
        self.seed_dropouts(place.numbers(len(latents)))
        with record_function("generator"), multiplying(self.precision):
            losses, t = self.losses(latents, given, draws)
            (losses["total"].mean() * place.scale).backward()
        logs = {f"loss/{name}": value.detach().mean() for name, value in losses.items()}
        return {**logs, "time_bins": self._binned(losses["total"].detach(), t)}

    def losses(self, latents: Tensor, given: Given, draws: Draws) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of each sample, (N,) by name with their `total`, and the times (N,) they were taken at.

        latents (N, C, h, w) normalised, given: what they are conditioned on, N rows.
        """
        transport = self.settings.transport
        shift = shift_of(transport.shift, latents.shape[-2:], self.generator)
        t = sample_times(draws.times, transport.times, mean=transport.mean, scale=transport.scale, shift=shift)
        condition = self.diffusion.condition
        given = condition.drop(given, draws.drops < condition.dropout)
        x, target = interpolate(draws.noise, latents, t), path_velocity(draws.noise, latents)
        with computing(self.precision, x.device):
            velocity = self.generator(x, t, given).float()
        found = {"velocity": velocity_mse(velocity, target)}  # paper, Eq. 3
        weight = transport.direction_weight
        if weight:
            found["direction"] = direction_loss(velocity, target)
        total = found["velocity"] + weight * found.get("direction", 0.0)
        return {"total": total, **found}, t

    def draws(self, place: MicroBatch, latents: Tensor) -> Draws:
        """Return the numbers of this process's micro-batch.

        They are drawn for the whole global batch, from (seed, step) alone, and cut: so a sample of the step has the
        same ones however the batch is split.
        """
        each = len(latents)
        total, first = place.samples(each)
        source = rng("step", self.seed, place.step, device=latents.device)
        times, drops = torch.rand((2, total), generator=source, device=latents.device)[:, first : first + each]
        noise = torch.randn((total, *latents.shape[1:]), generator=source, device=latents.device)
        return Draws(times, drops, noise[first : first + each])

    def posterior_noise(self, batch: Mapping[str, Tensor], place: MicroBatch) -> Tensor | None:
        """Return the numbers (N, C, h, w) that draw a micro-batch's latents from their posteriors; None for its means.

        Each sample's follow from the seed and its number in the run alone.
        """
        if self.settings.data.posterior == "mean" or "latents" in batch:
            return None
        images, tokenizer = batch["images"], self.diffusion.tokenizer
        shape = latent_shape(tokenizer, (images.shape[-2], images.shape[-1]))
        return posterior_noise(self.seed, place.numbers(len(images)), 0, shape).to(self.device())

    @torch.no_grad()
    def latents(self, batch: Mapping[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Return the normalised latents (N, C, h, w) of a batch, float32: its own, or its images' encoded.

        `noise` (N, C, h, w), standard normal, draws those from the posteriors; None takes the means.
        """
        if "latents" in batch:
            return batch["latents"].to(self.device(), non_blocking=True)
        images = batch["images"].to(self.device(), non_blocking=True)
        with computing(self.precision, images.device):
            tokenizer = self.diffusion.tokenizer
            encoded = tokenizer.latents_from(tokenizer.moments(images), noise=noise)
        return self.diffusion.statistics.normalise(encoded)

    def _binned(self, losses: Tensor, t: Tensor) -> Tensor:
        number = self.settings.log.time_bins
        places = (t * number).long().clamp(max=number - 1)
        bins = torch.zeros(2, number, device=losses.device)
        return bins.index_add_(1, places, torch.stack([losses, torch.ones_like(losses)]))

    @torch.no_grad()
    def val_step(self, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Draw a batch of samples, each from its word and seed; returns ``dict(pixels, index, variant)`` for each.

        Pixels are uint8 (3, H, W), the very ones that ``tools/sample.py`` saves. Raises DivergenceError when one is
        not finite.
        """
        numbers, sampling = data["numbers"], data["sampling"]
        with computing(self.precision, self.device()):
            latents = self.diffusion.sample_latents(data["words"], data["seeds"], sampling)
        images = self.diffusion.decode(latents).float()
        if not images.isfinite().all():
            raise DivergenceError(
                f"samples {numbers[0]} to {numbers[-1]} of the validation (variant '{data['variant']}') are not "
                "finite; the generator diverged: go on from an earlier checkpoint with a lower learning rate"
            )
        pixels = to_uint8(images)
        return [
            {"pixels": each, "index": number, "variant": data["variant"]}
            for each, number in zip(pixels, numbers, strict=True)
        ]

    @torch.no_grad()
    def sample(self, words: Sequence[Any], seeds: Sequence[int]) -> Tensor:
        """Draw images (N, 3, H, W) in [-1, 1] with the weights as they are, in eval mode, and go on training."""
        self.generator.eval()
        with computing(self.precision, self.device()):
            images = self.diffusion.sample(words, seeds).float()
        self.generator.train()
        return images

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Tensor:
        """Have no use: training goes through `train_step`, sampling through `sample`."""
        raise NotImplementedError("GenerationModel is trained by train_step, and sampled from by sample")
