"""From what a user types to a feature extractor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aligntok.errors import ConfigError, unknown
from aligntok.extractors.base import EncoderFeatures, Extractor
from aligntok.registry import ENCODERS, EXTRACTORS


def _timm(argument: str) -> dict[str, Any]:
    return {"model": argument}


def _open_clip(argument: str) -> dict[str, Any]:
    model, _, tag = argument.partition("/")
    return {"model": model, "pretrained": tag or True}


def _local_file(argument: str) -> dict[str, Any]:
    return {"pretrained": argument}


#: What stands behind the colon of a word, by the extractor's name; for any other it is a local file of weights.
ARGUMENTS: dict[str, Callable[[str], dict[str, Any]]] = {"timm": _timm, "open_clip": _open_clip}


def build_extractor(given: str | Mapping[str, Any]) -> Extractor:
    """Build a frozen extractor from a config ``dict(type=name, ...)`` or a word.

    A word is an extractor's name (``inception_v3``), perhaps with a local file of its weights
    (``inception_v3:/path/file.pth``); ``timm:MODEL``; ``open_clip:MODEL`` or ``open_clip:MODEL/TAG``; or the name of a
    registered encoder, whose features are averaged over the grid under that title.

    Raises ConfigError for a name that is neither, listing both, and whatever the component raises.
    """
    built = EXTRACTORS.build(dict(given)) if isinstance(given, Mapping) else _of_word(given)
    return built.eval().requires_grad_(False)


def _of_word(word: str) -> Any:
    name, colon, argument = word.partition(":")
    if name in EXTRACTORS or "." in name:  # with a dot: any class that can be imported
        if name in ARGUMENTS and not argument:
            raise ConfigError(f"extractor '{name}' needs a model; write {name}:MODEL")
        options = ARGUMENTS.get(name, _local_file)(argument) if colon else {}
        return EXTRACTORS.build({"type": name, **options})
    if word in ENCODERS:
        return EncoderFeatures(ENCODERS.build({"type": word}), title=word)
    known = [*EXTRACTORS, *ENCODERS]
    raise ConfigError(
        f"{unknown('extractor or encoder', name, known)}; extractors also as timm:MODEL, open_clip:MODEL[/TAG] and "
        "NAME:/path/to/weights"
    )
