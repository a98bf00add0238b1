"""One kind of progress bar for whatever looks at every file before the first step."""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed as dist
from tqdm import tqdm


def progress_bar(total: int, description: str, unit: str, show: bool = True) -> tqdm[Any]:
    """Return a bar on stderr, seen when the work takes more than a few seconds, in the first process of a group."""
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    every = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file gets fewer lines
    return tqdm(total=total, desc=description, unit=unit, delay=3, mininterval=every, disable=not (show and first))
