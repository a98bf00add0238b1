"""The next step's batches travel to the GPU while a step is computed: in which order, by a GPU that stands in."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aligntok.cli import train
from aligntok.data.loader import make_loader
from aligntok.engine import ahead as module
from aligntok.engine.ahead import ahead, arriving, beside, send
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint
from aligntok.engine.runner import StepLoop
from aligntok.errors import DataError
from aligntok.training import stages
from aligntok.training.stages import TrainedModel

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def told(monkeypatch):
    """What is asked of a GPU, in order; a copy on it is a tensor with `at`, the name of the stream that made it."""
    told, streams, current = [], [], ["main"]

    class Stream:
        def __init__(self, where=None, name=None):
            assert name or where == GPU
            self.name = name or f"side {len(streams)}"
            streams.append(self)

        def record_event(self):
            assert current[-1] == self.name
            told.append(f"event {(number := len(told))} of {self.name}")
            return number

        def wait_event(self, number):
            told.append(f"{self.name} waits for event {number}")

    @contextmanager
    def within(stream):
        current.append(stream.name)
        yield
        current.pop()

    def to(tensor, where, non_blocking=False):
        assert where == GPU
        assert non_blocking
        copy = tensor.clone()
        copy.at = current[-1]
        told.append(f"copy {float(tensor.flatten()[0]):g} on {copy.at}")
        return copy

    def record_stream(tensor, stream):
        told.append(f"{float(tensor.flatten()[0]):g} from {tensor.at} is used on {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: Stream(name=current[-1]))
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
    module._stream.cache_clear()
    yield told
    module._stream.cache_clear()


class OnGPU(SimpleNamespace):
    """What of a model a loop asks, on the GPU that stands in."""

    travels, prepares, prepare = TrainedModel.travels, property(TrainedModel.prepares.fget), TrainedModel.prepare

    def device(self):
        return GPU


def batch_of(number):
    return {"images": torch.full((2, 1), float(number)), "label": torch.tensor([number])}


def run(steps, model, told):
    """Take steps as the loop and the model do, and return the batches that are computed with."""
    seen = []
    for number, step in enumerate(ahead(iter(steps), model)):
        told.append(f"step {number}")
        for batch in arriving(step, model.travels, model.device()):
            told.append(f"compute {float(batch['images'][0]):g}")
            seen.append(batch)
    return seen


def test_the_next_batch_is_on_its_way_before_a_step_and_waited_for_before_its_own(told):
    seen = run([[batch_of(number)] for number in range(3)], OnGPU(), told)
    assert [line for line in told if not line.startswith("event")] == [
        "copy 0 on side 0",
        "copy 1 on side 0",
        "step 0",
        "main waits for event 1",  # of its own copy, and not of the one that was begun since
        "0 from side 0 is used on main",
        "compute 0",
        "copy 2 on side 0",
        "step 1",
        "main waits for event 3",
        "1 from side 0 is used on main",
        "compute 1",
        "step 2",
        f"main waits for event {told.index('copy 2 on side 0') + 1}",
        "2 from side 0 is used on main",
        "compute 2",
    ]
    assert [batch.keys() for batch in seen] == [{"images", "label"}] * 3


def test_of_a_steps_micro_batches_no_more_than_the_next_one_is_on_the_way(told):
    run([[batch_of(10 * step + micro) for micro in range(3)] for step in range(2)], OnGPU(), told)
    assert [line.removesuffix(" on side 0") for line in told if line.startswith(("copy", "compute", "step"))] == [
        *("copy 0", "copy 10", "step 0"),
        *("copy 1", "compute 0", "copy 2", "compute 1", "compute 2"),
        *("step 1", "copy 11", "compute 10", "copy 12", "compute 11", "compute 12"),
    ]


def test_tensors_within_what_travels_are_copied_and_all_else_stays_as_it_is(told):
    encoded = {"text": torch.full((1, 2), 7.0), "mask": torch.ones(1, 2, dtype=torch.bool)}
    batch = {"latents": torch.full((1,), 5.0), "encoded": encoded, "caption": ["a dog"], "index": torch.tensor([3])}
    before = dict(batch)
    (arrived,) = arriving([batch], TrainedModel.travels, GPU)
    assert arrived.keys() == before.keys()
    assert arrived["latents"].at == arrived["encoded"]["text"].at == arrived["encoded"]["mask"].at == "side 0"
    assert arrived["caption"] is before["caption"]
    assert arrived["index"] is before["index"]
    assert sorted(line for line in told if "used" in line) == [
        f"{number} from side 0 is used on main" for number in (1, 5, 7)
    ]
    assert batch == before  # it may be sent again


def test_a_batch_is_sent_once(told):
    send(batch := batch_of(1), ["images"], GPU)
    send(batch, ["images"], GPU)
    assert told == ["copy 1 on side 0", "event 1 of side 0"]


def test_works_of_one_thread_share_a_stream_and_its_memory(told):
    waits = [beside(GPU, lambda number: {"x": torch.full((1,), number).to(GPU, non_blocking=True)}, n) for n in (1, 2)]
    assert [wait()["x"].at for wait in waits] == ["side 0", "side 0"]


def test_on_a_cpu_the_loaders_own_batches_are_computed_with_when_they_are_asked_for():
    taken = []
    given = [[batch_of(2 * step), batch_of(2 * step + 1)] for step in range(2)]
    model = SimpleNamespace(prepares=TrainedModel.prepares.fget(SimpleNamespace(device=lambda: CPU)))
    for number, step in enumerate(ahead((taken.append(step) or step for step in given), model)):
        assert step is taken[-1] is given[number]
        assert len(taken) == number + 1
        for batch, own in zip(arriving(step, TrainedModel.travels, CPU), step, strict=True):
            assert batch is own
            assert batch.keys() == {"images", "label"}


def test_what_is_wrong_with_the_next_batch_is_raised_after_the_step_that_does_not_need_it(told):
    def steps():
        yield [batch_of(0)]
        yield [batch_of(1)]
        raise DataError("gone")

    with pytest.raises(DataError, match="gone"):
        run(steps(), OnGPU(), told)
    assert [line for line in told if line.startswith("compute")] == ["compute 0", "compute 1"]


def test_every_tensor_of_a_batch_is_pinned_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr("aligntok.data.loader.device", lambda: GPU)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    item = {"images": torch.zeros(3), "encoded": {"mask": torch.ones(2)}, "caption": "a dog", "label": 4}
    (batch,) = make_loader([item, item], [[0, 1]], 0)
    assert [*map(id, pinned)] == [id(each) for each in (batch["images"], batch["encoded"]["mask"], batch["label"])]
    assert batch["caption"] == ["a dog"] * 2


def test_a_run_that_sends_its_batches_ends_as_one_that_does_not(write_config, tmp_path, monkeypatch):
    """On the CPU, where what is sent is a copy, and what stays behind becomes useless; also where it goes on."""
    quiet = dict(log=dict(every=1, pictures=0), gradient_accumulation_steps=2, losses=dict(l1=dict(type="l1")))
    config = write_config(stages=[dict(name="only", steps=4)], **quiet)
    assert train([config, "--work-dir", str(tmp_path / "plain")]) == 0
    sent, steps = [], []

    def sending(batch, names, where):
        if module._SENT not in batch:
            batch[module._SENT] = beside(where, lambda: {"images": batch["images"].clone()})
            sent.append(batch["images"].fill_(np.nan))

    def run_iter(self, data):
        steps.append((data.step, len(sent)))
        return StepLoop.__bases__[0].run_iter(self, data)

    monkeypatch.setattr(module, "send", sending)
    monkeypatch.setattr(stages, "send", sending)
    monkeypatch.setattr(TrainedModel, "prepares", True)
    monkeypatch.setattr(StepLoop, "run_iter", run_iter)
    for number in (2, 4):
        option = f"stages.0.steps={number}"
        assert train([config, "--work-dir", str(tmp_path / "run"), "--cfg-options", option, "schedule_end=4"]) == 0
    # At a step its first micro-batch is sent, and the next step's if there is one; then the others.
    assert steps == [(0, 2), (1, 3), (2, 6), (3, 7)]
    assert len(sent) == 8
    found = [read_checkpoint(list_checkpoints(tmp_path / run / "1_only")[-1][1]) for run in ("plain", "run")]
    for name, weights in found[0]["parts"].items():
        for key, tensor in weights.items():
            assert torch.equal(found[1]["parts"][name][key], tensor), (name, key)
