"""What is done for the next step while one is computed: in a stream of its own, where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from itertools import zip_longest
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

Batch = dict[str, Any]
_SENT = "sent"  # the entry of a batch that waits for what is on the way


def ahead(steps: Iterator[list[Batch]], model: Any) -> Iterator[list[Batch]]:
    """Give the micro-batches of each step, once the model, if it `prepares` any, has begun with those of the next.

    What goes wrong with the next ones is raised once the present ones had their step.
    """
    if not getattr(model, "prepares", False):
        yield from steps
        return
    prepared = map(model.prepare, steps)
    current = next(prepared, None)
    while current is not None:
        try:
            following = next(prepared, None)
        except Exception:
            yield current
            raise
        yield current
        current = following


def send(batch: Batch, names: Collection[str], where: torch.device) -> None:
    """Begin to copy the tensors that a batch has under `names` to a GPU, once; on a CPU they are where they belong.

    It waits for nothing where their memory is pinned, as a loader's is.
    """
    if where.type == "cuda" and _SENT not in batch:
        batch[_SENT] = beside(where, _copied, {name: batch[name] for name in names if name in batch}, where)


def arriving(micro_batches: Sequence[Batch], names: Collection[str], where: torch.device) -> Iterator[Batch]:
    """Give a step's micro-batches, on a GPU with what was sent; the next one is on its way while one is computed with.

    So that of all there are, one more than in use takes memory there.
    """
    for batch, following in zip_longest(micro_batches, micro_batches[1:]):
        for each in filter(None, (batch, following)):
            send(each, names, where)
        arrived = batch.pop(_SENT, None)
        yield {**batch, **arrived()} if arrived else batch


def beside(where: torch.device, work: Callable[..., Any], *given: Any) -> Callable[[], Any]:
    """Do work in a stream beside what a device computes; what returns its tensors makes the caller's stream wait.

    Each thread has one stream, in which its works follow each other, and which is waited for up to this work alone. On
    a CPU there are no streams.
    """
    if where.type != "cuda":
        found = work(*given)
        return lambda: found
    stream = _stream(where, get_ident())
    with torch.cuda.stream(stream):
        found = work(*given)
        done = stream.record_event()

    def wait() -> Any:
        here = torch.cuda.current_stream(where)
        here.wait_event(done)
        for each in tree_iter(found):
            if isinstance(each, Tensor):
                each.record_stream(here)  # else its memory is given to the next work when it is freed, still in use
        return found

    return wait


@cache  # of as many streams as works each would keep memory of its own for what is made in it
def _stream(where: torch.device, thread: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(where)


def _copied(tensors: Any, where: torch.device) -> Any:
    """Return tensors, nested in what they are, on a device."""
    return tree_map_only(Tensor, lambda each: each.to(where, non_blocking=True), tensors)
