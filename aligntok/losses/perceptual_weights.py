"""Where the weights of LPIPS come from: the trunk from torch hub or a file, the heads from the lpips package."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from aligntok.errors import WeightsError
from aligntok.ops.weight_files import load_exactly, read_tensors

TRUNK_URLS = {
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}
PROBE_SECONDS = 3.0


def load_trunk(trunk: nn.Module, net: str, source: str | Path | None) -> None:
    """Load ImageNet weights from `source`, or, for None, from the torch hub folder or the network.

    Raises WeightsError, within seconds, when they cannot be had or do not fit.
    """
    path = Path(source) if source is not None else _cached_trunk(net)
    load_exactly(trunk, _trunk_names(trunk, read_tensors(path, "LPIPSLoss")), "LPIPSLoss", path)


def load_heads(heads: nn.ModuleList, net: str) -> None:
    """Load the calibrated channel weights (version 0.1) that the lpips package ships."""
    spec = find_spec("lpips")
    if spec is None or spec.origin is None:
        raise WeightsError("LPIPSLoss takes its calibrated heads from the package lpips: pip install lpips")
    path = Path(spec.origin).parent / "weights" / "v0.1" / f"{net}.pth"
    tensors = {key.removeprefix("lin"): value for key, value in read_tensors(path, "LPIPSLoss").items()}
    load_exactly(heads, tensors, "LPIPSLoss", path)


def _trunk_names(trunk: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's `features.N.*` or a whole lpips' `net.sliceM.N.*` to the trunk's `sliceM.N.*`."""
    own = {key.partition(".")[2]: key for key in trunk.state_dict()}  # N.weight -> sliceM.N.weight
    if any(key.startswith("features.") for key in tensors):
        features = {key.removeprefix("features."): value for key, value in tensors.items() if "features." in key}
        return {own.get(key, key): value for key, value in features.items()}
    published = {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")}
    return published or dict(tensors)


def _cached_trunk(net: str) -> Path:
    """Path of the trunk's file in the torch hub folder, downloaded first if it is not there."""
    url = TRUNK_URLS[net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    if not _is_reachable(url):
        raise WeightsError(
            f"LPIPSLoss: the {net} trunk is not at {path}, and {url} cannot be reached from here\n"
            f"  place that file at {path}, or give its path as pretrained=..."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.load_state_dict_from_url(url, progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"LPIPSLoss: downloading {url} failed ({error}); place that file at {path}") from error
    return path


def _is_reachable(url: str) -> bool:
    """Whether a host answers within a few seconds; not asked when HF_HUB_OFFLINE declares the machine offline."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    answered = threading.Event()

    def probe() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
                answered.set()
        except OSError:
            pass

    # In a thread because looking a name up has no timeout of its own, and can take a minute without a network.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()
