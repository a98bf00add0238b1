"""The writing of checkpoints: a folder that is made unseen, by every process its part, and put in its place whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

import aligntok
from aligntok.distributed import barrier, connect_to_store, is_first, life, world
from aligntok.engine.checkpoints import CURE, FORMAT, checkpoint_path, list_checkpoints
from aligntok.errors import WriteError
from aligntok.io.files import discard, put_in_place, remove, remove_folder, unseen, write_checksums, writing
from aligntok.io.folders import check_space


def write_checkpoint(
    stage_dir: str | os.PathLike[str], step: int, content: Mapping[str, Any], keep: int, keep_every: int | None = None
) -> Path:
    """Write a checkpoint, as :meth:`CheckpointWriter.write` does, and return its folder; collective."""
    CheckpointWriter(stage_dir, keep, keep_every).write(step, content)
    return checkpoint_path(stage_dir, step)


class CheckpointWriter:
    """Writes the checkpoints of a stage, each whole or not at all, and removes others.

    What stays: the newest `keep`, and those at multiples of `keep_every` steps. Later ones, which could not be read
    when the run went on from before them, go.
    """

    def __init__(self, stage_dir: str | os.PathLike[str], keep: int, keep_every: int | None = None) -> None:
        self.stage_dir = Path(stage_dir)
        self.keep = keep
        self.keep_every = keep_every

    def write(self, step: int, content: Mapping[str, Any]) -> None:
        """Write what is after `step` steps; collective: `content` is the same nest in every process.

        Its tensors may be sharded. Raises WriteError when the disk is too full; what was there stays.
        """
        from aligntok.distributed import dcp

        versions = {"aligntok": aligntok.__version__, "torch": str(torch.__version__)}
        state, tensors = dcp.pack({"format": FORMAT, "step": step, "versions": versions, **content})
        path = checkpoint_path(self.stage_dir, step)
        folder = unseen(path, f"{step:08x}")
        if is_first():
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            check_space(path, size, f"the checkpoint of step {step}")
            with writing(path, CURE):
                remove(folder)
                folder.mkdir(parents=True)
        staged = dcp.stage(folder, tensors)  # the first process made the folder before others hear of what to write
        self._finish(step, folder, partial(dcp.write, folder, staged, state if is_first() else None, CURE))
        barrier()

    def _finish(self, step: int, folder: Path, write: Callable[[], dict[str, str]]) -> None:
        """Write what is this process's; the first waits for the others, and puts the folder in its place."""
        path = checkpoint_path(self.stage_dir, step)
        try:
            sums = _of_all_processes(write(), str(path))
            if is_first():
                with writing(path, CURE):
                    for name in sums:
                        (folder / name).stat()
                    write_checksums(folder, sums, CURE)
                    put_in_place(folder, path)
                    self._remove_others(step)
        except WriteError as error:
            error.args = (str(error).replace(str(folder), str(path)),)  # nobody knows the name that it is made under
            raise
        finally:
            if is_first():
                remove(folder)

    def _remove_others(self, step: int) -> None:
        found = list_checkpoints(self.stage_dir)
        later = [path for number, path in found if number > step]
        earlier = found[: max(0, len(found) - len(later) - self.keep)]
        for path in [*later, *(p for number, p in earlier if not self.keep_every or number % self.keep_every)]:
            remove_folder(path) if path.is_dir() else discard(path)


def _of_all_processes(sums: dict[str, str], key: str) -> dict[str, str]:
    """Return, to the first process, the checksums of all; they leave them where the processes met."""
    rank, processes = world()
    if processes == 1:
        return sums
    store, names = connect_to_store(), [f"aligntok/{life()}/{key}/{other}" for other in range(processes)]
    if rank:
        store.set(names[rank], json.dumps(sums))
        return {}
    for name in names[1:]:
        store.wait([name], timedelta(days=1))
        sums |= json.loads(store.get(name))
        store.delete_key(name)
    return sums
