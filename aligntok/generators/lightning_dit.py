"""LightningDiT (Yao et al. 2025): the class-conditional diffusion transformer that the paper trains on its latents."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.errors import ConfigError, WeightsError, multiples_of, unknown
from aligntok.generators import Generator, check_label_range
from aligntok.generators.dit_blocks import DiTBlock, FinalLayer, LabelEmbedder, PatchEmbedder, TimeEmbedder
from aligntok.ops.embeddings import axial_rotations, embed_grid, from_patches, run_block
from aligntok.settings import AboveZero, Depth, Grid, Positive, Share, Width

#: The published sizes: hidden_size, depth, num_heads.
SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}
#: Position tables that published checkpoints carry; here they are computed.
TABLES = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")
NUMBERS_AT_ONCE = 2**19  # of tokens, on CPUs without gradients: 4 rows of 256 tokens of width 384
TABLE_TOLERANCE = 0.01  # admits tables that were saved in bfloat16


class LightningDiT(Generator):
    """Latents (N, C, h, w), times (N,), labels (N,) to a velocity (N, C, h, w); LightningDiT-XL/1 by default, 675.26 M.

    size: S, B, L, XL, 1p0B or 1p6B, for hidden_size, depth and num_heads; any of the three given beside it comes
    instead. input_size: side of the training latents, or (height, width); other grids of whole patches work too.
    mlp_ratio: the MLP's hidden width over hidden_size. class_dropout_prob: how often training drops a label; with 0
    there is no null class. use_swiglu (with two thirds of the hidden width), use_rope, use_rmsnorm: the paper's;
    without them GELU, no rotation of queries and keys, layer norm. use_qknorm: normalise queries and keys, for runs of
    over 200 thousand steps. wo_shift: no shifts in blocks.

    Parameter names are those of published checkpoints; the position tables in these are compared with what is
    computed here, and left out. Raises ConfigError for options and inputs that do not fit.
    """

    pos_embed: Tensor

    def __init__(
        self,
        size: str = "XL",
        *,
        input_size: Grid = 16,
        patch_size: Width = 1,
        in_channels: Width = 32,
        hidden_size: Width | None = None,
        depth: Depth | None = None,
        num_heads: Depth | None = None,
        mlp_ratio: AboveZero = 4.0,
        class_dropout_prob: Share = 0.1,
        num_classes: Positive = 1000,
        use_swiglu: bool = True,
        use_rope: bool = True,
        use_rmsnorm: bool = True,
        use_qknorm: bool = False,
        wo_shift: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, class_dropout_prob=class_dropout_prob)
        width, depth, num_heads = _shape(size, hidden_size, depth, num_heads)
        self.patch_size = patch_size
        self.grid = _grid(input_size, patch_size)
        self.hidden_size = width
        self.head_dim = width // num_heads
        self.use_rope = use_rope
        self.x_embedder = PatchEmbedder(in_channels, patch_size, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width, self.null_class is not None)
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_heads, mlp_ratio, use_swiglu, use_rmsnorm, use_qknorm, wo_shift) for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, patch_size**2 * in_channels, use_rmsnorm)
        self.grad_checkpointing = False
        self._tables: dict[tuple[int, int, torch.device, torch.dtype], tuple[Tensor, Tensor | None]] = {}
        self._reset_tables()
        self._initialise()
        self.register_load_state_dict_pre_hook(LightningDiT._leave_out_tables)
        # A model built on the meta device has no tables yet, and to_empty leaves them undefined.
        self.register_load_state_dict_post_hook(LightningDiT._reset_tables)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:  # (N, C, h, w), (N,), (N,)
        self.check_inputs(x, t, y)
        height, width = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        positions, rotations = self.tables(height, width)
        tokens = self.x_embedder(x) + positions  # (N, height*width, hidden_size)
        c = F.silu(self.t_embedder(t) + self.y_embedder(y))  # (N, hidden_size), for all blocks
        rows = _rows_at_once(tokens)
        if rows < len(tokens):
            few = zip(tokens.split(rows), c.split(rows), strict=True)
            patches = torch.cat([self._velocities(*own, rotations) for own in few])
        else:  # no views of a whole, for which compiled blocks would be compiled once more
            patches = self._velocities(tokens, c, rotations)
        return from_patches(patches, self.patch_size, height, width)  # (N, C, h, w)

    def _velocities(self, tokens: Tensor, c: Tensor, rotations: Tensor | None) -> Tensor:
        for block in self.blocks:
            tokens = run_block(block, tokens, self.grad_checkpointing, c, rotations)
        return self.final_layer(tokens, c)

    def tables(self, height: int, width: int) -> tuple[Tensor, Tensor | None]:
        """Return the positions (tokens, hidden_size) and the rotations (2, tokens, dim) of a grid of patches.

        They are made at a grid's first use and kept. No rotations without use_rope.
        """
        own = self.pos_embed
        key = (height, width, own.device, own.dtype)
        if key not in self._tables:
            with torch.inference_mode(False):  # tables made in inference mode could not serve training afterwards
                made = own if (height, width) == self.grid else embed_grid(height, width, self.hidden_size).to(own)
                rotations = axial_rotations(height, width, self.head_dim, device=own.device) if self.use_rope else None
            self._tables[key] = made, rotations
        return self._tables[key]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, block by block, to save memory; gradients stay the same."""
        self.grad_checkpointing = enable

    def check_inputs(self, x: Tensor, t: Tensor, y: Tensor) -> None:
        """Raise ConfigError unless shapes fit and h, w are whole patches; on the CPU, unless labels are in range.

        Elsewhere looking at the labels would wait for the device.
        """
        super().check_inputs(x, t, y)
        multiples_of(self.patch_size, "LightningDiT: a latent of", x.shape[-2:], "patch_size")
        if y.device.type == "cpu" and len(y) and not torch.compiler.is_compiling():
            check_label_range(y, self)

    def own_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's tensors without its position tables.

        Raises WeightsError when these are not what is computed here, for then the weights would not fit in silence.
        """
        tables = [name for name in TABLES if name in tensors]
        if tables and self.use_rope != (len(tables) > 1):
            raise WeightsError(
                f"LightningDiT: use_rope={self.use_rope}, but the checkpoint has the tables {', '.join(tables)}: it "
                f"was trained with use_rope={not self.use_rope}; set that"
            )
        for name in tables:
            if not tensors[name].is_meta:
                self._check_table(name, tensors[name])
        return {name: tensor for name, tensor in tensors.items() if name not in TABLES}

    def _check_table(self, name: str, given: Tensor) -> None:
        tokens = given.shape[-2]
        side = math.isqrt(tokens)
        grid = self.grid if math.prod(self.grid) == tokens else (side, side)
        if name == "pos_embed":
            ours = embed_grid(*grid, self.hidden_size)
        else:
            ours = axial_rotations(*grid, self.head_dim)[TABLES.index(name) - 1]
        if given.shape[-1] != ours.shape[-1]:
            return  # of another size, which the weights will show in plainer words
        given = given.detach().cpu().float().reshape(-1, given.shape[-1])
        if given.shape != ours.shape or (given - ours).abs().max() > TABLE_TOLERANCE:
            raise WeightsError(
                f"LightningDiT: the checkpoint's {name}, {tuple(given.shape)}, is not the fixed table of a grid of "
                f"{grid[0]} x {grid[1]} patches; its weights were trained with other positions, and cannot be used here"
            )

    def _leave_out_tables(self, state: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
        """Take the position tables out of a state dict that is being loaded; report those that differ as errors."""
        tables = {name: state.pop(prefix + name) for name in TABLES if prefix + name in state}
        try:
            self.own_tensors(tables)
        except WeightsError as error:
            rest[-1].append(str(error))

    def _reset_tables(self, *_: Any) -> None:
        """Make the table of the training grid, where the weights are, and forget all others."""
        weight = self.x_embedder.proj.weight
        positions = embed_grid(*self.grid, self.hidden_size).to(weight.device, weight.dtype)
        self.register_buffer("pos_embed", positions, persistent=False)
        self._tables.clear()

    def _initialise(self) -> None:
        """Draw the weights as published: adaLN-zero, so that every block starts as the identity and the output at 0."""
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear") or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.startswith(("t_embedder", "y_embedder")):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter.flatten(1))


def _rows_at_once(tokens: Tensor) -> int:
    """Return how many rows of tokens (N, tokens, width) pass the blocks at once: all; on CPUs, without gradients, few.

    What a few rows need stays in a processor's cache, and in memory that the allocator keeps.
    """
    if torch.is_grad_enabled() or tokens.device.type != "cpu" or not tokens.numel():
        return max(len(tokens), 1)
    return math.ceil(len(tokens) / math.ceil(tokens.numel() / NUMBERS_AT_ONCE))


def _shape(size: str, *given: int | None) -> tuple[int, int, int]:
    """Return hidden_size, depth and num_heads: those given, the others those of the size."""
    if size not in SIZES:
        raise ConfigError(
            f"LightningDiT: {unknown('size', size, SIZES)}; "
            "hidden_size, depth and num_heads beside one of them come instead of its own"
        )
    width, depth, heads = (own if value is None else value for own, value in zip(SIZES[size], given, strict=True))
    if min(width, depth, heads) < 1 or width % (4 * heads):
        raise ConfigError(
            f"LightningDiT: hidden_size={width} with num_heads={heads}, depth={depth} is no transformer; all must be "
            "at least 1, and hidden_size a multiple of 4 * num_heads, so that heads can turn; change one of them"
        )
    return width, depth, heads


def _grid(input_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Return height and width, in patches, of latents of `input_size`."""
    sides = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if patch_size < 1 or len(sides) != 2 or min(sides) < 1 or any(side % patch_size for side in sides):
        raise ConfigError(
            f"LightningDiT: input_size={input_size} and patch_size={patch_size} describe no grid; give a side, or "
            "(height, width), of multiples of patch_size"
        )
    return sides[0] // patch_size, sides[1] // patch_size
