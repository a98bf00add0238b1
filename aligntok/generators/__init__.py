"""Generators: diffusion transformers on the tokenizer's latents, velocity fields given a class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from aligntok.errors import AlignTokError, ConfigError, at_least
from aligntok.weights.load import load_into, read_tensors


class Generator(nn.Module):
    """Base of all generators: latents (N, C, h, w), times (N,), labels (N,) to a velocity (N, C, h, w), h and w free.

    A subclass gives `forward` and `set_grad_checkpointing`. in_channels: C. num_classes: labels are 0 to
    num_classes - 1, and num_classes itself is the null class, "any of them"; 1 for an unconditional generator, whose
    labels are 0. class_dropout_prob: how often training puts the null class in a label's place; the one who trains
    draws which, so that it does not depend on processes. With 0 there is no null class. Raises ConfigError when a
    number is below 1, or the probability outside [0, 1).
    """

    #: What y is: "classes", labels (N,); or "prompts", encoded text by name, see :mod:`aligntok.condition`.
    conditioned_on: ClassVar[str] = "classes"

    def __init__(self, *, in_channels: int, num_classes: int, class_dropout_prob: float = 0.0) -> None:
        super().__init__()
        at_least(1, type(self).__name__, in_channels=in_channels, num_classes=num_classes)
        if not 0 <= class_dropout_prob < 1:
            raise ConfigError(
                f"{type(self).__name__}: class_dropout_prob={class_dropout_prob} must be at least 0 and below 1"
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.class_dropout_prob = class_dropout_prob

    @property
    def null_class(self) -> int | None:
        """The label that stands for any class: what dropped labels become, and what guidance leads away from.

        None where no label is ever dropped, so that nothing trains it.
        """
        return self.num_classes if self.class_dropout_prob > 0 else None

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the velocity (N, C, h, w) at noisy latents x (N, C, h, w), times t (N,) in [0, 1], labels y (N,)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, t, y)")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass to save memory; gradients stay the same."""
        raise NotImplementedError(f"{type(self).__name__} must define set_grad_checkpointing(enable)")

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Load a local checkpoint, a published one among them; of a nested one the averaged weights are taken.

        Raises WeightsError when the file is missing, damaged or unsafe, or does not fit.
        """
        who = type(self).__name__
        load_into(self, self.own_tensors(read_tensors(path, who)), who, path)

    def own_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint that are weights here, by name: the subclass leaves out what it computes.

        Raises WeightsError when what is left out differs from what is computed.
        """
        return dict(tensors)

    def check_inputs(self, x: Tensor, t: Tensor, y: Tensor) -> None:
        """Raise ConfigError unless x is (N, C, h, w), t (N,), and y (N,) of whole numbers."""
        who = type(self).__name__
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ConfigError(
                f"{who} takes latents (N, {self.in_channels}, h, w), was given {tuple(x.shape)}; "
                "its in_channels must be the tokenizer's latent_dim"
            )
        for name, given in (("t", t), ("y", y)):
            if given.shape != x.shape[:1]:
                raise ConfigError(
                    f"{who} takes {name} ({len(x)},), one for each latent, was given {tuple(given.shape)}; "
                    "repeat a single value with expand"
                )
        if y.dtype not in (torch.int64, torch.int32):
            raise ConfigError(f"{who} takes labels y as whole numbers, was given {y.dtype}; convert them with .long()")


def check_label_range(labels: Any, generator: Any, error: type[AlignTokError] = ConfigError) -> None:
    """Raise ConfigError unless labels (N,), a tensor or an array, are classes or, given to a model, the null class.

    error: DataError for labels that are the data's, among which no null class may be. A plan's have no values to check.
    """
    if isinstance(labels, FakeTensor):
        return
    low, high, classes = int(labels.min()), int(labels.max()), generator.num_classes
    null = generator.null_class if error is ConfigError else None
    if low < 0 or high >= classes + (null is not None):
        allowed = f"0 to {classes - 1}" + ("" if null is None else f", and {null} for the null class")
        raise error(
            f"labels from {low} to {high}, but with num_classes={classes} of the generator allowed are {allowed}; set "
            "it to the number of classes, or to 1 for an unconditional generator (-1 is an image without a class)"
        )
