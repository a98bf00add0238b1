"""What the golden run is fed: pictures from seeded numbers, and configs of models of a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import names
import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "zebra")
SIZE = 32  # pixels that models see
PRETRAINED = "efficientnet_lite0"  # features of a plugin of this repository, whose package brings their weights
TINY = "golden_extractor.TinyExtractor"  # for most distances: in 1,280 dimensions each takes seconds
TINY_SOURCE = f'''"""Features of the golden run."""

import torch
from {names.EXTRACTORS} import Extractor, Features


class TinyExtractor(Extractor):
    """Colours of a 4 x 4 grid, mixed by fixed random weights; as logits, some of them."""

    title, resize = "Tiny", "area to 4 x 4"

    def __init__(self, pretrained=False):
        super().__init__()
        self.register_buffer("mixed", torch.randn(48, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, pixels):
        small = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 4).flatten(1)
        return Features(small @ self.mixed, small[:, :5], 10 * small[:, :4])
'''
CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=SIZE)
VIT = dict(
    type="timm",
    model_name="vit_tiny_patch16_224",
    pretrained=False,
    model_args=dict(depth=2, embed_dim=48, num_heads=3),
)
ALIGNED = dict(encoder=VIT, adapter=dict(type="mlp"), decoder=CNN, latent_dim=4, downsample_factor=8)
VARIATIONAL = dict(
    encoder=CNN,
    adapter=dict(type="identity"),
    decoder=CNN,
    latent_dim=4,
    downsample_factor=8,
    variational=True,
)
LIGHTNING = dict(
    type="lightning_dit",
    hidden_size=32,
    depth=2,
    num_heads=2,
    input_size=4,
    in_channels=4,
    num_classes=len(CLASSES),
    class_dropout_prob=0.3,
)
# What is 0 but for rounding must not be divided by, so that other machines come to the same losses.
ADAM = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9), eps=1e-2)
ADAMW = dict(type="AdamW", lr=3e-2, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-2)  # so that guidance is seen
WARMUP = [dict(type="LinearLR", start_factor=0.5, begin=0, end=2)]
GENTLE = [dict(type="LinearLR", start_factor=0.001, begin=0, end=4)]  # the first losses are those of other machines too
EMA = dict(sigma_rel=[0.05, 0.10], decays=[0.9], inference=0.05, snapshot_every=1)
SEMANTIC = dict(type="semantic_preservation", **{names.BALANCE: dict(at="encoder", eps=0.1)})
GAN = dict(type="gan", weight=0.5, **{names.BALANCE: dict(at="decoder")})


def write_inputs(root: Path) -> None:
    """Write the extractor's module, and the pictures: train and val, class folders of 8 and 7 of 44 x 40 pixels."""
    (root / "golden_extractor.py").write_text(TINY_SOURCE)
    root = root / "pictures"
    for split, count in (("train", 8), ("val", 7)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng((len(split), label, i))
                Image.fromarray(_picture(rng)).save(root / split / name / f"{i:02d}.png")


def _picture(rng: np.random.Generator, height: int = 40, width: int = 44) -> np.ndarray:
    """A sky above a ground, with noise, and three boxes on it: uint8 (height, width, 3)."""
    sky, ground = rng.integers(60, 250, 3), rng.integers(0, 160, 3)
    blend = np.linspace(0, 1, height)[:, None, None]
    pixels = sky * (1 - blend) + ground * blend + rng.integers(-12, 13, (height, width, 3))
    for _ in range(3):
        top, left, side = rng.integers(0, height), rng.integers(0, width), rng.integers(6, 18)
        pixels[top : top + side, left : left + side] = rng.integers(0, 255, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def write_config(path: Path, **keys: Any) -> Path:
    """Write a config file that says so; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{key} = {value!r}\n" for key, value in keys.items())
    path.write_text(f'"""Of the golden run: {path.stem}."""\n{lines}')
    return path


def _tokenizer(data_root: Path | None, **keys: Any) -> dict[str, Any]:
    """What every tokenizer's training shares."""
    images = {split: dict(type="images", split=split, image_size=SIZE) for split in ("train", "val")}
    shared = dict(
        data_root=str(data_root) if data_root else None,
        model=ALIGNED,
        discriminator=dict(type="patchgan", base_channels=16, num_layers=2),
        data=dict(**images, workers=0),
        global_batch_size=4,
        optimizer=ADAM,
        discriminator_optimizer=dict(ADAM, lr=1e-5),
        ema=EMA,
        log=dict(every=1, pictures=4),
        validation=dict(perceptual=dict(type="l1"), batch_size=8),
    )
    return {**shared, **keys}


def _generator(validation: dict[str, Any] | None, **keys: Any) -> dict[str, Any]:
    """What every generator's training shares."""
    shared = dict(
        generator=LIGHTNING,
        steps=12,
        global_batch_size=8,
        optimizer=ADAMW,
        schedule=GENTLE,
        clip_grad_norm=1.0,
        transport=dict(shift=0.5),
        sampling=dict(steps=3, cfg_scale=2.0),
        ema=dict(sigma_rel=[0.1], decays=[0.5], inference=0.5),
        log=dict(every=1, pictures=6),
    )
    return {**shared, **({"validation": validation} if validation else {}), **keys}


def stages(steps: int = 3) -> list[dict[str, Any]]:
    """Four stages: three as in the paper, and one with LoRA before the last; both kinds of start, both ratios."""
    start = {names.START: dict(stage="latent_alignment", weights="raw"), "teacher": "start"}
    lora = dict(rank=2, alpha=8, dropout=0.1)
    last = {names.TRAINS: ["decoder"], names.START: dict(stage="low_rank", weights="ema")}
    return [
        {
            "name": "latent_alignment",
            "steps": steps,
            names.TRAINS: ["adapter", "decoder"],
            "losses": dict(gan=dict(start_step=1)),
            "schedule": WARMUP,
        },
        {"name": "perceptual_alignment", "steps": steps, **start, "losses": dict(semantic=SEMANTIC)},
        {
            "name": "low_rank",
            "steps": steps,
            **start,
            names.START: dict(stage="perceptual_alignment", weights="ema"),
            "losses": dict(semantic=dict(SEMANTIC, on="features")),
            "lora": lora,
            "grad_checkpointing": True,
        },
        {"name": "decoder_refinement", "steps": steps, **last, names.ACCUMULATION: 2, "clip_grad_norm": 0.1},
    ]


def chain(path: Path, data_root: Path) -> Path:
    """A tokenizer in four stages, the cache of its latents, and a generator on them that is measured on the way."""
    reference = str(path.parent / "reference.safetensors")
    validation = {
        names.NUM: 6,
        "labels": "balanced",
        "batch_size": 4,
        "metrics": [dict(type="generation", reference=reference, extractor=TINY, features=False)],
        "variants": dict(guided=dict(cfg_scale=2.0), unguided=dict(cfg_scale=1.0)),
    }
    cache = dict(split="train", image_size=SIZE, workers=0, batch_size=5)
    generation = _generator(validation, latent_cache=cache)
    losses = dict(l1=dict(type="l1"), gan=GAN)
    return write_config(path, **_tokenizer(data_root, losses=losses, stages=stages(), generation=generation))


def two_processes(path: Path, data_root: Path) -> Path:
    """The same, shorter: two of the stages, without what one process shows as well."""
    cache = dict(split="train", image_size=SIZE, workers=0, batch_size=5)
    two = stages(steps=2)[:2]
    keys = dict(losses=dict(l1=dict(type="l1"), gan=GAN), stages=two, generation=_generator(None, latent_cache=cache))
    return write_config(path, **_tokenizer(data_root, **keys, validation=dict(perceptual=None)))


def vavae(path: Path, data_root: Path) -> Path:
    """VA-VAE in miniature: variational, held to a foundation model by an adaptive weight, with the KL term."""
    pull = {"at": "encoder", names.MAX_RATIO: 1e8, names.AGAINST: ["l1", "lpips"]}
    losses = dict(
        l1=dict(type="l1", weight=3.0 * SIZE * SIZE),
        lpips=dict(type="lpips", pretrained=False, weight=3.0 * SIZE * SIZE),
        gan=dict(GAN, start_step=1),
        kl=dict(type="kl", weight=1e-3),
        vf=dict(type="vf", latent_dim=4, feature_dim=48, weight=0.1, **{names.BALANCE: pull}),
    )
    keys = dict(model=VARIATIONAL, teacher=dict(VIT, downsample_factor=8), losses=losses, ema=None)
    keys["validation"] = dict(perceptual=dict(type="l1"), extractor=TINY, batch_size=8)  # a random LPIPS has no seed
    return write_config(path, **_tokenizer(data_root, **keys, stages=[dict(name="autoencoder", steps=3)]))


def comparison(path: Path, data_root: Path) -> Path:
    """A comparison of two tokenizers of one step, and the configs that it names."""
    plain = dict(losses=dict(l1=dict(type="l1")), ema=None, log=dict(every=1, pictures=0))
    one = [dict(name="all", steps=1)]
    for name, model in (("vit", ALIGNED), ("cnn", VARIATIONAL)):
        keys = dict(plain, model=model, validation=dict(perceptual=None), discriminator=None)
        write_config(path.parent / f"{name}.py", **_tokenizer(None, **keys, stages=one))
    write_config(path.parent / "generator.py", **_generator(None, steps=2))
    return write_config(
        path,
        data_root=str(data_root),
        tokenizers=dict(vit="vit.py", cnn="cnn.py"),
        generator="generator.py",
        image_size=SIZE,
        perceptual=[dict(type="l1")],
        extractors=[TINY],
        reference_encoder=VIT,
        probe=dict(epochs=1),
        workers=0,
        samples={names.NUM: 12, "batch_size": 6},
    )
