"""Tokenizers and generators from wherever they are, and the export of a tokenizer."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch

from aligntok.annotations import checked
from aligntok.device import device_named, dtype_named, put
from aligntok.engine.checkpoints import finished_steps, join, list_checkpoints, load_parts, read_parts
from aligntok.engine.ema import PartStates, post_hoc_coefficients, synthesise
from aligntok.engine.snapshots import read_snapshots, snapshots_folder
from aligntok.errors import CheckpointError, ConfigError, WeightsError
from aligntok.io.files import read_json, reading
from aligntok.io.folders import OWN, checked_target
from aligntok.io.places import with_places
from aligntok.io.values import number
from aligntok.latent_diffusion import LatentDiffusion, check_registered, described_fields
from aligntok.published import load_diffusers_autoencoder, load_ldm_autoencoder
from aligntok.tokenizer import PARTS, Tokenizer
from aligntok.weights.lora import lora_scaling, without_lora

#: The file in the folder of a stage that says what it trains, and how.
STAGE_FILE = "stage.json"
#: What its ``format`` is; a file of another is of another version's training.
STAGE_FORMAT = 2
#: The folder of a generator's training, in a work folder.
GENERATION = "generation"
F = TypeVar("F", bound=Callable[..., Any])
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def _answering(load: F) -> F:
    """Have a loader refuse keywords that it does not take, and values that it does not annotate, in a sentence."""
    told = checked(load)

    @functools.wraps(load)
    def call(*given: Any, **options: Any) -> Any:
        if "torch_dtype" in options:
            dtype = str(options["torch_dtype"]).removeprefix("torch.")
            raise ConfigError(f"{load.__name__} takes no torch_dtype=; say dtype={dtype!r}")
        return told(*given, **options)

    return cast("F", call)


@_answering
def load_tokenizer(
    source: str | os.PathLike[str],
    *,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    weights: Literal["raw", "ema"] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    components: Mapping[str, Any] | None = None,
    resolution: int | None = None,
    sigma_rel: float | None = None,
    rebuild: bool = False,
) -> Tokenizer:
    """Load a tokenizer, in eval mode, on the CPU and in float32 unless `device` and `dtype` say otherwise.

    `source` is one of: a folder that ``Tokenizer.save_pretrained`` wrote; a training work folder or one of its stages
    (the furthest stage's newest checkpoint, EMA weights where the stage uses them; `weights` "raw" or "ema",
    `sigma_rel` and `rebuild` as in :func:`load_stage_tokenizer`); a published VA-VAE or other LDM-style checkpoint file
    (trained at `resolution`, 256 by default); a Hugging Face hub id (`revision`, `token`, `cache_dir`,
    `local_files_only`); a folder or hub id of a diffusers AutoencoderKL, or of a pipeline that has one. Nothing is
    unpickled with code execution, and no name in a file is imported: of those only registered ones are taken, and those
    that `components` has a class for, such as ``{"mypkg.Enc": Enc}``. `device` is "cpu", "cuda", "cuda:1", "mps" or
    torch's; `dtype` "float32", "bfloat16", "float16" or torch's. A keyword that is None is as one that is not given.

    Raises WeightsError or CheckpointError when there is no tokenizer there, or it is damaged, UnknownComponentError for
    a part that is neither registered nor given, ConfigError for a choice of weights outside of a work folder, a
    `resolution` of what is no file, a device that is not here, and keywords that there are not.
    """
    source = os.path.expanduser(source)
    place, path = _placement("load_tokenizer", device, dtype), Path(source)
    if resolution is not None and not path.is_file():
        raise ConfigError(f"resolution={resolution} is of a checkpoint file alone, and {source} is none; leave it out")
    if path.is_dir() and not ((path / "config.json").is_file() or (path / "model_index.json").is_file()):
        return place(load_stage_tokenizer(_furthest_stage(path), weights, sigma_rel, components, rebuild))
    if weights is not None or sigma_rel is not None:
        raise ConfigError(f"--weights and --ema choose among a work folder's weights; {source} is none")
    if path.is_file():
        if path.suffix not in CHECKPOINT_SUFFIXES:
            raise WeightsError(f"{path} is no checkpoint file; those end in {', '.join(CHECKPOINT_SUFFIXES)}")
        return place(load_ldm_autoencoder(path, resolution or 256))
    check_there(source)
    hub: dict[str, Any] = dict(revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    found = load_diffusers_autoencoder(source, **hub)
    return place(found or Tokenizer.from_pretrained(str(source), components=components, **hub))


def _placement(who: str, device: Any, dtype: Any) -> Callable[[Any], Any]:
    """Return what brings a model where a loader is told, looked at before anything is loaded."""
    asked = {} if device is None else {"device": device_named(device, who)}
    return functools.partial(put, **(asked if dtype is None else {**asked, "dtype": dtype_named(dtype, who)}))


def check_there(source: str | os.PathLike[str]) -> None:
    """Raise WeightsError for what is surely a path, and no hub id, and is not there."""
    name, path = str(source), Path(source).expanduser()
    is_path = path.suffix in CHECKPOINT_SUFFIXES or name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not path.exists():
        raise WeightsError(f"no such file or folder: {source}")


def saved_size(source: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return the latent dimension and the factor of a tokenizer that is saved in a folder; None of any other."""
    if not (file := Path(source) / "config.json").is_file():
        return None
    said: dict[str, Any] = read_json(file, WeightsError, "copy or download the folder again")
    found = said.get("latent_dim"), said.get("downsample_factor")
    return found if all(isinstance(each, int) for each in found) else None  # type: ignore[return-value]


def _kept(said: Mapping[str, Any]) -> list[float] | None:
    """Return the widths and decays whose averages a training keeps, as its file says; None without averages."""
    ema = said["ema"] and dict(said["ema"])
    return [number(each) for name in ("sigma_rel", "decays") for each in ema.get(name, ())] if ema else None


def _read_average(
    folder: str | os.PathLike[str], kept: list[float] | None, weights: str | None, which: float | None, rebuild: bool
) -> PartStates:
    """Read every part of a training; `weights` None takes its averages where it has some.

    `rebuild` makes a width that it has not `kept` from its snapshots, at the last of them (EDM2, App. C.2).
    """
    if not rebuild or which is None or which in (kept or ()):
        return read_parts(folder, weights or ("raw" if kept is None else "ema"), which)
    if not (snapshots := read_snapshots(folder, finished_steps(folder))):
        raise CheckpointError(
            f"{folder} keeps neither an EMA of width {which} nor snapshots to make one from; "
            "set ema.snapshot_every for the stage"
        )
    steps, widths, parts = zip(*snapshots, strict=True)
    coefficients = map(float, post_hoc_coefficients(steps, widths, max(steps), which))
    return join(read_parts(folder), synthesise(zip(coefficients, parts, strict=True)))


def load_stage_tokenizer(
    folder: str | os.PathLike[str],
    weights: str | None = None,
    sigma_rel: float | None = None,
    components: Mapping[str, Any] | None = None,
    rebuild: bool = False,
) -> Tokenizer:
    """Load the tokenizer of a stage's folder from its newest checkpoint; `components` as in :func:`load_tokenizer`.

    `weights` None takes the EMA (of width `sigma_rel`, or the stage's inference width) where the stage keeps one.
    `rebuild` makes a width that was not kept from the stage's snapshots, at the last of them.
    """
    stage = _read_description(folder)
    saved = {key: value for key, value in stage["tokenizer"].items() if key != "aligntok_version"}
    with reading(Path(folder) / STAGE_FILE, CheckpointError, _UNKNOWN_MODEL):
        tokenizer = Tokenizer(**{**saved, "trusted": False, "components": components})
    states = read_merged_parts(folder, weights, sigma_rel, rebuild)
    parts = {part: getattr(tokenizer, part) for part in PARTS}
    kept = {part: states.get(part, {}) for part in PARTS}  # files have no part without weights
    load_parts(parts, kept, f"the newest checkpoint in {folder}")
    return tokenizer.eval()


def read_merged_parts(
    folder: str | os.PathLike[str], weights: str | None, sigma_rel: float | None = None, rebuild: bool = False
) -> PartStates:
    """Read every part of a stage as :func:`aligntok.engine.checkpoints.read_parts` does, low-rank updates merged.

    `weights` and `rebuild` as in :func:`load_stage_tokenizer`.
    """
    stage = _read_description(folder)
    states = _read_average(folder, stage["ema"], weights, sigma_rel, rebuild)
    lora = stage["lora"]
    return {**states, "encoder": without_lora(states.get("encoder", {}), lora)} if lora else states


def read_stage_file(folder: str | os.PathLike[str], cure: str, parse: Callable[[dict[str, Any]], Any] = dict) -> Any:
    """Return what `parse` makes of the file in a stage's folder that says what it trains.

    Raises CheckpointError, which ends with `cure`, where it is missing or damaged, and for another version's format.
    """

    def parse_ours(said: dict[str, Any]) -> Any:
        if said.get("format") != STAGE_FORMAT:
            writer = f"AlignTok {said['aligntok_version']}" if "aligntok_version" in said else "an earlier AlignTok"
            raise CheckpointError(
                f"{folder} is a training of {writer}, whose {STAGE_FILE} has format {said.get('format', 1)}; this "
                f"version reads {STAGE_FORMAT}. Go on with, or export by, the version that wrote it, or train anew in "
                "another folder"
            )
        return parse(said)

    return read_json(Path(folder) / STAGE_FILE, CheckpointError, cure, parse_ours)


_UNKNOWN_MODEL = (
    "so the stage's model is unknown: copy the stage's folder whole; going on with the training writes that file"
)


def _read_description(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what readers need of a stage's file: its tokenizer, its averages and the scaling of its LoRA, or None."""

    def parse(said: dict[str, Any]) -> dict[str, Any]:
        lora = said.get("lora")
        return {"tokenizer": dict(said["tokenizer"]), "ema": _kept(said), "lora": lora and lora_scaling(lora)}

    described: dict[str, Any] = read_stage_file(folder, _UNKNOWN_MODEL, parse)
    return described


def _furthest_stage(folder: Path) -> Path:
    """Return the last stage of a work folder that has a checkpoint; the folder itself if it is a stage's."""
    candidates = [folder, *sorted(folder.glob("[0-9]*_*"), key=_place)] if folder.is_dir() else []
    for candidate in reversed(candidates):
        if _is_trained(candidate, makes_generator=False):
            return candidate
    if (folder / "latent_diffusion.json").is_file():
        raise WeightsError(f"{folder} is a generator's; the tokenizer that it has is {folder / 'tokenizer'}")
    raise WeightsError(
        f"{folder} is neither a saved tokenizer (no config.json) nor a work folder with a checkpoint; "
        f"it has: {', '.join(sorted(os.listdir(folder))[:10]) or 'nothing'}"
    )


def _is_trained(folder: Path, makes_generator: bool) -> bool:
    """Tell whether a folder is that of a stage with a checkpoint, of a generator's or of a tokenizer's."""
    if not (folder / STAGE_FILE).is_file() or not list_checkpoints(folder):
        return False
    said = read_stage_file(folder, "so what it trains is unknown: copy the folder whole")
    return ("generator" in said) == makes_generator


def _place(folder: Path) -> int:
    """Return the number that a stage's folder begins with; -1 for other folders."""
    number = folder.name.partition("_")[0]
    return int(number) if number.isdecimal() else -1


def export_tokenizer(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    weights: Literal["raw", "ema"] | None = None,
    sigma_rel: float | None = None,
    components: Mapping[str, Any] | None = None,
) -> Path:
    """Write the tokenizer of `source` as a folder and return it; `components` too as in :func:`load_tokenizer`.

    For a work folder, `weights` and `sigma_rel` choose; an EMA width that was not kept is rebuilt from the furthest
    stage's snapshots. Raises CheckpointError if there are none, ConfigError if it would overwrite another folder.
    """
    target = checked_target(out, "model.safetensors", says=OWN)
    tokenizer = load_tokenizer(source, components=components, weights=weights, sigma_rel=sigma_rel, rebuild=True)
    tokenizer.save_pretrained(target)
    return target


UNKNOWN = "so the generator is unknown: copy the folder whole; starting its training again writes that file"


@_answering
def load_latent_diffusion(
    source: str | os.PathLike[str],
    *,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    weights: Literal["raw", "ema"] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    average: float | None = None,
    components: Mapping[str, Any] | None = None,
    text_encoders: Mapping[str, Any] | None = None,
) -> LatentDiffusion:
    """Load a generator with its tokenizer, in eval mode, where and as `device` and `dtype` say.

    `source` is a folder that ``LatentDiffusion.save_pretrained`` wrote, the hub id of one, a training work folder, or
    its ``generation`` folder; the keywords are those of :func:`load_tokenizer`. Of a training the newest checkpoint is
    taken: `weights` "raw", or "ema" (None: where it is kept), of the width or decay `average` (None: that of the
    config's `ema.inference`); a width that was not kept is made from snapshots.

    `components` are classes by the names that its files give them, for parts that no plugin registers. `text_encoders`
    are folders or hub ids, such as ``dict(tokens="/path/to/t5")``, of those that encode prompts, which no export holds,
    or ``dict(path=, tokenizer=)`` of these; their content must be what the generator was trained with.

    Raises WeightsError or CheckpointError when there is none there, or it is damaged, UnknownComponentError for a part
    that is neither registered nor given, ConfigError as that function does.
    """
    source = os.path.expanduser(source)
    place, path = _placement("load_latent_diffusion", device, dtype), Path(source)
    check_there(source)
    if path.exists() and not (path / "latent_diffusion.json").is_file():
        return place(_trained(generation_folder(path), weights, average, components, text_encoders))
    if weights is not None or average is not None:
        raise ConfigError(f"--weights and --ema choose among a work folder's weights; {source} is none")
    hub: dict[str, Any] = dict(revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    return place(LatentDiffusion.from_pretrained(source, components, text_encoders, **hub))


def _trained(
    folder: Path,
    weights: str | None,
    average: float | None,
    components: Mapping[str, Any] | None,
    text_encoders: Mapping[str, Any] | None,
) -> LatentDiffusion:
    """Return the newest generator of a training's folder."""
    kept, fields = read_stage_file(folder, UNKNOWN, lambda said: (_kept(said), described_fields(said)))
    check_registered(fields, components)  # before the tokenizer's parts are imported
    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer", components=components)
    with reading(folder / STAGE_FILE, CheckpointError, UNKNOWN):
        described = {**with_places(fields, folder), "tokenizer": tokenizer}
        model = LatentDiffusion(trusted=False, components=components, text_encoders=text_encoders, **described)
    states = _read_average(folder, kept, weights, average, snapshots_folder(folder).is_dir())
    load_parts({"generator": model.generator}, states, f"the newest checkpoint in {folder}")
    return model.eval()


def has_generator(path: Path) -> bool:
    """Tell whether a folder is a saved generator's, or a training's that has made one."""
    path = path.expanduser()
    folders = (path, path / GENERATION)
    return (path / "latent_diffusion.json").is_file() or any(
        _is_trained(each, makes_generator=True) for each in folders
    )


def generation_folder(path: Path) -> Path:
    """Return the folder of a generator's training: itself, or the one in a work folder. Raises WeightsError."""
    for folder in (path, path / GENERATION):
        if _is_trained(folder, makes_generator=True):
            return folder
    there = ", ".join(sorted(os.listdir(path))[:10]) if path.is_dir() else "nothing, as it is no folder"
    raise WeightsError(
        f"{path} has no trained generator: neither a saved one (latent_diffusion.json) nor a work folder with a "
        f"checkpoint of its generation; it has: {there or 'nothing'}"
    )
