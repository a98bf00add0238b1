"""Which word, a label or a prompt, each sample of a set has, and from which seed it is drawn."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligntok.condition import ClassCondition, Condition
from aligntok.errors import ConfigError, DataError, first_line
from aligntok.io.files import read_bytes, unique_keys
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.rng import rng

SAMPLES = 64  # of a generator with classes, if nobody says how many
MOST_BYTES = 2**30  # of a file of prompts
KEYS = ("prompt", "caption", "text")  # under which a line has its prompt


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
        """Return the label of sample `number`."""
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
        """Return the prompt of sample `number`."""
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


def read_prompts(path: str | Path) -> list[str]:
    """Return the prompts of a file: a line each, or a JSON text or object with "prompt", "caption" or "text" in each
    line of a ``.jsonl``, or a row each of a ``.csv`` with such a column.

    Raises DataError for a file that is missing, empty, too large, no UTF-8, or of another form, with the line's number.
    """
    try:
        content = read_bytes(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"prompts: {path} cannot be read ({first_line(error)}); give a file of prompts") from error
    raw = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    lines = [_decoded(path, number, line) for number, line in enumerate(raw, 1)]
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        found = _rows(path, "\n".join(lines))
    else:
        parse = _json_line if suffix == ".jsonl" else lambda path, number, line: line
        found = [(number, parse(path, number, line)) for number, line in enumerate(lines, 1)]
    if not found:
        raise DataError(f"prompts: {path} has no prompts; write one in each line")
    if empty := next((number for number, prompt in found if not prompt.strip()), None):
        raise DataError(f"prompts: line {empty} of {path} is empty; write a prompt there, or remove the line")
    return [prompt.strip() for _, prompt in found]


def _decoded(path: str | Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"prompts: line {number} of {path} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error


def _json_line(path: str | Path, number: int, line: str) -> str:
    try:
        said = json.loads(line, object_pairs_hook=unique_keys)
        str(said).encode()  # half of a surrogate pair, which JSON can write, is no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"prompts: line {number} of {path} is no JSON ({first_line(error)}); correct it") from error
    if isinstance(said, dict):
        said = next((said[key] for key in KEYS if key in said), None)
    if not isinstance(said, str):
        raise DataError(
            f"prompts: line {number} of {path} has no prompt; write a text, or an object with one of {', '.join(KEYS)}"
        )
    return said


def _rows(path: str | Path, text: str) -> list[tuple[int, str]]:
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(
            f"prompts: line {reader.line_num} of {path} is no CSV ({first_line(error)}); correct it"
        ) from error
    columns = rows.pop(0)[1] if rows else []
    key = next((key for key in KEYS if columns.count(key) == 1), None)
    if key is None:
        told = ", ".join(columns[:8]) or "none"
        raise DataError(f"prompts: {path} has no column {', '.join(KEYS)}, only {told}; name one so")
    for line, row in rows:
        if len(row) != len(columns):
            raise DataError(
                f"prompts: line {line} of {path} has {len(row)} fields, and the first line {len(columns)}; put a "
                "prompt with a comma into quotes"
            )
    return [(line, row[columns.index(key)]) for line, row in rows]
