"""Configs: every key, what it means and what it may be; a typo is an error that names the nearest right key."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntok.errors import ConfigError, first_line, suggestion
from aligntok.training.lora import TARGETS


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
    "inference": Key(
        0.05, "The width used for validation, pictures, 'ema' starts and the exported tokenizer.", _NUMBER
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
    "perceptual": Key({"type": "lpips"}, "Loss that measures the perceptual distance; None: none.", (dict, _NONE)),
}

#: Keys that a stage may override, and that the top of a config sets for all stages.
STAGE_KEYS = {
    "model": Key({}, "Keywords of `aligntok.tokenizer.Tokenizer`: encoder, adapter, decoder, latent_dim, ..."),
    "discriminator": Key({"type": "patchgan"}, "The discriminator, carried from stage to stage; None: none.",
                         (dict, _NONE)),
    "losses": Key({}, "name -> loss: its type and keywords, and `weight`, `start_step`, `balance` "
                      "(dict(at='decoder' | 'encoder', max_ratio, eps)). None in place of a loss removes it."),
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
    "lora": Key(None, "Train the encoder by low-rank updates (LoRA), which `start` and the export merge; None: all of "
                      "its weights.", (dict, _NONE), LORA_KEYS),
    "data": Key({}, "Data sets and their loading.", _DICT, DATA_KEYS),
    "checkpoint": Key({}, "When checkpoints are written and how many stay.", _DICT, CHECKPOINT_KEYS),
    "log": Key({}, "Scalars and pictures.", _DICT, LOG_KEYS),
    "validation": Key({}, "Held-out reconstruction quality.", _DICT, VALIDATION_KEYS),
    "hooks": Key([], "More mmengine hooks: registry names or mmengine's classes.", (list,)),
}  # fmt: skip
TOP_KEYS = {
    "work_dir": Key(None, "Where everything is written; None: work_dirs/<the config's name>.", (str, _NONE)),
    "seed": Key(0, "Source of every random choice.", _INT),
    "data_root": Key(None, "Where the images are: a folder, a zip, WebDataset shards, parquet files, hf://owner/name.",
                     (str, _NONE)),
    "process_timeout": Key(120, "Seconds without a sign of life after which a process counts as failed.", _NUMBER),
    "stages": Key([], "The stages, in order: a name, steps, and whatever differs from the top of the config.", (list,)),
    **STAGE_KEYS,
}  # fmt: skip
ONE_STAGE_KEYS = {"name": Key(None, "The stage's name.", _TEXT), **STAGE_KEYS}


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a config file (mmengine's Python syntax with ``_base_``), apply ``key=value`` options, check every key.

    Returns plain nested dicts and lists, defaults filled in at the top. Raises ConfigError.
    """
    from mmengine.config import Config

    if not Path(path).is_file():
        raise ConfigError(f"no config file {path}; the shipped ones are in configs/")
    try:
        loaded = Config.fromfile(str(path))
    except Exception as error:  # whatever the file's own code raises
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {first_line(error)}") from error
    for key in options or {}:
        first = key.split(".")[0]
        if first not in TOP_KEYS:
            raise ConfigError(_unknown(first, TOP_KEYS, "--cfg-options"))
    try:
        loaded.merge_from_dict(dict(options or {}))
    except (KeyError, IndexError, TypeError, AssertionError) as error:
        given = " ".join(f"{key}={value}" for key, value in (options or {}).items())
        raise ConfigError(
            f"--cfg-options {given}: {first_line(error)}; dots lead into dicts and lists that the config has "
            "(stages.0 is the first stage)"
        ) from error
    config = loaded.to_dict()
    check_config(config, str(path))
    filled = {**{key: copy.deepcopy(known.default) for key, known in TOP_KEYS.items()}, **config}
    filled["work_dir"] = filled["work_dir"] or f"work_dirs/{Path(path).stem}"
    return filled


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a key that is unknown or of a wrong type, in the config or any of its stages."""
    _check(config, TOP_KEYS, where)
    stages = config.get("stages", [])
    if not stages:
        raise ConfigError(f"{where} has no stages; give a list of dict(name=..., steps=..., ...)")
    for i, stage in enumerate(stages):
        if not isinstance(stage, Mapping):
            raise ConfigError(f"{where}, stages[{i}] is {stage!r}; it must be dict(name=..., steps=..., ...)")
        _check(stage, ONE_STAGE_KEYS, f"{where}, stages[{i}]")
        if not stage.get("name") or {"/", "\\"} & set(stage["name"]):
            raise ConfigError(f"{where}, stages[{i}] has no name that a folder could have; give each stage one")
    names = [stage["name"] for stage in stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: stages need different names, not {names}")


def check_model_keys(model: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a key of `model` that :class:`aligntok.tokenizer.Tokenizer` does not take."""
    from aligntok.tokenizer import Tokenizer

    known = [name for name in inspect.signature(Tokenizer.__init__).parameters if name not in ("self", "plugins")]
    for key in model:
        if key not in known:
            raise ConfigError(_unknown(key, known, f"{where}, model"))


def fill_defaults(settings: Mapping[str, Any], keys: Mapping[str, Key] = STAGE_KEYS) -> dict[str, Any]:
    """Return a stage's settings with the defaults of all keys filled in, those below them too; None stays None.

    A component's default keywords fill in only what a config of the same type, or of none, leaves out.
    """
    filled = dict(settings)
    for key, known in keys.items():
        default = copy.deepcopy(known.default)
        given = settings.get(key, default)
        if isinstance(given, Mapping) and isinstance(default, dict):
            same = given.get("type", default.get("type")) == default.get("type")
            given = {**default, **given} if same else dict(given)
        filled[key] = fill_defaults(given, known.below) if known.below and given is not None else given
    return filled


def _check(config: Mapping[str, Any], known: Mapping[str, Key], where: str) -> None:
    for key, value in config.items():
        if key not in known:
            raise ConfigError(_unknown(key, known, where))
        kinds = known[key].kinds
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            allowed = " or ".join("None" if kind is _NONE else kind.__name__ for kind in kinds)
            raise ConfigError(f"{where}: {key}={value!r} is {type(value).__name__}; it must be {allowed}")
        below = known[key].below
        if below is not None and isinstance(value, Mapping):
            _check({k: v for k, v in value.items() if k != "_delete_"}, below, f"{where}, {key}")


def _unknown(key: str, known: Any, where: str) -> str:
    return f"unknown key '{key}' in {where}\n  {suggestion(key, known)}Known keys here: {', '.join(sorted(known))}"
