"""What every component promises, and how each promise is tried: the ground that the plugin author's kit stands on."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aligntok.errors import PluginError, first_line, some_of

BATCH = 2
LATENT_DIM = 8  # of the latents that check_adapter and check_decoder ask for and check_loss hands out
FEATURE_DIM = 12


class ComponentCheck:
    """A component of a registry, under the keywords that it is checked with, and the promises it may be held to.

    Each check raises AssertionError, which names the component, what was promised and what was found.
    """

    def __init__(self, registry: Any, name: str, options: dict[str, Any]) -> None:
        self.who = f"{registry.kind} '{name}'"
        self.registry = registry
        self.config = {"type": name, **options}

    def build(self, **changed: Any) -> Any:
        try:
            return self.registry.build({**self.config, **changed})
        except PluginError as error:
            raise AssertionError(str(error)) from error

    def promise(self, kept: bool, broken: str) -> None:
        if not kept:  # not an assert statement, which python -O would take out
            raise AssertionError(f"{self.who}: {broken}")

    def has(self, module: Any, *names: str) -> None:
        for name in names:
            try:
                getattr(module, name)
            except (AttributeError, NotImplementedError) as error:
                raise AssertionError(f"{self.who}: it must have {name}: {first_line(error)}") from error

    def output(self, module: Any, *inputs: Any) -> Any:
        try:
            found = module(*inputs)
        except NotImplementedError as error:
            raise AssertionError(f"{self.who}: {first_line(error)}") from error
        self.promise(isinstance(found, Tensor), f"it must return a tensor, it returns {type(found).__name__}")
        return found

    def module(self, module: nn.Module, *inputs: Any, reached: Sequence[int] = (0,)) -> None:
        self.deterministic(module, inputs)
        self.round_trip(module, inputs)
        self.freeze(self.build(), inputs)
        self.gradients(self.build(), inputs, reached)

    def shape(self, module: nn.Module, given: Tensor, expected: tuple[int, ...]) -> None:
        with torch.no_grad():
            found = tuple(self.output(module, given).shape)
        self.promise(found == expected, f"of {tuple(given.shape)} it must make {expected}, it makes {found}")

    def scalar(self, value: Tensor, of: str = "") -> None:
        self.promise(
            isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point() and bool(value.isfinite()),
            f"{of}it must return one finite number, a tensor without dimensions; it returns {value!r}",
        )

    def deterministic(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        module.eval()
        with torch.no_grad():
            same = torch.equal(module(*inputs), module(*inputs))
        self.promise(same, "two evaluations of the same input differ; in eval mode nothing may be drawn at random")

    def round_trip(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        wake(module)
        with seeded(1):
            other = self.build()
        try:
            other.load_state_dict(module.state_dict())
        except RuntimeError as error:
            raise AssertionError(
                f"{self.who}: a second instance refuses the first one's state dict: {error}"
            ) from error
        module.eval(), other.eval()
        with torch.no_grad():
            same = torch.equal(module(*inputs), other(*inputs))
        self.promise(same, "a second instance with the same state dict gives another output; something is not saved")

    def freeze(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        module.requires_grad_(False).eval()
        before = {key: value.clone() for key, value in tensors(module).items()}
        output = module(*inputs)
        self.promise(not output.requires_grad, "frozen with requires_grad_(False), its output still wants a gradient")
        after = tensors(module)
        changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
        self.promise(not changed, f"frozen and in eval mode, a forward pass still changes {some_of(changed)}")

    def gradients(self, module: nn.Module, inputs: tuple[Any, ...], reached: Sequence[int]) -> None:
        wake(module)
        module.train()
        leaves = tuple(x.clone().requires_grad_() if i in reached else x for i, x in enumerate(inputs))
        output = module(*leaves)
        self.promise(output.requires_grad, "no gradient reaches any input or parameter; something detaches them")
        pull(output)
        for i in reached:
            gradient = leaves[i].grad
            flows = gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
            self.promise(flows, f"no gradient reaches its input {i}; something on the way detaches it, or makes it NaN")
        trained = {key: p.grad for key, p in module.named_parameters() if p.requires_grad}
        dead = [key for key, gradient in trained.items() if gradient is None or not gradient.any()]
        cure = "leave unused parameters out, or set requires_grad to False"
        self.promise(not dead, f"no gradient reaches {some_of(dead)}; {cure}")
        broken = [key for key, gradient in trained.items() if gradient is not None and not gradient.isfinite().all()]
        self.promise(not broken, f"the gradient of {some_of(broken)} is not finite")

    def meta(self, real: nn.Module, **changed: Any) -> None:
        try:
            with torch.device("meta"):
                shadow = self.build(**changed)
        except Exception as error:  # whatever stops it, the promise is the same
            raise AssertionError(
                f"{self.who}: it does not build on the meta device, without weights: {type(error).__name__}: {error}"
            ) from error
        elsewhere = [key for key, value in tensors(shadow).items() if value.device.type != "meta"]
        self.promise(not elsewhere, f"built on the meta device, it still allocates {some_of(elsewhere)}")
        shapes = [{key: tuple(value.shape) for key, value in tensors(module).items()} for module in (shadow, real)]
        self.promise(shapes[0] == shapes[1], "on the meta device it has other parameters than elsewhere")

    def balanced(self, module: Any, given: Tensor) -> None:
        self.has(module, "last_layer")
        own = any(p is module.last_layer for p in module.parameters())
        self.promise(own, "last_layer must be one of its parameters")
        self.checkpointing(module, given)

    def checkpointing(self, module: Any, *given: Any) -> None:
        """Check that recomputing activations leaves the gradients as they are."""
        self.has(module, "set_grad_checkpointing")
        wake(module)
        module.train().requires_grad_(True)
        plain = gradients(module, *given)
        module.set_grad_checkpointing(True)
        recomputed = gradients(module, *given)
        module.set_grad_checkpointing(False)
        other = [key for key, value in plain.items() if not alike(value, recomputed[key])]
        self.promise(not other, f"with gradient checkpointing the gradient of {some_of(other)} is another one")

    def independent(self, module: nn.Module, broken: str, *inputs: Any) -> None:
        """Check that the first row of the output is that of the first row of the inputs alone."""
        module.train()
        with torch.no_grad():
            together, alone = module(*inputs)[:1], module(*map(first_row, inputs))
        self.promise(alike(together, alone, tolerance=1e-3), broken)

    def features(self, found: Any, count: int) -> None:
        """Check that an extractor's output is what it says it is: rows of finite float32, one an image."""
        self.promise(hasattr(found, "_fields"), f"it must return Features, it returns {type(found).__name__}")
        for part in ("pooled", "spatial", "logits"):
            value: Any = getattr(found, part, None)
            if value is None and part != "pooled":
                continue
            kind = (value.dtype, value.dim(), len(value)) if isinstance(value, Tensor) and value.dim() else None
            told = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
            good = kind == (torch.float32, 2, count)
            self.promise(good, f"{part} of {count} images must be float32 ({count}, ·), is {told}")
            self.promise(bool(value.isfinite().all()), f"{part} is not finite")

    def same_features(self, a: Any, b: Any, why: str, tolerance: float = 0.0) -> None:
        """Check that two outputs of an extractor are the same, part by part."""
        for part, x, y in zip(a._fields, a, b, strict=True):
            same = x is y is None or (x is not None and y is not None and alike(x, y, tolerance))
            self.promise(same, f"{part} {why}")

    def pixels(self, extractor: nn.Module, size: tuple[int, int]) -> None:
        """Check an extractor's features of images of two sizes: what they are, and what they depend on."""
        counts = []
        for pixels in (random_pixels(size), random_pixels((size[1] // 2 + 1, size[0]))):
            given = pixels.clone()
            with torch.no_grad():
                found, again, alone = extractor(pixels), extractor(pixels), extractor(pixels[:1])
            self.promise(torch.equal(pixels, given), "it changes the images that it is given")
            self.features(found, len(pixels))
            self.same_features(found, again, "differs between two calls on the same images")
            first = type(found)(*(None if part is None else part[:1] for part in found))
            self.same_features(first, alone, "of an image depends on the others in the batch", tolerance=1e-4)
            counts.append([None if part is None else part.shape[1] for part in found])
        self.promise(counts[0] == counts[1], f"images of another size have other numbers of features: {counts}")

    def identity(self, extractor: Any, pixels: Tensor) -> None:
        """Check that equal weights mean equal features and identity, and other weights another identity."""
        with seeded(1):
            other = self.build()
        weights = extractor.state_dict()
        if any(not torch.equal(value, other.state_dict()[key]) for key, value in weights.items()):
            self.promise(other.identity != extractor.identity, "other weights must have another identity")
        other.load_state_dict(weights)
        self.promise(other.identity == extractor.identity, "the same weights must have the same identity")
        with torch.no_grad():
            same = extractor(pixels), other(pixels)
        self.same_features(*same, "differs with the same state dict; not all is saved")

    def tokens(self, encoder: Any, prompts: Sequence[str]) -> None:
        """Check what a text encoder's `tokenize` makes of prompts, in this process and in another."""
        for full, given in ((False, prompts), (False, prompts[:2]), (True, prompts[:2])):  # the last one is too long
            found = encoder.tokenize(given, full=full)
            self.promise(isinstance(found, Mapping), f"tokenize must give a dict, it gives {type(found).__name__}")
            again = pickle.loads(pickle.dumps(encoder.tokenize))(given, full=full)
            self.promise(set(found) == {"input_ids", "attention_mask"}, f"tokenize gives {', '.join(found)}")
            longest = int(found["attention_mask"].sum(1).max())
            length = encoder.max_tokens if full else longest
            self.promise(
                0 < longest <= encoder.max_tokens, f"{longest} tokens of a prompt; it must cut to {encoder.max_tokens}"
            )
            for name, tokens in found.items():
                told = f"{tokens.dtype} {tuple(tokens.shape)} on {tokens.device}"
                good = (tokens.dtype, tuple(tokens.shape)) == (torch.int64, (len(given), length))
                self.promise(good and tokens.device.type == "cpu", f"{name} of tokenize(full={full}) is {told}")
                self.promise(torch.equal(tokens, again[name]), f"{name} is another once tokenize was pickled")

    def text(self, encoder: Any, prompts: Sequence[str]) -> None:
        """Check a text encoder's output: what it is, and that it follows from each prompt alone."""
        found, tokens = encoder.encode(prompts), encoder.tokenize(prompts)
        n, length = tokens["input_ids"].shape
        self.promise(isinstance(found, Mapping), f"encode must give a dict, it gives {type(found).__name__}")
        wanted = {"text": (torch.float32, (n, length, encoder.dim)), "mask": (torch.bool, (n, length))}
        if encoder.pooled_dim is not None:
            wanted["pooled"] = (torch.float32, (n, encoder.pooled_dim))
        told = {name: (each.dtype, tuple(each.shape)) for name, each in found.items()}
        self.promise(told == wanted, f"of {n} prompts it must give {wanted}, it gives {told}")
        self.promise(all(bool(each.isfinite().all()) for each in found.values()), "its output is not finite")
        self.promise(not found["text"][~found["mask"]].any(), "text must be 0 where mask is False")
        padded = {name: nn.functional.pad(each, (3, 0)) for name, each in tokens.items()}
        moved, alone = encoder(**padded), [encoder.encode([prompt]) for prompt in prompts]
        for place, one in enumerate(alone):
            kept, own = found["mask"][place], one["mask"][0]
            rows = found["text"][place][kept], one["text"][0][own], moved["text"][place][moved["mask"][place]]
            for other, why in ((rows[1], "the other prompts, or on chance"), (rows[2], "where its padding is")):
                same = len(rows[0]) > 0 and alike(rows[0], other)
                self.promise(same, f"the text of prompt {place} depends on {why}")
            same = "pooled" not in one or alike(found["pooled"][place], one["pooled"][0])
            self.promise(same, f"the pooled row of prompt {place} depends on the others, on chance, or on padding")

    def known_by(self, encoder: Any) -> None:
        """Check a text encoder's identity: the same of equal weights and options, another of other weights."""
        good = isinstance(encoder.identity, str) and re.fullmatch("[0-9a-f]{64}", encoder.identity)
        self.promise(bool(good), f"identity must be 64 hexadecimal digits, is {encoder.identity!r}")
        with seeded(1):
            other, third = self.build(), self.build()
        other.load_state_dict(encoder.state_dict())
        self.promise(other.identity == encoder.identity, "the same weights and options must have the same identity")
        with torch.no_grad():
            for p in tensors(third).values():
                p.add_(1)
        self.promise(third.identity != encoder.identity, "other weights must have another identity")


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def random_prompts(generator: Any, tokens: int = 5) -> dict[str, Tensor]:
    """Return what a prompted generator takes beside latents and times; the second prompt has padding."""
    mask = torch.ones(BATCH, tokens, dtype=torch.bool)
    mask[1, 2:] = False
    found = {"text": random_tensor(BATCH, tokens, generator.context_in_dim), "mask": mask}
    pooled = {"pooled": random_tensor(BATCH, generator.vec_in_dim)} if generator.vec_in_dim else {}
    return {**found, **pooled, **({"guidance": torch.full((BATCH,), 3.5)} if generator.guidance_embed else {})}


def first_row(given: Any) -> Any:
    return {name: each[:1] for name, each in given.items()} if isinstance(given, Mapping) else given[:1]


def random_images(size: tuple[int, int], seed: int = 0) -> Tensor:
    return random_tensor(BATCH, 3, *size, seed=seed).mul(0.5).clamp(-1, 1)


def random_pixels(size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randint(0, 256, (BATCH, 3, *size), dtype=torch.uint8, generator=generator)


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


def gradients(module: nn.Module, *given: Any) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    with seeded(3):
        pull(module(given[0].clone().requires_grad_(), *given[1:]))
    return {key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None}


def alike(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max().clamp(min=1e-6))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
