"""Two processes where something differs between them: noise, a fault, gradients of a loss's own weights in parts."""

from __future__ import annotations

import pytest

# One of two processes; asserts for itself what must come out.
WORKER = """
import torch, torch.distributed as dist
from aligntok.distributed import any_process, gather, world
from aligntok.distributed.parallel import parallelise
from aligntok.engine.optim import PartOptimizersConstructor
from aligntok.engine.runner import StepBatch
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.settings import StageSettings

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()

def everywhere(tensor):
    a, b = gather(tensor.detach().reshape(1, -1))
    return a, b

# 0. a flag of either one is known to both
assert any_process(rank == 0) and any_process(rank == 1) and not any_process(False)

cnn = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=16)
vit = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False,
           model_args=dict(depth=1, embed_dim=48, num_heads=3))
l1, vf = dict(type="l1"), dict(type="vf", latent_dim=4, feature_dim=48, weight=0.1)

def build(encoder, losses, **model):
    torch.manual_seed(0)
    adapter = dict(type="identity") if encoder is cnn else dict(type="mlp")
    tokenizer = dict(encoder=encoder, adapter=adapter, decoder=cnn, latent_dim=4, downsample_factor=4, **model)
    settings = StageSettings(steps=1, model=tokenizer, losses=losses, discriminator=None, teacher="start")
    made = AlignmentModel(settings, seed=3)
    made.load_start(None)
    parallelise(made)
    return made

def optimizers(model):
    config = dict(autoencoder=dict(type="SGD", lr=0.1), clip_grad_norm=None, max_skipped=2, spike_factor=None)
    return PartOptimizersConstructor(config)(model)

# 1. a variational tokenizer draws other noise in each process, for the same images
images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
model, latents = build(cnn, dict(l1=l1), variational=True), []
model.tokenizer.decoder.register_forward_pre_hook(lambda module, given: latents.append(given[0]))
optim = optimizers(model)
for step in (0, 1):
    model.train_step(StepBatch(step, [{"images": images}]), optim)
a, b = everywhere(latents[0])
assert (a - b).abs().mean() > 0.1 * a.std(), "both drew the same noise"
weights = torch.cat([p.reshape(-1) for p in model.parameters()])
a, b = everywhere(weights)
assert torch.equal(a, b), "what they learn from it is one"

# 2. a loss that is not finite in one process alone, whose gradients are: neither steps
model = build(vit, dict(l1=l1))
optim = optimizers(model)
if rank:
    model.objective.losses["l1"].forward = lambda images, reconstruction: (
        reconstruction.mean() + (reconstruction.detach() * float("inf")).sum())
before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
logs = model.train_step(StepBatch(0, [{"images": images}]), optim)
assert float(logs["skipped_steps"]) == 1
assert torch.equal(before, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))

# 3. a loss with weights of its own, each process's share in two micro-batches: the gradient of the whole batch
images = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
model = build(vit, dict(l1=l1, vf=vf))
own = model.objective.losses["vf"]
with torch.no_grad():  # the student is no longer its teacher
    for parameter in model.tokenizer.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
found = {}
class Keeper:
    def loss_scale(self, device):
        return torch.ones((), device=device)
    def step_parts(self, parts, losses):
        found.update({f"{part}.{n}": p.grad for part, m in parts.items() for n, p in m.named_parameters()})
        return {}
parts = {**model.trained_parts()}
micro_batches = [{"images": images[i : i + 1]} for i in (rank, 2 + rank)]
model.train_step(StepBatch(0, micro_batches), Keeper())
tokenizer = model.tokenizer
latents = tokenizer.encode(images)
targets = model.teacher(images)["teacher_features"]
total = (images - tokenizer.decode(latents)).abs().mean() + 0.1 * own(latents, targets)
named = {f"{part}.{n}": p for part, m in parts.items() for n, p in m.named_parameters()}
expected = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
assert any(name.startswith("loss_vf.") for name in expected)
for name, gradient in expected.items():
    torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-7)

dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_that_differ_train_one_model(warm, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    warm.together(2, tmp_path / "worker.py")
