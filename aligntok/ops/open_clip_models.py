"""open_clip's models by name, and where their published weights are."""

from __future__ import annotations

import os
from typing import Any

import open_clip
from torch import Tensor

from aligntok.errors import ConfigError, WeightsError, suggestion
from aligntok.ops.pretrained import hub_file, url_file
from aligntok.ops.weight_files import read_tensors

HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def model_config(model_name: str) -> dict[str, Any]:
    """open_clip's config of a model. Raises ConfigError, with the nearest name, if there is none."""
    known = open_clip.list_models()
    config = open_clip.get_model_config(model_name) if model_name in known else None
    if config is None:
        raise ConfigError(
            f"open_clip {open_clip.__version__} has no model '{model_name}'\n  {suggestion(model_name, known)}"
            "See open_clip.list_models()"
        )
    return config


def chosen_tag(model_name: str, pretrained: bool | str | os.PathLike[str]) -> str:
    """The pretrained tag that is meant, or '' for random weights or a file. Raises ConfigError if that is not clear."""
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if pretrained is True:
        if len(tags) == 1:
            return tags[0]
        raise ConfigError(
            f"open_clip model '{model_name}' has {len(tags)} sets of pretrained weights; choose one with pretrained=, "
            f"or give a file: {', '.join(tags) or '(none published)'}"
        )
    if pretrained is False or os.path.exists(pretrained):
        return ""
    name = os.fspath(pretrained)
    if open_clip.pretrained.is_pretrained_cfg(model_name, name):
        return name
    raise WeightsError(
        f"open_clip model '{model_name}': pretrained={name!r} is neither a file nor one of its tags\n"
        f"  {suggestion(name, tags)}Tags: {', '.join(tags) or 'none'}"
    )


def image_tensors(
    model_name: str, tag: str, pretrained: bool | str | os.PathLike[str]
) -> tuple[dict[str, Tensor] | None, str]:
    """The image tower's tensors, named as in the tower, and the file they come from; (None, "") for random ones."""
    if pretrained is False:
        return None, ""
    who = f"open_clip model '{model_name}'"
    path = _published_file(model_name, tag, who) if tag else pretrained
    tensors = read_tensors(os.fspath(path), who)  # type: ignore[arg-type]
    visual = {key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")}
    return visual or tensors, os.fspath(path)  # type: ignore[arg-type]


def _published_file(model_name: str, tag: str, who: str) -> str | os.PathLike[str]:
    published = open_clip.get_pretrained_cfg(model_name, tag)
    if not published.get("hf_hub"):
        return url_file(published["url"], who)
    repo, filename = os.path.split(published["hf_hub"])
    if not filename:
        return hub_file(repo, HUB_FILES, who)
    return hub_file(repo, (os.path.splitext(filename)[0] + ".safetensors", filename), who)


def any_tag(model_name: str) -> str:
    """Return the first pretrained tag of a model, or '' where it has none."""
    # Random weights and a file say nothing of the mean and std that the tower expects; its published sets do.
    return (open_clip.list_pretrained_tags_by_model(model_name) or [""])[0]
