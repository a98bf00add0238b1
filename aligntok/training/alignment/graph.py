"""The tensors between the parts of a tokenizer, cut apart so that a backward pass can go part by part."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment.gradient_ratio import LastLayer, last_layers_of

#: Tensors that a loss can pull on, from the encoder to the image.
ENCODER_SIDE = ("features", "moments", "latents")


@dataclass
class ForwardGraph:
    """One forward pass: images -> features -> moments -> latents | -> reconstruction.

    The decoder ran on a detached copy of the latents, and the losses run on detached copies of everything
    (`leaves`), so that each part's backward pass is one call with the gradients that were combined above it.
    features (N, C, h, w), moments (N, d or 2d, h, w), latents (N, d, h, w), reconstruction (N, 3, H, W). `inputs` are
    what losses take, `logs` what is to be logged. `scale` multiplies every loss: the micro-batch's share of the step,
    times the loss scale of float16. `references` has, by the name of a loss, the gradients at the latents that it is
    balanced against, where those are not all that arrive there. `last_layers` are those of encoder and decoder.
    """

    tensors: dict[str, Tensor]
    leaves: dict[str, Tensor]
    inputs: dict[str, Tensor]
    step: int = 0
    scale: Tensor | float = 1.0
    logs: dict[str, Tensor] = field(default_factory=dict)
    arriving: dict[str, Tensor] = field(default_factory=dict)
    references: dict[str, Tensor] = field(default_factory=dict)
    last_layers: dict[str, LastLayer] = field(default_factory=dict)

    def add(self, name: str, gradient: Tensor) -> None:
        """Add a gradient to those that arrive at tensor `name`."""
        self.arriving[name] = self.arriving[name] + gradient if name in self.arriving else gradient

    @record_function("decoder")
    def backward_decoder(self) -> None:
        """Walk the decoder once: its parameters get their gradients, the latents what arrives from the image."""
        gradient = self.arriving.pop("reconstruction")
        reconstruction = self.tensors["reconstruction"]
        if not reconstruction.requires_grad:
            return
        reconstruction.backward(gradient.to(reconstruction.dtype))
        latents = self.leaves["latents"]
        if latents.grad is not None:
            self.add("latents", latents.grad)
            latents.grad = None

    @record_function("encoder")
    def backward_encoder(self) -> None:
        """Walk adapter and encoder once, with everything that arrives at latents, moments and features."""
        names = [name for name in ENCODER_SIDE if name in self.arriving and self.tensors[name].requires_grad]
        if names:
            gradients = [self.arriving[name].to(self.tensors[name].dtype) for name in names]
            torch.autograd.backward([self.tensors[name] for name in names], gradients)


def run_forward(
    tokenizer: Tokenizer,
    images: Tensor,
    trainable: Iterable[str],
    step: int = 0,
    scale: Tensor | float = 1.0,
    noise: Tensor | None = None,
    keep: Collection[str] = (),
) -> ForwardGraph:
    """Run the tokenizer on images (N, 3, H, W); what lies before the first trained part runs without a graph.

    The latents of a variational tokenizer are those that `noise` (N, d, h, w) draws, the means without. The leaves are
    float32, whatever autocast made of the tensors. `keep` names the parts whose last layers are asked for the gradients
    of some of the images.
    """
    trained = set(trainable)
    coders: dict[str, Any] = {name: getattr(tokenizer, name) for name in ("encoder", "decoder") if name in trained}
    with last_layers_of(coders, keep) as last:
        tensors, leaves = _forward(tokenizer, images, trained, noise)
    return ForwardGraph(tensors, leaves, {"images": images, **leaves}, step, scale, last_layers=last)


def _forward(
    tokenizer: Tokenizer, images: Tensor, trained: Collection[str], noise: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the parts give, and the copies that the losses, and the decoder, run on."""
    with record_function("encoder"), torch.set_grad_enabled("encoder" in trained):
        features = tokenizer.encoder(images)
    with record_function("encoder"), torch.set_grad_enabled("encoder" in trained or "adapter" in trained):
        moments = tokenizer.adapter(features)
        latents = tokenizer.latents_from(moments, noise=noise)
    tensors = {"features": features, "moments": moments, "latents": latents}
    leaves = {name: tensor.detach().float().requires_grad_(tensor.requires_grad) for name, tensor in tensors.items()}
    with record_function("decoder"), torch.set_grad_enabled(latents.requires_grad or "decoder" in trained):
        tensors["reconstruction"] = tokenizer.decoder(leaves["latents"])
    leaves["reconstruction"] = tensors["reconstruction"].detach().float().requires_grad_()
    return tensors, leaves
