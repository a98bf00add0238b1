"""Batch norm over all processes is that of one process with the whole batch."""

import pytest
import torch
from torch import nn

from aligntok.discriminators import GlobalBatchNorm2d

SHARES = (slice(0, 3), slice(3, 4))  # unequal on purpose

# One of two processes: normalises its share twice, saves what came out.
WORKER = """
import sys, torch, torch.distributed as dist
from aligntok.discriminators import GlobalBatchNorm2d
folder = sys.argv[1]
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
given = torch.load(f"{folder}/given.pt", weights_only=True)
share = (slice(0, 3), slice(3, 4))[rank]
for momentum in (0.1, None):
    norm = GlobalBatchNorm2d(5, momentum=momentum)
    norm.load_state_dict(given["state"])
    results = []
    for x, target in zip(given["x"], given["target"]):
        x = x[share].requires_grad_()
        out = norm(x)
        (out * target[share]).sum().backward()
        results.append((out.detach(), x.grad))
    state = {k: v.clone() for k, v in norm.state_dict().items()}
    weight_gradients = (norm.weight.grad, norm.bias.grad)
    evaluated = norm.eval()(given["x"][0][share])
    torch.save((results, state, weight_gradients, evaluated.detach()), f"{folder}/rank{rank}_{momentum}.pt")
half = GlobalBatchNorm2d(5)(given["x"][0][share].bfloat16())
assert half.dtype == torch.bfloat16
dist.destroy_process_group()
"""


def reference(given, momentum):
    """What one process makes of the whole batch, with torch's own batch norm."""
    norm = nn.BatchNorm2d(5, momentum=momentum)
    norm.load_state_dict(given["state"])
    results = []
    for x, target in zip(given["x"], given["target"], strict=True):
        x = x.clone().requires_grad_()
        out = norm(x)
        (out * target).sum().backward()
        results.append((out.detach(), x.grad))
    state = {k: v.clone() for k, v in norm.state_dict().items()}
    return results, state, (norm.weight.grad, norm.bias.grad), norm.eval()(given["x"][0]).detach()


@pytest.fixture(scope="module")
def two_processes(warm, tmp_path_factory):
    """The folder of what two gloo processes were given, and of what they made of it."""
    folder = tmp_path_factory.mktemp("gloo")
    state = GlobalBatchNorm2d(5).state_dict()
    state["weight"], state["bias"] = torch.randn(5), torch.randn(5)
    given = {
        "state": state,
        "x": [3 + 2 * torch.randn(4, 5, 3, 6) for _ in range(2)],
        "target": [torch.randn(4, 5, 3, 6) for _ in range(2)],
    }
    torch.save(given, folder / "given.pt")
    (folder / "worker.py").write_text(WORKER)
    warm.together(2, folder / "worker.py", folder, setup=warm.strict)
    return folder


@pytest.mark.parametrize("momentum", [0.1, None])
def test_two_processes_normalise_as_one_with_the_whole_batch(two_processes, momentum):
    given = torch.load(two_processes / "given.pt", weights_only=True)
    ranks = [torch.load(two_processes / f"rank{rank}_{momentum}.pt", weights_only=True) for rank in range(2)]
    results, state, weight_gradients, evaluated = reference(given, momentum)
    for rank, share in zip(ranks, SHARES, strict=True):
        for own, whole in zip(rank[0], results, strict=True):
            torch.testing.assert_close(own[0], whole[0][share], rtol=0, atol=1e-5)
            torch.testing.assert_close(own[1], whole[1][share], rtol=0, atol=1e-5)
        torch.testing.assert_close(rank[1], state, rtol=0, atol=1e-5)
        torch.testing.assert_close(rank[3], evaluated[share], rtol=0, atol=1e-5)
    for own, whole in zip(zip(ranks[0][2], ranks[1][2], strict=True), weight_gradients, strict=True):
        torch.testing.assert_close(own[0] + own[1], whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_one_process_gets_torchs_batch_norm(training):
    own, reference = GlobalBatchNorm2d(5).train(training), nn.BatchNorm2d(5).train(training)
    assert own.state_dict().keys() == reference.state_dict().keys()
    x = 3 + torch.randn(2, 5, 3, 4)
    assert torch.equal(own(x), reference(x))
    assert torch.equal(own.running_var, reference.running_var)
