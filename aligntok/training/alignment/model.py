"""The model that a stage trains: a tokenizer, its losses, a discriminator, and a frozen teacher where one is needed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.profiler import record_function
from typing_extensions import Self

from aligntok.caching.encoder import latent_shape, posterior_noise
from aligntok.device import computing
from aligntok.distributed.parallel import Unit, load_state
from aligntok.engine.checkpoints import load_parts
from aligntok.engine.compile import listed_blocks
from aligntok.engine.ema import PartStates
from aligntok.errors import ConfigError
from aligntok.registry import DISCRIMINATORS, ENCODERS
from aligntok.tokenizer import PARTS, Tokenizer
from aligntok.training.alignment.graph import ForwardGraph, run_forward
from aligntok.training.alignment.objective import Objective
from aligntok.training.settings import StageSettings
from aligntok.training.stages import MicroBatch, TrainedModel
from aligntok.weights.lora import add_lora, with_lora, without_lora


class Teacher(nn.Module):
    """Frozen encoder, and adapter if latents are compared: the targets E*(x) and A*(E*(x)) of paper Eq. 4."""

    def __init__(self, encoder: nn.Module, adapter: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.requires_grad_(False)

    @torch.no_grad()
    @record_function("teacher")
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return teacher_features (N, C, h, w), and teacher_latents (N, d, h, w) if there is an adapter."""
        features = self.encoder(images)
        targets = {"teacher_features": features.float()}
        if self.adapter is not None:
            targets["teacher_latents"] = self.adapter(features).float()
        return targets


@MODELS.register_module()
class AlignmentModel(TrainedModel):
    """A tokenizer in training, whatever the stage: what a stage is, its settings say.

    Parts that are not trained run in eval mode, without gradients. The discriminator is built, and trained, iff a loss
    takes its logits. Weights, optimiser and ratios stay float32 in any precision. Raises ConfigError for settings that
    do not fit one another.
    """

    def __init__(self, settings: StageSettings, seed: int = 0) -> None:
        super().__init__(settings, seed)
        self.trainable = tuple(settings.trainable)
        if not self.trainable:
            raise ConfigError(f"trainable={list(self.trainable)}; it must name one or more of {', '.join(PARTS)}")
        if "encoder" not in settings.model:
            raise ConfigError("model has no encoder; give model=dict(encoder=dict(type='dinov2'), ...) or another")
        self.tokenizer = Tokenizer(**settings.model)
        self.objective = Objective(settings.losses, self.trainable)
        self.discriminator: Any = None
        if self.objective.needs("fake_logits"):
            if settings.discriminator is None:
                raise ConfigError("a loss takes the discriminator's logits, but discriminator is None; give its config")
            self.discriminator = DISCRIMINATORS.build(settings.discriminator)
        self.teacher = self._build_teacher(settings.teacher)
        for name in PARTS:
            if name not in self.trainable:  # of what is trained, what a component froze stays frozen
                getattr(self.tokenizer, name).requires_grad_(False)
        if settings.lora is not None:
            add_lora(self.tokenizer.encoder, self.trainable, settings.lora)
        self._check_last_layers()
        if settings.grad_checkpointing:
            self.tokenizer.encoder.set_grad_checkpointing(True)
            self.tokenizer.decoder.set_grad_checkpointing(True)
        apart = [getattr(self.tokenizer, part).last_layer for part in self.objective.parts_with_groups()]
        self.compile_parts(self.tokenizer, self.teacher, apart=apart)
        self.train()

    def _check_last_layers(self) -> None:
        """Raise ConfigError for a last layer that is frozen where a loss is weighed."""
        for term in self.objective.terms:
            at = term.adaptive_weight and term.adaptive_weight.at
            if at and not getattr(self.tokenizer, at).last_layer.requires_grad:
                raise ConfigError(
                    f"the {at}'s last layer is frozen, by lora or by the {at} itself, where loss '{term.name}' is "
                    "weighed; let lora.targets match the last block's MLP too, train that layer, or set the loss's "
                    "adaptive_weight to None"
                )

    def _build_teacher(self, config: str | Mapping[str, Any] | None) -> Teacher | None:
        latents = self.objective.needs("teacher_latents")
        if not latents and not self.objective.needs("teacher_features"):
            return None
        if config == "start":
            adapter = copy.deepcopy(self.tokenizer.adapter) if latents else None
            return Teacher(copy.deepcopy(self.tokenizer.encoder), adapter)
        if isinstance(config, Mapping) and not latents:
            return Teacher(ENCODERS.build(dict(config)), None)
        raise ConfigError(
            f"a loss compares with a teacher's {'latents' if latents else 'features'}, but teacher is {config!r}; "
            "set teacher='start' (what the stage starts from)" + ("" if latents else " or an encoder config")
        )

    def check_batch(self, images: int, where: str) -> None:
        """Raise ConfigError unless a micro-batch over all processes goes in groups where losses or norms take these."""
        groups = {f"loss '{t.name}', adaptive_weight.images": t.adaptive_weight for t in self.objective.terms}
        sizes = {who: weight.images for who, weight in groups.items() if weight is not None and weight.images}
        if own := getattr(self.discriminator, "group_images", None):
            sizes["discriminator.group_images"] = own
        for who, each in sizes.items():
            if images % each:
                fitting = [size for size in range(1, images + 1) if images % size == 0]
                raise ConfigError(
                    f"{where}: a micro-batch of {images} images over all processes does not go in groups of {each} "
                    f"({who}); change global_batch_size / gradient_accumulation_steps, or take groups of "
                    f"{', '.join(map(str, fitting))} or None"
                )

    def load_start(self, states: PartStates | None) -> None:
        """Begin the stage from `states`, as far as they have its parts, or as the model is.

        A teacher that is the stage's start gets the weights of encoder and adapter; one with a config of its own keeps
        its pretrained ones. Raises CheckpointError for other shapes.
        """
        if states is not None:
            parts = {**self.trained_parts(), **self.frozen_parts()}
            own = {name: part for name, part in parts.items() if not name.startswith("teacher_")}  # not that stage's
            wanted = {name: part for name, part in own.items() if name in states}
            fitting = {name: with_lora(states[name], part) for name, part in wanted.items()}
            load_parts(wanted, fitting, "what the stage starts from")
        if self.teacher is None or self.settings.teacher != "start":
            return
        for name, part in self.teacher.named_children():
            load_state(part, without_lora(getattr(self.tokenizer, name).state_dict()))

    def parts(self) -> dict[str, nn.Module]:
        """Return everything that the stage holds, by the names that its plan has."""
        parts: dict[str, Any] = {name: getattr(self.tokenizer, name) for name in PARTS}
        losses = {f"loss: {name}": loss for name, loss in self.objective.losses.items()}
        parts |= {"discriminator": self.discriminator, **losses, "teacher": self.teacher}
        return {name: part for name, part in parts.items() if part is not None}

    def trained_parts(self) -> dict[str, nn.Module]:
        """Return the parts that change in this stage: of the tokenizer, the discriminator, losses with weights."""
        parts: dict[str, nn.Module] = {name: getattr(self.tokenizer, name) for name in PARTS if name in self.trainable}
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
        for name, loss in self.objective.losses.items():
            if any(p.requires_grad for p in loss.parameters()):
                parts[f"loss_{name}"] = loss
        return parts

    def averaged_parts(self) -> dict[str, nn.Module]:
        """Return the trained parts of which averages are kept: those of the tokenizer."""
        return {name: part for name, part in self.trained_parts().items() if name in PARTS}

    def frozen_parts(self) -> dict[str, nn.Module]:
        """Return the parts that stay as the stage found them, the teacher's included; losses rebuild themselves."""
        parts = {name: getattr(self.tokenizer, name) for name in PARTS if name not in self.trainable}
        if self.teacher is not None:
            parts.update({f"teacher_{name}": part for name, part in self.teacher.named_children()})
        return parts

    def units(self) -> list[Unit]:
        """Return the tokenizer's parts, the teacher's, the losses and the discriminator, each of these in one block."""
        coders = [*(getattr(self.tokenizer, name) for name in PARTS), *(self.teacher or nn.Module()).children()]
        units = [Unit(part, listed_blocks(part), getattr(part, "last_layer", None)) for part in coders]
        whole = [*self.objective.losses.values(), self.discriminator]
        return units + [Unit(part, []) for part in whole if part is not None]

    def train(self, mode: bool = True) -> Self:
        """Set training mode; what the stage does not train stays in eval mode."""
        super().train(mode)
        for name in PARTS:
            if name not in self.trainable:
                getattr(self.tokenizer, name).eval()
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def posterior_noise(self, images: Tensor, place: MicroBatch) -> Tensor | None:
        """Return the numbers (N, d, h, w) that draw a micro-batch's latents from their posteriors, if there are any."""
        if not self.tokenizer.variational:
            return None
        shape = latent_shape(self.tokenizer, (images.shape[-2], images.shape[-1]))
        return posterior_noise(self.seed, place.numbers(len(images)), 0, shape).to(images.device)

    def backward(self, batch: Mapping[str, Tensor], place: MicroBatch) -> dict[str, Tensor]:
        """Walk the graph once, part by part; what a part's gradients need of other processes goes on meanwhile."""
        images = batch["images"].to(self.device(), non_blocking=True)
        self.seed_dropouts(place.numbers(len(images)))
        with computing(self.precision, images.device):
            noise = self.posterior_noise(images, place)
            grouped = self.objective.parts_with_groups()
            graph = run_forward(self.tokenizer, images, self.trainable, place.step, place.scale, noise, grouped)
            self._loss_inputs(graph)
            with record_function("losses"):
                self.objective.backward_to_image(graph)
            if "fake_logits" in graph.inputs:
                self._backward_discriminator(graph)
            graph.backward_decoder()
            with record_function("losses"):
                self.objective.backward_to_encoder(graph)
            graph.backward_encoder()
        return graph.logs

    def _loss_inputs(self, graph: ForwardGraph) -> None:
        """Add what losses take of teacher and discriminator at this step."""
        needs = partial(self.objective.needs, step=graph.step)
        if self.teacher is not None and (needs("teacher_features") or needs("teacher_latents")):
            graph.inputs.update(self.teacher(graph.inputs["images"]))
        if needs("fake_logits"):
            with record_function("discriminator"):
                graph.inputs["fake_logits"] = self.discriminator(graph.leaves["reconstruction"])

    def _backward_discriminator(self, graph: ForwardGraph) -> None:
        """Give the discriminator its gradients; the logits of the reconstruction served the generator side already."""
        losses = map(self.objective.loss, self.objective.active(graph.step))
        (loss,) = (loss for loss in losses if "fake_logits" in loss.inputs)  # the objective has at most one
        fake_logits = graph.inputs["fake_logits"]
        with record_function("discriminator"):
            real_logits = self.discriminator(graph.inputs["images"])
            value = loss.discriminator_loss(real_logits, fake_logits)
            (value * graph.scale).backward(inputs=list(self.discriminator.parameters()))
        graph.logs |= {
            "loss/discriminator": value.detach(),
            "logits/real": real_logits.detach().float().mean(),
            "logits/fake": fake_logits.detach().float().mean(),
        }

    @torch.no_grad()
    def values(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """Return the value of each loss at a step for images (N, 3, H, W), without training."""
        graph = run_forward(self.tokenizer, images, (), step)
        self._loss_inputs(graph)
        return {term.name: self.objective.value(term, graph) for term in self.objective.active(step)}

    @torch.no_grad()
    def val_step(self, data: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Reconstruct a batch; returns one ``dict(images=..., reconstruction=...)`` of (3, H, W) tensors an image.

        With an `index` (N,) in the batch, each has its own.
        """
        images = data["images"].to(self.device())
        reconstructions = self.tokenizer(images).float()
        pairs = [dict(images=x, reconstruction=y) for x, y in zip(images, reconstructions, strict=True)]
        for pair, index in zip(pairs, data.get("index", ()), strict=False):
            pair["index"] = index
        return pairs

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Tensor:
        """Reconstruct images (N, 3, H, W); mmengine's other modes have no use here."""
        return self.tokenizer(inputs)
