"""What pictures are asked for by: classes or prompts, behind one object, :class:`aligntok.condition.base.Condition`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aligntok.condition.base import Condition, Given
from aligntok.condition.classes import ClassCondition
from aligntok.condition.prompts import PromptCondition, same_length
from aligntok.condition.text_models import PLACES, ROLES, check_described_text, check_text_registered, saved_encoders
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


_ELSEWHERE = re.compile(r"(package:)?[\w-][\w.-]*/[\w.-]+([@/].*)?")  # a folder of a package, a hub id


def split_text(generator: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Return a generator's config without its `text`, and that: what encodes its prompts, None without any."""
    own = dict(generator)
    text = own.pop("text", None)
    return own, text


def pinned(generator: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """Return a generator's config whose text encoders must have the content that a description names, if it does."""
    own, text = split_text(generator)
    said = described.get("text") or {}
    if text is None:
        return own
    held = {
        name: {**text[name], "identity": said[name]["identity"]} for name in ROLES if text.get(name) and said.get(name)
    }
    return {**own, "text": {**text, **held}}


def paths_of(text: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return where a generator's text encoders are, `path` and `tokenizer` of each, as far as its `text` says.

    What is neither a place that there is nor a package or hub id is a name that a file was left with, of one far away.
    """
    named = {name: (text or {}).get(name) for name in ROLES}
    given = {name: {key: each.get(key) for key in PLACES} for name, each in named.items() if isinstance(each, Mapping)}
    there = {
        name: {key: at for key, at in each.items() if at and (os.path.exists(at) or _ELSEWHERE.fullmatch(at))}
        for name, each in given.items()
    }
    return {name: places for name, places in there.items() if "path" in places}


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
