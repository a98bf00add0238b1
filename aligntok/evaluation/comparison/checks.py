"""What is known to be wrong with a comparison's measures before anything is trained."""

from __future__ import annotations

from aligntok.diffusion.settings import Sampling
from aligntok.errors import ConfigError
from aligntok.evaluation.comparison.criterion import distance_names
from aligntok.evaluation.comparison.settings import ComparisonSettings
from aligntok.evaluation.latent_analysis import encoder_config
from aligntok.evaluation.metrics.online import ReconstructionMetric
from aligntok.registry import ENCODERS
from aligntok.settings import check_given


def check_measures(settings: ComparisonSettings, where: str) -> None:
    """Raise ConfigError for splits, extractors, losses, an encoder or variants of samples that there cannot be.

    No weights are read, so that tables can be made where there are none.
    """
    if settings.train_split == settings.val_split:
        raise ConfigError(
            f"{where}: train_split and val_split are both '{settings.val_split}'; tokenizers are measured on images "
            "that they were not trained on"
        )
    names = distance_names(settings)
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f"{where}: two of the extractors give {', '.join(twice)}, and a number could be of either; leave one out"
        )
    encoder = settings.reference_encoder
    ENCODERS.check(encoder_config(encoder) if isinstance(encoder, str) else encoder, f"{where}, reference_encoder")
    ReconstructionMetric.check(settings.perceptual, None, where)
    for name, how in settings.samples.variants.items():
        check_given(Sampling, how, f"{where}, samples.variants.{name}")
