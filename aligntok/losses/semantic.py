"""Losses that tie the latent to a frozen teacher: the paper's, and VA-VAE's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.errors import ConfigError, check_same_shape, unknown
from aligntok.losses import Loss
from aligntok.settings import NotNegative, Width

DISTANCES = ("l2", "cosine")
PLACES = ("latents", "features")


class SemanticPreservationLoss(Loss):
    """Keeps the encoder near its frozen teacher, the previous stage's (paper, Eq. 4, L_sem).

    distance: "l2", the mean over elements of the squared difference; "cosine", the mean over positions of
    1 - cos over channels. on: "latents" (after the adapter, the paper's) or "features" (before it, an ablation).
    Raises ConfigError for other choices, and for tensors of unlike shape.
    """

    def __init__(self, distance: str = "l2", on: str = "latents") -> None:
        super().__init__()
        for name, value, allowed in (("distance", distance, DISTANCES), ("on", on, PLACES)):
            if value not in allowed:
                raise ConfigError(f"SemanticPreservationLoss: {unknown(name, value, allowed)}")
        self.distance = distance
        self.at = on
        self.inputs = (on, f"teacher_{on}")

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # both (N, C, h, w)
        """Return the loss, a float32 scalar."""
        check_same_shape("SemanticPreservationLoss", student=student, teacher=teacher)
        student, teacher = student.float(), teacher.float()
        if self.distance == "l2":
            return F.mse_loss(student, teacher)  # |A(E(x)) - A*(E*(x))|_2^2
        return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()


class VisionFoundationLoss(Loss):
    """VA-VAE's alignment of the latent with a frozen foundation model (Yao et al. 2025).

    A bias-free 1x1 projection W, learned with the tokenizer, takes latents (N, latent_dim, h, w) to the teacher's
    width; then marginal distance-matrix similarity plus marginal cosine similarity with the teacher's features
    (N, feature_dim, h, w). distance_margin, cosine_margin: what differs by less costs nothing. distance_weight,
    cosine_weight: of the two terms. Raises ConfigError when the two grids or widths differ.
    """

    at = "latents"
    inputs = ("latents", "teacher_features")

    def __init__(
        self,
        latent_dim: Width,
        feature_dim: Width,
        distance_margin: NotNegative = 0.25,
        cosine_margin: NotNegative = 0.5,
        distance_weight: NotNegative = 1.0,
        cosine_weight: NotNegative = 1.0,
    ) -> None:
        super().__init__()
        self.distance_margin = distance_margin
        self.cosine_margin = cosine_margin
        self.distance_weight = distance_weight
        self.cosine_weight = cosine_weight
        self.linear_proj = nn.Conv2d(latent_dim, feature_dim, 1, bias=False)

    def forward(self, latents: Tensor, teacher_features: Tensor) -> Tensor:
        """Return the loss, a float32 scalar."""
        if latents.shape[1] != self.linear_proj.in_channels:
            raise ConfigError(
                f"VisionFoundationLoss: latents of {latents.shape[1]} channels, but its latent_dim is "
                f"{self.linear_proj.in_channels}; set it to the tokenizer's"
            )
        projected = self.linear_proj(latents)  # (N, feature_dim, h, w)
        check_same_shape("VisionFoundationLoss", projected_latents=projected, teacher_features=teacher_features)
        distance = distance_matrix_loss(projected, teacher_features, self.distance_margin)
        cosine = marginal_cosine_loss(projected, teacher_features, self.cosine_margin)
        return self.distance_weight * distance + self.cosine_weight * cosine


def distance_matrix_loss(latents: Tensor, features: Tensor, margin: float) -> Tensor:
    """Marginal distance-matrix similarity: mean of relu(|cos_z(i, j) - cos_f(i, j)| - margin) over position pairs.

    latents (N, C, h, w), features (N, C', h, w); cos is taken between positions i and j of one image. Returns a
    float32 scalar (VA-VAE, L_mdms).
    """
    z, f = (F.normalize(x.float().flatten(2), dim=1) for x in (latents, features))  # (N, C, h*w)
    difference = z.transpose(1, 2) @ z - f.transpose(1, 2) @ f  # (N, h*w, h*w)
    return F.relu(difference.abs() - margin).mean()


def marginal_cosine_loss(latents: Tensor, features: Tensor, margin: float) -> Tensor:
    """Marginal cosine similarity: mean of relu(1 - margin - cos(z, f)) over positions (VA-VAE, L_mcos).

    latents and features (N, C, h, w). Returns a float32 scalar.
    """
    return F.relu(1 - margin - F.cosine_similarity(latents.float(), features.float(), dim=1)).mean()
