"""timm's models by name, and where their published weights are."""

from __future__ import annotations

import os

import timm
from torch import Tensor

from aligntok.errors import ConfigError, WeightsError, suggestion
from aligntok.ops.pretrained import hub_file, url_file
from aligntok.ops.weight_files import read_tensors

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def check_model_name(model_name: str) -> None:
    """Raise ConfigError, with the nearest name, unless timm has a model (and pretrained tag) of that name."""
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        raise ConfigError(
            f"timm {timm.__version__} has no model '{model_name}'\n  {suggestion(architecture, timm.list_models())}"
            f"See timm.list_models('*{architecture[:8]}*')"
        )
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and model_name not in known:
        raise ConfigError(
            f"timm model '{architecture}' has no pretrained tag '{tag}'\n  {suggestion(model_name, known)}"
            f"Known: {', '.join(known) or 'none'}"
        )


def pretrained_tensors(
    model_name: str, pretrained: bool | str | os.PathLike[str]
) -> tuple[dict[str, Tensor] | None, str]:
    """The weights that `pretrained` asks for, with the file they come from; (None, "") for random ones."""
    if pretrained is False:
        return None, ""
    who = f"timm model '{model_name}'"
    path = _published_file(model_name, who) if pretrained is True else pretrained
    return read_tensors(path, who), os.fspath(path)


def _published_file(model_name: str, who: str) -> str | os.PathLike[str]:
    published = timm.get_pretrained_cfg(model_name)
    if published is not None and published.hf_hub_id:
        names = (published.hf_hub_filename,) if published.hf_hub_filename else HUB_FILES
        return hub_file(published.hf_hub_id, names, who)
    if published is not None and published.url:
        url = published.url
        return url_file(url if isinstance(url, str) else url[0], who)
    raise WeightsError(
        f"{who}: no weights are published under this name; give a pretrained tag "
        f'(timm.list_pretrained), a file as pretrained="/path/file.safetensors", or pretrained=False'
    )
