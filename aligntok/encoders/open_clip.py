"""Any open_clip image tower as an encoder; the text tower is never built."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from aligntok.encoders.base import Encoder, last_weight
from aligntok.encoders.timm import build_backbone, checkpoint_blocks, choose_level, intermediate
from aligntok.ops.embeddings import resample_position_grid, run_block
from aligntok.weights.libraries import OpenCLIPModel
from aligntok.weights.load import load_into


class OpenCLIPEncoder(Encoder):
    """An open_clip image tower's patch features (N, C, H/f, W/f); pooling, projection and text part are left out.

    model_name: one of open_clip.list_models(). pretrained: True for the published weights where there is one set of
    them, the tag of a set, False for random ones, or a local file (the whole model's or the image tower's).
    downsample_factor: f. stride: p, of a CNN tower the stage whose features are taken (by default the deepest with
    p <= f); of a ViT the patch. out_index: which block or stage, instead of the last one of that stride. final_norm:
    apply the tower's last norm where it has one for the patches. antialias: see Encoder.

    Raises ConfigError for an unknown model, tag, stride or block, and WeightsError when the weights can't be had or
    don't fit.
    """

    def __init__(
        self,
        model_name: str,
        *,
        pretrained: bool | str | os.PathLike[str] = True,
        downsample_factor: int = 16,
        stride: int | None = None,
        out_index: int | None = None,
        final_norm: bool = True,
        antialias: bool = False,
    ) -> None:
        model = OpenCLIPModel(model_name, pretrained)
        tower = build_tower(model)
        index = choose_level(tower, downsample_factor, stride, out_index, who=model.who)
        tower.keep(index, final_norm)
        super().__init__(
            downsample_factor=downsample_factor,
            stride=tower.feature_info[index]["reduction"],
            out_dim=tower.feature_info[index]["num_chs"],
            mean=model.mean,
            std=model.std,
            antialias=antialias,
        )
        self.model_name = model_name
        self.backbone = tower

    def backbone_features(self, pixels: Tensor) -> Tensor:
        return self.backbone(pixels)

    @property
    def last_layer(self) -> nn.Parameter:
        return last_weight(self.backbone)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute block by block where the tower can, and otherwise the whole of it; gradients stay the same."""
        if not self.backbone.set_grad_checkpointing(enable):
            super().set_grad_checkpointing(enable)


class Tower(nn.Module):
    """An image tower reduced to its features. `feature_info` lists what can be taken, as timm's models do."""

    feature_info: list[dict[str, int]]

    def keep(self, index: int, final_norm: bool) -> None:
        """Drop what comes after block or stage `index`."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool) -> bool:
        """Checkpoint block by block; False when this tower can't."""
        raise NotImplementedError


class TimmTower(Tower):
    """A timm model in open_clip's clothes."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        self.feature_info = [dict(level) for level in trunk.feature_info]

    def forward(self, pixels: Tensor) -> Tensor:
        return intermediate(self.trunk, pixels, self.index, self.final_norm)

    def keep(self, index: int, final_norm: bool) -> None:
        self.index, self.final_norm = index, final_norm
        self.trunk.prune_intermediate_layers([index], prune_norm=not final_norm, prune_head=True)

    def set_grad_checkpointing(self, enable: bool) -> bool:
        return checkpoint_blocks(self.trunk, enable)


class PatchTower(Tower):
    """open_clip's own ViT, with its parameter names, for images of any size."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.grid = visual.grid_size
        self.conv1 = visual.conv1
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.ln_pre = visual.ln_pre
        self.transformer = visual.transformer
        # An attentional pooler stands between the blocks and the last norm, which then is not one of the patches.
        self.ln_post = visual.ln_post if visual.attn_pool is None else nn.Identity()
        width = visual.conv1.out_channels
        level = {"num_chs": width, "reduction": visual.patch_size[0]}
        self.feature_info = [dict(level) for _ in visual.transformer.resblocks]

    def forward(self, pixels: Tensor) -> Tensor:  # (N, 3, h*p, w*p)
        patches = self.conv1(pixels)  # (N, C, h, w)
        n, c, h, w = patches.shape
        x = torch.cat([self.class_embedding.expand(n, 1, c), patches.flatten(2).mT], dim=1)  # (N, 1 + h*w, C)
        x = x + resample_position_grid(self.positional_embedding, (h, w), self.grid)
        x = self.ln_post(self.transformer(self.ln_pre(x)))
        return x[:, 1:].mT.reshape(n, c, h, w)

    def keep(self, index: int, final_norm: bool) -> None:
        self.transformer.prune_intermediate_layers([index])
        if not final_norm:
            self.ln_post = nn.Identity()

    def set_grad_checkpointing(self, enable: bool) -> bool:
        self.transformer.grad_checkpointing = enable
        return True


class ResNetTower(Tower):
    """OpenAI's modified ResNet without its attention pooling."""

    STEM = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool")

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.stages = ["layer1", "layer2", "layer3", "layer4"]
        for name in (*self.STEM, *self.stages):
            setattr(self, name, getattr(visual, name))
        self.grad_checkpointing = False
        width = visual.conv3.out_channels
        self.feature_info = [{"num_chs": width * 4 * 2**i, "reduction": 4 * 2**i} for i in range(4)]

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for part in map(self.get_submodule, self.STEM):
            x = part(x)  # in the end (N, width, H/4, W/4)
        for stage in map(self.get_submodule, self.stages):
            x = run_block(stage, x, self.grad_checkpointing)
        return x

    def keep(self, index: int, final_norm: bool) -> None:
        for name in self.stages[index + 1 :]:
            delattr(self, name)
        self.stages = self.stages[: index + 1]

    def set_grad_checkpointing(self, enable: bool) -> bool:
        self.grad_checkpointing = enable
        return True


def build_tower(model: OpenCLIPModel) -> Tower:
    """Build the image tower of a model, with the weights it asks for. Raises WeightsError if they don't fit."""
    tensors, source = model.image_tensors()
    if name := model.vision.get("timm_model_name"):
        trunk = {k.removeprefix("trunk."): v for k, v in (tensors or {}).items() if k.startswith("trunk.")}
        return TimmTower(build_backbone(name, trunk or tensors, source))
    visual = model.build_visual()
    tower: Tower = PatchTower(visual) if hasattr(visual, "transformer") else ResNetTower(visual)
    if tensors is not None:
        if isinstance(tower, PatchTower) and (table := tensors.get("positional_embedding")) is not None:
            tensors["positional_embedding"] = resample_position_grid(table, tower.grid)
        load_into(tower, tensors, model.who, source, spare=True)
    return tower
