"""Configs, key by key: the default of each, its meaning, what it may be. The docs' tables are made from these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aligntok.weights.lora import TARGETS


@dataclass(frozen=True)
class Key:
    """One key of a config: its default, its meaning, the types it may have, and the keys below it if those are ours."""

    default: Any
    doc: str
    kinds: tuple[type, ...] = (dict,)
    below: Mapping[str, Key] | None = None


_INT, _NUMBER, _TEXT, _DICT = (int,), (int, float), (str,), (dict,)
_NONE = type(None)


DATA_KEYS = {
    "train": Key({"type": "images"}, "Data set to train on: a registry name and its keywords; `root` is `data_root`."),
    "val": Key(None, "Held-out data set, as the training one but cropped in the middle; None: none.",
               (dict, _NONE)),
    "num_images": Key(None, "Training images of the nominal data set, from which `--dry-run` counts epochs.",
                      (int, _NONE)),
    "workers": Key(4, "Data-loading processes of each training process.", _INT),
    "timeout": Key(600, "Seconds to wait for a batch of the data-loading processes before the run ends.", _NUMBER),
}  # fmt: skip


START_KEYS = {
    "stage": Key(None, "Name of the earlier stage whose weights this one begins from.", (str, _NONE)),
    "work_dir": Key(None, "Begin from that stage in another run's work folder.", (str, _NONE)),
    "weights": Key("raw", "Which of its weights: 'raw', or 'ema' (averages where it keeps them).", _TEXT),
}


EMA_KEYS = {
    "sigma_rel": Key([0.05, 0.10], "Relative widths that are kept (EDM2's power-function profile).", (list, tuple)),
    "decays": Key([], "Decays of plain averages that are kept beside them, such as 0.9999.", (list, tuple)),
    "inference": Key(
        0.05, "The width or decay used for validation, pictures, samples, 'ema' starts and what is exported.", _NUMBER
    ),
    "snapshot_every": Key(None, "Steps between snapshots for post-hoc widths; None: none.", (int, _NONE)),
}


CHECKPOINT_KEYS = {
    "every": Key(5000, "Steps between checkpoints; one is always written after the last step.", _INT),
    "keep": Key(2, "How many of a stage's newest checkpoints stay.", _INT),
    "keep_every": Key(None, "Checkpoints at multiples of so many steps stay for good; None: none do.", (int, _NONE)),
}


LORA_KEYS = {
    "rank": Key(16, "Rank of the updates.", _INT),
    "alpha": Key(32, "The updates are scaled by alpha / rank.", _NUMBER),
    "dropout": Key(0.1, "Dropout before an update.", _NUMBER),
    "targets": Key(TARGETS, "Regular expression that the names of the linear layers match as a whole.", _TEXT),
}


LOG_KEYS = {
    "every": Key(50, "Steps between scalars and progress lines.", _INT),
    "pictures_every": Key(None, "Steps between reconstruction grids; None: only after the last step.", (int, _NONE)),
    "pictures": Key(8, "Held-out images in a grid.", _INT),
}


VALIDATION_KEYS = {
    "every": Key(None, "Steps between validations; None: only after the last step.", (int, _NONE)),
    "batch_size": Key(8, "Images of a validation batch in each process.", _INT),
    "num_images": Key(None, "Use only so many held-out images, evenly spaced; None: all.", (int, _NONE)),
    "perceptual": Key({"type": "lpips"}, "Loss, or a list of losses, that measure perceptual distances; None: none.",
                      (dict, list, _NONE)),
    "extractor": Key(None, "Features for rFID (inception_v3) or rFD (any other), as `tools/evaluate.py --extractor`; "
                           "None: neither.", (str, dict, _NONE)),
}  # fmt: skip


#: Keys that a stage may override, and that the top of a config sets for all stages.
STAGE_KEYS = {
    "model": Key({}, "Keywords of `aligntok.tokenizer.Tokenizer`: encoder, adapter, decoder, latent_dim, ..."),
    "discriminator": Key({"type": "patchgan"}, "The discriminator, carried from stage to stage; None: none.",
                         (dict, _NONE)),
    "losses": Key({}, "name -> loss: its type and keywords, and `weight`, `start_step`, `balance` "
                      "(dict(at='decoder' | 'encoder', max_ratio, eps, against)). None in place of a loss removes it."),
    "teacher": Key(None, "What losses compare with: 'start' (encoder and adapter the stage starts from), an encoder's "
                         "config, or None.", (dict, str, _NONE)),
    "trains": Key(["encoder", "adapter", "decoder"], "Parts that are trained; the others stay frozen, in eval mode.",
                  (list, tuple)),
    "steps": Key(None, "Optimiser steps.", _INT),
    "start": Key(None, "What the stage begins from; None: the pretrained encoder and fresh other parts.",
                 (dict, _NONE), START_KEYS),
    "optimizer": Key({"type": "Adam", "lr": 1e-4, "betas": (0.5, 0.9)}, "Optimiser of the autoencoder (torch's name)."),
    "discriminator_optimizer": Key({"type": "Adam", "lr": 1e-4, "betas": (0.5, 0.9)}, "The discriminator's."),
    "schedule": Key(None, "mmengine parameter schedulers of the autoencoder's learning rate, by step; None: constant.",
                    (list, _NONE)),
    "clip_grad_norm": Key(None, "Largest gradient norm of a side; None: no clipping.", (int, float, _NONE)),
    "spike_factor": Key(30.0, "Leave a step out when a part's gradient norm is more than so many times its median over "
                              "the last 100 steps; None: never.", (int, float, _NONE)),
    "max_skipped_steps": Key(20, "Steps left out in a row, for a spike or for what is not finite, before training "
                                 "stops.", _INT),
    "ema": Key({}, "Weight averages; None: none.", (dict, _NONE), EMA_KEYS),
    "global_batch_size": Key(64, "Images of one optimiser step, over all processes and micro-batches.", _INT),
    "accumulation": Key(1, "Micro-batches of one optimiser step.", _INT),
    "precision": Key("fp32", "'fp32'; 'tf32' (matrix products of float32 in TF32 on GPUs); 'bf16' or 'fp16' (with loss "
                             "scaling) for autocast.", _TEXT),
    "grad_checkpointing": Key(False, "Recompute activations of encoder and decoder to save memory.", (bool,)),
    "compile": Key(False, "Compile tokenizer and teacher block by block: True, or keywords of `torch.compile`.",
                   (bool, dict)),
    "attention": Key(None, "Force 'xformers' or 'sdpa' for attention; None: xformers on GPUs where it can run.",
                     (str, _NONE)),
    "lora": Key(None, "Train the encoder by low-rank updates (LoRA), which `start` and the export merge; None: all of "
                      "its weights.", (dict, _NONE), LORA_KEYS),
    "data": Key({}, "Data sets and their loading.", _DICT, DATA_KEYS),
    "checkpoint": Key({}, "When checkpoints are written and how many stay.", _DICT, CHECKPOINT_KEYS),
    "log": Key({}, "Scalars and pictures.", _DICT, LOG_KEYS),
    "validation": Key({}, "Held-out reconstruction quality.", _DICT, VALIDATION_KEYS),
    "hooks": Key([], "More mmengine hooks: registry names or mmengine's classes.", (list,)),
}  # fmt: skip


TRANSPORT_KEYS = {
    "times": Key("logit_normal", "How training times are drawn: 'logit_normal' or 'uniform'.", _TEXT),
    "mean": Key(0.0, "Mean of the logit.", _NUMBER),
    "scale": Key(1.0, "Standard deviation of the logit.", _NUMBER),
    "shift": Key(1.0, "Shift of the times, below 1 towards noise; 1 for none.", _NUMBER),
    "direction_weight": Key(1.0, "Weight of the velocity's direction (cosine) loss beside its squared error.", _NUMBER),
}


SAMPLING_KEYS = {
    "steps": Key(30, "Steps of the solver.", _INT),
    "sampler": Key("euler", "'euler', 'heun', 'dopri5', 'euler_maruyama' or 'ddim'.", _TEXT),
    "shift": Key(1.0, "Shift of the grid of times, below 1 towards noise; 1 for none.", _NUMBER),
    "cfg_scale": Key(1.0, "Scale of classifier-free guidance; 1 for none.", _NUMBER),
    "cfg_interval": Key(None, "(lo, hi) of the times that are guided, 0 being noise; None: all.",
                        (list, tuple, _NONE)),
    "cfg_channels": Key(None, "Guide only the first so many latent channels; None: all.", (int, _NONE)),
    "preserve_energy": Key(False, "Rescale what is guided to the energy of what is not (EP-CFG).", (bool,)),
    "options": Key({}, "Keywords of the sampler's own, such as dict(last_step='tweedie')."),
}  # fmt: skip


LATENT_CACHE_KEYS = {
    "split": Key(None, "Which part of `data_root` is encoded, as `tools/cache_latents.py --split`.", (str, _NONE)),
    "image_size": Key(256, "Pixels, a side or (H, W).", (int, list, tuple)),
    "hflip": Key(True, "Encode the mirrored images too.", (bool,)),
    "dtype": Key("fp32", "Of the stored latents: 'fp32', 'bf16' or 'fp16'.", _TEXT),
    "precision": Key("fp32", "Of the tokenizer's arithmetic: 'fp32', 'tf32', 'bf16' or 'fp16'.", _TEXT),
    "posterior": Key(
        "mean",
        "Of a variational tokenizer's posterior: 'mean', or 'sample', drawn from the run's seed, "
        "the image and its copy.",
        _TEXT,
    ),
    "batch_size": Key(32, "Images at once, of one process.", _INT),
    "workers": Key(4, "Processes that read images, for each that encodes.", _INT),
}


GENERATION_DATA_KEYS = {
    "train": Key({"type": "latents"}, "What to train on: 'latents', a cache, or 'images', encoded on the fly; `root` "
                                      "is `data_root`, or the cache that `latent_cache` makes."),
    "num_images": DATA_KEYS["num_images"],
    "workers": Key(0, "Data-loading processes of each training process. A cache is read fastest with none.", _INT),
    "timeout": DATA_KEYS["timeout"],
    "statistics_images": Key(10_000, "Images, evenly spaced, whose latents' mean and deviation normalise latents "
                                     "encoded on the fly; None: all. A cache brings its own.", (int, _NONE)),
    "posterior": Key("mean", "Of a variational tokenizer that encodes on the fly: the posterior's 'mean', or a "
                             "'sample' drawn anew each time. Of a cache, its own.", _TEXT),
}  # fmt: skip


GENERATION_LOG_KEYS = {
    "every": Key(50, "Steps between scalars and progress lines.", _INT),
    "time_bins": Key(10, "Equal parts of the time axis for which the loss is logged apart.", _INT),
    "pictures_every": Key(None, "Steps between sample grids; None: only after the last step.", (int, _NONE)),
    "pictures_at": Key([], "More steps at which a grid is drawn.", (list, tuple)),
    "pictures": Key(16, "Samples in a grid, of seeds 0, 1, ...; 0 for none.", _INT),
}


GENERATION_VALIDATION_KEYS = {
    "num": Key(0, "Samples that are drawn, of seeds 0, 1, ..., as `tools/sample.py` does; 0: no validation.", _INT),
    "every": Key(None, "Steps between validations; None: only after the last step.", (int, _NONE)),
    "batch_size": Key(32, "Samples at once in each process.", _INT),
    "labels": Key("random", "'random' (a sample's seed gives its label) or 'balanced'.", _TEXT),
    "metrics": Key([], "Metrics of the samples, such as dict(type='generation', reference='...').", (list,)),
    "variants": Key({}, "name -> settings that differ from `sampling`, such as dict(unguided=dict(cfg_scale=1.0)); "
                        "every metric is taken of each. {}: of one, 'generation', as `sampling` says."),
}  # fmt: skip


#: Keys of a generator's training: at the top of a config without stages, in `generation` of one with stages.
GENERATION_KEYS = {
    "generator": Key({}, "The generator: a registry name and its keywords. It is what the config trains.", _DICT),
    "tokenizer": Key(None, "The tokenizer that made the latents, or encodes: a work folder, a saved folder, a "
                           "published checkpoint, a hub id. None: that of the stages, or the one that made the cache.",
                     (str, _NONE)),
    "latent_cache": Key(None, "Encode `data_root` into <work_dir>/latents first, and train on that; None: do not.",
                        (dict, _NONE), LATENT_CACHE_KEYS),
    "transport": Key({}, "From noise to data: training times and loss.", _DICT, TRANSPORT_KEYS),
    "sampling": Key({}, "How samples are drawn, here and by `tools/sample.py` unless it is told otherwise.", _DICT,
                    SAMPLING_KEYS),
    "steps": STAGE_KEYS["steps"],
    "optimizer": Key({"type": "AdamW", "lr": 2e-4, "betas": (0.9, 0.95), "weight_decay": 0.0},
                     "Optimiser of the generator (torch's name)."),
    "schedule": STAGE_KEYS["schedule"],
    "clip_grad_norm": STAGE_KEYS["clip_grad_norm"],
    "spike_factor": STAGE_KEYS["spike_factor"],
    "max_skipped_steps": STAGE_KEYS["max_skipped_steps"],
    "ema": Key({"sigma_rel": [], "decays": [0.9999], "inference": 0.9999}, "Weight averages; None: none.",
               (dict, _NONE), EMA_KEYS),
    "global_batch_size": Key(256, "Latents of one optimiser step, over all processes and micro-batches.", _INT),
    "accumulation": STAGE_KEYS["accumulation"],
    "precision": STAGE_KEYS["precision"],
    "grad_checkpointing": Key(False, "Recompute activations of the generator to save memory.", (bool,)),
    "compile": Key(False, "Compile generator and tokenizer block by block: True, or keywords of `torch.compile`.",
                   (bool, dict)),
    "attention": STAGE_KEYS["attention"],
    "data": Key({}, "What is trained on, and its loading.", _DICT, GENERATION_DATA_KEYS),
    "checkpoint": STAGE_KEYS["checkpoint"],
    "log": Key({}, "Scalars and pictures.", _DICT, GENERATION_LOG_KEYS),
    "validation": Key({}, "Samples that are measured on the way.", _DICT, GENERATION_VALIDATION_KEYS),
    "hooks": STAGE_KEYS["hooks"],
}  # fmt: skip


#: Keys of a run, whatever it trains.
RUN_KEYS = {
    "work_dir": Key(None, "Where everything is written; None: work_dirs/<the config's name>.", (str, _NONE)),
    "seed": Key(0, "Source of every random choice.", _INT),
    "data_root": Key(None, "Where the images are: a folder, a zip, WebDataset shards, parquet files, hf://owner/name.",
                     (str, _NONE)),
    "process_timeout": Key(120, "Seconds without a sign of life after which a process counts as failed.", _NUMBER),
    "stages": Key([], "The stages, in order: a name, steps, and whatever differs from the top of the config.", (list,)),
    "generation": Key({}, "In a config with stages: the generator's training after them, if it has a `generator`. "
                          "Without stages these keys stand at the top.", _DICT, GENERATION_KEYS),
}  # fmt: skip
TOP_KEYS = {**RUN_KEYS, **STAGE_KEYS}
GENERATOR_TOP_KEYS = {**RUN_KEYS, **GENERATION_KEYS}
ONE_STAGE_KEYS = {"name": Key(None, "The stage's name.", _TEXT), **STAGE_KEYS}
