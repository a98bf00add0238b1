"""Classes as what a generator is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from aligntok.condition.base import Condition, Given
from aligntok.data.loader import labels_of
from aligntok.data.sampler import evenly_spaced
from aligntok.errors import ConfigError, DataError, unknown
from aligntok.generators import check_label_range

_BY_NUMBER = "index:"  # begins the number of a class where classes have names


class ClassCondition(Condition):
    """Classes by number, or by name where the data name them; none at all where the generator is unconditional.

    generator: its `num_classes` and `null_class` are asked. Raises ConfigError for more names than classes.
    """

    conditioned_on = "classes"

    def __init__(self, generator: Any, class_names: Sequence[str] = ()) -> None:
        self.generator, self.class_names = generator, tuple(class_names)
        self.dropout = generator.class_dropout_prob
        classes = generator.num_classes
        if classes > 1 and len(self.class_names) > classes:
            raise ConfigError(
                f"the data has {len(self.class_names)} classes, the generator's num_classes is {classes}; "
                "set generator.num_classes to the data's, or to 1 for an unconditional generator"
            )

    @property
    def conditional(self) -> bool:  # type: ignore[override]
        """Whether it takes classes at all."""
        return bool(self.generator.num_classes > 1)

    def of(self, batch: Mapping[str, Any], device: torch.device) -> Tensor:
        """Return the labels (N,) of a batch; 0 for all where there are no classes. DataError for one out of range."""
        given = batch["label"]
        if not self.conditional:
            return torch.zeros(len(given), dtype=torch.long, device=device)
        check_label_range(given, self.generator, DataError)
        return given.to(device, non_blocking=True)

    def null(self, number: int, device: torch.device) -> Tensor | None:
        """Return the null class, (number,); None where no label is ever dropped."""
        null = self.generator.null_class
        return None if null is None else torch.full((number,), null, device=device)

    def drop(self, given: Given, dropped: Tensor) -> Given:
        """Return labels (N,), the null class where they are dropped."""
        assert isinstance(given, Tensor)  # its own
        null = self.generator.null_class
        return given if null is None else torch.where(dropped, null, given)

    def from_words(self, words: Sequence[int | str], device: torch.device) -> Tensor:
        """Return labels (N,) of classes by number or name; an unconditional generator takes no heed of them."""
        return torch.tensor([self.class_index(word) if self.conditional else 0 for word in words], device=device)

    def check_words(self, words: Sequence[int | str]) -> None:
        """Raise ConfigError for a class that there is not; an unconditional generator takes no heed of them."""
        for word in words if self.conditional else ():
            self.class_index(word)

    def class_index(self, name: str | int) -> int:
        """Return the class of a name, in any case, or of a number: text is a name where classes have names, and
        ``index:3`` a number anywhere. Raises ConfigError for one that there is not.
        """
        if not isinstance(name, str | Integral):
            raise ConfigError(f"class {name!r} is neither a number nor a name")
        text = name.strip() if isinstance(name, str) else f"{_BY_NUMBER}{int(name)}"
        number = text.removeprefix(_BY_NUMBER)
        if (number != text or not self.class_names) and number.removeprefix("-").isdecimal():
            classes = self.generator.num_classes
            if 0 <= int(number) < classes:
                return int(number)
            raise ConfigError(f"class {number}: there are {classes}, numbered from 0 to {classes - 1}")
        if text in self.class_names:  # before another one that differs in its case alone
            return self.class_names.index(text)
        folded = [known.casefold() for known in self.class_names]
        if folded.count(text.casefold()) == 1:
            return folded.index(text.casefold())
        raise ConfigError(
            unknown("class", text, self.class_names or ["no names, only numbers"], shown=8)
            + (f"; class number {text} is written {_BY_NUMBER}{text}" if text.isdecimal() else "")
        )

    def describe(self) -> dict[str, Any]:
        """Return the names of the classes."""
        return {"class_names": list(self.class_names)}

    def examples(self, number: int, data: Any) -> list[int]:
        """Return every class, over and over, or so many of them, evenly spaced."""
        classes = self.generator.num_classes
        return [i % classes for i in range(number)] if number >= classes else evenly_spaced(classes, number)

    def blank(self, number: int, device: torch.device) -> Tensor:
        """Return the first class, (number,)."""
        return torch.zeros(number, dtype=torch.int64, device=device)

    def check_data(self, data: Any) -> None:
        """Raise DataError for labels that are out of range, where the data know theirs beforehand."""
        labels = labels_of(data)
        if len(labels) and self.conditional:
            check_label_range(labels, self.generator, DataError)

    def check_guidance(self, cfg_scale: float, where: str, weak: Any = None) -> None:
        """Raise ConfigError for guidance away from a null class that nothing trains."""
        if cfg_scale != 1 and self.generator.null_class is None and weak is None:
            raise ConfigError(
                f"{where}: cfg_scale={cfg_scale} needs a null class, but with class_dropout_prob=0 the generator "
                "learns none; use 1, train with class_dropout_prob=0.1, or guide with a weaker generator"
            )

    def differences(self, other: Condition) -> dict[str, tuple[Any, Any]]:
        """Return whether the number of classes differs, and their names where both know them."""
        if not isinstance(other, ClassCondition):
            return {"condition": (other.conditioned_on, self.conditioned_on)}
        pairs: dict[str, tuple[Any, Any]] = {"classes": (other.generator.num_classes, self.generator.num_classes)}
        if other.class_names and self.class_names:
            pairs["names of the classes"] = other.class_names, self.class_names
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
