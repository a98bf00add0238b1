"""The model that a stage trains: a tokenizer, its losses, a discriminator, and a frozen teacher where one is needed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.profiler import record_function
from typing_extensions import Self

from aligntok.device import check_precision, computing
from aligntok.distributed import world
from aligntok.distributed.parallel import GradientReduction
from aligntok.engine.checkpoints import load_parts
from aligntok.engine.compile import compile_blocks
from aligntok.engine.ema import PartStates
from aligntok.engine.runner import StepBatch
from aligntok.errors import ConfigError
from aligntok.registry import DISCRIMINATORS, ENCODERS
from aligntok.rng import seed_torch
from aligntok.tokenizer import PARTS, Tokenizer
from aligntok.training.alignment.graph import ForwardGraph, run_forward
from aligntok.training.alignment.objective import Objective
from aligntok.weights.lora import LoRASettings, add_lora, with_lora, without_lora


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
class AlignmentModel(BaseModel):
    """A tokenizer in training, whatever the stage: what a stage is, its config says.

    Args:
        tokenizer: keywords of :class:`aligntok.tokenizer.Tokenizer`.
        losses: ``{name: dict(type=..., weight=..., start_step=..., adaptive_weight=dict(at=...), ...)}``.
        trainable: which of encoder, adapter, decoder are trained. The others run in eval mode, without gradients.
        discriminator: config of the discriminator; needed, and trained, iff a loss takes its logits.
        teacher: None, "start" (the encoder and adapter that the stage starts from), or an encoder config.
        precision: "fp32", "tf32", or "bf16" or "fp16" autocast (weights, optimiser and ratios stay float32).
        grad_checkpointing: recompute activations of encoder and decoder in the backward pass.
        compile: True, or keywords of ``torch.compile``, to compile tokenizer and teacher block by block.
        lora: the low-rank updates through which the encoder trains; None: it trains as it is.
        seed: with the step, the source of every random number that the model draws.

    Raises ConfigError when these do not fit one another.
    """

    def __init__(
        self,
        tokenizer: Mapping[str, Any],
        losses: Mapping[str, Mapping[str, Any]],
        trainable: Iterable[str],
        discriminator: Mapping[str, Any] | None = None,
        teacher: str | Mapping[str, Any] | None = None,
        precision: str = "fp32",
        grad_checkpointing: bool = False,
        compile: bool | Mapping[str, Any] = False,
        lora: LoRASettings | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.trainable = tuple(trainable)
        if not self.trainable or set(self.trainable) - set(PARTS):
            raise ConfigError(f"trainable={list(self.trainable)}; it must name one or more of {', '.join(PARTS)}")
        check_precision(precision)
        self.tokenizer = Tokenizer(**tokenizer)
        self.objective = Objective(losses, self.trainable)
        self.discriminator = self._build_discriminator(discriminator)
        self.teacher = self._build_teacher(teacher)
        self.teacher_is_start = teacher == "start"
        self.precision = precision
        self.seed = seed
        for name in PARTS:
            getattr(self.tokenizer, name).requires_grad_(name in self.trainable)
        if lora is not None:
            add_lora(self.tokenizer.encoder, self.trainable, lora)
            self._check_balance_with_lora()
        if grad_checkpointing:
            self.tokenizer.encoder.set_grad_checkpointing(True)
            self.tokenizer.decoder.set_grad_checkpointing(True)
        if compile:
            compile_blocks([self.tokenizer, self.teacher], {} if compile is True else compile)
        self.train()

    def _check_balance_with_lora(self) -> None:
        terms = self.objective.terms
        balanced = [t.name for t in terms if t.adaptive_weight is not None and t.adaptive_weight.at == "encoder"]
        if balanced and not self.tokenizer.encoder.last_layer.requires_grad:
            raise ConfigError(
                f"lora leaves the encoder's last layer frozen, where loss '{balanced[0]}' is weighed; "
                "let lora.targets match the last block's MLP too, or set the loss's adaptive_weight to None"
            )

    def _build_discriminator(self, config: Mapping[str, Any] | None) -> Any:
        if not self.objective.needs("fake_logits"):
            return None
        if config is None:
            raise ConfigError("a loss takes the discriminator's logits, but discriminator is None; give its config")
        return DISCRIMINATORS.build(dict(config))

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

    def load_start(self, states: PartStates | None) -> None:
        """Begin the stage from `states`, as far as they have its parts, or as the model is.

        A teacher that is the stage's start gets the weights of encoder and adapter; one with a config of its own keeps
        its pretrained ones. Raises CheckpointError for other shapes.
        """
        if states is not None:
            parts = {**self.trained_parts(), **self.frozen_parts()}
            wanted = {name: part for name, part in parts.items() if name in states}
            fitting = {name: with_lora(states[name], part) for name, part in wanted.items()}
            load_parts(wanted, fitting, "what the stage starts from")
        if self.teacher is None or not self.teacher_is_start:
            return
        for name, part in self.teacher.named_children():
            part.load_state_dict(without_lora(getattr(self.tokenizer, name).state_dict()))

    def parts(self) -> dict[str, nn.Module]:
        """Return everything that the stage holds, by the names that its plan has."""
        parts: dict[str, nn.Module] = {name: getattr(self.tokenizer, name) for name in PARTS}
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
        parts.update({f"loss: {name}": loss for name, loss in self.objective.losses.items()})
        return {**parts, **({} if self.teacher is None else {"teacher": self.teacher})}

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

    def train(self, mode: bool = True) -> Self:
        """Set training mode; what the stage does not train stays in eval mode."""
        super().train(mode)
        for name in PARTS:
            if name not in self.trainable:
                getattr(self.tokenizer, name).eval()
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def train_step(self, data: StepBatch, optim_wrapper: Any) -> dict[str, Tensor]:
        """Do one optimiser step of generator side and discriminator, from one forward pass a micro-batch.

        Every process calls it with its share of the same step. Returns what to log, averaged over micro-batches.
        """
        self._seed_step(data.step)
        reduction = GradientReduction()
        scale = optim_wrapper.loss_scale(self._device()) / len(data.micro_batches)
        logs: list[dict[str, Tensor]] = []
        for i, batch in enumerate(data.micro_batches):
            finished = reduction if i == len(data.micro_batches) - 1 else None
            images = batch["images"].to(self._device(), non_blocking=True)
            logs.append(self._backward(images, data.step, scale, finished))
        reduction.finish()
        averaged = {key: torch.stack([log[key] for log in logs]).mean() for key in logs[0]}
        losses = [value for key, value in averaged.items() if key.startswith("loss/")]
        with record_function("optimiser"):
            return {**averaged, **optim_wrapper.step_parts(self.trained_parts(), losses)}

    def _backward(
        self, images: Tensor, step: int, scale: Tensor | float, reduction: GradientReduction | None
    ) -> dict[str, Tensor]:
        """Walk the graph once, part by part; a part's exchange between processes starts when its gradients are in.

        `scale` multiplies every loss: the micro-batch's share of the step, times the loss scale of float16.
        """
        decoder, encoder = self.tokenizer.decoder, self.tokenizer.encoder
        with computing(self.precision, images.device):
            graph = run_forward(self.tokenizer, images, self.trainable)
            inputs = self._loss_inputs(images, graph, step)
            with record_function("losses"):
                logs = self.objective.backward_to_image(graph, inputs, decoder.last_layer, step, scale)
            logs.update(self._backward_discriminator(images, inputs.get("fake_logits"), step, scale))
            adversary = self.discriminator if "fake_logits" in inputs else None
            self._start(reduction, [adversary])
            graph.backward_decoder()
            self._start(reduction, [decoder])
            with record_function("losses"):
                logs.update(self.objective.backward_to_encoder(graph, inputs, encoder.last_layer, step, scale))
            graph.backward_encoder()
            self._start(reduction, [self.tokenizer.adapter, encoder, *self.objective.losses.values()])
        return logs

    def _loss_inputs(self, images: Tensor, graph: ForwardGraph, step: int) -> dict[str, Tensor]:
        inputs = {"images": images, **graph.leaves}
        if self.teacher is not None and any(
            self.objective.needs(f"teacher_{x}", step) for x in ("features", "latents")
        ):
            inputs.update(self.teacher(images))
        if self.objective.needs("fake_logits", step):
            with record_function("discriminator"):
                inputs["fake_logits"] = self.discriminator(graph.leaves["reconstruction"])
        return inputs

    def _backward_discriminator(
        self, images: Tensor, fake_logits: Tensor | None, step: int, scale: Tensor | float
    ) -> dict[str, Tensor]:
        """Give the discriminator its gradients; the logits of the reconstruction served the generator side already."""
        if fake_logits is None:
            return {}
        (loss,) = (self.objective.loss(t) for t in self.objective.active(step) if "fake_logits" in self._inputs(t.name))
        with record_function("discriminator"):
            real_logits = self.discriminator(images)
            value = loss.discriminator_loss(real_logits, fake_logits)
            (value * scale).backward(inputs=list(self.discriminator.parameters()))
        return {
            "loss/discriminator": value.detach(),
            "logits/real": real_logits.detach().float().mean(),
            "logits/fake": fake_logits.detach().float().mean(),
        }

    def _inputs(self, name: str) -> tuple[str, ...]:
        return self.objective.losses[name].inputs  # type: ignore[return-value]

    @torch.no_grad()
    def values(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """Return the value of each loss at a step for images (N, 3, H, W), without training."""
        inputs = self._loss_inputs(images, run_forward(self.tokenizer, images, ()), step)
        terms = self.objective.active(step)
        return {t.name: self.objective.loss(t)(*(inputs[n] for n in self._inputs(t.name))) for t in terms}

    @staticmethod
    def _start(reduction: GradientReduction | None, parts: Iterable[nn.Module | None]) -> None:
        if reduction is not None:
            reduction.start(p for part in parts if part is not None for p in part.parameters())

    def _seed_step(self, step: int) -> None:
        """Make what is drawn in a step follow from (seed, step, rank): nothing to save, nothing to lose on resume."""
        seed_torch("step of a process", self.seed, step, world()[0])

    def _device(self) -> torch.device:
        return next(self.tokenizer.parameters()).device

    @torch.no_grad()
    def val_step(self, data: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Reconstruct a batch; returns one ``dict(images=..., reconstruction=...)`` of (3, H, W) tensors an image.

        With an `index` (N,) in the batch, each has its own.
        """
        images = data["images"].to(self._device())
        reconstructions = self.tokenizer.reconstruct(images).float()
        pairs = [dict(images=x, reconstruction=y) for x, y in zip(images, reconstructions, strict=True)]
        for pair, index in zip(pairs, data.get("index", ()), strict=False):
            pair["index"] = index
        return pairs

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Tensor:
        """Reconstruct images (N, 3, H, W); mmengine's other modes have no use here."""
        return self.tokenizer.reconstruct(inputs)
