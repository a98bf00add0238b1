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

from aligntok.errors import ConfigError, some_of
from aligntok.plugins.component_checks import (
    BATCH,
    FEATURE_DIM,
    LATENT_DIM,
    ComponentCheck,
    alike,
    random_images,
    random_pixels,
    random_prompts,
    random_tensor,
    wake,
)
from aligntok.registry import (
    ADAPTERS,
    DECODERS,
    DISCRIMINATORS,
    ENCODERS,
    EXTRACTORS,
    GENERATORS,
    LOSSES,
    TEXT_ENCODERS,
)

LOSS_PLACES = ("reconstruction", "latents", "moments", "features")


def check_encoder(name: str, image_size: tuple[int, int] = (64, 96), **options: Any) -> None:
    """Check an encoder: images (N, 3, H, W) to features (N, out_dim, H/f, W/f), and the promises all components make.

    Also that features do not depend on the rest of the batch, that `last_layer` is one of its parameters, that
    gradient checkpointing leaves gradients as they are, and that it builds on the meta device without weights.
    `pretrained` is False unless given.
    """
    check = ComponentCheck(ENCODERS, name, {"pretrained": False, **options})
    encoder = check.build()
    f = encoder.downsample_factor
    for what in ("downsample_factor", "stride", "out_dim"):
        value = getattr(encoder, what, None)
        check.promise(isinstance(value, int) and value > 0, f"{what} must be a positive int, is {value!r}")
    on_grid = not (image_size[0] % f or image_size[1] % f)
    check.promise(on_grid, f"image_size {image_size} must be of multiples of f = {f}")
    images = random_images(image_size)
    check.shape(encoder, images, (BATCH, encoder.out_dim, image_size[0] // f, image_size[1] // f))
    others = (
        "an image's features depend on the others in the batch, or on chance, in training mode; "
        "batch norm must use its pretrained statistics, and dropout be off"
    )
    check.independent(encoder, others, images)
    check.module(encoder, images)
    check.balanced(encoder, images)
    check.meta(check.build(), pretrained=False)


def check_adapter(
    name: str, in_dim: int = FEATURE_DIM, latent_dim: int = LATENT_DIM, size: tuple[int, int] = (4, 6), **options: Any
) -> None:
    """Check an adapter: features (N, in_dim, h, w) to latents (N, latent_dim, h, w), and what all promise."""
    check = ComponentCheck(ADAPTERS, name, {"in_dim": in_dim, "latent_dim": latent_dim, **options})
    adapter = check.build()
    features = random_tensor(BATCH, in_dim, *size)
    check.shape(adapter, features, (BATCH, latent_dim, *size))
    check.module(adapter, features)
    check.meta(check.build())


def check_decoder(
    name: str, image_size: tuple[int, int] = (64, 96), latent_dim: int = LATENT_DIM, **options: Any
) -> None:
    """Check a decoder: latents (N, latent_dim, H/f, W/f) to images (N, 3, H, W), and what all components promise.

    Also that `last_layer` is one of its parameters, and that gradient checkpointing leaves gradients as they are.
    """
    check = ComponentCheck(DECODERS, name, {"latent_dim": latent_dim, **options})
    decoder = check.build()
    f = decoder.upsample_factor
    check.promise(isinstance(f, int) and f > 0, f"upsample_factor must be a positive int, is {f!r}")
    h, w = image_size[0] // f, image_size[1] // f
    latents = random_tensor(BATCH, latent_dim, h, w)
    check.shape(decoder, latents, (BATCH, 3, h * f, w * f))
    check.module(decoder, latents)
    check.balanced(decoder, latents)
    check.meta(check.build())


def check_discriminator(name: str, image_size: tuple[int, int] = (64, 96), **options: Any) -> None:
    """Check a discriminator: images (N, 3, H, W) to patch logits (N, 1, h', w'), and what all components promise."""
    check = ComponentCheck(DISCRIMINATORS, name, options)
    discriminator = check.build()
    images = random_images(image_size)
    shape = tuple(check.output(discriminator, images).shape)
    check.promise(len(shape) == 4 and shape[:2] == (BATCH, 1), f"logits must be ({BATCH}, 1, h, w), are {shape}")
    check.module(discriminator, images)
    check.meta(check.build())


def check_loss(
    name: str, image_size: tuple[int, int] = (64, 96), inputs: Mapping[str, Tensor] | None = None, **options: Any
) -> None:
    """Check a loss: a finite scalar of the tensors its `inputs` name, with a gradient where `at` says.

    The tensors are random, latents of 8 channels and features of 12 at a sixteenth of the image; `inputs` gives others.
    A loss with `discriminator_loss(real_logits, fake_logits)` has that checked as well.
    """
    check = ComponentCheck(LOSSES, name, options)
    loss = check.build()
    h, w = image_size[0] // 16, image_size[1] // 16
    known = {
        "images": random_images(image_size),
        "reconstruction": random_images(image_size, seed=1),
        "latents": random_tensor(BATCH, LATENT_DIM, h, w),
        "moments": random_tensor(BATCH, 2 * LATENT_DIM, h, w),
        "features": random_tensor(BATCH, FEATURE_DIM, h, w),
        "teacher_features": random_tensor(BATCH, FEATURE_DIM, h, w, seed=1),
        "teacher_latents": random_tensor(BATCH, LATENT_DIM, h, w, seed=1),
        "fake_logits": random_tensor(BATCH, 1, h, w),
        **(inputs or {}),
    }
    at, needed = getattr(loss, "at", None), getattr(loss, "inputs", None)
    check.promise(at in LOSS_PLACES, f"`at` must be one of {', '.join(LOSS_PLACES)}, is {at!r}")
    check.promise(
        isinstance(needed, tuple) and bool(needed) and set(needed) <= set(known),
        f"`inputs` must be a tuple of names among {', '.join(known)}, is {needed!r}",
    )
    names: tuple[str, ...] = tuple(needed or ())
    given = [known[key] for key in names]
    check.scalar(loss(*given))
    starts = at if at in names else "fake_logits"
    reached = [i for i, key in enumerate(names) if key == starts]
    check.promise(bool(reached), f"forward takes neither '{at}', where its gradient starts, nor 'fake_logits'")
    check.module(loss, *given, reached=reached)
    trains = hasattr(loss, "discriminator_loss")
    check.promise(trains or "fake_logits" not in names, "a loss of fake_logits must have a discriminator_loss, too")
    if trains:
        shape = known["fake_logits"].shape
        real, fake = (random_tensor(*shape, seed=seed).requires_grad_() for seed in (1, 2))
        value = loss.discriminator_loss(real, fake)
        check.scalar(value, "discriminator_loss: ")
        value.backward()
        pulled = all(x.grad is not None and bool(x.grad.any()) for x in (real, fake))
        check.promise(pulled, "discriminator_loss must pull at the real and at the fake logits")


def check_generator(
    name: str, in_channels: int = LATENT_DIM, size: tuple[int, int] = (4, 6), num_classes: int = 3, **options: Any
) -> None:
    """Check a generator: latents (N, C, h, w), times (N,), conditions to a velocity (N, C, h, w), what all promise.

    Also that a sample's velocity does not depend on the rest of the batch, that gradient checkpointing leaves gradients
    as they are; of classes, that the null class is taken where labels are dropped in training; of prompts, for which
    num_classes has no meaning and tensors are drawn, that with text_padding="mask" nothing depends on padding.
    """
    prompted = getattr(GENERATORS.get(name), "conditioned_on", "classes") == "prompts"
    classes = {} if prompted else {"num_classes": num_classes}
    check = ComponentCheck(GENERATORS, name, {"in_channels": in_channels, **classes, **options})
    generator = check.build()
    wake(generator)
    if prompted:
        check.has(generator, "context_in_dim", "vec_in_dim", "guidance_embed", "text_padding")
    x, t = random_tensor(BATCH, in_channels, *size), torch.tensor([0.2, 0.9])
    y: Any = random_prompts(generator) if prompted else torch.tensor([0, num_classes - 1])
    with torch.no_grad():
        shape = tuple(check.output(generator, x, t, y).shape)
    check.promise(shape == x.shape, f"of latents {tuple(x.shape)} it must make as many, it makes {shape}")
    others = "a sample's velocity depends on the others in the batch, or on chance, in training mode"
    check.independent(generator, others, x, t, y)
    (_check_padding if prompted else _check_null_class)(check, generator, x, t, y)
    check.module(generator, x, t, y)
    check.checkpointing(check.build(), x, t, y)
    check.meta(check.build())


def _check_null_class(check: ComponentCheck, generator: Any, x: Tensor, t: Tensor, y: Tensor) -> None:
    check.has(generator, "null_class", "num_classes", "class_dropout_prob")
    null = generator.null_class
    check.promise(
        null == (generator.num_classes if generator.class_dropout_prob > 0 else None),
        f"null_class must be num_classes where class_dropout_prob is above 0, else None; is {null!r}",
    )
    if null is not None:
        generator(x, t, torch.full_like(y, null))


def _check_padding(check: ComponentCheck, generator: Any, x: Tensor, t: Tensor, y: dict[str, Tensor]) -> None:
    other = {**y, "text": y["text"].where(y["mask"][..., None], 7.0)}
    with torch.no_grad():
        same = alike(generator(x, t, y), generator(x, t, other))
    kept = same or generator.text_padding != "mask"
    check.promise(kept, "with text_padding='mask' its velocity must not depend on padding, but does")


def check_extractor(name: str, image_size: tuple[int, int] = (64, 96), **options: Any) -> None:
    """Check an extractor: uint8 images (N, 3, H, W) of any size to Features of float32 rows, one an image.

    Also that it has a title and says how it resizes, is frozen and in eval mode, that an image's features depend on it
    alone and on no chance, that the identity follows from the weights, that it says so in its title when these are
    random, and that it builds on the meta device. `pretrained` is False unless given.
    """
    options = {"pretrained": False, **options}
    check = ComponentCheck(EXTRACTORS, name, options)
    extractor = check.build()
    for what in ("title", "resize"):
        value = getattr(extractor, what, None)
        check.promise(isinstance(value, str) and bool(value), f"{what} must be a text, is {value!r}")
    trained = [key for key, p in extractor.named_parameters() if p.requires_grad]
    check.promise(not trained, f"{some_of(trained)} is not frozen; call requires_grad_(False) when it is built")
    check.promise(not any(m.training for m in extractor.modules()), "it must be in eval mode once it is built")
    check.pixels(extractor, image_size)
    check.identity(extractor, random_pixels(image_size))
    if options["pretrained"] is False:
        title = extractor.title
        check.promise("random" in title, f"of random weights the title must say so, is {title!r}")
        check.meta(extractor)


def check_text_encoder(name: str, **options: Any) -> None:
    """Check a text encoder: prompts to text (N, L, D) with its mask, and a pooled row where it says so.

    Also that what a prompt gives follows from it alone, wherever its padding is; that prompts are cut and padded as
    asked, by an object that other processes get; that it is frozen and stays in eval mode; that the identity follows
    from weights and options; and that what are no prompts is refused with a ConfigError.
    """
    check = ComponentCheck(TEXT_ENCODERS, name, options)
    encoder = check.build()
    for what in ("dim", "max_tokens", "pooled_dim"):
        value = getattr(encoder, what, None)
        good = (isinstance(value, int) and value > 0) or (what == "pooled_dim" and value is None)
        check.promise(good, f"{what} must be a positive int, is {value!r}")
    trained = [key for key, p in encoder.named_parameters() if p.requires_grad]
    check.promise(not trained, f"{some_of(trained)} is not frozen; call freeze() when it is built")
    check.promise(
        not any(m.training for m in encoder.train().modules()), "it must be in eval mode, and stay so after train()"
    )
    prompts = ["a red apple", "", "a photo of a cat on a dog " * encoder.max_tokens]
    check.tokens(encoder, prompts)
    check.text(encoder, prompts)
    check.known_by(encoder)
    for given in ([], "a red apple", [None]):
        try:
            encoder.encode(given)
        except ConfigError:
            continue
        check.promise(False, f"{given!r} are no prompts, and must be refused with a ConfigError")
