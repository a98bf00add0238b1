"""What a generator's training is held to: before it, sizes and settings; on the way, the samples that tools/sample.py
would draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from aligntok.condition import ClassCondition, Condition
from aligntok.data.buckets import AspectBuckets
from aligntok.data.loader import make_loader
from aligntok.diffusion.settings import Sampling, changed
from aligntok.distributed import world
from aligntok.distributed.job import batched, in_full_rounds
from aligntok.engine.runner import ShareValLoop
from aligntok.errors import ConfigError, multiples_of, unknown
from aligntok.loading import saved_size
from aligntok.registry import DATASETS, GENERATORS, METRICS, default_of
from aligntok.sampling.prompt_files import read_prompts
from aligntok.sampling.words import check_balanced, word_rule
from aligntok.settings import read
from aligntok.training.generator_settings import GeneratorSettings, GeneratorValidationSettings
from aligntok.training.stages import StageData


def check_validation(settings: GeneratorValidationSettings, own: Sampling, where: str) -> None:
    """Build the metrics of a validation and drop them, so that a mistake is found before any training.

    Raises ConfigError, DataError or WeightsError for what cannot be measured with.
    """
    check_variants(settings, own, where)
    if settings.num_samples:
        if settings.prompts is not None:
            read_prompts(settings.prompts)
        for measured in _measured(settings, own):
            measured.build()


def check_variants(settings: GeneratorValidationSettings, own: Sampling, where: str, num_classes: int = 1) -> None:
    """Raise ConfigError for variants, labels, metrics and their keywords that there cannot be; nothing is built."""
    if settings.num_samples and not settings.metrics:
        raise ConfigError(
            f"{where}: validation draws {settings.num_samples} samples for no metric; give validation.metrics, such as "
            "[dict(type='generation', reference='/path/to/a/reference.safetensors')], or num_samples=0"
        )
    if settings.num_samples:
        check_balanced(settings.labels, settings.num_samples, num_classes, f"{where}: validation.")
    named = _variants(settings, own)
    for metric in settings.metrics:
        METRICS.check(metric, f"{where}, validation.metrics")
    if settings.between is not None:
        check_between(settings, named, where)


def check_between(settings: GeneratorValidationSettings, named: Mapping[str, Sampling], where: str) -> None:
    """Raise ConfigError for what cannot be measured before the last step."""
    between = settings.between
    assert between is not None
    if settings.every is None:
        raise ConfigError(
            f"{where}: validation.between says what is measured before the last step, but nothing is; give "
            "validation.every, or leave between out"
        )
    for variant in between.variants or ():
        if variant not in named:
            raise ConfigError(f"{where}: {unknown('validation.between.variants', variant, named)}")
    if [] in (between.variants, between.metrics):
        raise ConfigError(
            f"{where}: validation.between has an empty list, but something is to be measured every "
            f"{settings.every} steps; name some, or give validation.every=None"
        )
    for metric in between.metrics or ():
        METRICS.check(metric, f"{where}, validation.between.metrics")


def check_sampling(settings: GeneratorSettings, in_channels: int, where: str) -> None:
    """Raise ConfigError for guidance of more channels than there are, and for a sampler that may ask the generator more
    often in one of the processes that share it.
    """
    drawn = drawn_with(settings)
    for name, each in drawn.items():
        if each.cfg_channels is not None and each.cfg_channels > in_channels:
            raise ConfigError(f"{where}: {name}.cfg_channels={each.cfg_channels} of {in_channels} latent channels")
    if settings.parallel != "replicate" and any(each.sampler == "dopri5" for each in drawn.values()):
        raise ConfigError(
            f"{where}: sampler 'dopri5' asks the generator as often as a batch needs, and processes that share it must "
            "ask alike; take 'heun' while training, or parallel='replicate'"
        )


def check_captions(settings: GeneratorSettings, where: str) -> None:
    """Raise ConfigError where captions are asked for of a cache that the training itself makes without them."""
    cache = settings.latent_cache
    if cache is not None and cache.caption is None and settings.data.train.get("caption") is not None:
        raise ConfigError(
            f"{where}: data.train.caption={settings.data.train['caption']!r}, but latent_cache keeps no captions; set "
            "latent_cache.caption='auto', too"
        )


def check_stream(settings: GeneratorSettings, where: str) -> None:
    """Raise ConfigError for what a stream cannot be trained on with: classes, and captions encoded beforehand."""
    if settings.data.train["type"] != "stream":
        return
    generator = settings.generator
    classes = generator.get("num_classes", default_of(GENERATORS.get(generator["type"]), "num_classes"))
    if classes not in (None, 1):
        raise ConfigError(
            f"{where}: data.train is a stream, whose samples have no classes, and the generator has {classes}; set "
            "generator.num_classes=1, or take a generator of prompts"
        )
    if (generator.get("text") or {}).get("cache"):
        raise ConfigError(
            f"{where}: generator.text.cache encodes every caption before the first step, and a stream has those of the "
            "whole index; leave it out, and they are encoded as they come"
        )


def check_words(settings: GeneratorSettings, condition: Condition, where: str) -> None:
    """Raise ConfigError for words to draw while training that the generator's condition does not take."""
    log, validation = settings.log, settings.validation
    if isinstance(condition, ClassCondition):
        if log.prompts or validation.prompts is not None:
            raise ConfigError(
                f"{where}: log.prompts or validation.prompts were given, but the generator is conditioned on classes; "
                "leave them out"
            )
        return
    if validation.labels != "random":
        raise ConfigError(
            f"{where}: validation.labels='{validation.labels}', but the generator takes prompts; leave it out, or give "
            "validation.prompts"
        )
    if log.prompts:
        condition.check_words(log.prompts)


def check_size(
    settings: GeneratorSettings, generator: Any, tokenizers: tuple[int, int] | None, whose: str, where: str
) -> None:
    """Raise ConfigError for sizes of images that there cannot be, and where generator or images do not fit a
    tokenizer's latent dimension and factor, if known. Latents are whole patches, of every size.
    """
    sizes = {} if settings.latent_cache is None else {"latent_cache.image_size": settings.latent_cache.image_size}
    if (kind := (train := settings.data.train)["type"]) in ("images", "stream"):
        sizes["data.train.image_size"] = train.get("image_size", default_of(DATASETS.get(kind), "image_size"))
    buckets = {name: AspectBuckets(given).sizes for name, given in sizes.items()}
    if tokenizers is None:
        return
    latent_dim, factor = tokenizers
    if generator.in_channels != latent_dim:
        raise ConfigError(
            f"{where}: generator.in_channels={generator.in_channels}, but {whose} has latent_dim {latent_dim}; set "
            "one to the other"
        )
    patch = getattr(generator, "patch_size", 1)
    of = "f" if patch == 1 else f"f x patch_size = {factor} x {patch}"
    for name, several in buckets.items():
        for each in several:
            multiples_of(factor * patch, f"{where}: {name}", each, of)


def latent_side(settings: GeneratorSettings) -> tuple[int, int]:
    """Return (h, w) of the latents of the square that a generator of any size is trained on, as far as that is known.

    Of a tokenizer that is not there yet the factor is taken to be 16, and images to have 256 pixels.
    """
    given = settings.data.train.get("image_size", 256)
    if settings.latent_cache is not None:
        given = settings.latent_cache.image_size
    size = None if settings.tokenizer is None else saved_size(settings.tokenizer)
    buckets, factor = AspectBuckets(given), 16 if size is None else size[1]
    height, width = buckets.sizes[buckets.nearest(1, 1)]
    return max(1, height // factor), max(1, width // factor)


def validation_options(settings: GeneratorValidationSettings, data: StageData) -> dict[str, Any]:
    """Return the keywords of mmengine's Runner for a validation by samples; none where the config has no samples.

    Samples 0, 1, ... of each variant are drawn as `sample.py` draws them with seed 0, in batches of one variant, cut as
    it cuts them. A batch is what `val_step` of the model takes: variant and sampling, and of each sample number, word
    and seed.
    """
    if not settings.num_samples:
        return {}
    phases = [_phase(settings, data, measured) for measured in _measured(settings, data.made_with.sampling)]
    return {
        "val_dataloader": phases[0]["dataloader"],
        "val_cfg": {
            "type": ShareValLoop.__name__,
            "num_images": settings.num_samples,
            "counted": phases[0]["counted"],
            "between": None if len(phases) == 1 else phases[1],
        },
        "val_evaluator": phases[0]["evaluator"],
    }


class _Measured(NamedTuple):
    """Kinds of samples by name, and the configs of what measures them."""

    variants: Mapping[str, Sampling]
    metrics: Sequence[Mapping[str, Any]]

    def build(self) -> list[Any]:
        """Return the metrics, each of those variants, or of those that its config has."""
        return [METRICS.build({"variants": list(self.variants), **config}) for config in self.metrics]


def _measured(settings: GeneratorValidationSettings, own: Sampling) -> list[_Measured]:
    """Return what is measured after the last step; then, where that is less, before it."""
    found = [_Measured(_variants(settings, own), settings.metrics)]
    if (between := settings.between) is not None:
        names = [*found[0].variants] if between.variants is None else between.variants
        metrics = settings.metrics if between.metrics is None else between.metrics
        some = [[name for name in config.get("variants", names) if name in names] for config in metrics]
        taken = [{**config, "variants": each} for config, each in zip(metrics, some, strict=True) if each]
        found.append(_Measured({name: found[0].variants[name] for name in names}, taken))
    return found


def _phase(settings: GeneratorValidationSettings, data: StageData, measured: _Measured) -> dict[str, Any]:
    """Return one validation's samples, as batches to draw, which of them count in this process, and its metrics."""
    diffusion = data.made_with
    labels = None if settings.labels == "random" else settings.labels
    rule = word_rule(diffusion, labels, prompts=_prompts(settings, data))
    numbers = [[*batch] for batch in batched(range(settings.num_samples), settings.batch_size)]
    rank, processes = world()
    # Whole rounds of each variant: processes that share out the generator ask it as often, all for one variant.
    dealt = [(name, batch) for name in measured.variants for batch in in_full_rounds(numbers, [])][rank::processes]
    batches: Any = [
        {
            "variant": name,
            "sampling": measured.variants[name],
            "numbers": batch,
            "words": [rule.word(number) for number in batch],
            "seeds": [rule.seed(number) for number in batch],
        }
        for name, batch in ((name, own or numbers[0]) for name, own in dealt)
    ]
    return {
        "dataloader": make_loader(batches, [[i] for i in range(len(batches))], 0, itemgetter(0)),
        "evaluator": measured.build(),
        "counted": [bool(batch) for _, batch in dealt],
    }


def _prompts(settings: GeneratorValidationSettings, data: StageData) -> list[str]:
    """Return the prompts to draw, if any: the config's, or captions of what is trained on."""
    if settings.prompts is not None:
        return read_prompts(settings.prompts)
    return data.made_with.condition.captions(data.made_with.condition.examples(settings.num_samples, data.train))


def drawn_with(settings: GeneratorSettings) -> dict[str, Sampling]:
    """Return what samples are drawn with while training, by the key that says it."""
    own = settings.sampling
    named = _variants(settings.validation, own) if settings.validation.variants else {}
    return {"sampling": own, **{f"validation.variants.{name}": each for name, each in named.items()}}


def _variants(settings: GeneratorValidationSettings, own: Sampling) -> dict[str, Sampling]:
    named = settings.variants or {"generation": {}}
    return {
        name: read(Sampling, changed(own, changes), f"validation.variants.{name}") for name, changes in named.items()
    }
