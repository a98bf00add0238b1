"""The writing of checkpoints: a folder that is made unseen, by every process its part, and put in its place whole."""

from __future__ import annotations

import json
import logging
import os
import threading
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

logger = logging.getLogger("aligntok.engine")
PATIENCE_SECONDS = 10.0  # after a failure, for other processes to write their part of a checkpoint


def write_checkpoint(
    stage_dir: str | os.PathLike[str], step: int, content: Mapping[str, Any], keep: int, keep_every: int | None = None
) -> Path:
    """Write a checkpoint, as :meth:`CheckpointWriter.write` does, and return its folder; collective."""
    CheckpointWriter(stage_dir, keep, keep_every).write(step, content)
    return checkpoint_path(stage_dir, step)


class CheckpointWriter:
    """Writes the checkpoints of a stage, each whole or not at all, and removes others.

    What stays: the newest `keep`, and those at multiples of `keep_every` steps. Later ones, which could not be read
    when the run went on from before them, go. `asynchronous`: tensors are copied, and a thread writes the copies, whose
    memory is kept for the next; one checkpoint is written at a time.
    """

    def __init__(
        self,
        stage_dir: str | os.PathLike[str],
        keep: int,
        keep_every: int | None = None,
        asynchronous: bool = False,
    ) -> None:
        self.stage_dir = Path(stage_dir)
        self.keep = keep
        self.keep_every = keep_every
        self.asynchronous = asynchronous
        #: The step of the newest checkpoint that is whole, and of the newest that was asked for.
        self.saved: int | None = None
        self.begun: int | None = None
        self._stager: Any = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._written = threading.Event()

    def write(self, step: int, content: Mapping[str, Any]) -> None:
        """Write what is after `step` steps, or begin to; collective: `content` is the same nest in every process.

        Its tensors may be sharded. Raises WriteError when the disk is too full, and what :meth:`wait` does; what was
        there stays.
        """
        self.wait()
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
        barrier()  # the first process has made the folder, and finished the one before, when others write
        self._stager = self._stager or dcp.Stager(self.asynchronous)
        staged = self._stager.stage(folder, tensors)
        self.saved, self.begun = self.begun, step
        write = partial(dcp.write, folder, staged, state if is_first() else None, CURE)
        if self.asynchronous:
            self._written.clear()
            self._thread = threading.Thread(target=self._finish_aside, args=(step, folder, write), daemon=True)
            self._thread.start()
        else:
            self._finish(step, folder, write)
            self.finish()

    def check(self) -> None:
        """Raise what the writing of a checkpoint has met, once; nothing is waited for."""
        error, self._error = self._error, None
        if error is not None:
            self.begun = self.saved
            raise error

    def wait(self) -> None:
        """Wait until this process has done its part, the first until the checkpoint is whole.

        Raises WriteError where that failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def finish(self) -> None:
        """Wait until the checkpoint that was begun is whole; collective. Raises WriteError where that failed."""
        self.wait()
        barrier()
        self.saved = self.begun

    def give_up(self) -> None:
        """Let the checkpoint that was begun become whole, if it can, after a failure: others may never do their part.

        What its writing meets is told in the log.
        """
        if self._thread is not None:
            self._written.wait()
            self._thread.join(None if world()[1] == 1 else PATIENCE_SECONDS)
        if self._error is not None:
            logger.error("the checkpoint of step %d was not written either: %s", self.begun, self._error)

    def _finish_aside(self, step: int, folder: Path, write: Callable[[], dict[str, str]]) -> None:
        try:
            self._finish(step, folder, write)
        except BaseException as error:  # the training's thread raises it, at its next step
            self._error = error
        finally:
            self._written.set()

    def _finish(self, step: int, folder: Path, write: Callable[[], dict[str, str]]) -> None:
        """Write what is this process's; the first waits for the others, and puts the folder in its place."""
        path = checkpoint_path(self.stage_dir, step)
        try:
            sums = write()
            self._written.set()
            sums = _of_all_processes(sums, str(path))
            if is_first():
                with writing(path, "a shard is on another disk: give all machines one work_dir, which they share"):
                    for name in sums:
                        (folder / name).stat()
                with writing(path, CURE):
                    write_checksums(folder, sums, CURE)
                    put_in_place(folder, path)
                    self._remove_others(step)
                    self.saved = step
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
