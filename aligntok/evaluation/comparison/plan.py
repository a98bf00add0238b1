"""A comparison as data: which tokenizers, which generator, which seeds, how they are measured; and its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from aligntok.errors import ConfigError, unknown
from aligntok.evaluation.comparison.checks import check_measures
from aligntok.evaluation.comparison.criterion import check_criterion
from aligntok.evaluation.comparison.grid import check_grid
from aligntok.evaluation.comparison.settings import ComparisonSettings
from aligntok.evaluation.metrics.features import extractor_config
from aligntok.settings import read
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config, read_config
from aligntok.training.generation import expand_generation
from aligntok.training.stages import Stage


class Budget(NamedTuple):
    """What a training sees: the steps of each stage, and images over all of them."""

    steps: tuple[int, ...]
    images: int

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> Budget:
        """Return what all the stages of a training see."""
        seen = [(stage.settings.steps, stage.settings.global_batch_size) for stage in stages]
        return cls(tuple(steps for steps, _ in seen), sum(steps * batch for steps, batch in seen))


@dataclass(frozen=True)
class Arm:
    """One tokenizer with one seed: the config that trains it, and the folder of all that comes of it.

    options: config overrides of the tokenizer's training. number: of a set of the grid; None in the main trainings.
    """

    name: str
    seed: int
    config: Path
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
    number: int | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that it trains, for inference."""
        return self.folder / "tokenizer" / "tokenizer"

    @property
    def title(self) -> str:
        """What the file of its results is called."""
        return f"{self.name}_seed_{self.seed}" if self.number is None else f"grid_{self.name}_{self.number}"

    def __str__(self) -> str:
        return f"Arm '{self.name}', " + (
            f"seed {self.seed}" if self.number is None else f"set {self.number} of the grid"
        )


@dataclass(frozen=True)
class Comparison:
    """A comparison, complete: its settings, where it is written, its arms, the generator's config file (None: none)."""

    source: Path
    settings: ComparisonSettings
    work_dir: Path
    arms: tuple[Arm, ...]
    generator: Path | None

    @property
    def results(self) -> Path | None:
        """The folder of what is kept of each arm that is finished; None for none."""
        return None if self.settings.results is None else self.source.parent / self.settings.results

    @property
    def data_root(self) -> str:
        """Where the images are. Raises ConfigError where the config does not know."""
        if self.settings.data_root is None:
            raise ConfigError(
                "data_root is not set, so there is nothing to train on; add --cfg-options data_root=/path/to/images"
            )
        return self.settings.data_root

    def images(self, split: str, **more: Any) -> dict[str, Any]:
        """Return where and how an evaluation reads images of "train" or "val", as its keywords, and `more` of them."""
        own = self.settings
        how = {"data": self.data_root, "image_size": own.image_size, "workers": own.workers}
        return {**how, "split": own.train_split if split == "train" else own.val_split, **more}

    def tokenizer_config(self, arm: Arm) -> dict[str, Any]:
        """Return the config of an arm's tokenizer, with the comparison's data, seed and folder."""
        options = {"data_root": self.settings.data_root, "seed": arm.seed, "work_dir": str(arm.folder / "tokenizer")}
        return load_config(arm.config, {**arm.options, **options})

    def generator_config(self, arm: Arm, references: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the config of an arm's generator on its latents, measured against `references` on the way.

        Only where there is a generator.
        """
        assert self.generator is not None
        validation = {**asdict(self.settings.samples), "metrics": references}
        if (between := self.settings.samples.between) is not None:
            taken = [each for each in references if between.extractors is None or type_of(each) in between.extractors]
            validation["between"] = {"variants": between.variants, "metrics": taken or None}
        options: dict[str, Any] = {"data_root": str(arm.folder / "latents"), "seed": arm.seed}
        grid = self.settings.grid
        if arm.number is not None and grid is not None:  # judged by one number, once
            variant, shorter = grid.metric.rpartition("/")[0], dict(grid.generator)
            own = {name: how for name, how in self.settings.samples.variants.items() if name == variant}
            validation |= {"every": None, "variants": own, "between": None}
            options = {**shorter, **options}
        return load_config(
            self.generator, {**options, "validation": validation, "work_dir": str(arm.folder / "generator")}
        )

    def tokenizer_budget(self, arm: Arm) -> Budget:
        """Return the budget of an arm's tokenizer."""
        return Budget.of(expand_stages(self.tokenizer_config(arm)))

    def generator_budget(self, arm: Arm | None = None) -> Budget:
        """Return the budget of the generator, the same for every arm (None: the first), or for every one of a grid.

        Without a generator it has no steps.
        """
        if self.generator is None:
            return Budget((), 0)
        generation = expand_generation(self.generator_config(arm or self.arms[0], []))
        return Budget.of([generation] if generation else [])

    def grid_arms(self) -> tuple[Arm, ...]:
        """Return what the grid tries: of each tokenizer every set of its own options with every shared one."""
        grid, found = self.settings.grid, []
        if grid is None:
            return ()
        for arm in (arm for arm in self.arms if arm.seed == self.settings.seeds[0]):
            own, folder = grid.tokenizers[arm.name], self.work_dir / "grid" / arm.name
            sets = [{**own.shorter, **shared, **each} for each in own.options for shared in grid.shared]
            for number, options in enumerate(sets):
                found.append(Arm(arm.name, grid.seed, arm.config, folder / f"set_{number}", options, number))
        return tuple(found)

    def with_options(self, chosen: Mapping[str, Mapping[str, Any]]) -> Comparison:
        """Return it with config overrides for the arms of the tokenizers that are named."""
        arms = (replace(arm, options=chosen.get(arm.name, {})) for arm in self.arms)
        return replace(self, arms=tuple(arms))


def read_comparison(path: str | Path, options: Mapping[str, Any] | None = None) -> Comparison:
    """Read and check a comparison's config file, and the configs that it names.

    Raises ConfigError for keys that are unknown or missing, configs that are not there, budgets that differ, and a
    criterion or a grid that names what there is not.
    """
    source, given = Path(path), read_config(path, dict(options or {}), ComparisonSettings)
    settings = read(ComparisonSettings, given, str(path))
    work_dir = Path(settings.work_dir or f"work_dirs/{source.stem}")
    arms = tuple(
        Arm(name, seed, source.parent / file, work_dir / name / f"seed_{seed}")
        for name, file in settings.tokenizers.items()
        for seed in settings.seeds
    )
    generator = None if settings.generator is None else source.parent / settings.generator
    comparison = Comparison(source, settings, work_dir, arms, generator)
    check_generator(comparison)
    check_measures(settings, str(path))
    check_between(settings, str(path))
    check_criterion(settings, str(path))
    check_grid(settings, str(path))
    check_budgets(comparison, comparison.arms, str(source))
    if grid := comparison.grid_arms():
        check_budgets(comparison, grid, f"{source}, grid")
        expand_generation(comparison.generator_config(grid[0], []))  # raises what its overrides cannot be
    return comparison


def type_of(metric: Mapping[str, Any]) -> str:
    """Return the registry's name of what a metric of samples is computed on."""
    return str(extractor_config(metric["extractor"])[1]["type"])


def check_between(settings: ComparisonSettings, where: str) -> None:
    """Raise ConfigError for what cannot be measured before the last step."""
    between = settings.samples.between
    if between is None:
        return
    if settings.samples.every is None:
        raise ConfigError(
            f"{where}: samples.between says what is measured before the last step, but nothing is; give samples.every, "
            "or leave between out"
        )
    types = [type_of({"extractor": each}) for each in settings.extractors]
    variants = settings.samples.variants or {"generation": {}}
    for key, names, known in (("variant", between.variants, variants), ("extractor", between.extractors, types)):
        for name in names or ():
            if name not in known:
                raise ConfigError(f"{where}, samples.between.{key}s: {unknown(key, name, known)}")


def check_generator(comparison: Comparison) -> None:
    """Raise ConfigError for a config that is no generator's, and for a grid without a generator to be judged by."""
    if comparison.generator is None:
        if comparison.settings.grid is not None:
            raise ConfigError(f"{comparison.source}: a grid is judged by a generator's samples; give a generator")
        return
    trained = read_config(comparison.generator, {})
    if trained.get("stages") or "generator" not in trained:
        raise ConfigError(
            f"{comparison.generator} trains no generator, or a tokenizer before it; give a config without stages, and "
            "with generator=dict(type=...)"
        )


def check_budgets(comparison: Comparison, arms: Sequence[Arm], where: str) -> None:
    """Raise ConfigError unless all tokenizers see as many images: a comparison at unequal budgets says nothing."""
    seen = {}
    for arm in arms:
        try:
            budget = comparison.tokenizer_budget(arm)
        except ConfigError as error:
            if arm.number is None:
                raise
            raise ConfigError(f"{where}: set {arm.number} of '{arm.name}' cannot be tried: {error}") from error
        seen[arm.name if arm.number is None else f"{arm.name} {arm.number}"] = budget.images
    if len(set(seen.values())) > 1:
        told = ", ".join(f"{name} {images:,}" for name, images in seen.items())
        raise ConfigError(
            f"{where}: the tokenizers see different numbers of images ({told}); give their stages steps that make "
            "steps x global_batch_size equal"
        )
