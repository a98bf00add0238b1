"""Pretrained weights: found on disk, fetched from a hub, and checked against the model."""

from __future__ import annotations

import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.errors import WeightsError, first_line

#: How long the hub may take to answer before it counts as unreachable, in seconds.
PROBE_SECONDS = 3.0
SHOWN = 4


def hub_file(repo: str, filenames: Sequence[str], who: str) -> Path:
    """Return the local path of the first of `filenames` that Hugging Face repo `repo` has, fetching it if need be.

    Looked for at `placed_file`, in the hub's cache, then on the hub. Raises WeightsError within some seconds when the
    hub can't be reached, naming what to fetch and where to put it.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    repo_id, _, revision = repo.partition("@")
    for filename in filenames:
        cached = try_to_load_from_cache(repo_id, filename, revision=revision or None)
        for candidate in (placed_file(repo_id, filename), Path(cached) if isinstance(cached, str) else None):
            if candidate and candidate.is_file():
                return candidate
    source = f"{constants.ENDPOINT}/{repo_id}/resolve/{revision or 'main'}/{filenames[0]}"
    place = placed_file(repo_id, filenames[0])
    if constants.HF_HUB_OFFLINE or _is_true(os.environ.get("HF_HUB_OFFLINE")):
        raise _unreachable(who, source, place, "HF_HUB_OFFLINE is set")
    if reason := unreachable(constants.ENDPOINT):
        raise _unreachable(who, source, place, reason)
    try:
        for filename in filenames:
            with suppress(EntryNotFoundError):
                return Path(hf_hub_download(repo_id, filename, revision=revision or None))
    except Exception as error:  # gated or absent repositories, and a connection lost on the way
        raise _unreachable(who, source, place, f"{type(error).__name__}: {first_line(error)}") from error
    raise _unreachable(who, source, place, f"the repository has none of {', '.join(filenames)}")


def url_file(url: str, who: str, hash_prefix: str | None = None) -> Path:
    """Return the local path of a file that is published at a plain address, fetching it if need be.

    A file whose SHA-256 does not begin with `hash_prefix` is not kept. Raises WeightsError within some seconds when
    the address can't be reached, or when the download fails.
    """
    place = placed_url(url)
    if place.is_file():
        return place
    if _is_true(os.environ.get("HF_HUB_OFFLINE")):  # which people set for a machine, not for one host
        raise _unreachable(who, url, place, "HF_HUB_OFFLINE is set")
    if reason := unreachable(url):
        raise _unreachable(who, url, place, reason)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(place), hash_prefix, progress=False)
    except Exception as error:  # whatever goes wrong in a download is said the same way
        raise _unreachable(who, url, place, f"{type(error).__name__}: {first_line(error)}") from error
    return place


def placed_url(url: str) -> Path:
    """Where a file of a plain address is kept, and may be put by hand: torch.hub's checkpoints folder."""
    return _checkpoints() / os.path.basename(url)


def placed_file(repo: str, filename: str) -> Path:
    """Where a file of a hub repository may be put by hand: torch.hub's checkpoints folder, named after the repo."""
    return _checkpoints() / (repo.replace("/", "--") + Path(filename).suffix)


def unreachable(url: str) -> str:
    """Return why `url` does not answer within PROBE_SECONDS, or an empty string when it does."""
    outcome = [f"no answer from {url} within {PROBE_SECONDS:g} s"]

    def probe() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS).close()
            outcome[0] = ""
        except urllib.error.HTTPError as error:  # a refusal is an answer too, unless it is a gateway's
            outcome[0] = f"{url} answers {error.code}" if error.code >= 500 else ""
            error.close()
        except OSError as error:
            outcome[0] = f"{url}: {first_line(getattr(error, 'reason', error))}"

    # In a thread of its own, because looking up a host name knows no timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return outcome[0]


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], who: str, source: object) -> None:
    """Load `tensors` into `module`; names that the module does not have are left out.

    Raises WeightsError when one of the module's own is absent or of another shape; counters of batch norm may be.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in tensors and not key.endswith("num_batches_tracked")]
    other = [
        f"{key} {tuple(tensors[key].shape)} for {tuple(value.shape)}"
        for key, value in own.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if missing or other:
        unexpected = [key for key in tensors if key not in own]
        raise misfit(who, source, missing=missing, unexpected=unexpected, other=other)
    module.load_state_dict({key: tensors[key] for key in own if key in tensors}, strict=False)


def misfit(
    who: str,
    source: object,
    missing: Sequence[str] = (),
    unexpected: Sequence[str] = (),
    other: Sequence[str] = (),
) -> WeightsError:
    """The error of weights that belong to another model: the first names of each side, and the shapes that differ."""
    sides = {
        "the model needs, the file lacks": missing,
        "the file has, the model does not": unexpected,
        "shape in the file, shape in the model": other,
    }
    lines = [f"  {side}: {_some(keys)}" for side, keys in sides.items() if keys]
    return WeightsError(
        "\n".join([f"{who}: {source} does not fit this model", *lines, "  check the model's name and size"])
    )


def misfit_of(error: RuntimeError, who: str, source: object) -> WeightsError:
    """The same error, made from what torch's own strict loading says."""
    text = str(error)
    shapes = [line.strip().removeprefix("size mismatch for ") for line in text.splitlines() if "size mismatch" in line]
    missing, unexpected = missing_keys(text), unexpected_keys(text)
    if not (shapes or missing or unexpected):
        return WeightsError(f"{who}: {source} does not fit this model: {first_line(error)}")
    return misfit(who, source, missing=missing, unexpected=unexpected, other=shapes)


def missing_keys(text: str) -> list[str]:
    """Names under 'Missing key(s)' in the message of torch's strict loading."""
    return _quoted_after("Missing key(s) in state_dict:", text)


def unexpected_keys(text: str) -> list[str]:
    """Names under 'Unexpected key(s)' in the message of torch's strict loading."""
    return _quoted_after("Unexpected key(s) in state_dict:", text)


def _quoted_after(title: str, text: str) -> list[str]:
    lines = [line for line in text.splitlines() if title in line]
    return re.findall(r'"([^"]+)"', lines[0].split(title)[1]) if lines else []


def resample_position_grid(
    table: Tensor, grid: tuple[int, int], source: tuple[int, int] | None = None, prefix: int = 1
) -> Tensor:
    """Resample a learned position table (prefix + h*w, C) to another grid, bicubic with antialiasing.

    source: (h, w) of the table, a square when not given. Returns (prefix + grid[0]*grid[1], C); the first `prefix`
    rows belong to tokens without a place and stay.
    """
    h, w = source or (int((len(table) - prefix) ** 0.5),) * 2
    if (h, w) == grid:
        return table
    places = table[prefix:].reshape(1, h, w, -1).permute(0, 3, 1, 2).float()
    places = F.interpolate(places, size=grid, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([table[:prefix], places.flatten(2)[0].T.to(table.dtype)])


def _unreachable(who: str, source: str, place: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{who}: pretrained weights cannot be fetched: {reason}\n"
        f"  needed: {source}\n"
        f'  place it at {place}, or give pretrained="/path/{os.path.basename(source)}"; '
        "pretrained=False starts from random weights"
    )


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def _is_true(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")
