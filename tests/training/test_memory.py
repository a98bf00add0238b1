"""What a stage takes of a GPU, as planned, is what torch's allocator gives out; what does not fit is told."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

from aligntok.cli import train
from aligntok.condition.text_models import TextModels
from aligntok.decoders import ldm_cnn as ldm_decoder
from aligntok.engine.optim import check_optimizer, optimizer_bytes
from aligntok.errors import WeightsError
from aligntok.generators import dit_blocks
from aligntok.losses import lpips
from aligntok.ops import embeddings, ldm_blocks
from aligntok.ops.attention import attention
from aligntok.ops.depthwise import depthwise_conv2d
from aligntok.training import memory
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.config import load_config
from aligntok.training.generation.model import GenerationModel
from aligntok.training.memory import GIB, USABLE, StageMemory, print_memory, stage_memory
from aligntok.training.rehearsal import IN_FLOAT32, IN_THE_WIDEST, Course, _as_on_a_gpu, _Names
from aligntok.training.run import expand
from aligntok.training.stages import MicroBatch

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import spread

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("kind", ["alignment", "variational", "generator"])
def test_a_micro_batch_takes_what_torchs_allocator_gives_out(kind):
    """A rehearsal of two and of three images; the allocator of eight."""
    stage, model = spread.stage_of(kind), spread.build(kind)
    planned = stage_memory(stage, 1)
    batch = {key: torch.as_tensor(value)[None].repeat_interleave(8, 0) for key, value in stage.an_item().items()}
    step = lambda: model.backward(batch, MicroBatch(spread.STEPS - 1, 0, 1))  # noqa: E731
    step()
    model.zero_grad()
    assert planned.activations + planned.gradients == pytest.approx(spread.most_allocated(step), rel=0.05)


def test_recomputed_activations_are_not_kept():
    stage = spread.stage_of("checkpointing")
    kept = replace(stage, settings=replace(stage.settings, grad_checkpointing=False))
    assert stage_memory(stage, 1).activations < 0.7 * stage_memory(kept, 1).activations


def test_micro_batches_that_wait_for_others_hold_whole_gradients():
    stage = spread.stage_of("generator", "shard")
    waiting = replace(stage, settings=replace(stage.settings, gradient_accumulation_steps=2))
    at_once, waits = stage_memory(stage, 2), stage_memory(waiting, 2)
    assert (at_once.images, waits.images) == (4, 2)
    assert waits.gradients == pytest.approx(2 * at_once.gradients, rel=0.01)


def test_autocast_of_a_rehearsal_is_a_gpus_and_a_processors_again_afterwards():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in (*IN_FLOAT32, *IN_THE_WIDEST):
        assert has(f"aten::{name}", "AutocastCUDA"), name
        assert not has(f"aten::{name}", "AutocastCPU"), name
    low, full = torch.ones(1, 4, 2, 2, dtype=torch.bfloat16), torch.ones(1, 4, 2, 2)

    def types():
        with torch.autocast("cpu", torch.bfloat16):
            found = (
                *(F.linear(full, torch.ones(2, 2)), F.layer_norm(low, (2,)), F.group_norm(low, 2), low.softmax(-1)),
                *(F.interpolate(low, scale_factor=2.0), low.pow(2), torch.addcmul(full, low, low), low * low),
            )
        return [each.dtype for each in found]

    with _as_on_a_gpu():
        on_a_gpu = types()
    assert on_a_gpu == [torch.bfloat16, *[torch.float32] * 6, torch.bfloat16]
    assert types()[1:4] == [torch.bfloat16] * 3


def test_half_precision_stays_half_in_a_rehearsal_as_on_a_gpu():
    x, weight = torch.ones(1, 2, 4, 4, dtype=torch.bfloat16), torch.ones(2, 1, 3, 3, dtype=torch.bfloat16)

    def steps():
        with _Names() as attending:
            attention(x, x, x)
        with _Names() as convolving:
            depthwise_conv2d(x, weight)
        return "_to_copy" in attending.seen, "_to_copy" in convolving.seen

    with _as_on_a_gpu():
        on_a_gpu = steps()
    assert on_a_gpu == (False, False)
    assert steps() == (True, True)  # a processor's way is float32's


def test_what_an_optimiser_keeps_is_seen_in_a_step_of_it():
    shapes = [(10, 20), (10, 20), (5,)]
    weights = 4 * 405
    assert optimizer_bytes({"type": "AdamW", "fused": True}, shapes) == 2 * weights + 3 * 4
    assert optimizer_bytes({"type": "SGD", "lr": 0.1}, shapes) == 0
    assert optimizer_bytes({"type": "SGD", "lr": 0.1, "momentum": 0.9}, shapes) == weights
    rows_and_columns = 4 * (10 + 20)  # and a count; it looks at values, which the meta device has not
    check_optimizer({"type": "Adafactor"}, "")  # transformers', which is imported where it is asked for
    assert optimizer_bytes({"type": "Adafactor"}, shapes[:1]) == rows_and_columns + 4


def test_the_largest_micro_batch_is_that_of_the_fullest_moment():
    # of 2 images 10, 40, 0; a further one adds 1, 8, 0; gradients 0, 4, 20 as they come
    course = Course(np.array([10, 40, 0]), np.array([1, 8, 0]), np.array([0, 4, 20]))
    assert course.peak(2, 20, whole=False) == 40 + 4 - 20
    assert course.peak(5, 20, whole=False) == 40 + 3 * 8 + 4 - 20
    assert course.peak(5, 20, whole=True) == 40 + 3 * 8
    assert course.peak(5, 10, whole=False) == 40 + 3 * 8 + 2 - 10  # shares: half of what comes
    assert course.largest(48, 20, whole=False) == 5
    assert course.largest(47.9, 20, whole=False) == 4
    assert course.largest(7, 20, whole=True) == 0
    held = StageMemory(30, 20, 0, 0, {}, 0, 0.0, 5, course=course)
    assert held.states + held.activations == 98
    assert (held.largest(98 / USABLE + 1e-6), held.largest(97.9 / USABLE)) == (5, 4)


def test_a_component_that_looks_at_values_leaves_only_the_micro_batch_unknown(monkeypatch, capsys):
    looking = lambda self, batch, noise: batch["latents"] * float(batch["latents"].mean())  # noqa: E731
    monkeypatch.setattr(GenerationModel, "latents", looking)
    held = stage_memory(spread.stage_of("generator"), 1)
    assert held.course is None
    assert held.optimizer > 0
    assert held.largest(80 * GIB) == held.activations == 0
    print_memory({"generation": held}, 80)
    assert "generation: what a micro-batch takes is unknown: a component cannot" in capsys.readouterr().out


def test_what_encodes_prompts_beside_a_step_is_counted(monkeypatch, capsys):
    stage = spread.stage_of("prompts", "shard")
    held = stage_memory(stage, 2)
    letters = 128 * 8 * 4  # a table in float32, whole in each of the processes
    assert held.frozen == {"text encoder (tokens)": letters}
    without = replace(held, frozen={})
    assert held.states == without.states + letters
    assert not held.uncounted

    def missing(self, name):
        raise WeightsError("no folder of T5")

    monkeypatch.setattr(TextModels, "_empty", missing)
    held = stage_memory(stage, 2)
    assert (held.frozen, held.states) == ({}, without.states)
    print_memory({"generation": held}, 80)
    assert "generation: what encodes the prompts is not counted (no folder of T5)" in capsys.readouterr().out


def test_encoders_of_captions_that_were_encoded_before_are_not_counted():
    stage = spread.stage_of("prompts")
    text = {**stage.settings.generator["text"], "cache": True}
    cached = replace(stage, settings=replace(stage.settings, generator={**stage.settings.generator, "text": text}))
    assert stage_memory(cached, 1).frozen == {}


# The command


def planned(capsys, *arguments):
    status = train([*map(str, arguments), "--dry-run"])
    return status, capsys.readouterr()


def test_a_dry_run_tells_what_a_gpu_holds_and_what_would_fit(write_config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config = write_config(data_root=None, data=dict(train=dict(image_size=32)), global_batch_size=8)
    status, printed = planned(capsys, config, "--processes", 2, "--parallel", "shard")
    assert status == 0
    for words in (
        "What a GPU holds",
        "8 = 2 processes x 1 micro x 4",
        "optimiser",
        "largest for 80 GiB",
        "sent a step",
    ):
        assert words in printed.out
    assert "do not fit" not in printed.out
    config = write_config(data_root=None, data=dict(train=dict(image_size=32)), global_batch_size=64)
    _, printed = planned(capsys, config, "--gpu-memory", "0.06", "--stage", "latent_alignment")
    assert (
        "latent_alignment: micro-batches of 64 do not fit into 0.06 GiB, of which 95% count; the largest" in printed.out
    )
    _, printed = planned(capsys, config, "--gpu-memory", "0.001", "--stage", "latent_alignment")
    assert "not even one image does: parallel='shard', more processes or grad_checkpointing=True" in printed.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--processes", "0"], "--processes 0; it must be int of at least 1"),
        (["--gpu-memory", "0"], "--gpu-memory 0; it must be"),
        (["--parallel", "everything"], "--parallel everything; it must be 'replicate' or 'shard'"),
        (["--parallel", "shrad=2"], "no key"),
        (["--processes", "4", "--parallel", "shard=3"], "parallel=dict(shard=3) with 4 processes"),
        (["--processes", "3"], "global_batch_size 4 is not divisible by 3"),
    ],
)
def test_what_cannot_be_planned_for_is_one_sentence(write_config, capsys, arguments, said):
    status, printed = planned(capsys, write_config(data_root=None), *arguments)
    assert status == 2
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1


def test_what_a_plan_is_told_is_not_for_a_run(write_config, capsys):
    assert train([write_config(), "--processes", "2"]) == 2
    assert "say what --dry-run plans for; add it, or start processes with torchrun" in capsys.readouterr().err


# What an H100 measured: bf16, eager, the allocator's peak


WHOLE_BATCH = {
    "losses.gan.adaptive_weight.images": None,
    "discriminator.group_images": None,
    "stages.1.losses.semantic.adaptive_weight.images": None,
}


@pytest.fixture
def as_measured(monkeypatch):
    """Have norms, LPIPS and rotations keep for the backward pass what their layers did when it was measured."""
    in_layers = lambda x, norm: F.silu(norm(x))  # noqa: E731
    for module in (ldm_blocks, ldm_decoder):
        monkeypatch.setattr(module, "norm_silu", in_layers)

    def distance(own, target, weight):
        own, target = (x.float() / (torch.linalg.vector_norm(x.float(), dim=1, keepdim=True)) for x in (own, target))
        return F.conv2d((own - target).square(), weight).float().mean()

    def turned(qkv, rotations):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return embeddings.rotate(q, rotations), embeddings.rotate(k, rotations), v

    monkeypatch.setattr(dit_blocks, "split_rotated", turned)
    monkeypatch.setattr(lpips._Distance, "apply", distance)
    monkeypatch.setattr(lpips._BySlices, "apply", lambda own, images, value, _: value(images, own))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("config", "options", "stage", "measured", "too_many"),
    [
        ("aligntok_dinov2_f16d32.py", dict(global_batch_size=8, precision="bf16"), "perceptual_alignment", 18.5, 64),
        ("generator/lightningdit_xl_aligntok_f16d32_64ep.py", dict(global_batch_size=128), "generation", 72.9, 192),
    ],
)
def test_the_recipes_take_what_an_h100_measured(as_measured, config, options, stage, measured, too_many):
    own = {**options, **(WHOLE_BATCH if stage != "generation" else {})}
    (chosen,) = (each for each in expand(load_config(CONFIGS / config, own)) if each.name == stage)
    held = stage_memory(chosen, 1)
    assert (held.states + held.activations) / GIB == pytest.approx(measured, rel=0.02)
    assert held.images <= held.largest(80 * GIB) < too_many  # 64 images of the first ran out of memory


@pytest.mark.nightly
def test_64_images_of_the_second_stage_are_planned_to_take_less_than_60_gib():
    config = load_config(CONFIGS / "aligntok_dinov2_f16d32.py", dict(global_batch_size=64, precision="bf16"))
    held = stage_memory(next(s for s in expand(config) if s.name == "perceptual_alignment"), 1)
    assert (held.states + held.activations) / GIB < 60


@pytest.mark.parametrize(
    ("error", "size", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 9e6, "largest that does is"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1e3, "not even one image does"),
        (RuntimeError("not enough memory: you tried to allocate 8 bytes"), 1e15, "should fit, but do not beside what"),
    ],
)
def test_a_full_memory_is_told_with_the_largest_micro_batch_that_fits(
    write_config, monkeypatch, capsys, error, size, said
):
    backward = AlignmentModel.backward

    def full(self, batch, place):
        if isinstance(batch["images"], FakeTensor):  # the plan's
            return backward(self, batch, place)
        raise error

    monkeypatch.setattr(AlignmentModel, "backward", full)
    monkeypatch.setattr(memory, "memory_bytes", lambda: int(size))
    assert train([write_config()]) == 2
    told = capsys.readouterr().err
    assert "the device's memory is full" in told
    assert said in told
