"""Which word, a label or a prompt, each sample of a set has, and from which seed it is drawn."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aligntok.condition import ClassCondition, Condition
from aligntok.errors import ConfigError
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.rng import rng

SAMPLES = 64  # of a generator with classes, if nobody says how many


class WordRule(ABC):
    """What the samples 0, 1, ... of a set are of. `num` is how many there are if nobody says."""

    num: int

    @abstractmethod
    def word(self, number: int) -> Any:
        """Return the label or the prompt of a sample."""

    @abstractmethod
    def seed(self, number: int) -> int:
        """Return the seed of a sample."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what it is, as JSON types."""

    def labels(self, num: int) -> list[int] | None:
        """Return the labels of the first so many samples; None where there are no classes."""
        return None

    def records(self, num: int) -> list[dict[str, Any]]:
        """Return what is to stand beside the pictures of so many samples, a line each; nothing where labels say it."""
        return []

    def name(self) -> list[str]:
        """Return words for the name of a folder of such samples."""
        return []


@dataclass(frozen=True)
class LabelRule(WordRule):
    """The label of each sample: "random", "balanced", those `listed` over and over, or "none" (0 for all)."""

    rule: str
    num_classes: int
    listed: tuple[int, ...] = ()
    first_seed: int = 0
    num = SAMPLES

    def word(self, number: int) -> int:
        if self.rule == "listed":
            return self.listed[number % len(self.listed)]
        if self.rule == "balanced":
            return number % self.num_classes
        if self.rule == "none":
            return 0
        drawn = rng("label", self.seed(number)).bit_generator.seed_seq.generate_state(1, np.uint64)[0]
        return int(drawn % self.num_classes)

    def seed(self, number: int) -> int:
        """Return the seed of sample `number`: that much above the set's."""
        return self.first_seed + number

    def labels(self, num: int) -> list[int] | None:
        """Return the labels of the first so many samples; None for a generator without classes."""
        return None if self.rule == "none" else [self.word(number) for number in range(num)]

    def describe(self) -> dict[str, Any]:
        """Return the rule, or the labels that are listed."""
        return {"labels": list(self.listed) if self.rule == "listed" else self.rule}

    def name(self) -> list[str]:
        """Return the first labels that are listed, or that all are drawn as often."""
        some, more = self.listed[:4], len(self.listed) - 4
        if self.rule == "listed":
            return ["-".join(["classes", *map(str, some), *([f"and-{more}"] if more > 0 else [])])]
        return ["balanced"] * (self.rule == "balanced")


class PromptRule(WordRule):
    """Each prompt once, then each a second time, and so on; an image's seed is of its prompt's place and its turn."""

    def __init__(self, condition: Condition, prompts: Sequence[str], seed: int = 0) -> None:
        if not prompts:
            raise ConfigError(
                "this generator takes prompts, and none was given; give --prompt 'a red apple' or --prompts FILE"
            )
        self.condition, self.prompts, self.first_seed = condition, list(prompts), seed
        self.num = len(prompts)

    def word(self, number: int) -> str:
        return self.prompts[number % len(self.prompts)]

    def seed(self, number: int) -> int:
        """Return the seed of sample `number`."""
        return self.condition.seed(self.first_seed, number % len(self.prompts), number // len(self.prompts))

    def describe(self) -> dict[str, Any]:
        """Return how many prompts there are, and their SHA-256; the prompts stand in a file of their own."""
        return {"num_prompts": len(self.prompts), "prompts": self._digest()}

    def records(self, num: int) -> list[dict[str, Any]]:
        """Return prompt, place of the prompt, turn and seed of each sample."""
        of = len(self.prompts)
        return [{"prompt": self.word(i), "place": i % of, "image": i // of, "seed": self.seed(i)} for i in range(num)]

    def name(self) -> list[str]:
        """Return how many prompts there are, and the beginning of their SHA-256."""
        return [f"prompts-{len(self.prompts)}-{self._digest()[:8]}"]

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()


def word_rule(
    model: LatentDiffusion,
    labels: str | None = None,
    classes: Sequence[str | int] = (),
    prompts: Sequence[str] = (),
    seed: int = 0,
) -> WordRule:
    """Return the rule of a set of samples. Raises ConfigError for what a generator does not take, or lacks."""
    condition = model.condition
    if not isinstance(condition, ClassCondition):
        if labels or classes:
            raise ConfigError("labels or classes were given, but this generator takes prompts: give those instead")
        rule = PromptRule(condition, prompts, seed)
        condition.check_words(rule.prompts)
        return rule
    if prompts:
        raise ConfigError("prompts were given, but this generator was trained on classes: leave them out")
    if not condition.conditional:
        if labels or classes:
            raise ConfigError("labels or classes were given, but this generator is unconditional: leave them out")
        return LabelRule("none", 1, first_seed=seed)
    listed = tuple(condition.class_index(name) for name in classes)
    return LabelRule("listed" if listed else labels or "random", model.generator.num_classes, listed, seed)


def check_balanced(labels: str | None, num: int, num_classes: int, where: str) -> None:
    """Raise ConfigError where so many samples are too few for one of each class, which balanced labels promise."""
    if labels == "balanced" and num < num_classes:
        raise ConfigError(
            f"{where}labels=balanced with num_samples={num} misses {num_classes - num} of {num_classes} classes; draw "
            f"{num_classes} or more, or take random labels"
        )
