"""Weights from a local file into a module, with errors that say what does not fit. No file can run code."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aligntok.errors import WeightsError, first_line, some_of
from aligntok.io.arrays import check_stored, why_unread
from aligntok.io.files import inside, names_of_one_tensor, read_json
from aligntok.weights.hub import fetch

#: Where a checkpoint keeps its weights, in the order of preference; the averaged ones are what models are released for.
CONTAINERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "teacher")
#: What torch.compile and DistributedDataParallel put before every name.
_WRAPPERS = re.compile(r"(_orig_mod\.|module\.)*")
_SIZES = re.compile(r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)")


def read_tensors(path: str | os.PathLike[str], who: str) -> dict[str, Tensor]:
    """Return tensors by name from a .safetensors file, or from a torch file (.bin, .pth, .pt, .ckpt) without its code.

    A folder has one .safetensors file, or several with an index, as diffusers and transformers write them.

    A nested checkpoint gives its weights (`CONTAINERS`), and wrapper prefixes are taken off the names. `who` names
    the component that wants them in the error. Raises WeightsError when the file is missing, is damaged, holds
    objects other than tensors and plain data, or holds no tensors by name.
    """
    if os.path.isdir(path):
        return {name: tensor for file in _files_of(Path(path), who) for name, tensor in read_tensors(file, who).items()}
    file = fetch(path, who)
    try:
        tensors_only = file.suffix == ".safetensors"
        check_stored(file)
        content = load_file(file) if tensors_only else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the format's reader happens to
        raise WeightsError(
            f"{who}: {file} cannot be read as weights ({type(error).__name__}: {why_unread(error)}); place a sound "
            "file there\n  allowed: safetensors, or a torch file of plain tensors; nothing in it is ever executed"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{who}: {file} holds a {type(content).__name__}, not a state dict")
    named = {str(key): value for key, value in _inner(content).items() if isinstance(value, Tensor)}
    tensors = {_WRAPPERS.sub("", name, count=1): value for name, value in named.items()}
    if not tensors:
        raise WeightsError(f"{who}: {file} holds no tensors by name; a state dict is needed")
    return tensors


def _files_of(folder: Path, who: str) -> list[Path]:
    cure = f"{who} takes a folder of one .safetensors file, or of shards with one index that names them"
    indexes, files = sorted(folder.glob("*.safetensors.index.json")), sorted(folder.glob("*.safetensors"))
    if len(indexes) == 1:
        shards = read_json(indexes[0], WeightsError, cure, lambda content: {*content["weight_map"].values()})
        return [inside(folder, shard, WeightsError, cure) for shard in sorted(shards)]
    if len(files) != 1:
        raise WeightsError(f"{folder} has {len(files)} .safetensors files and {len(indexes)} indexes; {cure}")
    return files


def _inner(content: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in CONTAINERS:
        if isinstance(content.get(name), Mapping):
            return _inner(content[name])
    return content


def load_into(
    module: nn.Module, tensors: Mapping[str, Tensor], who: str, source: object, *, spare: bool = False
) -> None:
    """Load `tensors` into `module`; `spare` ones, which it has no place for, are passed over if allowed.

    Counters of batch norm, which change no output, may be absent; so may all names but one of a tensor that has several
    in `module`, such as a tied weight. `who` is the component and `source` the file, in the
    error. Raises WeightsError, naming what is missing, unknown or of another shape.
    """
    own = module.state_dict(keep_vars=True)
    first = names_of_one_tensor(own)
    given = {first[name]: tensor for name, tensor in tensors.items() if name in first}
    tensors = {**{name: given[same] for name, same in first.items() if same in given}, **tensors}
    missing = [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")]
    unknown = [key for key in tensors if key not in own]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(value.shape)}"
        for key, value in own.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if missing or shapes or (unknown and not spare):
        raise misfit(who, source, missing, unknown, shapes)
    module.load_state_dict({key: tensors[key] for key in own if key in tensors}, strict=False)


def weights_hash(config: object, *modules: nn.Module, **parts: nn.Module) -> str:
    """SHA-256 of a config and of weights, 64 hexadecimal digits; the same on every device.

    config: JSON types, or a text as it is. modules: their tensors go by their own names; those of `parts` by
    ``part.name``. Caches and samples name what they were made with by it, so it never changes.
    """
    text = config if isinstance(config, str) else json.dumps(config, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for prefix, module in [*(("", module) for module in modules), *((f"{part}.", parts[part]) for part in parts)]:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{prefix}{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def misfit(
    who: str, source: object, missing: Sequence[str] = (), unknown: Sequence[str] = (), others: Sequence[str] = ()
) -> WeightsError:
    """The error of weights that belong to another model: the first names of each side, and what else does not fit."""
    sides = (("missing ", missing), ("unknown ", unknown), ("", others))
    faults = [side + some_of(names) for side, names in sides if names]
    return WeightsError(
        f"{who}: {source} does not fit ({'; '.join(faults)}); check the model's name and options against the file"
    )


def misfit_of(error: Exception, who: str, source: object) -> WeightsError:
    """The same error, made from what torch's own strict loading, or a library's converter of names, says."""
    text = str(error)
    missing, unknown = strict_keys(text)
    shapes = [f"{key} is ({given}), not ({own})" for key, given, own in _SIZES.findall(text)]
    said = missing or unknown or shapes
    return misfit(who, source, missing, unknown, shapes if said else [f"{type(error).__name__}: {first_line(error)}"])


def strict_keys(text: str) -> tuple[list[str], list[str]]:
    """Names under 'Missing key(s)' and under 'Unexpected key(s)' in the message of torch's strict loading."""
    rests = [re.search(rf"{side} key\(s\) in state_dict:(.*)", text) for side in ("Missing", "Unexpected")]
    missing, unknown = (re.findall(r'"([^"]+)"', rest[1]) if rest else [] for rest in rests)
    return missing, unknown


def weights_in_words(model: nn.Module) -> str:
    """Return how many weights a model has, their type and their place, such as "6.4M, float32, cpu"."""
    weights = list(model.parameters())
    count = sum(each.numel() for each in weights)
    told = f"{count / 1e6:.1f}M" if count >= 1e5 else f"{count / 1e3:.1f}K"
    types, places = (sorted({str(getattr(each, of)) for each in weights}) for of in ("dtype", "device"))
    return f"{told}, {'+'.join(types).replace('torch.', '')}, {'+'.join(places)}"
