"""The straight path between noise and data, its velocity, and the losses of a predicted one."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from aligntok.errors import ConfigError, check_same_shape

#: velocity(x, t) -> v: x and v (N, ...), t (N,) in [0, 1]; v points from noise to data.
Velocity = Callable[[Tensor, Tensor], Tensor]


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """Return x_t, the point of the path at t: `noise` at 0, `data` at 1. Raises ConfigError for unlike shapes."""
    check_same_shape("interpolate", noise=noise, data=data)
    t = over(t, data)
    return t * data + (1 - t) * noise  # x_t = t x_1 + (1 - t) x_0 (paper, Eq. 2)


def path_velocity(noise: Tensor, data: Tensor) -> Tensor:
    """Return the path's velocity, the same at every t. Raises ConfigError for unlike shapes."""
    check_same_shape("path_velocity", noise=noise, data=data)
    return data - noise  # v = x_1 - x_0 (paper, after Eq. 2)


def data_from_velocity(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Return the data that x is expected to lead to, E[x_1 | x_t]; x itself at t = 1."""
    return x + (1 - over(t, x)) * velocity  # x_1 = x_t + (1 - t) v, Eq. 2 solved for x_1


def noise_from_velocity(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Return the noise that x is expected to come from, E[x_0 | x_t]; x itself at t = 0."""
    return x - over(t, x) * velocity  # x_0 = x_t - t v, Eq. 2 solved for x_0


def score_from_velocity(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Return the score, grad log p_t(x), for Gaussian noise of variance 1; not finite at t = 1."""
    t = over(t, x)
    return (t * velocity - x) / (1 - t)  # s = -E[x_0 | x_t] / (1 - t) (Ma et al. 2024, SiT: score from velocity)


def over(t: Tensor, x: Tensor) -> Tensor:
    """Return t, (N,) or a scalar, with axes of length 1 added so that it multiplies x (N, ...), in x's type."""
    return t.to(x).reshape(-1, *[1] * (x.ndim - 1))


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
