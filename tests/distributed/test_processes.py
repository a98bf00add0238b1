"""What processes exchange, in two of them under gloo, and how their group ends."""

from __future__ import annotations

import pytest

# One of two processes; asserts for itself what must come out.
WORKER = """
import os, signal, torch, torch.distributed as dist
from torch import nn
from aligntok.distributed import *
from aligntok.distributed import job as job_module
from aligntok.distributed.job import batched, in_full_rounds, job, shares
from aligntok.distributed.parallel import Unit, exchange_gradients, parallelise
from aligntok.engine.hooks import average_scalars
from aligntok.errors import DataError, Preempted
from contextlib import nullcontext
job_module.ending_together = lambda timeout: nullcontext()  # there is no store of torchrun's
torch.set_num_threads(1)
assert start_processes() == "pytorch"
rank = dist.get_rank()
assert world() == (rank, 2) and is_first() == (rank == 0)
assert mean_over_processes(torch.tensor([1.0, 3.0]) * (rank + 1)).tolist() == [1.5, 4.5]
assert average_scalars({"a": torch.tensor(float(rank)), "b": torch.tensor(2.0)}) == {"a": 0.5, "b": 2.0}
torch.manual_seed(rank)
model = nn.ModuleList([nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)])
model[1].running_mean.fill_(rank)
class Spread(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)
    def units(self):
        return [Unit(part, []) for part in self.parts]
parallelise(Spread(*model))
same = torch.cat([t.flatten().float() for t in model.state_dict().values()])
assert torch.equal(mean_over_processes(same.clone()), same) and model[1].running_mean.sum() == 0
# a part whose output depends on one of its two layers; an input that the processes do not share
class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    def forward(self, x):
        return self.used(x)
half = Half()
spread = Spread(half)
parallelise(spread)
for step in range(2):
    half.zero_grad()
    for micro, last in enumerate((False, True)):
        exchange_gradients(spread, last)
        half(torch.full((1, 2), 1.0 + rank)).sum().backward()
    assert half.used.weight.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]  # twice the mean of 1 and 2
    assert half.unused.weight.grad is None
assert total(torch.tensor(rank + 1)) == 3 and agree(3) and not agree(rank)
assert [part.tolist() for part in gather(torch.arange(2 * rank).reshape(-1, 1))] == [[], [[0], [1]]]
assert [tuple(part.shape) for part in gather(torch.empty(0, 3))] == [(0, 3), (0, 3)]
given = torch.full((2,), rank)
broadcast([given])
assert not given.any()
must_agree({"seed": 1}, "another seed")
try:
    must_agree({"seed": rank}, "another seed")
except DataError as error:
    assert rank == 1 and "this process sees another seed" in str(error)
else:
    assert rank == 0
stopped, cut = Preempted("no more"), batched(range(11), 2)
assert cut[-1] == range(10, 11) and list(shares(cut, "work", stopped)) == cut[rank::2]
assert list(shares(cut[:3], "work", stopped)) == cut[:3][rank::2]  # the second has none in the last round
assert list(shares(in_full_rounds(cut[:3], range(0)), "work", stopped)) == [*cut[:3], range(0)][rank::2]
done = []
try:
    with job():
        for part in shares(cut, "work", stopped):
            done.append(part)
            if part == cut[3]:  # the second's alone
                os.kill(os.getpid(), signal.SIGTERM)
except Preempted as ended:
    assert ended is stopped and done == cut[rank:4:2], done
else:
    raise AssertionError("the first process heard nothing of it")
barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_average_what_they_have(warm, tmp_path):
    """Gradients are averaged after the last micro-batch alone; one that all lack stays absent."""
    (tmp_path / "worker.py").write_text(WORKER)
    warm.together(2, tmp_path / "worker.py", setup=warm.strict)


# At its end it writes whether the process group is still there: what is registered first runs last.
LEAVING = """
import atexit, os, sys, torch.distributed as dist
from pathlib import Path
from aligntok.distributed import barrier, start_processes
from aligntok.distributed.job import ending_together
from aligntok.errors import DataError, Preempted
end = Path(sys.argv[0]).with_name("end_" + os.environ["RANK"])
atexit.register(lambda: end.write_text(str(dist.is_initialized())))
start_processes()
with ending_together(60.0):
    barrier()
    if sys.argv[1:]:
        raise {"preempted": Preempted, "failed": DataError}[sys.argv[1]]("no more")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "left_open"), [([], "False"), (["preempted"], "False"), (["failed"], "True")])
def test_the_group_is_ended_before_the_interpreter_unless_a_process_failed(warm, tmp_path, ending, left_open):
    """torch's own threads abort a process that ends with them at work; those of a broken exchange would never end."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    both = warm.several(2, script, *ending)
    assert all((process.end()[0] == 0) is (not ending) for process in both), both[0].output
    assert [end.read_text() for end in tmp_path.glob("end_*")] == [left_open] * 2, both[0].output
