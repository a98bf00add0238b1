"""How a training is spread over processes: torch's DDP or FSDP2, part by part. Nothing else averages gradients."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aligntok.device import computing, device
from aligntok.distributed import broadcast, world
from aligntok.errors import ConfigError
from aligntok.settings import Parallel, Sharding

if TYPE_CHECKING:  # FSDP2 and DTensor take a second to import: only a training of several processes needs them
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

logger = logging.getLogger("aligntok.engine")
#: DDP's. Weights are given to all before they are spread; buffers change alike in all.
_NO_SYNC: dict[str, Any] = dict(init_sync=False, forward_sync_buffers=False)

_EXCHANGES = "_exchanges_gradients"  # of a model: what it was told last


class Unit(NamedTuple):
    """A module that is called as a whole in a step, and its blocks, which are shared out and gathered one by one.

    last_layer: of a trained one, where gradient ratios are found.
    """

    part: nn.Module
    blocks: list[nn.Module]
    last_layer: nn.Parameter | None = None


class _Spread(Protocol):
    def units(self) -> Iterable[Unit]: ...
    def parameters(self) -> Iterable[nn.Parameter]: ...
    def buffers(self) -> Iterable[Tensor]: ...


def check_group(parallel: Parallel, processes: int, where: str) -> None:
    """Raise ConfigError unless so many processes can be cut into the groups that share a model."""
    group = parallel.shard if isinstance(parallel, Sharding) else None
    if group is not None and processes % group:
        fitting = [number for number in range(2, processes + 1) if processes % number == 0]
        cure = f"{', '.join(map(str, fitting))} would do" if fitting else "start more with torchrun"
        raise ConfigError(
            f"{where}: parallel=dict(shard={group}) with {processes} processes, which go in equal groups; {cure}, "
            "or parallel='shard' for one of all"
        )


def parallelise(model: _Spread, parallel: Parallel = "replicate") -> None:
    """Spread a model's units over all processes, in place; the names of its weights stay. Collective.

    Every process gets the first one's weights. With "replicate" each unit's gradients are averaged while the backward
    pass goes on (DDP); else its blocks and what else it has are shared out among the processes of a group, and gathered
    when they are called (FSDP2; several groups: HSDP). What is shared out may be on the CPU: its blocks go to this
    process's device one by one, where their shares stay. One process has nothing to share: nothing is done.
    """
    processes = world()[1]
    if processes == 1:
        if parallel != "replicate":
            logger.info("parallel: one process has nobody to share its weights with; it holds them whole")
        return
    broadcast([*model.parameters(), *model.buffers()])
    if parallel == "replicate":
        for unit in model.units():
            if any(p.requires_grad for p in unit.part.parameters()):
                _replicate(unit.part, model)
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    sharding = parallel if isinstance(parallel, Sharding) else Sharding()
    mesh = _mesh(device().type, processes, sharding.shard or processes)
    policy = MixedPrecisionPolicy()
    if sharding.parameters == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for unit in model.units():
        _shard(unit, mesh, policy)


def _replicate(part: nn.Module, model: Any) -> None:
    """Have DDP average the gradients of a `model`'s part, from its first forward pass in training on.

    Only then it is seen whether the output depends on all of its weights, some of which may be left out of the features
    that are asked for. DDP looks for those in every step if there are any, and complains if there are none.

    DDP adds up buckets of gradients, which it makes anew after the first step of each start; of more than two addends
    the order depends on the place in a bucket. Where results are to be the same to the bit, it is a sum a gradient.
    """
    from torch.distributed._composable.replicate import replicate

    def begin(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        hook.remove()
        trained = {p for p in part.parameters() if p.requires_grad}
        replicate(part, find_unused_parameters=not trained <= _leaves(output), **_NO_SYNC)
        state = replicate.state(part)
        state._no_sync = not getattr(model, _EXCHANGES, True)  # it was not there yet to be told
        if torch.are_deterministic_algorithms_enabled():
            state._comm_hook_args.append(((None, lambda _, bucket: _one_by_one(bucket)), {}))  # DDP reads annotations
        state.forward_pre_hook(part, args, kwargs)
        return state.forward_post_hook(part, args, output)

    hook = part.register_forward_hook(begin, with_kwargs=True)


def _one_by_one(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket over processes, each gradient in it by itself."""
    mean = bucket.buffer().div_(world()[1])
    sums = [dist.all_reduce(gradient, async_op=True) for gradient in bucket.gradients()]  # views of it
    if mean.is_cuda:  # NCCL's sums follow each other, and a future of several would not wait for their stream
        return sums[-1].get_future().then(lambda _: mean)
    together = torch.futures.collect_all([each.get_future() for each in sums])
    found: torch.futures.Future[Tensor] = together.then(lambda _: mean)
    return found


def _leaves(output: Tensor) -> set[Any]:
    """Return the tensors without a history that one with a history depends on."""
    found, seen, left = set[Any](), set[Any](), [output.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(getattr(node, "variable", None))
        left += [below for below, _ in node.next_functions]
    return found


def _mesh(device: str, processes: int, group: int) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    if group == processes:
        return init_device_mesh(device, (processes,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (processes // group, group), mesh_dim_names=("replicate", "shard"))


def _shard(unit: Unit, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    from torch.distributed.fsdp import fully_shard

    if next(unit.part.parameters(), None) is None:
        return
    trained = any(p.requires_grad for p in unit.part.parameters())
    blocks = [block for block in unit.blocks if next(block.parameters(), None) is not None]
    for block in blocks if _are_apart(blocks, unit.part) else ():
        # A gradient ratio needs the last layer's own weight after the forward pass, not its share.
        keeps = any(p is unit.last_layer for p in block.parameters())
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not keeps)
    fully_shard(unit.part, mesh=mesh, mp_policy=policy, reshard_after_forward=not trained)
    if policy.param_dtype is not None:  # inputs and buffers stay float32, as times and means have to
        part: Any = unit.part
        part.forward = computing("bf16")(part.forward)


def _are_apart(blocks: list[nn.Module], part: nn.Module) -> bool:
    """Tell whether each weight of a part's blocks is one block's alone; nothing is kept that would hold it whole."""
    owned = [id(p) for block in blocks for p in block.parameters()]
    inside = {id(module) for block in blocks for module in block.modules()}
    others = {id(p) for module in part.modules() if id(module) not in inside for p in module._parameters.values()}
    return len({*owned}) == len(owned) and not {*owned} & others


def exchange_gradients(model: nn.Module, now: bool) -> None:
    """Have the backward passes to come exchange gradients, or only add them up, as before a step's last micro-batch."""
    model.__dict__[_EXCHANGES] = now  # for parts that are not called before
    for module in _that_have("set_requires_gradient_sync", model):  # DDP's and FSDP2's
        module.set_requires_gradient_sync(now)


def to_shares(model: nn.Module) -> None:
    """Let go of gathered weights, which a forward pass without a backward pass left in place of the shares."""
    for module in _that_have("reshard", model):  # FSDP2's
        module.reshard()


def _that_have(method: str, model: nn.Module) -> list[Any]:
    # Their classes are asked: a module that is asked itself looks through its weights, and takes its time to refuse.
    return [] if world()[1] == 1 else [module for module in model.modules() if hasattr(type(module), method)]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor, gathered where processes share it out; collective then."""
    shares: Any = tensor
    gathered: Tensor = shares.full_tensor() if _is_shared(tensor) else tensor
    return gathered


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state of whole tensors, which every process has, into a module that may hold shares of its own.

    Raises RuntimeError, as torch does, for other names or shapes.
    """
    own = module.state_dict()
    module.load_state_dict({name: as_shared(tensor, own.get(name)) for name, tensor in state.items()})


def _is_shared(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor


def as_shared(tensor: Tensor, like: Any) -> Tensor:
    """Return a tensor shared out as another is; itself where that is whole, of another shape, or shared out alike."""
    if _is_shared(like) and not _is_shared(tensor) and tensor.shape == like.shape:
        from torch.distributed.tensor import distribute_tensor

        local = tensor.to(like.device, like.dtype)
        return distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


class Exchange(NamedTuple):
    """What each process sends to others in a step: so many bytes, around a ring of processes.

    reach: how many processes, in the order of their numbers, lie from the ring's first to its last.
    """

    what: Literal["gradients", "weights"]
    sent: float
    reach: int


class Traffic(NamedTuple):
    """The exchanges of a step, and the bytes that a process needs to hold what is under way."""

    exchanges: list[Exchange]
    space: int


def group_of(parallel: Parallel, processes: int) -> int:
    """Return how many processes share a model's weights out among them; 1 where each holds them whole."""
    if parallel == "replicate":
        return 1
    return (parallel.shard if isinstance(parallel, Sharding) else None) or processes


def traffic(units: Iterable[Unit], parallel: Parallel, processes: int, micro_batches: int = 1) -> Traffic:
    """Return what is exchanged in a step when units are spread by :func:`parallelise`, of their shapes alone.

    Exchanges go around a ring: of b bytes that all of n processes come to have, each sends (n - 1) / n * b. Left out is
    what is small: batch norms, gradient ratios, norms of gradients.
    """
    group, units = group_of(parallel, processes), list(units)
    gradients = sum(_bytes(p for p in unit.part.parameters() if p.requires_grad) for unit in units)
    if processes == 1:
        return Traffic([], 0)
    if group == 1:  # a sum over all, and its way back; DDP's buckets are copies
        return Traffic([Exchange("gradients", 2 * (processes - 1) / processes * gradients, processes)], gradients)
    half = isinstance(parallel, Sharding) and parallel.parameters == "bf16"
    gathered, stays, largest = 0, 0, 0
    for unit in units:
        trained = any(p.requires_grad for p in unit.part.parameters())
        blocks = [[*block.parameters()] for block in unit.blocks]
        # Of what is trained, what lies outside of blocks, or has the last layer, waits gathered for the backward pass.
        freed = [block for block in blocks if not any(p is unit.last_layer for p in block)]
        passing = sum(map(_bytes, freed))
        whole = _bytes(unit.part.parameters())
        gathered += whole + passing * trained
        stays += (whole - passing) * trained
        largest = max([largest, *map(_bytes, freed), 0 if trained else whole - passing])
    share = (group - 1) / group
    found = [
        Exchange("weights", share * gathered * micro_batches * (0.5 if half else 1), group),
        Exchange("gradients", share * gradients, group),
    ]
    if (replicas := processes // group) > 1:
        found.append(Exchange("gradients", 2 * (replicas - 1) / replicas * gradients / group, processes))
    # One block is computed while the next is gathered, and another's gradients are under way in float32.
    return Traffic(found, int((stays + 2 * largest) * (0.5 if half else 1)) + 2 * largest)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in {*parameters})
