"""What pictures are asked for by: classes or prompts, behind one object, :class:`aligntok.condition.base.Condition`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aligntok.condition.base import Condition, Given
from aligntok.condition.classes import ClassCondition
from aligntok.condition.prompts import PromptCondition, same_length
from aligntok.condition.text_models import (
    check_described_text,
    check_text_registered,
    paths_of,
    pinned,
    saved_encoders,
    split_text,
)
from aligntok.errors import ConfigError

__all__ = [
    "ClassCondition",
    "Condition",
    "Given",
    "PromptCondition",
    "asked_of_data",
    "check_described_text",
    "check_text_registered",
    "condition_of",
    "paths_of",
    "pinned",
    "same_length",
    "saved_encoders",
    "split_text",
]


def asked_of_data(generator: Any) -> dict[str, Any]:
    """Return the keywords of a data set that brings what a class of generators is conditioned on."""
    return {each.conditioned_on: each.asked_of_data for each in (ClassCondition, PromptCondition)}[
        generator.conditioned_on
    ]


def condition_of(
    generator: Any, class_names: Sequence[str] = (), text: Mapping[str, Any] | None = None, **how: Any
) -> Condition:
    """Return what a generator is conditioned on; `how` as in :class:`PromptCondition`.

    Raises ConfigError for prompts without `text`, and for `text` that a generator has no use for.
    """
    who = type(generator).__name__
    if generator.conditioned_on == ClassCondition.conditioned_on:
        if text is not None or how.get("paths"):
            raise ConfigError(f"{who} is conditioned on classes, and has no use for text; leave generator.text out")
        return ClassCondition(generator, class_names)
    if text is None:
        raise ConfigError(
            f"{who} takes prompts, and generator.text says what encodes them: give it, such as "
            "text=dict(tokens=dict(type='t5', path='google/t5-v1_1-xxl'), pooled=dict(type='clip_text', path=...))"
        )
    return PromptCondition(generator, text, **how)
