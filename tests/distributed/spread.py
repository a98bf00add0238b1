"""A few seeded steps of every kind of training, held by processes in every way: what the tests of `parallel` compare.

As a program, one of several processes: RANK WORLD STORE OUT, then words KIND:POLICY:MICRO, KIND:POLICY:held for what it
holds, or KIND:POLICY:again, :repeatable and :split for whether one batch has one gradient; the first one writes OUT.
"""

from __future__ import annotations

import json
import sys
import weakref
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed import fsdp
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from aligntok import device
from aligntok.data.latent_shards import LatentStatistics
from aligntok.device import repeatable
from aligntok.diffusion.settings import Sampling
from aligntok.distributed import mean_over_processes, total, world
from aligntok.distributed.parallel import Sharding, exchange_gradients, parallelise, to_shares, whole
from aligntok.engine.ema import WeightAverages
from aligntok.engine.optim import SIDES, PartOptimizersConstructor
from aligntok.engine.runner import StepBatch
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.settings import read
from aligntok.text_encoders import TextEncoder
from aligntok.tokenizer import Tokenizer
from aligntok.training.alignment import AlignmentStage
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.generation import GeneratorStage
from aligntok.training.generation.model import GenerationModel
from aligntok.training.generator_settings import GeneratorSettings
from aligntok.training.settings import StageSettings
from aligntok.training.stages import MicroBatch

STEPS, BATCH = 3, 8
POLICIES = {
    "replicate": "replicate",
    "shard": "shard",
    "groups": Sharding(shard=2),
    "bf16": Sharding(parameters="bf16"),
}
VIT = dict(depth=3, embed_dim=48, num_heads=3, patch_size=8)
CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, resolution=32, attn_resolutions=())
MODEL: dict[str, Any] = dict(
    encoder=dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False, downsample_factor=8, model_args=VIT),
    adapter=dict(type="mlp", hidden_dim=64),
    decoder=CNN,
    latent_dim=4,
    downsample_factor=8,
)
DROPPING = {**MODEL["encoder"], "model_args": dict(VIT, attn_drop_rate=0.2, drop_path_rate=0.1)}
L1, GAN = dict(type="l1"), dict(type="gan", weight=0.1, adaptive_weight=dict(at="decoder"))
SEMANTIC = dict(type="semantic_preservation", adaptive_weight=dict(at="encoder", eps=0.1))
HELD = dict(at="encoder", eps=0.1, reference=("l1",))
KL, PLAIN_GAN = dict(type="kl", weight=1e-3), dict(type="gan", weight=0.1)
VF = dict(type="vf", latent_dim=4, feature_dim=48, weight=0.1)
# What is 0 but for rounding must not be made much of by Adam, which divides by it.
ADAM = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9), eps=1e-2)
PATCHES = dict(type="patchgan", base_channels=32, num_layers=2)
#: Changes of a stage's settings. Every loss, a batch norm over all processes, both ratios; and what differs from it.
KINDS: dict[str, dict[str, Any]] = {
    "alignment": dict(losses=dict(l1=L1, gan=GAN, semantic=SEMANTIC, vf=VF)),
    "references": dict(losses=dict(l1=L1, gan=GAN, semantic={**SEMANTIC, "adaptive_weight": HELD})),
    "lora": dict(losses=dict(l1=L1, semantic=SEMANTIC), lora=dict(rank=4, dropout=0.3), model=dict(encoder=DROPPING)),
    "variational": dict(
        losses=dict(l1=L1, gan=GAN, vf=VF, kl=KL), model=dict(variational=True, decoder=dict(CNN, linear_path=True))
    ),
    "refinement": dict(losses=dict(l1=L1, gan=GAN), trainable=["decoder"]),
    "plain": dict(losses=dict(l1=L1, semantic=SEMANTIC)),  # what the next two are to rounding
    "checkpointing": dict(losses=dict(l1=L1, semantic=SEMANTIC), grad_checkpointing=True),
    "compile": dict(losses=dict(l1=L1, semantic=SEMANTIC), compile=True),
    "ratios of groups": dict(
        losses=dict(
            l1=L1,
            gan={**GAN, "adaptive_weight": dict(at="decoder", images=4)},
            semantic={**SEMANTIC, "adaptive_weight": dict(at="encoder", eps=0.1, images=4)},
        ),
        discriminator={**PATCHES, "group_images": 4},
    ),
    "constant weights": dict(losses=dict(l1=L1, vf=VF, gan=PLAIN_GAN), discriminator={**PATCHES, "norm": "group"}),
    "fp16": dict(losses=dict(l1=L1, semantic=SEMANTIC), precision="fp16"),  # a gradient of the second step overflows
    "left out": dict(losses=dict(l1=L1, semantic=SEMANTIC)),  # the second step's images are not finite
}
SAMPLING, SHOWN = Sampling(sampler="euler", steps=2), {"pixels", "reconstruction"}
DIT = dict(type="lightning_dit", hidden_size=32, depth=2, num_heads=2, input_size=4, in_channels=4, num_classes=3)


FLUX = dict(type="flux_dit", hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1, in_channels=4)
FLUX |= dict(context_in_dim=8, vec_in_dim=0, text=dict(tokens=dict(type="spread.Letters", path="here"), dropout=0.5))
GENERATORS = {"generator": DIT, "prompts": FLUX}
CAPTIONS = ["a", "a red apple", "dog", "two cats on a mat", "", "sky and sea", "b", "an old photograph of a house"]


class Letters(TextEncoder):
    """A state of its own for each letter; processes with other captions pad to other lengths."""

    dim, max_tokens, identity = 8, 40, "letters"

    def __init__(self, path: str) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(128, 8)
        torch.nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(2))

    def tokenize(self, texts: Any, full: bool = False) -> dict[str, torch.Tensor]:
        rows = [torch.tensor([1, *map(ord, text)]) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"text": self.table(input_ids), "mask": attention_mask.bool()}


def build(kind: str) -> Any:
    torch.manual_seed(0)
    if kind in GENERATORS:
        tokenizer, statistics = Tokenizer(**MODEL), LatentStatistics((0.0,) * 4, (1.0,) * 4)
        names = ("a", "b", "c") if kind == "generator" else ()
        generator: dict[str, Any] = dict(GENERATORS[kind])
        diffusion = LatentDiffusion(generator, tokenizer, statistics, (4, 4, 4), names)
        for parameter in diffusion.generator.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        diffusion.condition.collate(None)  # as a loader does, before the first step: text encoders are there
        return GenerationModel(diffusion, read(GeneratorSettings, dict(steps=STEPS, generator=generator), kind), seed=3)
    given = dict(trainable=["encoder", "adapter", "decoder"], discriminator=PATCHES, teacher="start", steps=STEPS)
    settings = read(StageSettings, {**given, **KINDS[kind], "model": {**MODEL, **KINDS[kind].get("model", {})}}, kind)
    model = AlignmentModel(settings, seed=3)
    model.load_start(None)
    if model.teacher is not None:  # a student that is its teacher has no gradient to balance
        source = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.teacher.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    return model


def overflow(module: Any, given: Any, output: torch.Tensor) -> None:
    """Make infinite what arrives at the last image in the backward pass."""
    infinite = torch.ones(len(output), 1, 1, 1)
    infinite[-1] = torch.inf
    output.register_hook(lambda gradient: gradient * infinite.to(gradient.dtype))


def stage_of(kind: str, policy: str = "replicate") -> Any:
    """Return the stage of a kind, as a plan sees it: with the optimisers and averages that `held` has."""
    averaged = dict(sigma_rel=[0.05], decays=[0.9], inference=0.9)
    given = build(kind).settings
    parallel: Any = POLICIES[policy]
    own = replace(given, global_batch_size=BATCH, optimizer=ADAM, parallel=parallel, ema=replace(given.ema, **averaged))
    if kind in GENERATORS:
        return GeneratorStage(0, kind, Path("nowhere"), 3, own, None, None)
    data = replace(given.data, train=dict(type="images", image_size=32))
    own = replace(own, data=data, discriminator_optimizer=ADAM)
    return AlignmentStage(0, kind, Path("nowhere"), 3, own)


def train(kind: str, policy: str = "replicate", micro: int = 1) -> dict[str, Any]:
    """Return what each step logged, and the sums of weights and averages at the end; collective."""
    (rank, processes), model = world(), build(kind)
    originals, left, shard = [weakref.ref(p) for p in model.parameters()], set[int](), fsdp.fully_shard

    def counting(*given: Any, **options: Any) -> Any:
        left.add(sum(weight() is not None for weight in originals))
        return shard(*given, **options)

    with mock.patch.object(fsdp, "fully_shard", counting):
        parallelise(model, POLICIES[policy])
    # Blocks let go of whole weights one by one, and not each part of all of its own.
    assert not left or len(left) > len(model.units())
    weights = [*model.parameters()]
    own = total(torch.tensor(sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in weights)))
    copies = {"replicate": processes, "groups": processes // 2}.get(policy, 1) if processes > 1 else 1
    assert own == copies * sum(p.numel() for p in weights)  # frozen ones, too
    sides = dict(autoencoder=ADAM, discriminator={**ADAM, "lr": 1e-5}, generator=ADAM)
    optim = PartOptimizersConstructor({**sides, "max_skipped": 3, "spike_factor": None, "clip_grad_norm": 1.0})(model)
    averages, source = WeightAverages(model.averaged_parts(), [0.05], [0.9]), torch.Generator().manual_seed(1)
    logged, each = [], BATCH // processes // micro
    for step in range(STEPS):
        whole_batch: dict[str, Any] = dict(images=torch.rand(BATCH, 3, 32, 32, generator=source) * 2 - 1)
        whole_batch |= dict(label=torch.arange(BATCH) % 3, caption=CAPTIONS)
        if kind == "left out" and step == 1:
            whole_batch["images"][-1] = torch.nan  # the last process's alone
        overflows = kind == "fp16" and step == 1 and rank == processes - 1
        hook = model.tokenizer.decoder.register_forward_hook(overflow) if overflows else None
        places = [(i * processes + rank) * each for i in range(micro)]
        parts = [{key: value[at : at + each] for key, value in whole_batch.items()} for at in places]
        logs = model.train_step(StepBatch(step, parts), optim)
        if hook is not None:
            hook.remove()
        averages.update()
        scalars = {key: value.detach().clone().float() for key, value in sorted(logs.items()) if value.numel() == 1}
        logged.append({key: float(mean_over_processes(value)) for key, value in scalars.items()})
        with averages.swapped(0.05), torch.no_grad():  # as a validation does
            model.eval()
            for part in model.averaged_parts().values():
                sum(float(whole(p.detach()).sum()) for p in part.parameters())
            asked = dict(images=torch.zeros(1, 3, 32, 32), sampling=SAMPLING, numbers=[3], seeds=[3], variant="its own")
            asked["words"] = ["a cat"] if kind == "prompts" else [1]
            for shown in model.val_step(asked):
                logged[-1] |= {f"mean {key}": float(shown[key].double().mean()) for key in SHOWN & shown.keys()}
            model.train()
    names = [(name, p.detach()) for name, p in model.named_parameters()]
    names += [(f"average of {k}", t) for part in averages.state(0.9).values() for k, t in part.items()]
    return {"logged": logged, "sums": {name: float(whole(tensor).double().sum()) for name, tensor in names}}


class Sent(TorchDispatchMode):
    """Bytes that a process sends in rings, by what it calls of c10d where a mode sees it: all that FSDP2 does."""

    def __init__(self):
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, ring = str(func), (world()[1] - 1) / world()[1]
        if "_allgather_base_" in name:
            self.bytes += ring * args[0].nbytes
        if "_reduce_scatter_base_" in name:
            self.bytes += ring * args[1].nbytes
        return func(*args, **(kwargs or {}))


def held(kind: str, policy: str) -> dict[str, float]:
    """Return the bytes that this process holds after a step and a backward pass, counted tensor by tensor; collective.

    Of a step also what it sent, and the most that was allocated in it.
    """
    model = build(kind)
    parallelise(model, POLICIES[policy])
    config = {"max_skipped": 3, "spike_factor": None, "clip_grad_norm": None}
    optim = PartOptimizersConstructor({**dict.fromkeys(SIDES, ADAM), **config})(model)
    averages, each = WeightAverages(model.averaged_parts(), [0.05], [0.9]), BATCH // world()[1]
    batch = dict(images=torch.rand(each, 3, 32, 32) * 2 - 1)
    if kind == "generator":
        batch = dict(latents=torch.randn(each, 4, 4, 4), label=torch.arange(each) % 3)
    model.train_step(StepBatch(0, [batch]), optim)
    with Sent() as sent:
        model.train_step(StepBatch(1, [batch]), optim)
    most = most_allocated(lambda: model.backward(batch, MicroBatch(STEPS - 1, 0, 1)))
    to_shares(model)

    def bytes_of(tensors):
        shares = (t.to_local() if hasattr(t, "to_local") else t for t in {id(t): t for t in tensors}.values())
        return sum(t.numel() * t.element_size() for t in shares)

    trained = [p for p in model.parameters() if p.requires_grad]
    parts = model.trained_parts().values()
    buffers = [b for part in parts for b in part.buffers()]
    states = (state for wrapper in optim.optim_wrappers.values() for state in wrapper.optimizer.state.values())
    known = {id(t) for t in (*trained, *buffers)}
    others = [t for part in model.parts().values() for t in (*part.parameters(), *part.buffers()) if id(t) not in known]
    return {
        "weights": bytes_of([*trained, *buffers]) + bytes_of(model._buffers_before._kept.values()),
        "gradients": bytes_of(p.grad for p in trained if p.grad is not None),
        "optimizer": bytes_of(t for state in states for t in state.values()),
        "averages": bytes_of(t for which in averages.kept for s in averages.state(which).values() for t in s.values()),
        "frozen": bytes_of(others),
        "sent": sent.bytes,
        "most": most,
    }


def again(kind: str, policy: str, asked: bool, micro: int = 1) -> list[bool]:
    """Tell of the second, third, ... backward pass of one batch whether its gradients are the first's; collective.

    Each in so many micro-batches, as a step goes.
    """
    with repeatable(asked):
        model, first, same = build(kind), list[torch.Tensor](), []
        parallelise(model, POLICIES[policy])
        source, each = torch.Generator().manual_seed(7 + world()[0]), BATCH // world()[1]
        images = torch.rand(each, 3, 32, 32, generator=source) * 2 - 1
        for _ in range(4):
            model.zero_grad()
            for i, part in enumerate(images.chunk(micro)):
                exchange_gradients(model, i == micro - 1)
                model.backward(dict(images=part), MicroBatch(STEPS - 1, i, micro))
            found = [whole(p.grad).clone() for p in model.parameters() if p.grad is not None]
            first = first or found
            same.append(all(map(torch.equal, first, found)))
    return same[1:]


def most_allocated(call: Any) -> int:
    """Return the most bytes that torch's allocator gave out at once while something is called, as on a GPU."""
    as_a_gpu = mock.patch.object(device, "on_plain_cpu", return_value=False)  # a CPU's own norm keeps less
    with as_a_gpu, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        call()
    events = enumerate(watched.profiler.kineto_results.events())
    sizes = [each[2] for each in sorted((e.start_ns(), i, e.nbytes()) for i, e in events if e.name() == "[memory]")]
    return max(accumulate(sizes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, *words = sys.argv[1:]
    dist.init_process_group("gloo")
    found = {}
    for word in words:
        kind, policy, micro = word.split(":")
        if micro in ("again", "repeatable", "split"):
            found[word] = again(kind, policy, micro == "repeatable", 2 if micro == "split" else 1)
        else:
            found[word] = held(kind, policy) if micro == "held" else train(kind, policy, int(micro))
    if world()[0] == 0:
        with open(out, "w") as file:
            json.dump(found, file)
    dist.barrier()
    dist.destroy_process_group()
