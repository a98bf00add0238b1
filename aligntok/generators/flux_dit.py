"""FLUX's transformer (Black Forest Labs, 2024), in which text and image attend together: the paper's text to image."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.errors import ConfigError, multiples_of
from aligntok.generators import PromptedGenerator
from aligntok.generators.dit_blocks import TIME_CHANNELS, FinalLayer
from aligntok.generators.flux_blocks import DoubleBlock, SingleBlock, VectorEmbedder
from aligntok.ops.embeddings import embed_times, from_packed_patches, grid_rotations, run_block, to_patches
from aligntok.ops.packed import Present, present
from aligntok.settings import AboveZero, Count, Depth, Width
from aligntok.weights.flux import is_of_diffusers, with_bfl_names, write_for_diffusers

logger = logging.getLogger("aligntok.export")
#: Options that diffusers' class has no keywords for.
FIXED_IN_DIFFUSERS = {"mlp_ratio": 4.0, "theta": 10_000}
TIME_FACTOR = 1000.0  # of noise levels and guidance scales, before they are embedded


class FluxDiT(PromptedGenerator):
    """Latents (N, C, h, w), times (N,) and a prompt's tensors to a velocity (N, C, h, w); 1,965.93 M by default.

    in_channels: C of the latents, not of the packed patches, of which C * patch_size**2 are what published configs
    call in_channels: FLUX.1's 64 are in_channels=16, patch_size=2. out_channels: None for as many, which a training
    needs. context_in_dim: width of the text encoder's states; vec_in_dim: of the pooled text, 0 without. depth: double
    blocks, in which text and image are streams of their own; depth_single_blocks: those after them. axes_dim: channels
    of a head that turn by 0, a token's row and its column; None: an eighth and twice seven sixteenths, FLUX's (16, 56,
    56) of 128. theta: base of their frequencies. guidance_embed: for weights distilled with guidance, such as
    FLUX.1-dev's. text_padding: "mask", or "attend" as published weights were trained, whose text is always of the
    longest length. The rest as :class:`PromptedGenerator` says.

    Parameters have Black Forest Labs' names; weights with those of diffusers' FluxTransformer2DModel load as well. Its
    t = 1 is noise, here data, and its velocity leads to noise. Raises ConfigError for options and inputs that do not
    fit.
    """

    def __init__(
        self,
        *,
        in_channels: Width = 32,
        out_channels: Width | None = None,
        vec_in_dim: Count = 768,
        context_in_dim: Width = 4096,
        hidden_size: Width = 2048,
        mlp_ratio: AboveZero = 4.0,
        num_heads: Depth = 16,
        depth: Count = 7,
        depth_single_blocks: Depth = 14,
        axes_dim: Sequence[int] | None = None,
        theta: AboveZero = 10_000,
        qkv_bias: bool = True,
        guidance_embed: bool = False,
        patch_size: Width = 1,
        text_padding: str = "mask",
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            context_in_dim=context_in_dim,
            vec_in_dim=vec_in_dim,
            text_padding=text_padding,
            guidance_embed=guidance_embed,
        )
        self.axes_dim = _axes(hidden_size, num_heads, axes_dim)
        self.theta, self.num_heads, self.mlp_ratio, self.qkv_bias = theta, num_heads, mlp_ratio, qkv_bias
        self.patch_size = patch_size
        self.out_channels = in_channels if out_channels is None else out_channels
        self.img_in = nn.Linear(in_channels * patch_size**2, hidden_size)
        self.time_in = VectorEmbedder(TIME_CHANNELS, hidden_size)
        self.vector_in = VectorEmbedder(vec_in_dim, hidden_size) if vec_in_dim else None
        self.guidance_in = VectorEmbedder(TIME_CHANNELS, hidden_size) if guidance_embed else None
        self.txt_in = nn.Linear(context_in_dim, hidden_size)
        shape = hidden_size, num_heads, mlp_ratio
        self.double_blocks = nn.ModuleList(DoubleBlock(*shape, qkv_bias) for _ in range(depth))
        self.single_blocks = nn.ModuleList(SingleBlock(*shape) for _ in range(depth_single_blocks))
        self.final_layer = FinalLayer(hidden_size, self.out_channels * patch_size**2, use_rmsnorm=False)
        self.grad_checkpointing = False
        self._tables: dict[tuple[int, int, torch.device], Tensor] = {}
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, y: Mapping[str, Tensor]) -> Tensor:  # (N, C, h, w), (N,)
        self.check_inputs(x, t, y)
        height, width = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        img, txt = self.img_in(to_patches(x, self.patch_size)), self.txt_in(y["text"].to(self.txt_in.weight.dtype))
        c, there = F.silu(self._condition(t, y)), self._present(y, img)
        turned = self._rotations(height, width, img.device)  # (2, h*w, dim)
        for block in self.double_blocks:
            img, txt = run_block(block, img, self.grad_checkpointing, txt, c, turned, there)
        both = torch.cat([txt, img], dim=1)
        turned = torch.cat([turned[:, :1].expand(-1, txt.shape[1], -1), turned], dim=1)  # text is at 0, as the corner
        for block in self.single_blocks:
            both = run_block(block, both, self.grad_checkpointing, c, turned, there)
        patches = self.final_layer(both[:, txt.shape[1] :], c)
        return -from_packed_patches(patches, self.patch_size, height, width)  # to data, (N, C, h, w)

    def _condition(self, t: Tensor, y: Mapping[str, Tensor]) -> Tensor:
        """Return what all tokens are modulated by, (N, hidden_size), before its SiLU."""
        c = self.time_in(embed_times(TIME_FACTOR * (1 - t.float()), TIME_CHANNELS))  # of the noise level
        if self.guidance_in is not None:
            c = c + self.guidance_in(embed_times(TIME_FACTOR * y["guidance"].float(), TIME_CHANNELS))
        return c if self.vector_in is None else c + self.vector_in(y["pooled"])

    def _present(self, y: Mapping[str, Tensor], img: Tensor) -> Present | None:
        """Return which tokens of text and image are attended to; None for all."""
        mask = y.get("mask")
        if mask is None or self.text_padding == "attend":
            return None
        return present(F.pad(mask.bool(), (0, img.shape[1]), value=True), img.device)

    def _rotations(self, height: int, width: int, where: torch.device) -> Tensor:
        """Return the rotations of a grid of patches, (2, tokens, dim), which are made at its first use and kept."""
        if (key := (height, width, where)) not in self._tables:
            with torch.inference_mode(False):  # made in inference mode they could not serve training afterwards
                self._tables[key] = grid_rotations(height, width, self.axes_dim, theta=self.theta).to(where)
        return self._tables[key]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block, to save memory; gradients stay the same."""
        self.grad_checkpointing = enable

    def check_inputs(self, x: Tensor, t: Tensor, y: Mapping[str, Tensor]) -> None:
        """Raise ConfigError unless shapes fit, and h, w are whole patches."""
        super().check_inputs(x, t, y)
        multiples_of(self.patch_size, "FluxDiT: a latent of", x.shape[-2:], "patch_size")

    def own_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's tensors by Black Forest Labs' names, also those that diffusers has named."""
        return with_bfl_names(tensors, self.state_dict()) if is_of_diffusers(tensors) else dict(tensors)

    def export_diffusers(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that diffusers' ``FluxTransformer2DModel.from_pretrained`` loads: config and weights.

        It attends to all text that it is given, as with text_padding="attend", which is told where this model was
        trained otherwise; without pooled text here, it takes one number, which has no effect. Raises ConfigError for
        options that it does not have, WriteError when the disk does not take it.
        """
        for name, only in FIXED_IN_DIFFUSERS.items():
            if (own := getattr(self, name)) != only:
                raise ConfigError(
                    f"FluxDiT: diffusers' FluxTransformer2DModel has {name}={only} alone, this model {own}; "
                    "it cannot be exported for diffusers"
                )
        patch, width = self.patch_size**2, self.txt_in.out_features
        tensors = self.state_dict()
        if self.vector_in is None:
            tensors |= {f"vector_in.{name}": each * 0 for name, each in VectorEmbedder(1, width).state_dict().items()}
        if not self.qkv_bias:
            names = [name.replace("weight", "bias") for name in tensors if name.endswith("_attn.qkv.weight")]
            tensors |= {name: torch.zeros(3 * width) for name in names}
        config = {
            "patch_size": 1,  # of latents that are packed already
            "in_channels": self.in_channels * patch,
            "out_channels": self.out_channels * patch,
            "num_layers": len(self.double_blocks),
            "num_single_layers": len(self.single_blocks),
            "attention_head_dim": sum(self.axes_dim),
            "num_attention_heads": self.num_heads,
            "joint_attention_dim": self.context_in_dim,
            "pooled_projection_dim": self.vec_in_dim or 1,
            "guidance_embeds": self.guidance_embed,
            "axes_dims_rope": list(self.axes_dim),
        }
        write_for_diffusers(folder, config, tensors)
        if self.text_padding == "mask":
            logger.warning(
                "FluxDiT: diffusers' class attends to padding, this model was trained without (text_padding='mask'); "
                "give it each prompt's own tokens alone, or prompts of one length together"
            )

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw weights from a normal distribution cut at two deviations; blocks start as the identity, unmodulated."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or any(part in name for part in ("_mod.", "modulation.", "adaLN_modulation")):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)


def _axes(width: int, heads: int, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the channels of a head that turn by each axis; ConfigError where they are none."""
    if width % (2 * heads):
        raise ConfigError(
            f"FluxDiT: hidden_size={width} with num_heads={heads} has no heads whose channels turn in pairs; make "
            "hidden_size a multiple of 2 * num_heads"
        )
    dim = width // heads
    side = 2 * (7 * dim // 32)
    axes = (dim - 2 * side, side, side) if given is None else tuple(given)
    if len(axes) != 3 or sum(axes) != dim or any(each % 2 or each < 0 for each in axes):
        raise ConfigError(
            f"FluxDiT: axes_dim={given} of heads of {dim}; it is three even numbers, {dim} together, or None for "
            f"{(dim - 2 * side, side, side)}"
        )
    return axes
