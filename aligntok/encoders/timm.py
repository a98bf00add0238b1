"""Any timm model as an encoder: plain ViTs, Eva ViTs (DINOv3, Perception Encoder), and CNNs at a chosen stride.

The paper's pretrained encoders, DINOv2, MAE and SigLIP 2, are such models by the name of their size.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from aligntok.annotations import check_values, takes_keywords_of
from aligntok.encoders import Encoder, last_weight
from aligntok.errors import AlignTokError, ConfigError, first_line, unknown
from aligntok.ops.attention import route_attention
from aligntok.settings import ImageSize, Width
from aligntok.weights.libraries import check_model_name, construction, create_timm, meta_twin, pretrained_tensors
from aligntok.weights.load import misfit

# What the libraries' models raise for a size or an option that they do not take.
REFUSALS = (AssertionError, RuntimeError, ValueError, TypeError, IndexError)
# What a model must be told to take images of any size, by family; a family that takes none of it needs none of it.
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class LevelEncoder(Encoder):
    """An encoder that is one block or level of a library's model; what comes after it is dropped.

    backbone: a model with timm's `feature_info` and `prune_intermediate_layers`, and `set_grad_checkpointing` where it
    can recompute block by block. who: the model, in errors. own_size: pixels that it was made for, (height, width) or
    the side of a square. The keywords are those of :class:`TimmEncoder`, by which the level is chosen.

    The model is run once, on a blank image of about its own size, and its channels are those that come out. Raises
    ConfigError, listing what there is, for a stride or block that the model does not have, and for a model that fails
    on that image or whose features are not on the grid of their stride.
    """

    def __init__(
        self,
        backbone: Any,
        who: str,
        own_size: int | Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        downsample_factor: Width = 16,
        stride: Width | None = None,
        out_index: int | None = None,
        final_norm: bool = True,
        antialias: bool = False,
    ) -> None:
        index = _choose_level(backbone.feature_info, downsample_factor, stride, out_index, who)
        level = backbone.feature_info[index]
        super().__init__(
            downsample_factor=downsample_factor,
            stride=level["reduction"],
            out_dim=level["num_chs"],
            mean=mean,
            std=std,
            antialias=antialias,
        )
        self.who = who
        self.out_index = index
        self.backbone = backbone
        route_attention(backbone)
        sides = (own_size, own_size) if isinstance(own_size, int) else own_size
        self.own_size = tuple(-(-side // self.stride) * self.stride for side in sides)
        features = self._cut_and_try(final_norm)
        self.out_dim = features.shape[1]  # not always what feature_info says: SAM's norm is a neck
        self.check_features(features, self.own_size)

    @property
    def last_layer(self) -> nn.Parameter:
        return last_weight(self.backbone)

    def level_features(self, pixels: Tensor) -> Tensor:
        """Features (N, C, h, w) of the level: the subclass's part."""
        raise NotImplementedError(f"{type(self).__name__} must define level_features(pixels)")

    def backbone_features(self, pixels: Tensor) -> Tensor:
        """Features (N, C, h, w) of normalised pixels. Raises ConfigError for a size that the model refuses."""
        try:
            return self.level_features(pixels)
        except REFUSALS as error:
            size = tuple(pixels.shape[-2:])
            # What fails for a blank image too is the size's fault, and not the memory's or a kernel's.
            if self._takes(size):
                raise
            own = [side * self.downsample_factor // self.stride for side in self.own_size]
            raise ConfigError(
                f"{self.who} refuses {size[0]} x {size[1]} pixels ({first_line(error)}); give images of {own[0]} x "
                f"{own[1]}, which it sees as {self.own_size[0]} x {self.own_size[1]}, or, if the encoder takes it, "
                "image_size=(height, width)"
            ) from error

    def _cut_and_try(self, final_norm: bool) -> Tensor:
        """Drop what comes after the level, and return the features (1, C, h, w) of a blank image of the own size.

        Some of timm's models give features of blocks without the last norm only; they have none, then.
        """
        reason = None
        for self.final_norm in (final_norm, False):
            self.backbone.prune_intermediate_layers([self.out_index], prune_norm=not self.final_norm, prune_head=True)
            try:
                return self._blank_features(self.own_size)
            except REFUSALS as error:
                reason = reason or error
        raise ConfigError(
            f"{self.who} gives no features of the {self.own_size[0]} x {self.own_size[1]} pixels it was made for "
            f"({first_line(reason)}); choose another level (stride or out_index) or another model"
        ) from reason

    def _takes(self, size: Sequence[int]) -> bool:
        """Tell whether the model runs on a blank image of so many pixels."""
        try:
            self._blank_features(size)
        except REFUSALS:
            return False
        return True

    def _blank_features(self, size: Sequence[int]) -> Tensor:
        """Features of a blank image of so many pixels, on the meta device: shapes only, nothing is computed.

        A plan builds a model several times: what came out of an alike one is remembered.
        """
        alike = (construction(self), *size)
        if alike not in _SEEN:
            with torch.no_grad():
                blank = torch.zeros(1, self.mean.shape[1], *size, device="meta")
                _SEEN[alike] = meta_twin(self).level_features(blank).shape
        return torch.empty(_SEEN[alike], device="meta")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute block by block where the model can, and otherwise the whole of it; gradients stay the same."""
        try:
            self.backbone.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError):  # how timm's models say that they have none
            super().set_grad_checkpointing(enable)


#: The shape of a blank image's features, by what the model is made of and the image's size.
_SEEN: dict[tuple[Any, ...], torch.Size] = {}


def _choose_level(
    levels: Sequence[Mapping[str, int]], downsample_factor: int, stride: int | None, out_index: int | None, who: str
) -> int:
    """Which block or level to take: `out_index` if given, else the last one of `stride`.

    Without either, the last one of the deepest stride that is at most f. Raises ConfigError, listing what there is.
    """
    strides = [level["reduction"] for level in levels]
    if out_index is None:
        wanted = stride or max((s for s in strides if s <= downsample_factor), default=min(strides, default=None))
        if wanted not in strides:
            known = ", ".join(map(str, sorted(set(strides))))
            raise ConfigError(f"{who} has no features of stride {stride}; allowed: {known}")
        return len(strides) - 1 - strides[::-1].index(wanted)
    if not -len(strides) <= out_index < len(strides):
        raise ConfigError(
            f"{who} has no out_index={out_index}; allowed: 0 to {len(strides) - 1}, or negative from the end"
        )
    index = out_index % len(strides)
    if stride not in (None, strides[index]):
        raise ConfigError(
            f"{who}: out_index={out_index} has stride {strides[index]}, not stride={stride}; give one of the two"
        )
    return index


class TimmEncoder(LevelEncoder):
    """A timm model's intermediate features (N, C, H/f, W/f); what comes after them is dropped.

    model_name: any of timm's, with or without a pretrained tag. pretrained: True for the published weights, False for
    random ones, or a local .safetensors, .bin or .pth file; position tables are resampled to the model's grid.
    downsample_factor: f. stride: p, of CNNs and pyramids the level whose features are taken (by default the deepest
    with p <= f); of a ViT the patch. out_index: which block or level, instead of the last one of that stride.
    final_norm: apply the backbone's last norm where it has one. image_size: pixels that a ViT's position grid is made
    for (by default the pretrained one). model_args: further keywords of timm. antialias: see Encoder.

    Dropout and stochastic depth are off unless `model_args` asks for them. Raises ConfigError for an unknown model,
    stride or block, and WeightsError when the weights can't be had or don't fit.
    """

    @takes_keywords_of(LevelEncoder)
    def __init__(
        self,
        model_name: str,
        *,
        pretrained: bool | str | os.PathLike[str] = True,
        image_size: ImageSize | None = None,
        model_args: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        check_model_name(model_name)
        tensors, source = pretrained_tensors(model_name, pretrained)
        backbone = build_backbone(model_name, tensors, source, image_size=image_size, model_args=model_args)
        published = backbone.pretrained_cfg
        who, own_size = f"timm model '{model_name}'", image_size or published["input_size"][1:]
        super().__init__(backbone, who, own_size, published["mean"], published["std"], **keywords)
        self.model_name = model_name

    def level_features(self, pixels: Tensor) -> Tensor:
        return intermediate(self.backbone, pixels, self.out_index, self.final_norm)


def intermediate(backbone: Any, pixels: Tensor, index: int, norm: bool) -> Tensor:
    """Features (N, C, h, w) after block or level `index` of a timm model."""
    options = dict(norm=norm, stop_early=True, intermediates_only=True)
    return backbone.forward_intermediates(pixels, indices=[index], **options)[0]


#: Of numbers among the keywords of timm's models, which have no bounds: what could still be built.
_LARGEST, _LARGEST_OF_ALL = {"depth": 1000}, 2**16
#: Keywords that say where timm itself would look for weights, and of what else it makes of a model.
_TIMMS_OWN = frozenset(inspect.signature(timm.create_model).parameters) | {"features_only", "out_indices"}


def _check_model_args(model_name: str, given: Mapping[str, Any]) -> None:
    """Raise ConfigError for keywords that are not the model's own, and for numbers that no model could have."""
    for key, value in given.items():
        if key in _TIMMS_OWN:
            raise ConfigError(
                f"timm model '{model_name}': {key} stands in model_args, which are keywords of the model itself; "
                "weights are chosen by pretrained=, beside model_args"
            )
        most = 0.999 if "drop" in key else _LARGEST.get(key, _LARGEST_OF_ALL)  # shares, as in drop_path_rate
        if isinstance(value, int | float) and not 0 <= value <= most:
            raise ConfigError(f"timm model '{model_name}': {key}={value!r} of model_args; it must be 0 to {most}")


def build_backbone(
    model_name: str,
    tensors: Mapping[str, Tensor] | None,
    source: str,
    image_size: ImageSize | None = None,
    model_args: dict[str, Any] | None = None,
) -> Any:
    """Build a timm model without classifier, for images of any size, with `tensors` as its weights if given.

    Raises ConfigError for keywords that the model does not take, WeightsError for weights of another model.
    """
    _check_model_args(model_name, model_args or {})
    options: dict[str, Any] = {"num_classes": 0, **(model_args or {})}
    if image_size is not None:
        options["img_size"] = image_size
    kept = None
    if tensors is not None:
        published = timm.get_pretrained_cfg(model_name)
        names = (published.classifier if published else None) or ()
        classifier = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
        kept = {key: value for key, value in tensors.items() if not key.startswith(classifier)}
    for any_size in ANY_SIZE:  # the last way, which has no key to refuse, is taken or ends in an error
        try:
            backbone = create_timm(model_name, kept, source, spare=True, **{**any_size, **options})
            break
        except AlignTokError:
            raise
        except Exception as error:  # whatever timm's models say of keywords and sizes
            if not (isinstance(error, TypeError) and any(key in str(error) for key in any_size)):
                reason = first_line(error)
                raise ConfigError(f"timm model '{model_name}' cannot be built with {options}: {reason}") from error
    # Of timm's annotations those of single numbers are right throughout.
    numbers = {key: value for key, value in (model_args or {}).items() if isinstance(value, int | float)}
    check_values(type(backbone), numbers, f"timm model '{model_name}': model_args")
    if not hasattr(backbone, "prune_intermediate_layers") or not hasattr(backbone, "feature_info"):
        raise ConfigError(f"timm model '{model_name}' gives no intermediate features; choose another")
    if kept is not None and "siglip" in model_name:
        # timm loads these non-strictly, to pass over a pooling head that the model lacks: what is missing goes unsaid.
        own, given = list(backbone.state_dict()), {key.removeprefix("visual.trunk.") for key in kept}
        if missing := [key for key in own if key not in given]:
            raise misfit(f"timm model '{model_name}'", source, missing, [key for key in kept if key not in own])
    if not any("drop" in option for option in options):
        for module in backbone.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
            elif isinstance(module, DropPath):
                module.drop_prob = 0.0
    return backbone


class DINOv2Encoder(TimmEncoder):
    """DINOv2 (Oquab et al. 2023), patch 14, pretrained position grid of 518 pixels; 304.37 M parameters when large.

    size: 'small', 'base', 'large' or 'giant'. registers: the variant with four register tokens (Darcet et al. 2023).
    Other keywords: those of TimmEncoder.
    """

    NAMES = {size: f"vit_{size}_patch14_{{}}dinov2.lvd142m" for size in ("small", "base", "large", "giant")}

    @takes_keywords_of(TimmEncoder, but=("stride",))
    def __init__(self, size: str = "large", *, registers: bool = False, **keywords: Any) -> None:
        super().__init__(_name_of_size("dinov2", self.NAMES, size).format("reg4_" if registers else ""), **keywords)


class MAEEncoder(TimmEncoder):
    """MAE (He et al. 2022), patch 16 (huge: 14), position grid of 224 pixels; 303.3 M parameters when large.

    size: 'base', 'large' or 'huge'. Other keywords: those of TimmEncoder.
    """

    NAMES = {
        "base": "vit_base_patch16_224.mae",
        "large": "vit_large_patch16_224.mae",
        "huge": "vit_huge_patch14_224.mae",
    }

    @takes_keywords_of(TimmEncoder, but=("stride",))
    def __init__(self, size: str = "large", **keywords: Any) -> None:
        super().__init__(_name_of_size("mae", self.NAMES, size), **keywords)


class SigLIP2Encoder(TimmEncoder):
    """SigLIP 2 (Tschannen et al. 2025), patch 16, position grid of 256 pixels; 303.4 M parameters when large.

    The attention pooling of the published model is left out: a tokenizer wants the patches. Its weights load all the
    same, from timm's files with or without the pooling, or from open_clip's.
    size: 'base', 'large', 'so400m' or 'giant'. Other keywords: those of TimmEncoder.
    """

    NAMES = {
        "base": "vit_base_patch16_siglip_gap_256.v2_webli",
        "large": "vit_large_patch16_siglip_gap_256.v2_webli",
        "so400m": "vit_so400m_patch16_siglip_gap_256.v2_webli",
        "giant": "vit_giantopt_patch16_siglip_gap_256.v2_webli",
    }

    @takes_keywords_of(TimmEncoder, but=("stride",))
    def __init__(self, size: str = "large", **keywords: Any) -> None:
        super().__init__(_name_of_size("siglip2", self.NAMES, size), **keywords)


def _name_of_size(encoder: str, names: dict[str, str], size: str) -> str:
    """The timm name of one size of a model. Raises ConfigError, listing the sizes, when there is none."""
    if size not in names:
        raise ConfigError(f"encoder '{encoder}': {unknown('size', size, names)}")
    return names[size]
