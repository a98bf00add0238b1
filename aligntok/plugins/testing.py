"""The plugin author's kit: one call in a test checks a component, by its registry name, against its contract.

    from aligntok.plugins.testing import check_encoder

    def test_encoder_keeps_its_contract():
        check_encoder("mynet", image_size=(64, 96), pretrained=False)

Each raises AssertionError with what was promised and what was found. Further keywords are the component's own: choose
small ones. Sizes are (height, width), and not square on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aligntok.registry import ADAPTERS, DECODERS, DISCRIMINATORS, ENCODERS, LOSSES

BATCH = 2
LATENT_DIM = 8  # of the latents that check_adapter and check_decoder ask for and check_loss hands out
FEATURE_DIM = 12
LOSS_PLACES = ("reconstruction", "latents", "moments", "features")
Build = Callable[[], Any]


def check_encoder(name: str, image_size: tuple[int, int] = (64, 96), **options: Any) -> None:
    """Check an encoder: images (N, 3, H, W) to features (N, out_dim, H/f, W/f), and the promises all components make.

    Also that features do not depend on the rest of the batch, that `last_layer` is one of its parameters, that
    gradient checkpointing leaves gradients as they are, and that it builds on the meta device without weights.
    `pretrained` is False unless given.
    """
    who = f"encoder '{name}'"
    options = {"pretrained": False, **options}
    build = _builder(ENCODERS, name, options)
    encoder = build()
    f = encoder.downsample_factor
    for what in ("downsample_factor", "stride", "out_dim"):
        value = getattr(encoder, what, None)
        _promise(isinstance(value, int) and value > 0, f"{who}: {what} must be a positive int, is {value!r}")
    _promise(
        not (image_size[0] % f or image_size[1] % f), f"{who}: image_size {image_size} must be of multiples of f = {f}"
    )
    images = _images(image_size)
    _check_shape(who, encoder, images, (BATCH, encoder.out_dim, image_size[0] // f, image_size[1] // f))
    _check_independent(who, encoder, images)
    _check_module(who, build, encoder, images)
    _check_balanced(who, encoder, images)
    _check_meta(who, _builder(ENCODERS, name, {**options, "pretrained": False}), build())


def check_adapter(
    name: str, in_dim: int = FEATURE_DIM, latent_dim: int = LATENT_DIM, size: tuple[int, int] = (4, 6), **options: Any
) -> None:
    """Check an adapter: features (N, in_dim, h, w) to latents (N, latent_dim, h, w), and what all promise."""
    who = f"adapter '{name}'"
    build = _builder(ADAPTERS, name, {"in_dim": in_dim, "latent_dim": latent_dim, **options})
    adapter = build()
    features = _noise(BATCH, in_dim, *size)
    _check_shape(who, adapter, features, (BATCH, latent_dim, *size))
    _check_module(who, build, adapter, features)
    _check_meta(who, build, build())


def check_decoder(
    name: str, image_size: tuple[int, int] = (64, 96), latent_dim: int = LATENT_DIM, **options: Any
) -> None:
    """Check a decoder: latents (N, latent_dim, H/f, W/f) to images (N, 3, H, W), and what all components promise.

    Also that `last_layer` is one of its parameters, and that gradient checkpointing leaves gradients as they are.
    """
    who = f"decoder '{name}'"
    build = _builder(DECODERS, name, {"latent_dim": latent_dim, **options})
    decoder = build()
    f = decoder.upsample_factor
    _promise(isinstance(f, int) and f > 0, f"{who}: upsample_factor must be a positive int, is {f!r}")
    latents = _noise(BATCH, latent_dim, image_size[0] // f, image_size[1] // f)
    _check_shape(who, decoder, latents, (BATCH, 3, image_size[0] // f * f, image_size[1] // f * f))
    _check_module(who, build, decoder, latents)
    _check_balanced(who, decoder, latents)
    _check_meta(who, build, build())


def check_discriminator(name: str, image_size: tuple[int, int] = (64, 96), **options: Any) -> None:
    """Check a discriminator: images (N, 3, H, W) to patch logits (N, 1, h', w'), and what all components promise."""
    who = f"discriminator '{name}'"
    build = _builder(DISCRIMINATORS, name, options)
    discriminator = build()
    images = _images(image_size)
    logits = discriminator(images)
    _promise(
        logits.dim() == 4 and tuple(logits.shape[:2]) == (BATCH, 1),
        f"{who}: logits must be ({BATCH}, 1, h, w), are {tuple(logits.shape)}",
    )
    _check_module(who, build, discriminator, images)
    _check_meta(who, build, build())


def check_loss(
    name: str, image_size: tuple[int, int] = (64, 96), inputs: Mapping[str, Tensor] | None = None, **options: Any
) -> None:
    """Check a loss: a finite scalar of the tensors its `inputs` name, with a gradient where `at` says.

    The tensors are random, latents of 8 channels and features of 12 at a sixteenth of the image; `inputs` gives others.
    A loss with `discriminator_loss(real_logits, fake_logits)` has that checked as well.
    """
    who = f"loss '{name}'"
    build = _builder(LOSSES, name, options)
    loss = build()
    known = {**_loss_inputs(image_size), **(inputs or {})}
    at, needed = getattr(loss, "at", None), getattr(loss, "inputs", None)
    _promise(at in LOSS_PLACES, f"{who}: `at` must be one of {', '.join(LOSS_PLACES)}, is {at!r}")
    _promise(
        isinstance(needed, tuple) and bool(needed) and set(needed) <= set(known),
        f"{who}: `inputs` must be a tuple of names among {', '.join(known)}, is {needed!r}",
    )
    names: tuple[str, ...] = tuple(needed or ())
    given = [known[key] for key in names]
    _check_scalar(who, loss(*given))
    reached = [i for i, key in enumerate(names) if key == at] or [
        i for i, key in enumerate(names) if key == "fake_logits"
    ]
    _promise(bool(reached), f"{who}: forward takes neither '{at}', where its gradient starts, nor 'fake_logits'")
    _check_module(who, build, loss, *given, reached=reached)
    if hasattr(loss, "discriminator_loss"):
        _check_discriminator_side(who, loss, known["fake_logits"])


# What every component promises


def _check_module(who: str, build: Build, module: nn.Module, *inputs: Tensor, reached: list[int] | None = None) -> None:
    _check_deterministic(who, module, inputs)
    _check_round_trip(who, build, module, inputs)
    _check_freeze(who, build(), inputs)
    _check_gradients(who, build(), inputs, reached or [0])


def _check_shape(who: str, module: nn.Module, given: Tensor, expected: tuple[int, ...]) -> None:
    with torch.no_grad():
        found = tuple(module(given).shape)
    _promise(found == expected, f"{who}: of {tuple(given.shape)} it must make {expected}, it makes {found}")


def _check_scalar(who: str, value: Tensor) -> None:
    _promise(
        isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point() and bool(value.isfinite()),
        f"{who}: it must return one finite number, a tensor without dimensions; it returns {value!r}",
    )


def _check_deterministic(who: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    module.eval()
    with torch.no_grad():
        same = torch.equal(module(*inputs), module(*inputs))
    _promise(same, f"{who}: two evaluations of the same input differ; in eval mode nothing may be drawn at random")


def _check_round_trip(who: str, build: Build, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    _wake(module)
    with _seeded(1):
        other = build()
    try:
        other.load_state_dict(module.state_dict())
    except RuntimeError as error:
        raise AssertionError(f"{who}: a second instance refuses the first one's state dict: {error}") from error
    module.eval(), other.eval()
    with torch.no_grad():
        same = torch.equal(module(*inputs), other(*inputs))
    _promise(same, f"{who}: a second instance with the same state dict gives another output; something is not saved")


def _check_freeze(who: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    module.requires_grad_(False).eval()
    before = {key: value.clone() for key, value in _tensors(module).items()}
    output = module(*inputs)
    _promise(not output.requires_grad, f"{who}: frozen with requires_grad_(False), its output still wants a gradient")
    after = _tensors(module)
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    _promise(not changed, f"{who}: frozen and in eval mode, a forward pass still changes {_some(changed)}")


def _check_gradients(who: str, module: nn.Module, inputs: tuple[Tensor, ...], reached: list[int]) -> None:
    _wake(module)
    module.train()
    leaves = tuple(x.clone().requires_grad_(i in reached) for i, x in enumerate(inputs))
    output = module(*leaves)
    _promise(output.requires_grad, f"{who}: no gradient reaches any input or parameter; something detaches them")
    _pull(output)
    for i in reached:
        gradient = leaves[i].grad
        flows = gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
        _promise(flows, f"{who}: no gradient reaches its input {i}; something on the way detaches it, or makes it NaN")
    trainable = {key: p for key, p in module.named_parameters() if p.requires_grad}
    dead = [key for key, p in trainable.items() if p.grad is None or not p.grad.any()]
    _promise(
        not dead,
        f"{who}: no gradient reaches {_some(dead)}; leave unused parameters out, or set requires_grad to False",
    )
    broken = [key for key, p in trainable.items() if not p.grad.isfinite().all()]  # type: ignore[union-attr]
    _promise(not broken, f"{who}: the gradient of {_some(broken)} is not finite")


def _check_meta(who: str, build: Build, real: nn.Module) -> None:
    try:
        with torch.device("meta"):
            shadow = build()
    except Exception as error:  # whatever stops it, the promise is the same
        raise AssertionError(
            f"{who}: it does not build on the meta device, without weights: {type(error).__name__}: {error}"
        ) from error
    elsewhere = [key for key, value in _tensors(shadow).items() if value.device.type != "meta"]
    _promise(not elsewhere, f"{who}: built on the meta device, it still allocates {_some(elsewhere)}")
    shapes = [{key: tuple(value.shape) for key, value in _tensors(module).items()} for module in (shadow, real)]
    _promise(shapes[0] == shapes[1], f"{who}: on the meta device it has other parameters than elsewhere")


# What encoders and decoders promise besides


def _check_balanced(who: str, module: Any, given: Tensor) -> None:
    _promise(
        any(p is module.last_layer for p in module.parameters()), f"{who}: last_layer must be one of its parameters"
    )
    module.train().requires_grad_(True)
    plain = _gradients(module, given)
    module.set_grad_checkpointing(True)
    recomputed = _gradients(module, given)
    module.set_grad_checkpointing(False)
    other = [key for key, value in plain.items() if not _alike(value, recomputed[key])]
    _promise(not other, f"{who}: with gradient checkpointing the gradient of {_some(other)} is another one")


def _check_independent(who: str, module: nn.Module, images: Tensor) -> None:
    module.train()
    with torch.no_grad():
        together, alone = module(images)[:1], module(images[:1])
    _promise(
        _alike(together, alone, tolerance=1e-3),
        f"{who}: an image's features depend on the others in the batch, or on chance, in training mode; "
        "batch norm must use its pretrained statistics, and dropout be off",
    )


def _check_discriminator_side(who: str, loss: Any, logits: Tensor) -> None:
    real, fake = (_noise(*logits.shape, seed=seed).requires_grad_() for seed in (1, 2))
    value = loss.discriminator_loss(real, fake)
    _check_scalar(f"{who}: discriminator_loss", value)
    value.backward()
    reached = all(x.grad is not None and bool(x.grad.any()) for x in (real, fake))
    _promise(reached, f"{who}: discriminator_loss must pull at the real and at the fake logits")


# Building blocks


def _builder(registry: Any, name: str, options: dict[str, Any]) -> Build:
    return lambda: registry.build({"type": name, **options})


def _promise(kept: bool, message: str) -> None:
    if not kept:  # not an assert statement, which python -O would take out
        raise AssertionError(message)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def _images(size: tuple[int, int], seed: int = 0) -> Tensor:
    return _noise(BATCH, 3, *size, seed=seed).mul(0.5).clamp(-1, 1)


def _loss_inputs(image_size: tuple[int, int]) -> dict[str, Tensor]:
    h, w = image_size[0] // 16, image_size[1] // 16
    return {
        "images": _images(image_size),
        "reconstruction": _images(image_size, seed=1),
        "latents": _noise(BATCH, LATENT_DIM, h, w),
        "moments": _noise(BATCH, 2 * LATENT_DIM, h, w),
        "features": _noise(BATCH, FEATURE_DIM, h, w),
        "teacher_features": _noise(BATCH, FEATURE_DIM, h, w, seed=1),
        "teacher_latents": _noise(BATCH, LATENT_DIM, h, w, seed=1),
        "fake_logits": _noise(BATCH, 1, h, w),
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _wake(module: nn.Module) -> None:
    """Take parameters off the constants they may start at: behind a weight of zeros every gradient is zero."""
    with _seeded(2), torch.no_grad():
        for p in module.parameters():
            if p.requires_grad and p.min() == p.max():
                p.add_(torch.randn_like(p) * 0.02)


def _pull(output: Tensor) -> None:
    # Weighted at random: a plain sum is constant behind a normalisation, and has no gradient there.
    (output * _noise(*output.shape)).sum().backward()


def _gradients(module: nn.Module, given: Tensor) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    with _seeded(3):
        _pull(module(given.clone().requires_grad_()))
    return {key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None}


def _alike(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max().clamp(min=1e-6))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _some(keys: list[str], shown: int = 4) -> str:
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")
