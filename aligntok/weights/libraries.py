"""The model libraries timm and open_clip: their models by name, tried, and where the published weights of these are."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aligntok.errors import ConfigError, WeightsError, unknown
from aligntok.weights.hub import fetch
from aligntok.weights.load import misfit_of, read_tensors, strict_keys

TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def meta_twin(module: nn.Module) -> Any:
    """Return a copy of a module on the meta device, in eval mode: it gives shapes, and computes nothing."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(each): each.detach().to("meta") for each in tensors}).eval()


def construction(module: nn.Module) -> str:
    """Return a digest of all that a module is made of, its options too, but for the values of its tensors."""
    of_torch = {"_parameters", "_buffers", "_modules"}
    made: list[Any] = [(name, each.shape) for name, each in [*module.named_parameters(), *module.named_buffers()]]
    for name, each in module.named_modules():
        made.append((name, type(each), {key: value for key, value in vars(each).items() if key not in of_torch}))
    return hashlib.sha256(repr(made).encode()).hexdigest()


class MetaBuild(TorchFunctionMode):
    """Passes over what fills tensors of the meta device with values, most of the time that a build takes there.

    They have no values and keep their shapes; what is on a real device is computed as ever.
    """

    FILLS = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


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
    path: Any = pretrained
    if pretrained is True:
        published = timm.get_pretrained_cfg(model_name)
        if published is not None and published.hf_hub_id:
            names = (published.hf_hub_filename,) if published.hf_hub_filename else TIMM_FILES
            path = fetch(published.hf_hub_id, who, names)
        elif published is not None and published.url:
            path = fetch(published.url if isinstance(published.url, str) else published.url[0], who, published=True)
        else:
            raise WeightsError(
                f"{who}: no weights are published under this name; give a pretrained tag "
                f'(timm.list_pretrained), a file as pretrained="/path/file.safetensors", or pretrained=False'
            )
    return read_tensors(path, who), os.fspath(path)


def create_timm(
    model_name: str, tensors: dict[str, Tensor] | None, source: str, *, spare: bool = False, **options: Any
) -> Any:
    """Build a timm model, with `tensors` of file `source` as its weights if given.

    spare: pass over tensors of whole parts that the model has no place for, such as a pooling head. Raises WeightsError
    for weights that don't fit, and what timm raises for options that it refuses.
    """
    if tensors is None:
        with MetaBuild():
            return timm.create_model(model_name, **options)
    # timm's own path converts original checkpoints and resamples position tables; as many classes as the model has, or
    # as the file's had where nobody chose, keep its loading strict.
    overlay = {"state_dict": tensors, "source": "", **{k: options[k] for k in ("num_classes",) if k in options}}
    try:
        model: Any = timm.create_model(model_name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except (RuntimeError, KeyError, ValueError, IndexError, AssertionError) as error:  # loading, or timm's converter
        missing, extra = strict_keys(str(error))
        only_surplus = spare and isinstance(error, RuntimeError) and bool(extra) and not missing
        if not only_surplus or not _is_another_part(extra, tensors):
            raise misfit_of(error, f"timm model '{model_name}'", source) from error
        kept = {key: value for key, value in tensors.items() if key not in extra}
        return create_timm(model_name, kept, source, spare=True, **options)
    model.pretrained_cfg.pop("state_dict", None)  # where the tensors would stay in memory
    return model


def _is_another_part(extra: list[str], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the surplus is parts of their own, as a pooling head is, and not more blocks of a deeper model."""
    kept = {key.split(".")[0] for key in tensors if key not in extra}
    return all(key.split(".")[0] not in kept - {"head"} for key in extra) and all(key in tensors for key in extra)


class OpenCLIPModel:
    """The image side of an open_clip model: what its config says, and the weights that `pretrained` asks for.

    pretrained: True for the published weights where there is one set of them, the tag of a set, False for random ones,
    or a local file (the whole model's or the image tower's). weights_of: the tag of the set that a file, or weights to
    come, are of. tag: the set that is meant, or '' for random weights or a file. mean, std: those the tower was
    published with. Raises ConfigError, with the nearest name, for an unknown model or where the set is not clear, and
    WeightsError for an unknown tag.
    """

    def __init__(self, name: str, pretrained: bool | str | os.PathLike[str], weights_of: str | None = None) -> None:
        import open_clip  # who uses timm alone does not wait for it

        known = open_clip.list_models()
        config = open_clip.get_model_config(name) if name in known else None
        if config is None:
            raise ConfigError(f"open_clip {open_clip.__version__}: {unknown('open_clip model', name, known)}")
        tags = open_clip.list_pretrained_tags_by_model(name)
        self.name, self.who, self.pretrained = name, f"open_clip model '{name}'", pretrained
        self.tag = self._chosen_tag(tags)
        self.embed_dim: int = config["embed_dim"]
        self.vision: dict[str, Any] = config["vision_cfg"]
        self.published = open_clip.get_pretrained_cfg(name, self.tag)
        if weights_of and not open_clip.pretrained.is_pretrained_cfg(name, weights_of):
            raise WeightsError(f"{self.who}: weights_of: {unknown('pretrained tag', weights_of, tags)}")
        # Random weights and a file say nothing of the mean and std that the tower expects; its published sets do.
        known_by = weights_of or self.tag
        as_published = open_clip.get_pretrained_cfg(name, known_by or (tags or [""])[0])
        self.mean: tuple[float, ...] = as_published.get("mean") or open_clip.OPENAI_DATASET_MEAN
        self.std: tuple[float, ...] = as_published.get("std") or open_clip.OPENAI_DATASET_STD
        # Some sets were trained with QuickGELU under a plain model name; a file or random weights go by the name.
        self.quick_gelu = bool(config.get("quick_gelu") or (known_by and as_published.get("quick_gelu")))

    def _chosen_tag(self, tags: list[str]) -> str:
        import open_clip

        if self.pretrained is True:
            if len(tags) == 1:
                return tags[0]
            raise ConfigError(
                f"open_clip model '{self.name}' has {len(tags)} sets of pretrained weights; choose one with "
                f"pretrained=, or give a file: {', '.join(tags) or '(none published)'}"
            )
        if self.pretrained is False or os.path.exists(self.pretrained):
            return ""
        name = os.fspath(self.pretrained)
        if open_clip.pretrained.is_pretrained_cfg(self.name, name):
            return name
        raise WeightsError(f"open_clip model '{self.name}': {unknown('file or pretrained tag', name, tags)}")

    def build_visual(self) -> Any:
        """Build open_clip's own image tower, with random weights."""
        from open_clip.model import _build_vision_tower

        vision = {**self.vision, "timm_model_pretrained": False}  # a trunk's weights come with the rest
        with MetaBuild():
            return _build_vision_tower(self.embed_dim, vision, self.quick_gelu)

    def image_tensors(self) -> tuple[dict[str, Tensor] | None, str]:
        """The image tower's tensors, named as in the tower, and their file; (None, "") for random ones."""
        if self.pretrained is False:
            return None, ""
        path: Any = self.pretrained
        if self.tag and not self.published.get("hf_hub"):
            path = fetch(self.published["url"], self.who, published=True)
        elif self.tag:
            repo, filename = os.path.split(self.published["hf_hub"])
            names = (os.path.splitext(filename)[0] + ".safetensors", filename) if filename else OPEN_CLIP_FILES
            path = fetch(repo, self.who, names)
        tensors = read_tensors(path, self.who)
        visual = {key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")}
        return visual or tensors, os.fspath(path)
