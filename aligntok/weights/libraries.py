"""The model libraries timm and open_clip: their models by name, and where the published weights of these are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from aligntok.errors import ConfigError, WeightsError, unknown
from aligntok.weights.hub import fetch
from aligntok.weights.load import read_tensors

# open_clip is imported where it is asked for: who uses timm alone does not wait for it.
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def check_model_name(model_name: str) -> None:
    """Raise ConfigError, with the nearest name, unless timm has a model (and pretrained tag) of that name."""
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        version, models = timm.__version__, timm.list_models()
        raise ConfigError(
            f"timm {version}: {unknown('timm model', architecture, models, shown=4)}; see "
            f"timm.list_models('*{architecture[:8]}*')"
        )
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and model_name not in known:
        raise ConfigError(unknown("pretrained timm model", model_name, known))


def pretrained_tensors(
    model_name: str, pretrained: bool | str | os.PathLike[str]
) -> tuple[dict[str, Tensor] | None, str]:
    """The weights of timm's that `pretrained` asks for, and the file they come from; (None, "") for random ones."""
    if pretrained is False:
        return None, ""
    who = f"timm model '{model_name}'"
    path = _timm_file(model_name, who) if pretrained is True else pretrained
    return read_tensors(path, who), os.fspath(path)


def _timm_file(model_name: str, who: str) -> Path:
    published = timm.get_pretrained_cfg(model_name)
    if published is not None and published.hf_hub_id:
        names = (published.hf_hub_filename,) if published.hf_hub_filename else TIMM_FILES
        return fetch(published.hf_hub_id, who, names)
    if published is not None and published.url:
        url = published.url
        return fetch(url if isinstance(url, str) else url[0], who)
    raise WeightsError(
        f"{who}: no weights are published under this name; give a pretrained tag "
        f'(timm.list_pretrained), a file as pretrained="/path/file.safetensors", or pretrained=False'
    )


def model_config(model_name: str) -> dict[str, Any]:
    """open_clip's config of a model. Raises ConfigError, with the nearest name, if there is none."""
    import open_clip

    known = open_clip.list_models()
    config = open_clip.get_model_config(model_name) if model_name in known else None
    if config is None:
        raise ConfigError(f"open_clip {open_clip.__version__}: {unknown('open_clip model', model_name, known)}")
    return config


def chosen_tag(model_name: str, pretrained: bool | str | os.PathLike[str]) -> str:
    """The pretrained tag that is meant, or '' for random weights or a file. Raises ConfigError if that is not clear."""
    import open_clip

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
    raise WeightsError(f"open_clip model '{model_name}': {unknown('file or pretrained tag', name, tags)}")


def image_tensors(
    model_name: str, tag: str, pretrained: bool | str | os.PathLike[str]
) -> tuple[dict[str, Tensor] | None, str]:
    """The image tower's tensors, named as in the tower, and the file they come from; (None, "") for random ones."""
    if pretrained is False:
        return None, ""
    who = f"open_clip model '{model_name}'"
    path = _open_clip_file(model_name, tag, who) if tag else os.fspath(pretrained)  # type: ignore[arg-type]
    tensors = read_tensors(path, who)
    visual = {key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")}
    return visual or tensors, os.fspath(path)


def _open_clip_file(model_name: str, tag: str, who: str) -> Path:
    import open_clip

    published = open_clip.get_pretrained_cfg(model_name, tag)
    if not published.get("hf_hub"):
        return fetch(published["url"], who)
    repo, filename = os.path.split(published["hf_hub"])
    names = (os.path.splitext(filename)[0] + ".safetensors", filename) if filename else OPEN_CLIP_FILES
    return fetch(repo, who, names)


def any_tag(model_name: str) -> str:
    """Return the first pretrained tag of a model, or '' where it has none."""
    import open_clip

    # Random weights and a file say nothing of the mean and std that the tower expects; its published sets do.
    return (open_clip.list_pretrained_tags_by_model(model_name) or [""])[0]
