"""Any open_clip image tower as an encoder; the text tower is never built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aligntok.annotations import takes_keywords_of
from aligntok.encoders.timm import LevelEncoder, build_backbone, intermediate
from aligntok.errors import AlignTokError
from aligntok.ops.embeddings import resample_position_grid, run_block
from aligntok.weights.libraries import OpenCLIPModel
from aligntok.weights.load import load_into


class OpenCLIPEncoder(LevelEncoder):
    """An open_clip image tower's patch features (N, C, H/f, W/f); pooling, projection and text part are left out.

    model_name: one of open_clip.list_models(). pretrained: True for the published weights where there is one set of
    them, the tag of a set, False for random ones, or a local file (the whole model's or the image tower's).
    weights_of: the tag whose activation, mean and std the tower has (by default that of `pretrained`): for a file of
    OpenAI's weights, say, "openai"; of what trained from a set, a saved config says so where it makes a difference.
    downsample_factor: f. stride: p, of a CNN tower the stage whose features are taken (by default the deepest with
    p <= f); of a ViT the patch. out_index: which block or stage, instead of the last one of that stride. final_norm:
    apply the tower's last norm where it has one for the patches. antialias: see Encoder.

    Raises ConfigError for an unknown model, tag, stride or block, and WeightsError when the weights can't be had or
    don't fit.
    """

    @takes_keywords_of(LevelEncoder)
    def __init__(
        self,
        model_name: str,
        *,
        pretrained: bool | str | os.PathLike[str] = True,
        weights_of: str | None = None,
        **keywords: Any,
    ) -> None:
        model = OpenCLIPModel(model_name, pretrained, weights_of)
        super().__init__(build_tower(model), model.who, model.vision["image_size"], model.mean, model.std, **keywords)
        self.model_name = model_name

    @staticmethod
    def in_place_of_weights(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keywords that, without its pretrained weights, a config needs to be of the same network."""
        name: Any = config.get("model_name")
        try:
            given, plain = (OpenCLIPModel(name, each) for each in (config.get("pretrained", True), False))
        except AlignTokError:  # of a name, a tag or a file that there is not: whoever builds it says so
            return {}
        differs = (given.quick_gelu, given.mean, given.std) != (plain.quick_gelu, plain.mean, plain.std)
        return {"weights_of": given.tag} if differs and not config.get("weights_of") else {}

    def level_features(self, pixels: Tensor) -> Tensor:
        return self.backbone(pixels)


# The towers are chosen from and cut short as timm's models are.


class TimmTower(nn.Module):
    """A timm model in open_clip's clothes."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        self.feature_info = trunk.feature_info

    def forward(self, pixels: Tensor) -> Tensor:
        return intermediate(self.trunk, pixels, self.index, self.final_norm)

    def prune_intermediate_layers(self, indices: list[int], prune_norm: bool, prune_head: bool) -> None:
        self.index, self.final_norm = indices[0], not prune_norm
        self.trunk.prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head)

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.trunk.set_grad_checkpointing(enable)


class PatchTower(nn.Module):
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

    def prune_intermediate_layers(self, indices: list[int], prune_norm: bool, prune_head: bool) -> None:
        self.transformer.prune_intermediate_layers(indices)
        if prune_norm:
            self.ln_post = nn.Identity()

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.transformer.grad_checkpointing = enable


class ResNetTower(nn.Module):
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

    def prune_intermediate_layers(self, indices: list[int], prune_norm: bool, prune_head: bool) -> None:
        last = indices[0] + 1
        for name in self.stages[last:]:
            delattr(self, name)
        self.stages = self.stages[:last]

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.grad_checkpointing = enable


def build_tower(model: OpenCLIPModel) -> nn.Module:
    """Build the image tower of a model, with the weights it asks for. Raises WeightsError if they don't fit."""
    tensors, source = model.image_tensors()
    if name := model.vision.get("timm_model_name"):
        trunk = {k.removeprefix("trunk."): v for k, v in (tensors or {}).items() if k.startswith("trunk.")}
        return TimmTower(build_backbone(name, trunk or tensors, source))
    visual = model.build_visual()
    tower = PatchTower(visual) if hasattr(visual, "transformer") else ResNetTower(visual)
    if tensors is not None:
        if isinstance(tower, PatchTower) and (table := tensors.get("positional_embedding")) is not None:
            tensors["positional_embedding"] = resample_position_grid(table, tower.grid)
        load_into(tower, tensors, model.who, source, spare=True)
    return tower
