"""The plugin author's kit: one call in a test checks a component, by its registry name, against its contract.

    from aligntok.plugins.testing import check_encoder

    def test_encoder_keeps_its_contract():
        check_encoder("mynet", image_size=(64, 96), pretrained=False)

Each raises AssertionError with what was promised and what was found. Further keywords are the component's own: choose
small ones. Sizes are (height, width), and not square on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aligntok.plugins.component_checks import (
    BATCH,
    FEATURE_DIM,
    LATENT_DIM,
    alike,
    builder,
    check_balanced,
    check_checkpointing,
    check_discriminator_side,
    check_identity,
    check_independent,
    check_meta,
    check_module,
    check_pixels,
    check_scalar,
    check_shape,
    loss_inputs,
    promise,
    random_images,
    random_pixels,
    random_tensor,
    some_of,
    wake,
)
from aligntok.registry import ADAPTERS, DECODERS, DISCRIMINATORS, ENCODERS, EXTRACTORS, GENERATORS, LOSSES

LOSS_PLACES = ("reconstruction", "latents", "moments", "features")


def check_encoder(name: str, image_size: tuple[int, int] = (64, 96), **options: Any) -> None:
    """Check an encoder: images (N, 3, H, W) to features (N, out_dim, H/f, W/f), and the promises all components make.

    Also that features do not depend on the rest of the batch, that `last_layer` is one of its parameters, that
    gradient checkpointing leaves gradients as they are, and that it builds on the meta device without weights.
    `pretrained` is False unless given.
    """
    who = f"encoder '{name}'"
    options = {"pretrained": False, **options}
    build = builder(ENCODERS, name, options)
    encoder = build()
    f = encoder.downsample_factor
    for what in ("downsample_factor", "stride", "out_dim"):
        value = getattr(encoder, what, None)
        promise(isinstance(value, int) and value > 0, f"{who}: {what} must be a positive int, is {value!r}")
    promise(
        not (image_size[0] % f or image_size[1] % f), f"{who}: image_size {image_size} must be of multiples of f = {f}"
    )
    images = random_images(image_size)
    check_shape(who, encoder, images, (BATCH, encoder.out_dim, image_size[0] // f, image_size[1] // f))
    check_independent(who, encoder, images)
    check_module(who, build, encoder, images)
    check_balanced(who, encoder, images)
    check_meta(who, builder(ENCODERS, name, {**options, "pretrained": False}), build())


def check_adapter(
    name: str, in_dim: int = FEATURE_DIM, latent_dim: int = LATENT_DIM, size: tuple[int, int] = (4, 6), **options: Any
) -> None:
    """Check an adapter: features (N, in_dim, h, w) to latents (N, latent_dim, h, w), and what all promise."""
    who = f"adapter '{name}'"
    build = builder(ADAPTERS, name, {"in_dim": in_dim, "latent_dim": latent_dim, **options})
    adapter = build()
    features = random_tensor(BATCH, in_dim, *size)
    check_shape(who, adapter, features, (BATCH, latent_dim, *size))
    check_module(who, build, adapter, features)
    check_meta(who, build, build())


def check_decoder(
    name: str, image_size: tuple[int, int] = (64, 96), latent_dim: int = LATENT_DIM, **options: Any
) -> None:
    """Check a decoder: latents (N, latent_dim, H/f, W/f) to images (N, 3, H, W), and what all components promise.

    Also that `last_layer` is one of its parameters, and that gradient checkpointing leaves gradients as they are.
    """
    who = f"decoder '{name}'"
    build = builder(DECODERS, name, {"latent_dim": latent_dim, **options})
    decoder = build()
    f = decoder.upsample_factor
    promise(isinstance(f, int) and f > 0, f"{who}: upsample_factor must be a positive int, is {f!r}")
    latents = random_tensor(BATCH, latent_dim, image_size[0] // f, image_size[1] // f)
    check_shape(who, decoder, latents, (BATCH, 3, image_size[0] // f * f, image_size[1] // f * f))
    check_module(who, build, decoder, latents)
    check_balanced(who, decoder, latents)
    check_meta(who, build, build())


def check_discriminator(name: str, image_size: tuple[int, int] = (64, 96), **options: Any) -> None:
    """Check a discriminator: images (N, 3, H, W) to patch logits (N, 1, h', w'), and what all components promise."""
    who = f"discriminator '{name}'"
    build = builder(DISCRIMINATORS, name, options)
    discriminator = build()
    images = random_images(image_size)
    logits = discriminator(images)
    promise(
        logits.dim() == 4 and tuple(logits.shape[:2]) == (BATCH, 1),
        f"{who}: logits must be ({BATCH}, 1, h, w), are {tuple(logits.shape)}",
    )
    check_module(who, build, discriminator, images)
    check_meta(who, build, build())


def check_loss(
    name: str, image_size: tuple[int, int] = (64, 96), inputs: Mapping[str, Tensor] | None = None, **options: Any
) -> None:
    """Check a loss: a finite scalar of the tensors its `inputs` name, with a gradient where `at` says.

    The tensors are random, latents of 8 channels and features of 12 at a sixteenth of the image; `inputs` gives others.
    A loss with `discriminator_loss(real_logits, fake_logits)` has that checked as well.
    """
    who = f"loss '{name}'"
    build = builder(LOSSES, name, options)
    loss = build()
    known = {**loss_inputs(image_size), **(inputs or {})}
    at, needed = getattr(loss, "at", None), getattr(loss, "inputs", None)
    promise(at in LOSS_PLACES, f"{who}: `at` must be one of {', '.join(LOSS_PLACES)}, is {at!r}")
    promise(
        isinstance(needed, tuple) and bool(needed) and set(needed) <= set(known),
        f"{who}: `inputs` must be a tuple of names among {', '.join(known)}, is {needed!r}",
    )
    names: tuple[str, ...] = tuple(needed or ())
    given = [known[key] for key in names]
    check_scalar(who, loss(*given))
    reached = [i for i, key in enumerate(names) if key == at] or [
        i for i, key in enumerate(names) if key == "fake_logits"
    ]
    promise(bool(reached), f"{who}: forward takes neither '{at}', where its gradient starts, nor 'fake_logits'")
    check_module(who, build, loss, *given, reached=reached)
    if hasattr(loss, "discriminator_loss"):
        check_discriminator_side(who, loss, known["fake_logits"])


def check_generator(
    name: str, in_channels: int = LATENT_DIM, size: tuple[int, int] = (4, 6), num_classes: int = 3, **options: Any
) -> None:
    """Check a generator: latents (N, C, h, w), times (N,), labels (N,) to a velocity (N, C, h, w), what all promise.

    Also that a sample's velocity does not depend on the rest of the batch, that the null class is taken where labels
    are dropped in training, and that gradient checkpointing leaves gradients as they are.
    """
    who = f"generator '{name}'"
    options = {"in_channels": in_channels, "num_classes": num_classes, **options}
    build = builder(GENERATORS, name, options)
    generator = build()
    wake(generator)
    x, t, y = random_tensor(BATCH, in_channels, *size), torch.tensor([0.2, 0.9]), torch.tensor([0, num_classes - 1])
    with torch.no_grad():
        velocity, alone = generator(x, t, y), generator(x[:1], t[:1], y[:1])
    promise(
        velocity.shape == x.shape,
        f"{who}: of latents {tuple(x.shape)} it must make as many, it makes {tuple(velocity.shape)}",
    )
    promise(
        alike(velocity[:1], alone, tolerance=1e-3),
        f"{who}: a sample's velocity depends on the others in the batch, or on chance, in training mode",
    )
    null = generator.null_class
    promise(
        (null == num_classes) if generator.class_dropout_prob > 0 else null is None,
        f"{who}: null_class must be num_classes where class_dropout_prob is above 0, else None; is {null!r}",
    )
    if null is not None:
        generator(x, t, torch.full_like(y, null))
    check_module(who, build, generator, x, t, y)
    check_checkpointing(who, build(), x, t, y)
    check_meta(who, build, build())


def check_extractor(name: str, image_size: tuple[int, int] = (64, 96), **options: Any) -> None:
    """Check an extractor: uint8 images (N, 3, H, W) of any size to Features of float32 rows, one an image.

    Also that it has a title and says how it resizes, is frozen and in eval mode, that an image's features depend on it
    alone and on no chance, that the identity follows from the weights, that it says so in its title when these are
    random, and that it builds on the meta device. `pretrained` is False unless given.
    """
    who = f"extractor '{name}'"
    options = {"pretrained": False, **options}
    build = builder(EXTRACTORS, name, options)
    extractor = build()
    for what in ("title", "resize"):
        value = getattr(extractor, what, None)
        promise(isinstance(value, str) and bool(value), f"{who}: {what} must be a text, is {value!r}")
    trained = [key for key, p in extractor.named_parameters() if p.requires_grad]
    promise(not trained, f"{who}: {some_of(trained)} is not frozen; call requires_grad_(False) when it is built")
    promise(not any(m.training for m in extractor.modules()), f"{who}: it must be in eval mode once it is built")
    check_pixels(who, extractor, image_size)
    check_identity(who, build, extractor, random_pixels(image_size))
    if options["pretrained"] is False:
        promise("random" in extractor.title, f"{who}: of random weights the title must say so, is {extractor.title!r}")
        check_meta(who, build, extractor)
