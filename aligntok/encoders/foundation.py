"""The paper's pretrained encoders by name: DINOv2, MAE and SigLIP 2, each a timm model."""

from __future__ import annotations

from typing import Any

from aligntok.encoders.timm import TimmEncoder
from aligntok.errors import ConfigError, unknown


class DINOv2Encoder(TimmEncoder):
    """DINOv2 (Oquab et al. 2023), patch 14, pretrained position grid of 518 pixels; 304.37 M parameters when large.

    size: 'small', 'base', 'large' or 'giant'. registers: the variant with four register tokens (Darcet et al. 2023).
    Other keywords: those of TimmEncoder.
    """

    NAMES = {
        "small": "vit_small_patch14_{}dinov2.lvd142m",
        "base": "vit_base_patch14_{}dinov2.lvd142m",
        "large": "vit_large_patch14_{}dinov2.lvd142m",
        "giant": "vit_giant_patch14_{}dinov2.lvd142m",
    }

    def __init__(
        self,
        size: str = "large",
        *,
        registers: bool = False,
        pretrained: bool | str = True,
        downsample_factor: int = 16,
        out_index: int | None = None,
        final_norm: bool = True,
        image_size: int | tuple[int, int] | None = None,
        model_args: dict[str, Any] | None = None,
        antialias: bool = False,
    ) -> None:
        super().__init__(
            name_of_size("dinov2", self.NAMES, size).format("reg4_" if registers else ""),
            pretrained=pretrained,
            downsample_factor=downsample_factor,
            out_index=out_index,
            final_norm=final_norm,
            image_size=image_size,
            model_args=model_args,
            antialias=antialias,
        )


class MAEEncoder(TimmEncoder):
    """MAE (He et al. 2022), patch 16 (huge: 14), position grid of 224 pixels; 303.3 M parameters when large.

    size: 'base', 'large' or 'huge'. Other keywords: those of TimmEncoder.
    """

    NAMES = {
        "base": "vit_base_patch16_224.mae",
        "large": "vit_large_patch16_224.mae",
        "huge": "vit_huge_patch14_224.mae",
    }

    def __init__(
        self,
        size: str = "large",
        *,
        pretrained: bool | str = True,
        downsample_factor: int = 16,
        out_index: int | None = None,
        final_norm: bool = True,
        image_size: int | tuple[int, int] | None = None,
        model_args: dict[str, Any] | None = None,
        antialias: bool = False,
    ) -> None:
        super().__init__(
            name_of_size("mae", self.NAMES, size),
            pretrained=pretrained,
            downsample_factor=downsample_factor,
            out_index=out_index,
            final_norm=final_norm,
            image_size=image_size,
            model_args=model_args,
            antialias=antialias,
        )


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

    def __init__(
        self,
        size: str = "large",
        *,
        pretrained: bool | str = True,
        downsample_factor: int = 16,
        out_index: int | None = None,
        final_norm: bool = True,
        image_size: int | tuple[int, int] | None = None,
        model_args: dict[str, Any] | None = None,
        antialias: bool = False,
    ) -> None:
        super().__init__(
            name_of_size("siglip2", self.NAMES, size),
            pretrained=pretrained,
            downsample_factor=downsample_factor,
            out_index=out_index,
            final_norm=final_norm,
            image_size=image_size,
            model_args=model_args,
            antialias=antialias,
        )


def name_of_size(encoder: str, names: dict[str, str], size: str) -> str:
    """The timm name of one size of a model. Raises ConfigError, listing the sizes, when there is none."""
    if size not in names:
        raise ConfigError(f"encoder '{encoder}': {unknown('size', size, names)}")
    return names[size]
