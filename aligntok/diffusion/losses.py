"""What a velocity model minimises, one number a sample: squared error and direction (LightningDiT's two terms)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from aligntok.diffusion.paths import check_same_shape
from aligntok.errors import ConfigError

# Length below which a predicted vector counts as this long. Generators start with a prediction of 0, where the cosine's
# gradient is 1 / length: with torch's 1e-8 the first step's is 1e8, and Adam's second moment keeps the last layer from
# moving for hundreds of steps. Predictions of a trained one are hundreds of times as long.
SHORTEST = 1e-2


def velocity_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each sample, over channels and positions: float32 (N,).

    predicted, target (N, C, ...). Raises ConfigError for unlike shapes.
    """
    check_same_shape("velocity_mse", predicted=predicted, target=target)
    return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)  # |v_theta - v|^2 (paper, Eq. 3)


def direction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1 - cosine over channels of each sample, averaged over positions: float32 (N,) in [0, 2].

    predicted, target (N, C, ...); blind to their lengths, but for those below 0.01. Raises ConfigError for unlike
    shapes.
    """
    check_same_shape("direction_loss", predicted=predicted, target=target)
    cosine = F.cosine_similarity(predicted.float(), target.float(), dim=1, eps=SHORTEST)  # (N, ...)
    return (1 - cosine).flatten(1).mean(dim=1)  # 1 - cos(v_theta, v) (Yao et al. 2025, velocity direction loss)


def flow_matching_loss(predicted: Tensor, target: Tensor, direction_weight: float = 1.0) -> Tensor:
    """Return squared error plus `direction_weight` times the direction loss, of each sample: float32 (N,).

    predicted, target (N, C, ...). Raises ConfigError for unlike shapes or a negative weight.
    """
    if not direction_weight >= 0:
        raise ConfigError(f"flow_matching_loss: direction_weight={direction_weight}; it must be 0 (none) or above")
    loss = velocity_mse(predicted, target)
    return loss + direction_weight * direction_loss(predicted, target) if direction_weight else loss
