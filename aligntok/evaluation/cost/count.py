"""What a config costs that needs no run: parameters, multiply-accumulates, schedule; all on the meta device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aligntok.ops.ldm_blocks import AttnBlock
from aligntok.registry import ENCODERS, without_weights
from aligntok.training.alignment import AlignmentStage
from aligntok.training.generation import GeneratorStage
from aligntok.training.plan import StagePlan, make_plan, trainable_and_frozen
from aligntok.training.stages import Stage


class Operations(NamedTuple):
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

    frozen_as_in_paper: the frozen parameters without the teacher's adapter, as the paper's cost table has them.
    """

    stage: Stage
    plan: StagePlan
    frozen_as_in_paper: int


class Part(NamedTuple):
    """What is counted and measured alone, and random inputs for it: of a batch, and so many pixels a side."""

    name: str
    module: nn.Module
    inputs: Callable[[int, Any], Sequence[Tensor]]


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
    deterministic: bool = False

    def count(self, part: Part, size: Any) -> None:
        """Count the operations of a part on the meta device, or note why that cannot be."""
        try:
            with torch.device("meta"):
                self.operations[part.name, str(size)] = count_operations(part.module, *part.inputs(1, size))
        except NotImplementedError as error:  # an operation of a plugin's that has no shape without data
            why = str(error).splitlines()[0]
            self.not_counted.append(f"{self.name}: operations of the {part.name} at {size}: {why}")


def count_config(
    name: str, stages: Sequence[AlignmentStage], generator: GeneratorStage | None, resolutions: Iterable[int]
) -> Counted:
    """Count everything of a config: its stages, the tokenizer of the last one, its generator.

    Raises ConfigError for models that cannot be built and for resolutions that their tokenizer does not take.
    """
    counted = Counted(name, stages[-1] if stages else None)

    def add(stage: Stage, *parts: str) -> Any:
        model = stage.build_model()
        plan, adapter = make_plan(stage, model, 1), getattr(getattr(model, "teacher", None), "adapter", None)
        beside = 0 if adapter is None else sum(trainable_and_frozen(adapter))
        counted.stages.append(CountedStage(stage, plan, plan.frozen - beside))
        counted.parts.update({part: sum(plan.parameters.get(part, ())) for part in parts})
        return model

    models = [add(stage, "encoder", "adapter", "decoder") for stage in stages]
    for size in resolutions if models else ():
        for part in parts_of(models[-1].tokenizer):
            counted.count(part, size)
    if generator is not None:
        model = add(generator, "generator")
        inputs = generator.meta_inputs(model)
        part = Part("generator", model.generator, lambda *_: inputs)
        counted.count(part, "x".join(map(str, inputs[0].shape[2:])))
    return counted


def count_encoder(name: str, downsample_factor: int, resolutions: Iterable[int]) -> Counted:
    """Count an encoder of the registry with its default keywords. Raises UnknownComponentError, ConfigError."""
    with torch.device("meta"):
        part = build_encoder(name, downsample_factor)
    counted = Counted(name, parts={part.name: sum(trainable_and_frozen(part.module))})
    for size in resolutions:
        counted.count(part, size)
    return counted


def parts_of(tokenizer: Any) -> list[Part]:
    """Return encoder (with adapter: image to latent) and decoder (latent to image)."""
    f, d = tokenizer.downsample_factor, tokenizer.latent_dim
    encode = nn.Sequential(tokenizer.encoder, tokenizer.adapter)
    return [
        Part("encoder", encode, _images),
        Part("decoder", tokenizer.decoder, lambda batch, size: [torch.randn(batch, d, size // f, size // f)]),
    ]


def build_encoder(name: str, downsample_factor: int) -> Part:
    """Build an encoder of the registry with random weights, for a downsampling factor if it can be told one."""
    takes = inspect.signature(ENCODERS.get(name)).parameters
    factor = {"downsample_factor": downsample_factor} if "downsample_factor" in takes else {}
    return Part("encoder", ENCODERS.build({**without_weights(ENCODERS, {"type": name}), **factor}), _images)


def _images(batch: int, size: int) -> list[Tensor]:
    return [torch.rand(batch, 3, size, size) * 2 - 1]


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


def _attention(counts: Mapping[Any, int]) -> int:
    """Return the operations of products of batches of matrices: attention's, fused or not."""
    return sum(n for op, n in counts.items() if "bmm" in str(op) or "attention" in str(op))
