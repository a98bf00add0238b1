"""What a config costs that needs no run: parameters, multiply-accumulates, schedule; all on the meta device."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aligntok.ops.ldm_blocks import AttnBlock
from aligntok.registry import ENCODERS, without_weights
from aligntok.training.alignment import AlignmentStage
from aligntok.training.generation import GeneratorStage
from aligntok.training.plan import StagePlan, make_plan
from aligntok.training.stages import Stage


@dataclass(frozen=True)
class Operations:
    """Multiply-accumulates of one forward pass.

    total: of convolutions, linear layers and attention's two products. attention: of the latter alone. as_in_paper:
    without those of transformers, whose fused kernel the paper's counter did not see, and with those of convolutional
    encoders and decoders.
    """

    total: int
    attention: int
    as_in_paper: int


class CountedStage(NamedTuple):
    """A stage, or a generator's training, and what it is going to do.

    `teacher_adapter` of the plan's frozen parameters are those of the teacher's adapter.
    """

    stage: Stage
    plan: StagePlan
    teacher_adapter: int = 0

    @property
    def frozen_as_in_paper(self) -> int:
        """The frozen ones without the teacher's adapter, as the paper's cost table has them."""
        return self.plan.frozen - self.teacher_adapter


@dataclass
class Counted:
    """What is known of a config, or of one encoder, without a run. Operations by part and size, such as "256".

    `tokenizer` is the stage that its tokenizer ends with; None of an encoder, and of a generator alone.
    """

    name: str
    tokenizer: AlignmentStage | None = None
    parts: dict[str, int] = field(default_factory=dict)
    stages: list[CountedStage] = field(default_factory=list)
    operations: dict[tuple[str, str], Operations] = field(default_factory=dict)
    not_counted: list[str] = field(default_factory=list)

    def count(self, part: str, size: str, module: nn.Module, *inputs: Tensor) -> None:
        """Count the operations of `module`, on the meta device, or note why that cannot be."""
        try:
            self.operations[part, size] = count_operations(module, *inputs)
        except NotImplementedError as error:  # an operation of a plugin's that has no shape without data
            self.not_counted.append(f"{self.name}: operations of the {part} at {size}: {str(error).splitlines()[0]}")


def count_config(
    name: str, stages: Sequence[AlignmentStage], generator: GeneratorStage | None, resolutions: Iterable[int]
) -> Counted:
    """Count everything of a config: its stages, the tokenizer of the last one, its generator.

    Raises ConfigError for models that cannot be built and for resolutions that their tokenizer does not take.
    """
    counted = Counted(name, stages[-1] if stages else None)
    for stage in stages:
        model = stage.build_model()
        adapter = None if model.teacher is None else model.teacher.adapter
        counted.stages.append(CountedStage(stage, make_plan(stage, model, 1), _parameters(adapter)))
    if stages:
        _count_tokenizer(counted, model.tokenizer, resolutions)
    if generator is not None:
        built = generator.build_model()
        counted.parts["generator"] = _parameters(built.generator)
        counted.stages.append(CountedStage(generator, make_plan(generator, built, 1)))
        inputs = [each.to("meta") for each in generator.latent_input()]
        counted.count("generator", "x".join(map(str, inputs[0].shape[2:])), built.generator, *inputs)
    return counted


def count_encoder(name: str, downsample_factor: int, resolutions: Iterable[int]) -> Counted:
    """Count an encoder of the registry with its default keywords. Raises UnknownComponentError, ConfigError."""
    counted = Counted(name)
    with torch.device("meta"):
        encoder = build_encoder(name, downsample_factor)
    counted.parts["encoder"] = _parameters(encoder)
    for size in resolutions:
        counted.count("encoder", str(size), encoder, torch.empty(1, 3, size, size, device="meta"))
    return counted


def build_encoder(name: str, downsample_factor: int) -> Any:
    """Build an encoder of the registry with random weights, for a downsampling factor if it can be told one."""
    takes = inspect.signature(ENCODERS.get(name)).parameters
    factor = {"downsample_factor": downsample_factor} if "downsample_factor" in takes else {}
    return ENCODERS.build({**without_weights(ENCODERS, {"type": name}), **factor}).eval()


def count_operations(module: nn.Module, *inputs: Tensor) -> Operations:
    """Count one forward pass in eval mode (torch.utils.flop_counter, halved). Takes and gives meta tensors.

    Norms, activations, softmax, resizing and sums are not counted. Raises NotImplementedError for an operation that
    torch cannot do without data.
    """
    module.eval()
    counter = FlopCounterMode(display=False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel has no formula
    try:
        with torch.no_grad(), counter:
            module(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    counts = counter.get_flop_counts()
    root = type(module).__name__
    convolutional = (name for name, part in module.named_modules() if isinstance(part, AttnBlock))
    seen = sum(_attention(counts.get(f"{root}.{name}", {})) for name in convolutional)
    attention = _attention(counts.get("Global", {}))
    total = counter.get_total_flops()
    return Operations(total // 2, attention // 2, (total - attention + seen) // 2)


def forward_operations(stage: Stage) -> int:
    """Return the multiply-accumulates of everything that a training step of one sample runs forward.

    The teacher, the losses and the discriminator are among it. 0 where they cannot be counted.
    """
    model = stage.build_model()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            stage.rehearse(model)
        return counter.get_total_flops() // 2
    except NotImplementedError:
        return 0


def _count_tokenizer(counted: Counted, tokenizer: Any, resolutions: Iterable[int]) -> None:
    counted.parts.update({part: _parameters(getattr(tokenizer, part)) for part in ("encoder", "adapter", "decoder")})
    encode = nn.Sequential(tokenizer.encoder, tokenizer.adapter)
    for size in resolutions:
        latent = size // tokenizer.downsample_factor
        counted.count("encoder", str(size), encode, torch.empty(1, 3, size, size, device="meta"))
        latents = torch.empty(1, tokenizer.latent_dim, latent, latent, device="meta")
        counted.count("decoder", str(size), tokenizer.decoder, latents)


def _attention(counts: Mapping[Any, int]) -> int:
    """Return the operations of products of batches of matrices: attention's, fused or not."""
    return sum(n for op, n in counts.items() if "bmm" in str(op) or "attention" in str(op))


def _parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
