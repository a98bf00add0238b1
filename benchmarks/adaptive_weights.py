"""What the gradient-ratio weights cost: fixed weights, the peers' way and ours, side by side in one run.

    python benchmarks/adaptive_weights.py [--image-size 96] [--batch 4] [--rounds 9] [--threads 2]

One stage-2 step without the optimisers (encoder, adapter and decoder train; L1, LPIPS with a random trunk, GAN and
semantic preservation). All ways share the model, the batch and one discriminator pass over the reconstruction; they
differ in how the weights are found: "ours" of the whole batch, "groups" of halves of it. They take turns, so a noisy
machine disturbs them alike; printed are medians of the ratios within a round. Gradients of the peers' way and ours are
compared first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from aligntok.training.alignment.gradient_ratio import gradient_ratio
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.settings import StageSettings
from aligntok.training.stages import MicroBatch

LOSSES: dict[str, dict[str, Any]] = {
    "l1": {"type": "l1"},
    "lpips": {"type": "lpips", "pretrained": False},
    "gan": {"type": "gan", "weight": 0.5, "adaptive_weight": {"at": "decoder"}},
    "semantic": {"type": "semantic_preservation", "adaptive_weight": {"at": "encoder"}},
}
BALANCED = [(name, loss) for name, loss in LOSSES.items() if "adaptive_weight" in loss]
FIXED = {"gan": 0.3, "semantic": 0.7}


PATCHES = {"type": "patchgan", "norm": "group"}


def build_model(
    image_size: int, losses: Mapping[str, Any] = LOSSES, discriminator: Mapping[str, Any] = PATCHES
) -> AlignmentModel:
    """Return a stage-2 model of some ten million parameters, teacher included."""
    settings = StageSettings(
        steps=1,
        model={
            "encoder": {"type": "timm", "model_name": "vit_small_patch16_224", "pretrained": False},
            "decoder": {"type": "ldm_cnn", "ch": 32, "num_res_blocks": 1, "resolution": image_size},
            "latent_dim": 16,
        },
        losses=losses,
        trainable=["encoder", "adapter", "decoder"],
        discriminator=discriminator,
        teacher="start",
    )
    return AlignmentModel(settings)


def ours(model: AlignmentModel, images: Tensor) -> None:
    """Walk the graph once, part by part."""
    model.backward({"images": images}, MicroBatch(0, 0, 1))


def plain(model: AlignmentModel, images: Tensor, weigh: Callable[..., dict[str, Tensor | float]]) -> None:
    """One joined graph and one backward pass; `weigh` gives the weights of the adversarial and the semantic loss."""
    tokenizer, losses = model.tokenizer, model.objective.losses
    features = tokenizer.encoder(images)
    latents = tokenizer.adapter(features)
    reconstruction = tokenizer.decoder(latents)
    teacher_latents = model.teacher(images)["teacher_latents"]
    fake_logits = model.discriminator(reconstruction)
    likeness = losses["l1"](images, reconstruction) + losses["lpips"](images, reconstruction)
    adversarial, semantic = losses["gan"](fake_logits), losses["semantic"](latents, teacher_latents)
    weights = weigh(model, likeness, adversarial, semantic)
    total = likeness + 0.5 * weights["gan"] * adversarial + weights["semantic"] * semantic
    total.backward(inputs=list(tokenizer.parameters()), retain_graph=True)
    # The discriminator's own graph of the same logits; its loss must not reach the tokenizer.
    loss = losses["gan"].discriminator_loss(model.discriminator(images), fake_logits)
    loss.backward(inputs=list(model.discriminator.parameters()))


def fixed_weights(*_: Any) -> dict[str, Tensor | float]:
    """Constants: nothing to find."""
    return dict(FIXED)


def peers_weights(model: AlignmentModel, likeness: Tensor, adversarial: Tensor, semantic: Tensor) -> dict[str, Any]:
    """Find the weights by four more passes of autograd over the joined graph, as VQGAN and its descendants do."""
    w, v = model.tokenizer.decoder.last_layer, model.tokenizer.encoder.last_layer
    gan = gradient_ratio(_grad(likeness, w), _grad(adversarial, w))
    reconstruction_loss = likeness + 0.5 * gan * adversarial
    return {"gan": gan, "semantic": gradient_ratio(_grad(reconstruction_loss, v), _grad(semantic, v))}


def _grad(loss: Tensor, parameter: Tensor) -> Tensor:
    return torch.autograd.grad(loss, parameter, retain_graph=True)[0]


WAYS: dict[str, Callable[[AlignmentModel, Tensor], None]] = {
    "fixed": lambda model, images: plain(model, images, fixed_weights),
    "peers": lambda model, images: plain(model, images, peers_weights),
    "ours": ours,
    "groups": ours,
}


def in_halves(model: AlignmentModel, image_size: int, batch: int) -> AlignmentModel:
    """Return the model with ratios of halves of the batch."""
    weights = {name: {"at": loss["adaptive_weight"]["at"], "images": max(1, batch // 2)} for name, loss in BALANCED}
    halves = build_model(image_size, {**LOSSES, **{k: {**LOSSES[k], "adaptive_weight": weights[k]} for k in weights}})
    halves.load_state_dict(model.state_dict())
    return halves


def timed(way: str, model: AlignmentModel, images: Tensor) -> float:
    """Return the seconds of one step."""
    model.zero_grad(set_to_none=True)
    began = time.perf_counter()
    WAYS[way](model, images)
    return time.perf_counter() - began


def largest_difference(model: AlignmentModel, images: Tensor) -> float:
    """Return the largest difference between the peers' gradients and ours, relative to a part's largest gradient.

    Not to each tensor's own: a bias before a normalisation has a gradient of rounding errors alone.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for way in ("peers", "ours"):
        timed(way, model, images)
        parts = {name: [p.grad.flatten() for p in part.parameters()] for name, part in model.trained_parts().items()}
        found[way] = {name: torch.cat(gradients) for name, gradients in parts.items()}
    pairs = [(found["peers"][name], found["ours"][name]) for name in found["peers"]]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = build_model(given.image_size)
    with torch.no_grad():  # away from the teacher, so that the semantic loss pulls
        for parameter in model.tokenizer.encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    models = dict.fromkeys(WAYS, model) | {"groups": in_halves(model, given.image_size, given.batch)}
    images = torch.rand(given.batch, 3, given.image_size, given.image_size) * 2 - 1
    print(f"gradients, peers against ours: largest relative difference {largest_difference(model, images):.1e}")
    rounds = [{way: timed(way, models[way], images) for way in WAYS} for _ in range(given.rounds + 1)][1:]
    for way in WAYS:
        seconds = statistics.median(r[way] for r in rounds)
        ratios = sorted(r[way] / r["fixed"] for r in rounds)
        spread = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
        print(f"{way:6s} {seconds:7.3f} s a step   {statistics.median(ratios):5.2f} x fixed weights ({spread})")


if __name__ == "__main__":
    main()
