"""The plugin author's kit passes sound components and names each promise that a broken one breaks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aligntok.extractors import Extractor, Features
from aligntok.generators.flux_dit import FluxDiT
from aligntok.generators.lightning_dit import LightningDiT
from aligntok.plugins import testing
from aligntok.registry import (
    ADAPTERS,
    DECODERS,
    DISCRIMINATORS,
    ENCODERS,
    EXTRACTORS,
    GENERATORS,
    LOSSES,
    TEXT_ENCODERS,
    Registry,
)
from aligntok.text_encoders import TextEncoder, check_prompts
from aligntok.weights.load import weights_hash


class Sound(nn.Module):
    """An encoder that keeps every promise; the broken ones each break one."""

    downsample_factor = stride = 16
    out_dim = 4

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 16, 16)
        self.checkpointing = False

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).tanh()

    @property
    def last_layer(self) -> nn.Parameter:
        return self.body.weight

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointing = enable


class WrongShape(Sound):
    out_dim = 5


class SquareOnly(Sound):
    def forward(self, images):
        return super().forward(images).mT


class NoFactor(Sound):
    stride = None


class Random(Sound):
    def forward(self, images):
        return super().forward(images) + torch.rand(1)


class DependsOnTheBatch(Sound):
    def forward(self, images):
        x = super().forward(images)
        return x - x.mean(0, keepdim=True) * self.training


class Dead(Sound):
    def __init__(self, pretrained=True):
        super().__init__(pretrained)
        self.unused = nn.Linear(2, 2)


class Multiplied(Sound):
    def __init__(self, pretrained=True):
        super().__init__(pretrained)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return super().forward(images) + 0 * self.gain


class Detached(Sound):
    def forward(self, images):
        return super().forward(images.detach())


class Unsaved(Sound):
    def __init__(self, pretrained=True):
        super().__init__(pretrained)
        self.register_buffer("offset", torch.rand(1), persistent=False)

    def forward(self, images):
        return super().forward(images) + self.offset


class Drifting(Sound):
    def __init__(self, pretrained=True):
        super().__init__(pretrained)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images):
        self.seen += 1
        return super().forward(images)


class Unfreezable(Sound):
    def forward(self, images):
        return super().forward(images.requires_grad_() if torch.is_grad_enabled() else images)


class NotOnMeta(Sound):
    def __init__(self, pretrained=True):
        super().__init__(pretrained)
        self.scale = self.body.weight.std().item()


class Allocates(Sound):
    def __init__(self, pretrained=True):
        super().__init__(pretrained)
        self.register_buffer("table", torch.zeros(3, device="cpu"))


class WrongLastLayer(Sound):
    @property
    def last_layer(self):
        return nn.Parameter(torch.zeros(1))


class WrongCheckpointing(Sound):
    def forward(self, images):
        return super().forward(images) * (2 if self.checkpointing else 1)


class Tuple(Sound):
    def forward(self, images):
        return (super().forward(images),)


class Forwardless(Sound):
    forward = nn.Module.forward


class Factorless(nn.Module):
    stride, out_dim = 16, 4

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 16, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).tanh()


class Frozen(Factorless):
    """Without what a training asks an encoder for."""

    downsample_factor = 16


class Uncheckpointed(Frozen):
    last_layer = property(lambda self: self.body.weight)


class Absolute(nn.Module):
    """A loss that keeps every promise, both sides."""

    at: object = "reconstruction"
    inputs: object = ("reconstruction", "images")

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        return (reconstruction - images).abs().mean()

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return (1 - real).relu().mean() + (1 + fake).relu().mean()


class NotAScalar(Absolute):
    def forward(self, reconstruction, images):
        return (reconstruction - images).abs().mean((1, 2, 3))


class NotANumber(Absolute):
    def forward(self, reconstruction, images):
        return (reconstruction - images).sum() * float("nan")


class Nowhere(Absolute):
    at = "pixels"


class UnknownInput(Absolute):
    inputs = ("reconstruction", "photographs")


class WrongPlace(Absolute):
    at = "latents"


class DetachedLoss(Absolute):
    def forward(self, reconstruction, images):
        return (reconstruction.detach() - images).abs().mean()


class OneSided(Absolute):
    def discriminator_loss(self, real, fake):
        return (1 - real).relu().mean()


class Untrained(nn.Module):
    at, inputs = "reconstruction", ("fake_logits",)

    def forward(self, fake):
        return -fake.mean()


def registered(monkeypatch, registry: Registry, component: type) -> str:
    len(registry)  # loads the plugins, so that they stay when this one goes
    monkeypatch.setitem(registry._module_dict, "under_test", component)
    return "under_test"


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (WrongShape, r"must make \(2, 5, 4, 6\), it makes \(2, 4, 4, 6\)"),
        (SquareOnly, r"must make \(2, 4, 4, 6\), it makes \(2, 4, 6, 4\)"),
        (NoFactor, "stride must be a positive int"),
        (Random, "depend on the others in the batch, or on chance|drawn at random"),
        (DependsOnTheBatch, "depend on the others in the batch"),
        (Dead, r"no gradient reaches unused.weight, unused.bias"),
        (Multiplied, "no gradient reaches gain"),
        (Detached, "no gradient reaches its input 0"),
        (Unsaved, "something is not saved"),
        (Drifting, "a forward pass still changes seen"),
        (Unfreezable, "still wants a gradient"),
        (NotOnMeta, "does not build on the meta device"),
        (Allocates, "still allocates table"),
        (WrongLastLayer, "last_layer must be one of its parameters"),
        (Tuple, "encoder 'under_test': it must return a tensor, it returns tuple"),
        (Forwardless, "encoder 'under_test': .*missing the required .forward. function"),
        (Factorless, "encoder 'under_test' has no downsample_factor, as each encoder has"),
        (Frozen, "encoder 'under_test': it must have last_layer"),
        (Uncheckpointed, "encoder 'under_test': it must have set_grad_checkpointing"),
        (WrongCheckpointing, "with gradient checkpointing the gradient of body"),
    ],
)
def test_a_broken_encoder_is_caught_at_the_promise_it_breaks(monkeypatch, component, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_encoder(registered(monkeypatch, ENCODERS, component))


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (NotAScalar, "must return one finite number"),
        (NotANumber, "must return one finite number"),
        (Nowhere, "`at` must be one of reconstruction, latents"),
        (UnknownInput, "`inputs` must be a tuple of names among images"),
        (WrongPlace, "takes neither 'latents'"),
        (DetachedLoss, "no gradient reaches any input or parameter"),
        (OneSided, "pull at the real and at the fake logits"),
        (Untrained, "a loss of fake_logits must have a discriminator_loss"),
    ],
)
def test_a_broken_loss_is_caught_at_the_promise_it_breaks(monkeypatch, component, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_loss(registered(monkeypatch, LOSSES, component))


def test_sound_components_of_a_plugin_pass(monkeypatch):
    testing.check_encoder(registered(monkeypatch, ENCODERS, Sound))
    testing.check_loss(registered(monkeypatch, LOSSES, Absolute))


def test_an_image_size_off_the_encoders_grid_is_the_callers_mistake(monkeypatch):
    with pytest.raises(AssertionError, match="must be of multiples of f = 16"):
        testing.check_encoder(registered(monkeypatch, ENCODERS, Sound), image_size=(60, 96))


@pytest.mark.parametrize(("name", "latent_dim"), [("mlp", 8), ("linear", 8), ("identity", 12)])
def test_built_in_adapters_pass(name, latent_dim):
    testing.check_adapter(name, latent_dim=latent_dim)


def test_built_in_decoders_discriminators_and_losses_pass():
    testing.check_decoder("ldm_cnn", ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, image_size=(16, 24))
    testing.check_discriminator("patchgan")
    testing.check_loss("l1")
    testing.check_loss("gan")
    testing.check_loss("semantic_preservation")
    testing.check_loss("kl")
    testing.check_loss("vf", latent_dim=testing.LATENT_DIM, feature_dim=testing.FEATURE_DIM)


@pytest.mark.parametrize(
    ("registry", "check", "expected"),
    [
        (ADAPTERS, testing.check_adapter, r"adapter 'under_test': .* must make"),
        (DECODERS, testing.check_decoder, r"decoder 'under_test': .* must make"),
        (DISCRIMINATORS, testing.check_discriminator, r"discriminator 'under_test': logits must be"),
    ],
)
def test_the_other_kinds_are_held_to_their_shapes(monkeypatch, registry, check, expected):
    class Flat(nn.Module):
        upsample_factor = 16

        def __init__(self, in_dim: int = 3, latent_dim: int = 8) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    with pytest.raises(AssertionError, match=expected):
        check(registered(monkeypatch, registry, Flat))


@pytest.mark.parametrize(
    ("registry", "check", "has", "expected"),
    [
        (DECODERS, testing.check_decoder, {}, "decoder 'under_test' has no upsample_factor"),
        (DISCRIMINATORS, testing.check_discriminator, {}, "discriminator 'under_test': it must return a tensor"),
        (EXTRACTORS, testing.check_extractor, dict(title="random", resize="none", identity=""), "must return Features"),
        (GENERATORS, testing.check_generator, dict(in_channels=8, conditioned_on="classes"), "must have null_class"),
    ],
)
def test_what_a_component_does_not_have_is_named(monkeypatch, registry, check, has, expected):
    class Bare(nn.Module):
        def __init__(self, **options) -> None:
            super().__init__()
            self.eval()

        def forward(self, *given):
            return given[0] if registry is GENERATORS else [given[0]]

    for name, value in has.items():
        setattr(Bare, name, value)
    with pytest.raises(AssertionError, match=expected):
        check(registered(monkeypatch, registry, Bare))


def test_the_built_in_generator_passes():
    testing.check_generator("lightning_dit", hidden_size=32, depth=2, num_heads=2, input_size=4)
    testing.check_generator("flux_dit", **TINY_FLUX)
    testing.check_generator("flux_dit", **TINY_FLUX, patch_size=2, text_padding="attend", guidance_embed=True)
    testing.check_generator(
        "lightning_dit", hidden_size=32, depth=1, num_heads=2, num_classes=1, class_dropout_prob=0.0, use_qknorm=True
    )


TINY_FLUX = dict(hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1, context_in_dim=12, vec_in_dim=6)


def test_a_generator_that_looks_at_padding_is_caught(monkeypatch):
    class Attending(FluxDiT):
        def forward(self, x, t, y):
            return super().forward(x, t, {**y, "mask": None})

    monkeypatch.setattr(testing, "GENERATORS", Only(Attending))
    with pytest.raises(AssertionError, match="its velocity must not depend on padding, but does"):
        testing.check_generator("attending", **TINY_FLUX)


class Only:
    """A registry of one class, whatever it is asked for."""

    kind = "generator"

    def __init__(self, component):
        self.component = component

    def get(self, name):
        return self.component

    def build(self, config):
        return self.component(**{key: value for key, value in config.items() if key != "type"})


def test_a_generator_whose_batch_mixes_is_caught(monkeypatch):
    class Mixing(LightningDiT):
        def forward(self, x, t, y):
            velocity = super().forward(x, t, y)
            return velocity - velocity.mean(0, keepdim=True)

    monkeypatch.setattr(testing, "GENERATORS", Only(Mixing))
    with pytest.raises(AssertionError, match="depends on the others in the batch"):
        testing.check_generator("mixing", hidden_size=32, depth=1, num_heads=2)


class Colours(Extractor):
    """An extractor that keeps every promise; the broken ones each break one."""

    title, resize = "Colours-random", "mean over the image"

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 4)
        self.drop = nn.Dropout(0.0)
        self.freeze()

    def forward(self, pixels: Tensor) -> Features:
        pooled = self.mix(pixels.float().mean(dim=(2, 3)) / 255)
        return Features(pooled, spatial=pooled[:, :2])


class Untitled(Colours):
    title = ""


class Unfrozen(Colours):
    def __init__(self, pretrained=True):
        super().__init__()
        self.requires_grad_(True)


class Training(Colours):
    def freeze(self):
        self.requires_grad_(False)


class Double(Colours):
    def forward(self, pixels):
        return Features(super().forward(pixels).pooled.double())


class ManyRows(Colours):
    def forward(self, pixels):
        found = super().forward(pixels)
        return found._replace(spatial=torch.cat([found.spatial] * 2))


class Infinite(Colours):
    def forward(self, pixels):
        return super().forward(pixels)._replace(logits=torch.full((len(pixels), 3), torch.inf))


class ByChance(Colours):
    def forward(self, pixels):
        return Features(super().forward(pixels).pooled + torch.rand(1))


class OfTheBatch(Colours):
    def forward(self, pixels):
        x = super().forward(pixels).pooled
        return Features(x - x.mean(dim=0))


class OfTheSize(Colours):
    def forward(self, pixels):
        return Features(pixels[:, 0, 0].float())


class Overwriting(Colours):
    def forward(self, pixels):
        pixels[:, 0] = 0
        return super().forward(pixels)


class Hidden(Colours):
    def __init__(self, pretrained=True):
        super().__init__()
        self.shift = torch.randn(4)

    def forward(self, pixels):
        return Features(super().forward(pixels).pooled + self.shift)


class Anyones(Colours):
    identity = "0" * 64


class Boasting(Colours):
    title = "Colours"


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (Untitled, "title must be a text"),
        (Unfrozen, "mix.weight, mix.bias is not frozen"),
        (Training, "must be in eval mode"),
        (Double, r"pooled of 2 images must be float32 \(2, ·\), is torch.float64"),
        (ManyRows, "spatial of 2 images must be float32"),
        (Infinite, "logits is not finite"),
        (ByChance, "pooled differs between two calls"),
        (OfTheBatch, "pooled of an image depends on the others"),
        (OfTheSize, "images of another size have other numbers of features"),
        (Overwriting, "changes the images that it is given"),
        (Hidden, "pooled differs with the same state dict"),
        (Anyones, "other weights must have another identity"),
        (Boasting, "of random weights the title must say so, is 'Colours'"),
    ],
)
def test_a_broken_extractor_is_caught_at_the_promise_it_breaks(monkeypatch, component, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_extractor(registered(monkeypatch, EXTRACTORS, component))


def test_a_sound_extractor_passes(monkeypatch):
    testing.check_extractor(registered(monkeypatch, EXTRACTORS, Colours))


class Words(TextEncoder):
    """A text encoder that keeps every promise: a vector a character, and their mean."""

    dim = pooled_dim = 4

    def __init__(self, max_tokens: int = 16) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.tokenize = Characters(max_tokens)
        self.table = nn.Embedding(200, 4)
        self.freeze()

    @property
    def identity(self):
        return weights_hash(str(self.max_tokens), self)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.bool()
        text = self.table(input_ids) * mask[..., None]
        return {"text": text, "mask": mask, "pooled": text.sum(1) / mask.sum(1, keepdim=True)}


class Characters:
    dtype = torch.int64

    def __init__(self, max_tokens):
        self.max_tokens = max_tokens

    def rows(self, texts):
        return [[1, *map(ord, text)][: self.max_tokens] for text in check_prompts(texts, "Characters")]

    def __call__(self, texts, full=False):
        rows = self.rows(texts)
        length = self.max_tokens if full else max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], dtype=self.dtype)
        return {"input_ids": ids, "attention_mask": (ids > 0).to(self.dtype)}


class Uncut(Characters):
    def rows(self, texts):
        return [[1, *map(ord, text)] for text in check_prompts(texts, "Uncut")]


class Short(Characters):
    dtype = torch.int32


class Never(Characters):
    def __call__(self, texts, full=False):
        return super().__call__(texts)


class Anything(Characters):
    def rows(self, texts):
        return [[1, *map(ord, text)][: self.max_tokens] for text in map(str, texts or ["x"])]


class Forgetful(Characters):
    def __getstate__(self):
        return {"max_tokens": 5}


def speaking(tokenize):
    class Speaking(Words):
        def __init__(self, max_tokens=16):
            super().__init__(max_tokens)
            self.tokenize = tokenize(max_tokens)

    return Speaking


class Trained(Words):
    def freeze(self):
        self.eval()


class Awake(Words):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


class Unmasked(Words):
    def forward(self, input_ids, attention_mask):
        return {**super().forward(input_ids, attention_mask), "text": self.table(input_ids)}


class Padded(Words):
    def forward(self, input_ids, attention_mask):
        found = super().forward(input_ids, attention_mask)
        return {**found, "pooled": found["text"].mean(1)}


class Placed(Words):
    def forward(self, input_ids, attention_mask):
        found = super().forward(input_ids, attention_mask)
        places = torch.arange(input_ids.shape[1])[:, None]
        return {**found, "text": (found["text"] + places) * found["mask"][..., None]}


class Crowd(Words):
    def forward(self, input_ids, attention_mask):
        found = super().forward(input_ids, attention_mask)
        return {**found, "text": found["text"] * len(input_ids)}


class Unpooled(Words):
    def forward(self, input_ids, attention_mask):
        return {name: each for name, each in super().forward(input_ids, attention_mask).items() if name != "pooled"}


class Half(Words):
    def forward(self, input_ids, attention_mask):
        found = super().forward(input_ids, attention_mask)
        return {**found, "text": found["text"].half()}


class Nameless(Words):
    identity = "words"


class Everyones(Words):
    identity = "0" * 64


class Noones(Words):
    @property
    def identity(self):
        return f"{id(self):064x}"


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (Trained, "table.weight is not frozen"),
        (Awake, "must be in eval mode, and stay so"),
        (speaking(Uncut), "417 tokens of a prompt; it must cut to 16"),
        (speaking(Short), r"input_ids of tokenize\(full=False\) is torch.int32"),
        (speaking(Never), r"input_ids of tokenize\(full=True\) is torch.int64 \(2, 12\) on cpu"),
        (speaking(Anything), r"\[\] are no prompts"),
        (speaking(Forgetful), "input_ids is another once tokenize was pickled|tokens"),
        (Unmasked, "text must be 0 where mask is False"),
        (Padded, "the pooled row of prompt 0 depends on"),
        (Placed, "the text of prompt 0 depends on where its padding is"),
        (Crowd, "the text of prompt 0 depends on the other prompts"),
        (Unpooled, "of 3 prompts it must give"),
        (Half, "of 3 prompts it must give"),
        (Nameless, "identity must be 64 hexadecimal digits, is 'words'"),
        (Everyones, "other weights must have another identity"),
        (Noones, "the same weights and options must have the same identity"),
    ],
)
def test_a_broken_text_encoder_is_caught_at_the_promise_it_breaks(monkeypatch, component, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_text_encoder(registered(monkeypatch, TEXT_ENCODERS, component))


def test_a_sound_text_encoder_passes(monkeypatch):
    testing.check_text_encoder(registered(monkeypatch, TEXT_ENCODERS, Words))
