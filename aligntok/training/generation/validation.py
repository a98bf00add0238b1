"""The validation of a generator in training: the samples that tools/sample.py would draw, measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch.utils.data import Dataset

from aligntok.data.loader import make_loader
from aligntok.diffusion.settings import Sampling
from aligntok.distributed import world
from aligntok.distributed.job import batched
from aligntok.engine.runner import ShareValLoop
from aligntok.errors import ConfigError
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.registry import METRICS
from aligntok.sampling.pipeline import LabelRule
from aligntok.settings import read
from aligntok.training.settings import GeneratorValidationSettings


def variants(settings: GeneratorValidationSettings, own: Sampling) -> dict[str, Sampling]:
    """Return how the samples of a validation are drawn, by name: "generation" alone, or the config's variants.

    Raises ConfigError for settings that sampling does not have, or cannot have.
    """
    named = settings.variants or {"generation": {}}
    return {
        name: read(Sampling, {**asdict(own), **changes}, f"validation.variants.{name}")
        for name, changes in named.items()
    }


def check_validation(settings: GeneratorValidationSettings, own: Sampling, where: str) -> None:
    """Build the metrics of a validation and drop them, so that a mistake is found before any training.

    Raises ConfigError, DataError or WeightsError for what cannot be measured with.
    """
    if settings.num_samples and not settings.metrics:
        raise ConfigError(
            f"{where}: validation draws {settings.num_samples} samples for no metric; give validation.metrics, such as "
            "[dict(type='generation', reference='/path/to/a/reference.safetensors')], or num_samples=0"
        )
    if settings.num_samples:
        _metrics(settings, variants(settings, own))


def validation_options(settings: GeneratorValidationSettings, diffusion: LatentDiffusion) -> dict[str, Any]:
    """Return the keywords of mmengine's Runner for a validation by samples; none where the config has no samples."""
    if not settings.num_samples:
        return {}
    drawn = variants(settings, diffusion.sampling)
    numbers = SampleNumbers(settings.num_samples, settings.labels, diffusion, drawn)
    rank, processes = world()
    batches = numbers.batches(settings.batch_size)[rank::processes]
    return {
        "val_dataloader": make_loader(numbers, batches, 0, numbers.collate),
        "val_cfg": {"type": ShareValLoop.__name__, "num_images": settings.num_samples},
        "val_evaluator": _metrics(settings, drawn),
    }


def _metrics(settings: GeneratorValidationSettings, drawn: Mapping[str, Sampling]) -> list[Any]:
    return [METRICS.build({"variants": list(drawn), **config}) for config in settings.metrics]


class SampleNumbers(Dataset[tuple[str, int]]):
    """Which samples a validation draws: numbers 0, 1, ... of each variant; sample i has seed i, as `sample.py` draws.

    rule: "random" or "balanced" labels.
    """

    def __init__(self, num: int, rule: str, diffusion: LatentDiffusion, drawn: Mapping[str, Sampling]) -> None:
        self.num = num
        self.drawn = dict(drawn)
        self.rule = LabelRule(rule if diffusion.conditional else "none", diffusion.generator.num_classes)

    def __len__(self) -> int:
        return self.num * len(self.drawn)

    def __getitem__(self, place: int) -> tuple[str, int]:
        return list(self.drawn)[place // self.num], place % self.num

    def batches(self, size: int) -> list[list[int]]:
        """Return the places of all batches; each is of one variant, and cut as `sample.py` cuts them."""
        return [list(batch) for variant in batched(range(len(self)), self.num) for batch in batched(variant, size)]

    def collate(self, items: Sequence[tuple[str, int]]) -> dict[str, Any]:
        """Return what `val_step` of the model takes: variant and sampling, and of each sample number and label."""
        variant, numbers = items[0][0], [number for _, number in items]
        labels = [self.rule.label(number, seed=number) for number in numbers]
        return {"variant": variant, "sampling": self.drawn[variant], "numbers": numbers, "labels": labels}
