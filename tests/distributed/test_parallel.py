"""Replicas, shares, groups of shares, micro-batches: every training is that of one process."""

from __future__ import annotations

import ast
import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import aligntok
from aligntok.distributed import parallel
from aligntok.distributed.parallel import Sharding, Unit, check_group, load_state, parallelise, traffic, whole
from aligntok.errors import ConfigError
from aligntok.training.alignment.gradient_ratio import LastLayer, gradient_at
from aligntok.training.memory import stage_memory

sys.path.insert(0, str(Path(__file__).parent))
import spread

HALVES = {"bf16": 300, "fp16": 20}  # by how much more their rounding parts two runs
SPLIT = ("constant weights", "ratios of groups")  # also in two micro-batches: of a group two processes have a half each
EVERY = [f"{kind}:{policy}:1" for kind in (*spread.KINDS, *spread.GENERATORS) for policy in ("replicate", "shard")]
EVERY += [f"{kind}:{policy}:2" for kind in SPLIT for policy in ("replicate", "shard")] + ["alignment:bf16:1"]
#: In each run: the first kind in every way, others in one, in turn; the rest by night.
QUICK = ["alignment:replicate:1", "alignment:shard:1", "alignment:bf16:1", "lora:shard:1", "variational:replicate:1"]
QUICK += [
    "ratios of groups:shard:1",
    "fp16:replicate:1",
    "left out:shard:1",
    "generator:replicate:1",
    "prompts:shard:1",
]
QUICK += ["constant weights:shard:2", "ratios of groups:replicate:2"]
IN_PARTS = "alignment:replicate:split"
MORE = [word for word in EVERY if word not in QUICK and not word.startswith("plain:")]

IN_GROUPS = ("alignment", "generator")
OTHERS = tuple(kind for kind in spread.KINDS if kind not in (*IN_GROUPS, "compile"))


@pytest.fixture(scope="module")
def one():
    """What one process finds, by kind."""
    trained, same = cache(spread.train), dict.fromkeys(("checkpointing", "compile"), "plain")
    return lambda kind: trained(same.get(kind, kind))


@pytest.fixture
def together(warm, tmp_path):
    """A function that tells what several processes find: by word."""

    def find(processes, words):
        out = tmp_path / "found.json"
        printed = warm.together(processes, spread.__file__, out, *words)
        assert "find_unused_parameters=True was specified" not in printed[0]
        return json.loads(out.read_text())

    return find


def assert_alike(found, expected, word):
    coarse = next((factor for half, factor in HALVES.items() if half in word), 1)
    for step, (a, b) in enumerate(zip(found["logged"], expected["logged"], strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            loss = name.startswith("loss/") and name != "loss/gan"  # which, as logits, is a mean around 0
            rel, least = (2e-5, 2e-6) if loss else (1e-3, 2e-5)
            if word.startswith("constant weights") and name.startswith("grad_norm/"):
                rel = 5e-3  # rounding moves the kinks of an adversarial loss that nothing holds down
            near = pytest.approx(b[name], rel=min(0.1, coarse * rel), abs=coarse * least, nan_ok=True)
            assert a[name] == near, f"{word} {step} {name}"
    assert found["sums"].keys() == expected["sums"].keys()
    for name, value in expected["sums"].items():
        assert found["sums"][name] == pytest.approx(value, abs=coarse * 2e-4), f"{word} {name}"


@pytest.mark.slow
@pytest.mark.parametrize("words", [QUICK, pytest.param(MORE, marks=pytest.mark.nightly)], ids=["quick", "more"])
def test_two_processes_that_replicate_or_share_are_one(one, together, words):
    found = together(2, [*words, IN_PARTS])
    for word in words:
        assert_alike(found[word], one(word.split(":")[0]), word)
    assert all(found[IN_PARTS]), "the first step of a start, which may go on, has other bits than every other"
    if half := found.get("alignment:bf16:1"):
        whole = found["alignment:shard:1"]["logged"][0]["loss/l1"]
        assert half["logged"][0]["loss/l1"] != pytest.approx(whole, rel=1e-5)
        assert all(float(step["ratio/gan"]) > 0 for step in one("alignment")["logged"])


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [IN_GROUPS, pytest.param(OTHERS, marks=pytest.mark.nightly)], ids=["quick", "all"])
def test_four_processes_in_groups_of_two_are_one(one, together, kinds):
    words = [f"{kind}:groups:1" for kind in kinds]
    found = together(4, words)
    for word in words:
        assert_alike(found[word], one(word.split(":")[0]), word)


@pytest.mark.nightly
def test_two_processes_hold_and_send_what_was_planned(together):
    """Counted tensor by tensor after a step; FSDP2's exchanges as they are called; and what torch's allocator gave."""
    words = [f"{kind}:{policy}:held" for kind in ("alignment", "generator") for policy in ("replicate", "shard")]
    found = together(2, [*words, "lora:shard:held"])
    for word, measured in found.items():
        kind, policy, _ = word.split(":")
        planned = stage_memory(spread.stage_of(kind, policy), 2)
        for name in ("weights", "gradients", "optimizer", "averages"):
            assert getattr(planned, name) == pytest.approx(measured[name], rel=1e-3), f"{word} {name}"
        assert sum(planned.frozen.values()) == measured["frozen"], word
        most = planned.activations + planned.gradients
        if policy == "replicate":  # DDP's buckets were there before
            assert most == pytest.approx(measured["most"], rel=0.05)
        else:  # room for a block that is gathered while another is computed, which gloo does not do
            assert measured["most"] <= most + planned.exchange <= 1.2 * measured["most"]
    assert found["alignment:shard:held"]["optimizer"] < 0.55 * found["alignment:replicate:held"]["optimizer"]
    # Gradient ratios gather what waits for them anew.
    assert stage_memory(spread.stage_of("generator", "shard"), 2).sent == found["generator:shard:held"]["sent"]
    assert stage_memory(spread.stage_of("alignment", "shard"), 2).sent <= found["alignment:shard:held"]["sent"]


def test_each_gradient_of_a_bucket_is_averaged_by_itself(monkeypatch):
    class Done:
        def __init__(self, gradient):
            self.future = torch.futures.Future()
            self.future.set_result([gradient])

        def get_future(self):
            return self.future

    def all_reduce(gradient, async_op):
        assert async_op
        summed.append(gradient.clone())
        return Done(gradient.add_(1))

    buffer, summed = torch.arange(6.0), []
    bucket = SimpleNamespace(buffer=lambda: buffer, gradients=lambda: [buffer[:2], buffer[2:].view(2, 2)])
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(parallel, "world", lambda: (0, 2))
    found = parallel._one_by_one(bucket).wait()
    assert found is buffer
    torch.testing.assert_close(summed, [torch.tensor([0, 0.5]), torch.tensor([[1, 1.5], [2, 2.5]])])
    torch.testing.assert_close(found, torch.arange(6.0) / 2 + 1)


def test_on_gpus_the_average_waits_for_the_last_sum_in_the_stream_that_they_all_take(monkeypatch):
    """A future of several, which torch makes without devices, would not make the reader's stream wait for theirs."""
    buffer = SimpleNamespace(is_cuda=True, div_=lambda processes: buffer)
    first, last = torch.futures.Future(), torch.futures.Future()
    sums = iter(SimpleNamespace(get_future=lambda each=each: each) for each in (first, last))
    bucket = SimpleNamespace(buffer=lambda: buffer, gradients=lambda: [1, 2])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: next(sums))
    monkeypatch.setattr(torch.futures, "collect_all", lambda _: pytest.fail("it has no device"))
    monkeypatch.setattr(parallel, "world", lambda: (0, 2))
    found = parallel._one_by_one(bucket)
    assert not found.done()
    last.set_result([])
    assert found.wait() is buffer


@pytest.mark.nightly
def test_one_batch_has_one_gradient_of_four_processes_where_it_is_to_be_repeatable(together):
    """Also in the step after a start, when DDP makes its buckets anew: of two addends the order would not matter."""
    words = ["alignment:replicate:again", "alignment:replicate:repeatable"]
    found = together(4, words)
    assert not all(found[words[0]]), "DDP has stopped to; all is repeatable without our sums a gradient"
    assert all(found[words[1]])


def test_micro_batches_of_one_process_are_one_batch(one):
    assert_alike(spread.train("constant weights", micro=4), one("constant weights"), "micro-batches")
    assert_alike(spread.train("generator", micro=2), one("generator"), "micro-batches")


def test_the_step_that_was_left_out_is_the_second(one):
    for kind in ("left out", "fp16"):
        assert [step["skipped_steps"] for step in one(kind)["logged"]] == [0, 1, 1]
    assert [step["loss_scale"] for step in one("fp16")["logged"]] == [2**16, 2**15, 2**15]


def test_layers_that_draw_by_themselves_are_refused_where_the_batch_is_split(monkeypatch):
    plain = spread.build

    def drawing(kind):
        model = plain(kind)
        model.generator.register_forward_hook(lambda module, given, output: output + 0 * torch.rand(1))
        return model

    monkeypatch.setattr(spread, "build", drawing)
    spread.train("generator")
    with pytest.raises(ConfigError, match=r"the batch's split, 1 processes x 2 micro-batches, and not from the image"):
        spread.train("generator", micro=2)


def held(group):
    return "shard" if group is None else Sharding(shard=group)


def test_one_process_has_nothing_to_share(caplog):
    model = spread.build("refinement")
    before = [type(module) for module in model.modules()]
    with caplog.at_level("INFO", logger="aligntok"):
        parallelise(model, "shard")
    assert [type(module) for module in model.modules()] == before
    assert "parallel: one process has nobody to share its weights with" in caplog.text


@pytest.mark.parametrize(
    ("group", "processes", "said"),
    [(3, 4, "2, 4 would do"), (2, 1, "start more with torchrun"), (8, 12, "2, 3, 4, 6, 12")],
)
def test_groups_that_do_not_divide_the_processes_are_refused(group, processes, said):
    with pytest.raises(ConfigError, match=rf"here: parallel=dict\(shard={group}\) with {processes} .*{said}"):
        check_group(held(group), processes, "here")


@pytest.mark.parametrize(("group", "processes"), [(2, 4), (4, 4), (1, 3), (None, 1)])
def test_groups_that_do(group, processes):
    check_group(held(group), processes, "here")


def two_blocks(last=None):
    blocks = [nn.Linear(4, 4, bias=False) for _ in range(2)]  # 64 bytes each
    part = nn.Sequential(*blocks, nn.Linear(2, 2, bias=False))  # and 16 outside of them
    return Unit(part, blocks, None if last is None else blocks[last].weight)


def told(units, parallel, processes, micro_batches=1):
    found = traffic(units, parallel, processes, micro_batches)
    return [(each.what, each.sent, each.reach) for each in found.exchanges], found.space


def test_what_is_sent_in_rings_is_as_computed_by_hand():
    assert told([two_blocks()], "shard", 1) == ([], 0)
    assert told([two_blocks()], "replicate", 4) == ([("gradients", 2 * 3 / 4 * 144, 4)], 144)
    # blocks there and back, the rest once; the gradients' shares; the rest stays, two blocks and two blocks' gradients
    expected = [("weights", 3 / 4 * (144 + 128), 4), ("gradients", 3 / 4 * 144, 4)]
    assert told([two_blocks()], "shard", 4) == (expected, 16 + 4 * 64)
    groups = [("weights", 1 / 2 * 272 * 3, 2), ("gradients", 1 / 2 * 144, 2), ("gradients", 2 * 3 / 4 * 72, 8)]
    assert told([two_blocks()], Sharding(shard=2), 8, micro_batches=3)[0] == groups
    half = told([two_blocks()], Sharding(parameters="bf16"), 4)
    assert half == ([("weights", 3 / 4 * 136, 4), ("gradients", 3 / 4 * 144, 4)], 8 + 64 + 128)


def test_a_last_layers_block_is_gathered_once_and_what_is_frozen_sends_no_gradients():
    assert told([two_blocks(last=1)], "shard", 2)[0][0] == ("weights", 1 / 2 * (144 + 64), 2)
    frozen = two_blocks()
    frozen.part.requires_grad_(False)
    assert told([frozen], "shard", 2)[0] == [("weights", 72.0, 2), ("gradients", 0.0, 2)]
    assert told([frozen], "replicate", 2) == ([("gradients", 0.0, 2)], 0)


def test_every_weight_is_in_one_unit_and_every_block_in_its_part():
    for kind in ("alignment", *spread.GENERATORS):
        model = spread.build(kind)
        units = model.units()
        held = [p for unit in units for p in unit.part.parameters()]
        assert len(held) == len({*held})
        outside = {*model.parameters()} - {*held}
        assert not any(p.requires_grad for p in outside)
        for unit in units:
            assert {*unit.blocks} <= {*unit.part.modules()}
    encoder, _, decoder = (unit for unit in spread.build("alignment").units()[:3])
    assert len(encoder.blocks) == 3
    assert len(decoder.blocks) == 4
    assert any(encoder.last_layer is p for p in encoder.blocks[-1].parameters())


def test_a_ratio_at_a_layer_without_a_part_in_it_is_refused():
    used, other = nn.Linear(2, 2), nn.Linear(2, 2)
    out = used(torch.ones(1, 2))
    assert gradient_at(used.weight, [out], [torch.ones_like(out)]).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ConfigError, match=r"a gradient ratio is taken at a last layer of shape \(2, 2\) that has no"):
        gradient_at(other.weight, [out], [torch.ones_like(out)])
    last = LastLayer(other.weight, other, calls=[((out,), other(torch.ones(1, 2)))])
    with pytest.raises(ConfigError, match=r"a gradient ratio is taken at a last layer of shape \(2, 2\) that has no"):
        last.pulls([out], [torch.ones_like(out)])


def test_whole_tensors_stay_as_they_are():
    layer, state = nn.Linear(2, 2), nn.Linear(2, 2).state_dict()
    load_state(layer, state)
    assert torch.equal(layer.weight, state["weight"])
    assert whole(layer.weight) is layer.weight


SLOW = (
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "aligntok.distributed.dcp",
)


def test_what_takes_a_second_to_import_is_imported_by_trainings_alone():
    """A tokenizer that is loaded needs neither FSDP2 nor DCP."""
    package = Path(aligntok.__file__).parent
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:  # at the top: functions import when they are called
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(SLOW):
                found.add(str(file.relative_to(package)))
            if isinstance(node, ast.ImportFrom) and node.module == "torch.distributed":
                found |= {str(file.relative_to(package)) for name in node.names if name.name == "checkpoint"}
    assert found == {"distributed/dcp.py", "engine/runner.py"}
