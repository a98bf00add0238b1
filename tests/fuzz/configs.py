"""The configs that are mutated: small ones of every kind of training, and the few pictures that they need."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aligntok.caching import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.tokenizer import Tokenizer

CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32)
VIT = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False)
VIT["model_args"] = dict(depth=1, embed_dim=48, num_heads=3)
ALIGNED = dict(encoder=VIT, adapter=dict(type="mlp"), decoder=CNN, latent_dim=4, downsample_factor=8)
VARIATIONAL = dict(ALIGNED, encoder=CNN, adapter=dict(type="identity"), variational=True)
DIT = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=4)


def base_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the configs that are mutated, by name; writes the few small pictures and latents that they name."""

    pictures = write_pictures(folder / "pictures")
    torch.set_num_threads(1)  # other threads do not live on in a fork
    torch.manual_seed(0)
    Tokenizer(**copy.deepcopy(ALIGNED)).save_pretrained(folder / "tokenizer")
    encoding = dict(tokenizer=folder / "tokenizer", data=pictures, split="train", image_size=32, workers=0)
    cache = cache_latents(CacheRequest(**encoding, out=folder / "latents"))
    sets = {split: dict(type="images", split=split, image_size=32) for split in ("train", "val")}
    shared: dict[str, Any] = dict(
        data_root=str(pictures),
        discriminator=dict(type="patchgan", base_channels=16, num_layers=2),
        global_batch_size=2,
        optimizer=dict(type="Adam", lr=1e-3, betas=(0.5, 0.9)),
        ema=dict(sigma_rel=[0.05], inference=0.05),
        checkpoint=dict(every=2, keep=1),
        log=dict(every=1, pictures=1),
        validation=dict(perceptual=dict(type="l1"), batch_size=2),
        data=dict(**sets, workers=0),
    )
    gan = dict(type="gan", weight=0.5, adaptive_weight=dict(at="decoder"))
    semantic = dict(type="semantic_preservation", weight=1.0, adaptive_weight=dict(at="encoder"))
    warm = [dict(type="LinearLR", start_factor=0.1, begin=0, end=2)]
    start = dict(name="second", steps=2, init_from=dict(stage="first"), teacher="start", losses=dict(semantic=semantic))
    losses = dict(l1=dict(type="l1"), gan=gan)
    generation: dict[str, Any] = dict(
        steps=2,
        global_batch_size=2,
        optimizer=dict(type="AdamW", lr=1e-3),
        transport=dict(shift=0.5),
        sampling=dict(steps=2, cfg_scale=2.0),
        ema=dict(sigma_rel=[], decays=[0.9], inference=0.9),
        log=dict(every=1, pictures=1),
    )
    vf = dict(type="vf", latent_dim=4, feature_dim=48, weight=0.1, adaptive_weight=dict(at="encoder"))
    variational = dict(l1=dict(type="l1"), kl=dict(type="kl", weight=1e-6), vf=vf)
    own = dict(
        train=dict(type="images", split="train", image_size=[(32, 32), (32, 48)], hflip=False), val=None, workers=0
    )
    shared["work_dir"] = str(folder / "work")
    return {
        "aligned": {
            **shared,
            **dict(model=ALIGNED, losses=losses, schedule=warm, clip_grad_norm=1.0),
            "stages": [dict(name="first", steps=2, trainable=["adapter", "decoder"]), start],
        },
        "lora": {
            **shared,
            **dict(model=ALIGNED, losses=dict(l1=dict(type="l1")), lora=dict(rank=2, alpha=8, dropout=0.1)),
            "stages": [dict(name="low_rank", steps=2)],
        },
        "vavae": {
            **shared,
            **dict(model=VARIATIONAL, losses=variational, teacher=VIT | dict(downsample_factor=8)),
            "stages": [dict(name="autoencoder", steps=2)],
        },
        "own": {
            **shared,
            **dict(model=ALIGNED, losses=dict(l1=dict(type="l1")), data=own),
            "stages": [dict(name="only", steps=2)],
            "generation": {
                **generation,
                "generator": DIT,
                "latent_cache": dict(split="train", image_size=32, workers=0),
            },
        },
        "generator": dict(work_dir=shared["work_dir"], data_root=str(cache), generator=DIT, **generation),
        "encoding": dict(
            work_dir=shared["work_dir"],
            data_root=str(pictures),
            tokenizer=str(folder / "tokenizer"),
            generator=DIT,
            **generation,
            data=dict(train=dict(type="images", split="train", image_size=32), statistics_images=2, workers=0),
        ),
    }


def write_pictures(root: Path) -> Path:
    """Write a handful of pictures in class folders of two splits; return their folder."""

    for split in ("train", "val"):
        for i in range(4):
            file = root / split / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (36, 52, 3), dtype=np.uint8)).save(file)
    return root
