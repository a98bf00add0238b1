"""Models of transformers: found in folders and on a hub, and built so that nothing in their files is run.

Of a folder's config the numbers are taken, never the code that `auto_map` names, the kernels, adapters, or files
elsewhere; weights are read as all others are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from aligntok.errors import ConfigError, WeightsError, first_line
from aligntok.imports import FAILURES, folder_of, import_failure, installing, is_here, quietly
from aligntok.io.files import inside, read_bytes, read_json, reading, replacing, write_json
from aligntok.settings import flatten
from aligntok.weights.hub import Repository, check_named
from aligntok.weights.load import misfit, read_tensors
from aligntok.weights.names import CONFIG, PROCESSOR, TOKENIZER, VOCABULARIES, WEIGHTS

PACKAGE = "package:"  # begins a source that lies in an installed package
_MOST_LAYERS = 1000  # of any model, so that a config with a slip, or of bad will, does not fill the memory
#: Keys of a config that say where something else lies, or who made the file: none of them is a number of the model.
_NO_NUMBERS = (
    *("auto_map", "quantization_config", "fusion_config", "transformers_weights", "_name_or_path", "name_or_path"),
    *("_attn_implementation", "attn_implementation", "_experts_implementation", "architectures", "dtype"),
    *("torch_dtype", "transformers_version", "use_cache", "_commit_hash", "kernel_config", "use_pretrained_backbone"),
)
#: From a model's type to transformers' class, by its name; None: whatever transformers has for that type.
Classes = Mapping[str, str] | None


def library() -> Any:
    """Return transformers. Raises ConfigError where it is not installed, or fails at its import."""
    try:
        with quietly():
            import transformers
    except FAILURES as error:
        raise ConfigError(f"text encoders and metrics need transformers: {import_failure(error)}") from error
    return transformers


def find_files(source: str | os.PathLike[str], who: str, groups: Sequence[Sequence[str]], example: str) -> Path:
    """Return the folder of a model or tokenizer: `source`, or where a hub's repository is kept, fetched if need be.

    source: a folder, ``package:name/folder`` of an installed package, or ``owner/name[@revision][/subfolder]``.
    groups: of each, the first file that there is. example: a repository that has them. Raises WeightsError, which names
    what is missing, where it was looked for and what has it.
    """
    name, _, rest = os.fspath(source).removeprefix(PACKAGE).partition("/")
    is_packaged = os.fspath(source).startswith(PACKAGE)
    folder = folder_of(name, f"the files of {who}") / rest if is_packaged else Path(source).expanduser()
    if folder.is_dir():
        for names in groups:
            if not any((folder / name).exists() for name in names):
                raise WeightsError(
                    f"{who}: {folder} has no {' or '.join(names)}; copy it there from where the other files are from, "
                    f"or give a repository of the hub as path, such as {example!r}"
                )
        return folder
    if is_packaged or os.fspath(source).startswith((".", "~")) or folder.is_absolute():
        wanted = ", ".join(" or ".join(names) for names in groups)
        raise WeightsError(
            f"{who}: there is no folder {source}; give the one that has {wanted}, or a repository of the hub as path, "
            f"such as {example!r}"
        )
    check_named(source, who)
    repository = Repository(os.fspath(source), who)
    found = [repository.file(*names) for names in groups]
    for index in [each for each in found if each.name.endswith(".index.json")]:
        for part in parts_of(index, who):
            repository.file(part)
    if VOCABULARIES in groups:
        for name in (*VOCABULARIES, *TOKENIZER):
            repository.find(name)
    return found[0].parent


def file_of(folder: Path, name: str, who: str) -> Path:
    """Return a file in a model's folder, of the hub's cache with its links too. Raises WeightsError for one outside."""
    root = next((each.parent for each in folder.parents if each.name == "snapshots"), folder)
    return inside(root, folder.relative_to(root) / name, WeightsError, f"copy the folder of {who} again, whole")


def parts_of(index: Path, who: str) -> list[str]:
    """Return the names of the files that weights are in, out of the list of their parts."""
    cure = f"copy it again, whole; it lists the parts of the weights of {who}"
    names = read_json(index, WeightsError, cure, lambda content: {*content["weight_map"].values()})
    return sorted(map(str, names))


def read_config(folder: Path, who: str) -> dict[str, Any]:
    """Return the numbers of a model's config.json, by name. Raises WeightsError when it cannot be read."""
    cure = f"copy it again; it says what kind of model {who} is to be"
    return dict(_numbers(read_json(file_of(folder, CONFIG, who), WeightsError, cure)))


def _numbers(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {key: _numbers(value) for key, value in config.items() if key not in _NO_NUMBERS}
    return config


def read_weights(folder: Path, who: str) -> dict[str, Tensor]:
    """Return the tensors of a model's folder by name, of one file or of several. Raises WeightsError."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder, who):
        tensors |= read_tensors(file, who)
    return tensors


def weight_files(folder: Path, who: str) -> list[Path]:
    """Return the files of a model's folder that its weights are in, one or several. Raises WeightsError."""
    first = next(folder / name for name in WEIGHTS if (folder / name).exists())
    names = parts_of(first, who) if first.name.endswith(".index.json") else [first.name]
    return [file_of(folder, name, who) for name in names]


def build_model(
    config: Mapping[str, Any],
    classes: Classes,
    weights: Mapping[str, Tensor] | None,
    dtype: torch.dtype,
    who: str,
    family: str = "MODEL",
    given: str = "input_ids",
) -> Any:
    """Return a model of transformers of a config, with weights by the names that files have (None: random ones).

    family: of the types of transformers, where `classes` is None. given: what the model has to take.

    Weights that it has no place for, such as a head's, are passed over; a `pooler` is left out where `classes` is None.
    Raises WeightsError for a type that is not among `classes`, a config that makes no model, and weights that don't
    fit.
    """
    transformers = library()
    kind = str(config.get("model_type"))
    model_class: Any = None
    faults: Mapping[str, Any] = {}
    with _in_silence(transformers):
        try:
            known = transformers.CONFIG_MAPPING
            made = known[kind].from_dict({**config, "use_cache": False}) if kind in known else None
            if classes is None:
                model_class = getattr(transformers, f"{family}_MAPPING").get(type(made), None)
            else:
                model_class = getattr(transformers, classes.get(kind, ""), None)
            taken = signature(model_class.forward).parameters if hasattr(model_class, "forward") else {}
            fits = given in taken and "decoder_input_ids" not in taken
            if fits:
                _check_size(model_class, made, weights)
                options: dict[str, Any] = {
                    "attn_implementation": "sdpa" if model_class._supports_sdpa else "eager",
                    "dtype": dtype,
                }
                if weights is None:
                    model = model_class._from_config(made, **options)
                else:
                    options |= {"config": made, "state_dict": dict(weights), "ignore_mismatched_sizes": True}
                    model, faults = model_class.from_pretrained(None, output_loading_info=True, **options)
        except Exception as error:  # whatever transformers makes of numbers that fit no model, or weights that don't
            raise WeightsError(
                f"{who}: transformers cannot build a {kind} of its config.json and weights ({first_line(error)}); copy "
                "both again, whole and of one model"
            ) from error
    if not fits:
        takes = ", ".join(classes) if classes else "those of transformers' AutoModel that take one text"
        if family != "MODEL":
            takes = "those of transformers' AutoModelForImageTextToText that are no encoder with a decoder"
        raise WeightsError(f"{who}: its config.json has model_type={kind!r}; it takes {takes}")
    missing = sorted(faults.get("missing_keys", ()))
    if classes is None and isinstance(getattr(model, "pooler", None), torch.nn.Module):
        model.pooler = None
        missing = [name for name in missing if not name.startswith("pooler.")]
    shapes = [f"{name} is {tuple(given)}, not {tuple(own)}" for name, given, own in faults.get("mismatched_keys", ())]
    if missing or shapes:
        raise misfit(who, "the file of weights", missing, others=shapes)
    return model


def _check_size(model_class: Any, config: Any, weights: Mapping[str, Tensor] | None) -> None:
    """Raise ValueError for a config that declares far more than its weights have: the rest would be made at random."""
    told = {name: value for name, value in flatten(config.to_dict()).items() if isinstance(value, int)}
    layers = {name: value for name, value in told.items() if re.search(r"layers[^.]*$|(^|\.)depth$", name)}
    if many := [f"{name}={value}" for name, value in layers.items() if value > _MOST_LAYERS]:
        raise ValueError(f"{many[0]} is more than {_MOST_LAYERS}")
    if weights is not None:
        with torch.device("meta"):
            needed = sum(each.numel() for each in model_class(config).parameters())
        given = sum(each.numel() for each in weights.values())
        if needed > 2 * given:
            raise ValueError(f"it declares {needed:,} numbers, and the weights have {given:,}")


def tokenizer_files(folder: Path, who: str, more: Sequence[str] = ()) -> dict[str, bytes]:
    """Return what the files of a folder's tokenizer hold, by name, and those of `more` that are there.

    Raises WeightsError.
    """
    held = {}
    for name in (*VOCABULARIES, *TOKENIZER, *more):
        if (folder / name).exists():
            with reading(folder / name, WeightsError, f"copy the tokenizer of {who} again"):
                held[name] = read_bytes(file_of(folder, name, who))
    return held


def digest_of(held: Mapping[str, bytes]) -> str:
    """SHA-256 of files by name, 64 hexadecimal digits."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in held.items()}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def load_tokenizer(held: Mapping[str, bytes], config: Any, folder: Path, who: str) -> Any:
    """Return the fast tokenizer of files by name, which lie in `folder`; `config` is the built one of its model.

    No other file of that folder is opened. Raises WeightsError for one that cannot be read, or needs code of its own.
    """
    transformers = library()
    try:
        tokenizer = _loaded(transformers.AutoTokenizer, held, config=config)
        if not tokenizer.is_fast:
            raise ValueError(f"it is a {type(tokenizer).__name__}, which is not of the tokenizers library")
    except Exception as error:  # whatever transformers and tokenizers raise of files that are damaged, or need code
        lacks = "tokenizer.json" not in held and not is_here("sentencepiece")
        cure = f"without a tokenizer.json it may need sentencepiece: {installing('sentencepiece')}"
        raise WeightsError(
            f"{who}: the tokenizer in {folder} cannot be read ({first_line(error)}); "
            + (cure if lacks else "copy its files again; one that needs code of its own is not taken")
        ) from error
    return tokenizer


def load_processor(held: Mapping[str, bytes], folder: Path, who: str, of: str = "AutoProcessor") -> Any:
    """Return what makes a model's inputs of images and words, or by `of` of images alone, as :func:`load_tokenizer`."""
    transformers = library()
    try:
        return _loaded(getattr(transformers, of), held)
    except Exception as error:  # as above, and of kinds that need a library which is not here
        raise WeightsError(
            f"{who}: the processor in {folder} cannot be read ({first_line(error)}); copy its files again, with "
            f"{PROCESSOR[0]}; one that needs code of its own is not taken"
        ) from error


def _loaded(auto: Any, held: Mapping[str, bytes], **options: Any) -> Any:
    """Return what an Auto class of transformers makes of files alone, with the numbers of those in JSON."""
    with TemporaryDirectory() as place, _in_silence(library()):
        for name, content in held.items():
            with replacing(Path(place, name)) as copy:
                copy.write_bytes(content)
            if name.endswith("config.json"):
                write_json(Path(place, name), _numbers(read_json(Path(place, name), WeightsError, "copy it again")))
        return auto.from_pretrained(place, trust_remote_code=False, local_files_only=True, **options)


@contextmanager
def _in_silence(transformers: Any) -> Iterator[None]:
    """Keep transformers from telling on stderr what is told here: which weights are left over, how far it is."""
    said = transformers.utils.logging
    level, bar = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity(logging.CRITICAL)
    said.disable_progress_bar()
    try:
        with quietly():
            yield
    finally:
        said.set_verbosity(level)
        if bar:
            said.enable_progress_bar()
