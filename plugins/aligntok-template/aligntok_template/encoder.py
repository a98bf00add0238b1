"""An encoder of one's own: a pretrained network behind AlignTok's contract."""

import timm
from torch import Tensor, nn

from aligntok.encoders import Encoder
from aligntok.weights.hub import fetch


class MyEncoder(Encoder):
    """ConvNeXt-Atto up to stride 16: images (N, 3, H, W) in [-1, 1] to features (N, 160, H/f, W/f)."""

    def __init__(self, pretrained: bool | str = True, downsample_factor: int = 16) -> None:
        super().__init__(
            downsample_factor=downsample_factor,  # f: image pixels per latent position
            stride=16,  # p: the network's own; the base class resizes its input by p/f
            out_dim=160,
            mean=(0.485, 0.456, 0.406),  # of pixels in [0, 1]; the base class normalises
            std=(0.229, 0.224, 0.225),
        )
        if pretrained is True:
            pretrained = str(fetch("timm/convnext_atto.d2_in1k", "my_encoder", ["model.safetensors"]))
        self.backbone = timm.create_model(
            "convnext_atto",
            features_only=True,
            out_indices=[2],  # what comes after is not built: every parameter must reach the features
            pretrained=bool(pretrained),
            pretrained_cfg_overlay={"file": pretrained} if pretrained else None,
        )

    def backbone_features(self, pixels: Tensor) -> Tensor:  # (N, 3, h*p, w*p), normalised
        return self.backbone(pixels)[0]  # (N, C, h, w)

    @property
    def last_layer(self) -> nn.Parameter:  # where losses that balance at the encoder measure their gradients
        return self.backbone.get_parameter("stages_2.blocks.5.mlp.fc2.weight")
