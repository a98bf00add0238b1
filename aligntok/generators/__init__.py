"""Generators: diffusion transformers on the tokenizer's latents, velocity fields given a class or a prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aligntok.device import has_values
from aligntok.errors import AlignTokError, ConfigError, at_least, unknown
from aligntok.weights.load import load_into, read_tensors

TEXT_PADDINGS = ("mask", "attend")
#: What a prompt has beside its text, and what to do where it does not fit.
CURES = {
    "mask": "give it True where there is a token and False for padding, or leave it out",
    "pooled": "set vec_in_dim to the pooled_dim of the encoder text.pooled, or to 0 without one",
    "guidance": "it belongs to distilled weights such as FLUX.1-dev's, which guidance_embed=True is for",
}


class Generator(nn.Module):
    """Base of all generators: latents (N, C, h, w), times (N,), labels (N,) to a velocity (N, C, h, w), h and w free.

    A subclass gives `forward` and `set_grad_checkpointing`. in_channels: C. num_classes: labels are 0 to
    num_classes - 1, and num_classes itself is the null class, "any of them"; 1 for an unconditional generator, whose
    labels are 0. class_dropout_prob: how often training puts the null class in a label's place; the one who trains
    draws which, so that it does not depend on processes. With 0 there is no null class. Raises ConfigError when a
    number is below 1, or the probability outside [0, 1).
    """

    #: What y is: "classes", labels (N,); or "prompts", as :class:`PromptedGenerator` has it.
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

    def forward(self, x: Tensor, t: Tensor, y: Any) -> Tensor:
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

    def check_inputs(self, x: Tensor, t: Tensor, y: Any) -> None:
        """Raise ConfigError unless x is (N, C, h, w), t (N,), and y what the generator is conditioned on."""
        who = type(self).__name__
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ConfigError(
                f"{who} takes latents (N, {self.in_channels}, h, w), was given {tuple(x.shape)}; "
                "its in_channels must be the tokenizer's latent_dim"
            )
        self._check_row("t", t, x)
        self.check_condition(x, y)

    def check_condition(self, x: Tensor, y: Any) -> None:
        """Raise ConfigError unless y is (N,) of whole numbers, a label for each of the latents x (N, C, h, w)."""
        self._check_row("y", y, x)
        if y.dtype not in (torch.int64, torch.int32):
            who = type(self).__name__
            raise ConfigError(f"{who} takes labels y as whole numbers, was given {y.dtype}; convert them with .long()")

    def _check_row(self, name: str, given: Tensor, x: Tensor) -> None:
        if given.shape != x.shape[:1]:
            raise ConfigError(
                f"{type(self).__name__} takes {name} ({len(x)},), one for each latent, was given {tuple(given.shape)}; "
                "repeat a single value with expand"
            )


class PromptedGenerator(Generator):
    """Base of generators of prompts: latents (N, C, h, w), times (N,), and a prompt's tensors by name to a velocity.

    Of those, `text` (N, L, context_in_dim) is of L tokens, L free, and `mask` (N, L) is True where there is one (left
    out: everywhere); `pooled` (N, vec_in_dim) is of the whole prompt, where vec_in_dim is not 0; `guidance` (N,) comes
    with guidance_embed alone. text_padding: "mask" attends to no padding, and nothing depends on it; "attend" attends
    to all L tokens whatever the mask says, as FLUX does, whose L is always the text encoder's longest. Raises
    ConfigError for another one, and for widths below 1, or 0 of the pooled one.
    """

    conditioned_on = "prompts"

    def __init__(
        self,
        *,
        in_channels: int,
        context_in_dim: int,
        vec_in_dim: int = 0,
        text_padding: str = "mask",
        guidance_embed: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=1)
        who = type(self).__name__
        at_least(1, who, context_in_dim=context_in_dim)
        at_least(0, who, vec_in_dim=vec_in_dim)
        if text_padding not in TEXT_PADDINGS:
            raise ConfigError(f"{who}: {unknown('text_padding', text_padding, TEXT_PADDINGS)}")
        self.context_in_dim = context_in_dim
        self.vec_in_dim = vec_in_dim
        self.text_padding = text_padding
        self.guidance_embed = guidance_embed

    def check_condition(self, x: Tensor, y: Any) -> None:
        """Raise ConfigError unless y has the tensors promised, one row for each of the latents x (N, C, h, w)."""
        who, n = type(self).__name__, len(x)
        text = y.get("text") if isinstance(y, Mapping) else None
        if not isinstance(text, Tensor) or text.dim() != 3 or len(text) != n:
            told = f"text {tuple(text.shape)}" if isinstance(text, Tensor) else type(y).__name__
            raise ConfigError(
                f"{who} takes a prompt's tensors by name, text ({n}, L, {self.context_in_dim}) among them, was given "
                f"{told}; give dict(text=..., mask=...), as text encoders do"
            )
        if text.shape[2] != self.context_in_dim:
            raise ConfigError(
                f"{who}: the text encoder's states are {text.shape[2]} wide, the generator's context_in_dim is "
                f"{self.context_in_dim}; set context_in_dim to the encoder's dim, or take another encoder"
            )
        shapes: dict[str, tuple[int, ...]] = {"mask": (n, text.shape[1])}
        shapes |= {"pooled": (n, self.vec_in_dim)} if self.vec_in_dim else {}
        shapes |= {"guidance": (n,)} if self.guidance_embed else {}
        for name in sorted({*shapes, *y} - {"text"}):
            given, wanted = y.get(name), shapes.get(name)
            cure = CURES.get(name, f"a prompt has text, {', '.join(CURES)}")
            if given is None and wanted and name != "mask":
                raise ConfigError(f"{who} takes '{name}' {wanted} beside the text, and there is none; {cure}")
            if given is not None and wanted is None:
                raise ConfigError(f"{who} takes no '{name}' beside the text, and was given one; {cure}")
            if given is not None and tuple(given.shape) != wanted:
                raise ConfigError(f"{who} takes '{name}' {wanted}, was given {tuple(given.shape)}; {cure}")


def check_label_range(labels: Any, generator: Any, error: type[AlignTokError] = ConfigError) -> None:
    """Raise ConfigError unless labels (N,), a tensor or an array, are classes or, given to a model, the null class.

    error: DataError for labels that are the data's, among which no null class may be. A plan's have no values to check.
    """
    if not has_values(labels):
        return
    low, high, classes = int(labels.min()), int(labels.max()), generator.num_classes
    null = generator.null_class if error is ConfigError else None
    if low < 0 or high >= classes + (null is not None):
        allowed = f"0 to {classes - 1}" + ("" if null is None else f", and {null} for the null class")
        raise error(
            f"labels from {low} to {high}, but with num_classes={classes} of the generator allowed are {allowed}; set "
            "it to the number of classes, or to 1 for an unconditional generator (-1 is an image without a class)"
        )
