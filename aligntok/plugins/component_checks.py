"""What every component promises, and how each promise is tried: the ground that the plugin author's kit stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 2
LATENT_DIM = 8  # of the latents that check_adapter and check_decoder ask for and check_loss hands out
FEATURE_DIM = 12
Build = Callable[[], Any]


def check_module(who: str, build: Build, module: nn.Module, *inputs: Tensor, reached: list[int] | None = None) -> None:
    check_deterministic(who, module, inputs)
    check_round_trip(who, build, module, inputs)
    check_freeze(who, build(), inputs)
    check_gradients(who, build(), inputs, reached or [0])


def check_shape(who: str, module: nn.Module, given: Tensor, expected: tuple[int, ...]) -> None:
    with torch.no_grad():
        found = tuple(module(given).shape)
    promise(found == expected, f"{who}: of {tuple(given.shape)} it must make {expected}, it makes {found}")


def check_scalar(who: str, value: Tensor) -> None:
    promise(
        isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point() and bool(value.isfinite()),
        f"{who}: it must return one finite number, a tensor without dimensions; it returns {value!r}",
    )


def check_deterministic(who: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    module.eval()
    with torch.no_grad():
        same = torch.equal(module(*inputs), module(*inputs))
    promise(same, f"{who}: two evaluations of the same input differ; in eval mode nothing may be drawn at random")


def check_round_trip(who: str, build: Build, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    wake(module)
    with seeded(1):
        other = build()
    try:
        other.load_state_dict(module.state_dict())
    except RuntimeError as error:
        raise AssertionError(f"{who}: a second instance refuses the first one's state dict: {error}") from error
    module.eval(), other.eval()
    with torch.no_grad():
        same = torch.equal(module(*inputs), other(*inputs))
    promise(same, f"{who}: a second instance with the same state dict gives another output; something is not saved")


def check_freeze(who: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    module.requires_grad_(False).eval()
    before = {key: value.clone() for key, value in tensors(module).items()}
    output = module(*inputs)
    promise(not output.requires_grad, f"{who}: frozen with requires_grad_(False), its output still wants a gradient")
    after = tensors(module)
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    promise(not changed, f"{who}: frozen and in eval mode, a forward pass still changes {some_of(changed)}")


def check_gradients(who: str, module: nn.Module, inputs: tuple[Tensor, ...], reached: list[int]) -> None:
    wake(module)
    module.train()
    leaves = tuple(x.clone().requires_grad_(i in reached) for i, x in enumerate(inputs))
    output = module(*leaves)
    promise(output.requires_grad, f"{who}: no gradient reaches any input or parameter; something detaches them")
    pull(output)
    for i in reached:
        gradient = leaves[i].grad
        flows = gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
        promise(flows, f"{who}: no gradient reaches its input {i}; something on the way detaches it, or makes it NaN")
    trainable = {key: p for key, p in module.named_parameters() if p.requires_grad}
    dead = [key for key, p in trainable.items() if p.grad is None or not p.grad.any()]
    promise(
        not dead,
        f"{who}: no gradient reaches {some_of(dead)}; leave unused parameters out, or set requires_grad to False",
    )
    broken = [key for key, p in trainable.items() if not p.grad.isfinite().all()]  # type: ignore[union-attr]
    promise(not broken, f"{who}: the gradient of {some_of(broken)} is not finite")


def check_meta(who: str, build: Build, real: nn.Module) -> None:
    try:
        with torch.device("meta"):
            shadow = build()
    except Exception as error:  # whatever stops it, the promise is the same
        raise AssertionError(
            f"{who}: it does not build on the meta device, without weights: {type(error).__name__}: {error}"
        ) from error
    elsewhere = [key for key, value in tensors(shadow).items() if value.device.type != "meta"]
    promise(not elsewhere, f"{who}: built on the meta device, it still allocates {some_of(elsewhere)}")
    shapes = [{key: tuple(value.shape) for key, value in tensors(module).items()} for module in (shadow, real)]
    promise(shapes[0] == shapes[1], f"{who}: on the meta device it has other parameters than elsewhere")


def check_balanced(who: str, module: Any, given: Tensor) -> None:
    promise(
        any(p is module.last_layer for p in module.parameters()), f"{who}: last_layer must be one of its parameters"
    )
    check_checkpointing(who, module, given)


def check_checkpointing(who: str, module: Any, *given: Tensor) -> None:
    """Check that recomputing activations leaves the gradients as they are."""
    wake(module)
    module.train().requires_grad_(True)
    plain = gradients(module, *given)
    module.set_grad_checkpointing(True)
    recomputed = gradients(module, *given)
    module.set_grad_checkpointing(False)
    other = [key for key, value in plain.items() if not alike(value, recomputed[key])]
    promise(not other, f"{who}: with gradient checkpointing the gradient of {some_of(other)} is another one")


def check_independent(who: str, module: nn.Module, images: Tensor) -> None:
    module.train()
    with torch.no_grad():
        together, alone = module(images)[:1], module(images[:1])
    promise(
        alike(together, alone, tolerance=1e-3),
        f"{who}: an image's features depend on the others in the batch, or on chance, in training mode; "
        "batch norm must use its pretrained statistics, and dropout be off",
    )


def check_features(who: str, found: Any, count: int) -> None:
    """Check that an extractor's output is what it says it is: rows of finite float32, one an image."""
    for part in ("pooled", "spatial", "logits"):
        value = getattr(found, part, None)
        if value is None and part != "pooled":
            continue
        good = isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() == 2 and len(value) == count
        told = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
        promise(good, f"{who}: {part} of {count} images must be float32 ({count}, ·), is {told}")
        promise(good and bool(value.isfinite().all()), f"{who}: {part} is not finite")  # type: ignore[union-attr]


def check_same_features(who: str, a: Any, b: Any, why: str, tolerance: float = 0.0) -> None:
    """Check that two outputs of an extractor are the same, part by part."""
    for part in a._fields:
        x, y = getattr(a, part), getattr(b, part)
        same = (x is None and y is None) or (x is not None and y is not None and alike(x, y, tolerance))
        promise(same, f"{who}: {part} {why}")


def check_pixels(who: str, extractor: nn.Module, size: tuple[int, int]) -> None:
    """Check an extractor's features of images of two sizes: what they are, and what they depend on."""
    counts = []
    for pixels in (random_pixels(size), random_pixels((size[1] // 2 + 1, size[0]))):
        given = pixels.clone()
        with torch.no_grad():
            found, again, alone = extractor(pixels), extractor(pixels), extractor(pixels[:1])
        promise(torch.equal(pixels, given), f"{who}: it changes the images that it is given")
        check_features(who, found, len(pixels))
        check_same_features(who, found, again, "differs between two calls on the same images")
        first = type(found)(*(None if part is None else part[:1] for part in found))
        check_same_features(who, first, alone, "of an image depends on the others in the batch", tolerance=1e-4)
        counts.append([None if part is None else part.shape[1] for part in found])
    promise(counts[0] == counts[1], f"{who}: images of another size have other numbers of features: {counts}")


def check_identity(who: str, build: Build, extractor: Any, pixels: Tensor) -> None:
    """Check that equal weights mean equal features and identity, and other weights another identity."""
    with seeded(1):
        other = build()
    weights = extractor.state_dict()
    if any(not torch.equal(value, other.state_dict()[key]) for key, value in weights.items()):
        promise(other.identity != extractor.identity, f"{who}: other weights must have another identity")
    other.load_state_dict(weights)
    promise(other.identity == extractor.identity, f"{who}: the same weights must have the same identity")
    with torch.no_grad():
        check_same_features(who, extractor(pixels), other(pixels), "differs with the same state dict; not all is saved")


def check_discriminator_side(who: str, loss: Any, logits: Tensor) -> None:
    real, fake = (random_tensor(*logits.shape, seed=seed).requires_grad_() for seed in (1, 2))
    value = loss.discriminator_loss(real, fake)
    check_scalar(f"{who}: discriminator_loss", value)
    value.backward()
    reached = all(x.grad is not None and bool(x.grad.any()) for x in (real, fake))
    promise(reached, f"{who}: discriminator_loss must pull at the real and at the fake logits")


def builder(registry: Any, name: str, options: dict[str, Any]) -> Build:
    return lambda: registry.build({"type": name, **options})


def promise(kept: bool, message: str) -> None:
    if not kept:  # not an assert statement, which python -O would take out
        raise AssertionError(message)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def random_images(size: tuple[int, int], seed: int = 0) -> Tensor:
    return random_tensor(BATCH, 3, *size, seed=seed).mul(0.5).clamp(-1, 1)


def random_pixels(size: tuple[int, int], count: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def loss_inputs(image_size: tuple[int, int]) -> dict[str, Tensor]:
    h, w = image_size[0] // 16, image_size[1] // 16
    return {
        "images": random_images(image_size),
        "reconstruction": random_images(image_size, seed=1),
        "latents": random_tensor(BATCH, LATENT_DIM, h, w),
        "moments": random_tensor(BATCH, 2 * LATENT_DIM, h, w),
        "features": random_tensor(BATCH, FEATURE_DIM, h, w),
        "teacher_features": random_tensor(BATCH, FEATURE_DIM, h, w, seed=1),
        "teacher_latents": random_tensor(BATCH, LATENT_DIM, h, w, seed=1),
        "fake_logits": random_tensor(BATCH, 1, h, w),
    }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def wake(module: nn.Module) -> None:
    """Take parameters off the constants they may start at: behind a weight of zeros every gradient is zero."""
    with seeded(2), torch.no_grad():
        for p in module.parameters():
            if p.requires_grad and p.min() == p.max():
                p.add_(torch.randn_like(p) * 0.02)


def pull(output: Tensor) -> None:
    # Weighted at random: a plain sum is constant behind a normalisation, and has no gradient there.
    (output * random_tensor(*output.shape)).sum().backward()


def gradients(module: nn.Module, *given: Tensor) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    with seeded(3):
        pull(module(given[0].clone().requires_grad_(), *given[1:]))
    return {key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None}


def alike(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max().clamp(min=1e-6))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def some_of(keys: list[str], shown: int = 4) -> str:
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")
