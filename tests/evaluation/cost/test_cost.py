"""What configs cost: the paper's columns that need no GPU, and what is measured is what it is called."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import record_function

from aligntok import cli
from aligntok.device import is_out_of_memory
from aligntok.errors import ConfigError
from aligntok.evaluation import cost
from aligntok.evaluation.cost import measure, steps
from aligntok.evaluation.cost.count import Counted, Part, count_config, count_encoder, count_operations
from aligntok.evaluation.cost.measure import (
    LeftOut,
    Limit,
    Stopwatch,
    Timing,
    free_bytes,
    measure_part,
)
from aligntok.evaluation.cost_settings import CostSettings
from aligntok.evaluation.results import read_result
from aligntok.registry import ENCODERS, LOSSES
from aligntok.training.alignment import AlignmentStage, expand_stages
from aligntok.training.config import load_config
from aligntok.training.generation import GeneratorStage, expand_generation
from aligntok.training.rehearsal import LiveTensors

ROOT = Path(__file__).parents[3]
DEFAULT = ROOT / "configs" / "aligntok_dinov2_f16d32.py"
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.py")
    if "_base_" not in path.relative_to(ROOT).parts
    and "\ntokenizers = dict(" not in path.read_text()  # a comparison trains those of others
)
MILLION, GIGA = 1e6, 1e9
CPU = torch.device("cpu")


def cut(number, places):
    """A number as the paper's tables have it: its further digits cut off, not rounded."""
    return math.floor(number * 10**places) / 10**places


def counted(path, *resolutions):
    config = load_config(path)
    return count_config(path.stem, expand_stages(config), expand_generation(config), resolutions)


@pytest.fixture(scope="module")
def default():
    return counted(DEFAULT, 256, 512, 1024)


@pytest.fixture(scope="module")
def cnn():
    """The encoder of the paper's VA-VAE baseline."""
    return count_encoder("ldm_cnn", 16, (256, 512, 1024))


# The paper's Tables 6 to 8, but for what needs its GPUs


def test_parts_have_the_parameters_of_the_papers_tables(default, cnn):
    assert round(default.parts["encoder"] / MILLION, 1) == 304.4
    assert round(default.parts["decoder"] / MILLION, 2) == 41.42
    assert cut(cnn.parts["encoder"] / MILLION, 2) == 28.41


def test_stages_train_what_the_paper_says_with_the_discriminator(default):
    trainable = [stage.plan.trainable / MILLION for stage in default.stages]
    assert [round(trainable[0], 2), round(trainable[1], 1), round(trainable[2], 2)] == [44.25, 348.6, 44.18]
    assert all(stage.plan.parameters["discriminator"] == (2_765_633, 0) for stage in default.stages)


def test_stages_freeze_what_the_paper_says_without_the_teachers_adapter(default):
    assert [cut(stage.frozen_as_in_paper / MILLION, 1) for stage in default.stages] == [319.0, 319.0, 319.1]
    assert [stage.plan.frozen - stage.frozen_as_in_paper for stage in default.stages] == [0, 67_680, 0]


def test_operations_at_256_are_those_that_were_checked_against_the_paper(default, cnn):
    known = {**default.operations, ("cnn", "256"): cnn.operations["encoder", "256"]}
    counts = {part: known[part, "256"].as_in_paper / GIGA for part in ("encoder", "cnn", "decoder")}
    assert {part: round(value, 1) for part, value in counts.items()} == {"encoder": 77.8, "cnn": 69.0, "decoder": 126.1}


@pytest.mark.parametrize(
    ("size", "encoder", "baseline", "decoder"),
    [("256", 77.85, 69.21, 126.5), ("512", 310.4, 279.2, 509.3), ("1024", 1241, 1155, 2089)],
)
def test_the_papers_own_counts_are_half_a_percent_higher_at_most(default, cnn, size, encoder, baseline, decoder):
    ours = (default.operations["encoder", size], cnn.operations["encoder", size], default.operations["decoder", size])
    for found, papers in zip(ours, (encoder, baseline, decoder), strict=True):
        assert 0.995 < found.as_in_paper / GIGA / papers <= 1


def test_attention_is_counted_apart_by_its_closed_form(default, cnn):
    tokens, width, blocks = 16 * 16 + 1, 1024, 24
    encoder = default.operations["encoder", "256"]
    assert encoder.attention == blocks * 2 * tokens**2 * width
    assert encoder.as_in_paper == encoder.total - encoder.attention
    of_cnn = cnn.operations["encoder", "256"]  # two blocks at 16 x 16 and one in the middle, of 512 channels
    assert of_cnn.attention == 3 * 2 * 256**2 * 512
    assert of_cnn.as_in_paper == of_cnn.total


def test_a_linear_layer_and_a_convolution_are_counted_as_one_reckons():
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 36, 5))
        found = count_operations(module, torch.empty(2, 3, 6, 6))
    assert found.total == 2 * (36 * 3 * 9 * 8 + 8 * 36 * 5)
    assert found.attention == 0


def test_steps_images_and_epochs_are_the_papers(default):
    assert [stage.plan.steps for stage in default.stages] == [120_000, 220_000, 100_000]
    assert [round(stage.plan.epochs) for stage in default.stages] == [6, 11, 5]


def test_the_large_generator_is_counted():
    found = counted(ROOT / "configs/generator/lightningdit_xl_aligntok_f16d32_64ep.py", 256)
    assert found.parts == {"generator": 674_961_824}
    assert [(stage.plan.trainable, stage.plan.frozen) for stage in found.stages] == [(674_961_824, 0)]
    operations = found.operations["generator", "16x16"]
    assert operations.attention == 28 * 2 * 256**2 * 1152
    assert round(operations.total / GIGA, 1) == 118.6


@pytest.fixture(scope="module")
def shared_models():
    """Models on the meta device, built once for all configs that describe the same ones."""
    built = {}
    originals = {kind: kind.build_model for kind in (AlignmentStage, GeneratorStage)}

    def build(stage, data=None):
        if data is not None:
            return originals[type(stage)](stage, data)
        same = ("generator", "trainable", "teacher", "discriminator", "lora")
        model = re.sub(r"'pretrained': \w+", "", repr(getattr(stage.settings, "model", None)))
        losses = [loss["type"] for loss in getattr(stage.settings, "losses", {}).values()]
        key = repr((type(stage), model, losses, [getattr(stage.settings, name, None) for name in same]))
        if key not in built:
            built[key] = originals[type(stage)](stage)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        for kind in originals:
            patch.setattr(kind, "build_model", build)
        yield


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_counted_without_a_run(path, shared_models):
    config = load_config(path)
    used = [(ENCODERS, config["model"]["encoder"])] if config["stages"] else []
    used += [(LOSSES, loss) for loss in config.get("losses", {}).values()]
    for registry, component in used:
        if component["type"] not in registry:
            pytest.skip(f"no {registry.kind} '{component['type']}' here: its plugin, under plugins/, is not installed")
    found = counted(path, 256)
    assert not found.not_counted
    assert set(found.parts) <= {"encoder", "adapter", "decoder", "generator"}
    assert len(found.stages) == len(config["stages"]) + ("generator" in found.parts)
    assert {part for part, _ in found.operations} == set(found.parts) - {"adapter"}
    assert all(operations.total > operations.attention >= 0 for operations in found.operations.values())


# Memory


def test_the_peak_of_a_module_of_known_sizes_is_their_sum():
    module = nn.Sequential(nn.Linear(1000, 500, bias=False), nn.ReLU(), nn.Linear(500, 1000, bias=False))
    x = torch.randn(100, 1000)
    weights, hidden, outside = 2 * 500_000 * 4, 50_000 * 4, 100_000 * 4
    with LiveTensors() as live, torch.inference_mode():
        module(x)
        assert live.live == weights + outside  # the result is freed already
        live.peak()
        module(x)
        assert live.peak() == weights + outside + hidden + outside  # input, the last hidden, the result
        kept = module(x)
        assert live.live == weights + 2 * outside
        view = kept[:1].view(-1)  # shares its memory
        assert live.live == weights + 2 * outside
        del kept, view
        assert live.live == weights + outside


def test_gradients_and_what_the_backward_pass_keeps_are_in_the_peak():
    layer, x = nn.Linear(1000, 1000, bias=False), torch.randn(10, 1000)
    with LiveTensors() as live:
        layer(x).square().sum().backward()
        assert layer.weight.grad is not None
        assert live.live == 2 * 4_000_000 + 40_000  # weight, gradient, input
        assert live.peak() >= 2 * 4_000_000 + 2 * 40_000  # and the gradient at the output
        layer.zero_grad()
        assert live.live == 4_000_000 + 40_000


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, is_it):
    assert is_out_of_memory(error) == is_it


def test_what_is_free_is_what_machine_and_container_say(tmp_path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    assert free_bytes(CPU, meminfo, group) == math.inf
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2000 kB\n")
    assert free_bytes(CPU, meminfo, group) == 2000 * 1024
    group.mkdir()
    for name, text in (("max", "1000\n"), ("current", "700\n"), ("stat", "anon 600\ninactive_file 50\n")):
        (group / f"memory.{name}").write_text(text)
    assert free_bytes(CPU, meminfo, group) == 350
    (group / "memory.max").write_text("max\n")
    assert free_bytes(CPU, meminfo, group) == 2000 * 1024
    meminfo.write_text("MemTotal: 9 kB\n")
    assert free_bytes(CPU, meminfo, group) == math.inf


# Seconds


def test_median_and_quartiles_are_those_of_the_calls():
    assert Timing.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Timing(median=3.0, low=2.0, high=4.0, calls=5)
    assert Timing.of([2.0]) == Timing(2.0, 2.0, 2.0, 1)


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("aligntok.evaluation.cost.measure.time.perf_counter", lambda: self.now)

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_quick_calls_are_timed_as_often_as_asked_after_two_that_warm_up(clock):
    calls = iter([9, 5, 1, 1, 2, 3, 3])
    timing = Limit(100).time(lambda: clock.wait(next(calls)), 5, work=1)
    assert timing == Timing(median=2, low=1, high=3, calls=5)


def test_the_call_that_compiles_may_take_any_time(clock):
    calls = iter([1000, 2, 1, 1])
    assert Limit(100).time(lambda: clock.wait(next(calls)), 1, work=1, compiles=True).median == 1


def test_slow_calls_are_timed_fewer_times(clock):
    assert Limit(100).time(lambda: clock.wait(30), 10, work=1).calls == 3


def test_a_call_that_is_expected_to_take_too_long_is_not_made(clock):
    limit = Limit(100)
    limit.time(lambda: clock.wait(20), 1, work=1)
    with pytest.raises(LeftOut, match="expected to take 160 s a call, the limit is 100 s"):
        limit.time(lambda: pytest.fail("was called"), 1, work=8)
    with pytest.raises(LeftOut, match="took 150 s a call"):
        limit.time(lambda: clock.wait(150), 1, work=2)
    with pytest.raises(LeftOut, match="expected to take 200 s"):
        Limit(100, rate=2.0).check(work=100)


def test_a_part_inside_another_has_its_time_to_itself(clock):
    peaks = iter([5, 7, 50, 9, 6, 3, 4, 8])
    watch, enter = Stopwatch(lambda: next(peaks)), record_function.__enter__
    with watch.listening({"rest", "a", "b"}), record_function("rest"):
        clock.wait(0.5)
        with record_function("a"):
            clock.wait(1)
            with record_function("b"), record_function("Optimizer.step#Adam.step"):  # torch's own is nobody's part
                clock.wait(10)
            clock.wait(2)
        clock.wait(0.25)
        with record_function("b"):
            clock.wait(20)
    assert watch.seconds == {"rest": 0.75, "a": 3, "b": 30}
    assert watch.peaks == {"rest": 8, "a": 50, "b": 9}
    assert record_function.__enter__ is enter, "what was listened to is as it was"


def test_a_mark_is_torchs_own_with_and_without_somebody_who_listens():
    watch = Stopwatch()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(2):
            with record_function("encoder"):
                torch.ones(3).sum()
        with watch.listening({"encoder"}), record_function("encoder"):
            torch.ones(3).sum()
    (found,) = (event for event in profile.key_averages() if event.key == "encoder")
    assert found.count == 3
    assert watch.seconds["encoder"] > 0


# Encoder and decoder, row by row


class Squares(nn.Module):
    """Takes images; fails for those that `fails` says."""

    def __init__(self, fails=lambda x: None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))
        self.fails = fails

    def forward(self, x):
        error = self.fails(x)
        if error is not None:
            raise error
        return x * x * self.weight[0]


def rows_of(module, **changes):
    def images(batch, size):
        return [torch.ones(batch, 3, size, size)]

    settings = replace(CostSettings(resolutions=(8, 16), batch_sizes=(1, 4), repeats=3), **changes)
    return measure_part(Part("encoder", module, images), Counted("tiny"), settings, CPU)


def tables_of(rows=(), steps=()):
    return {"Encoder and decoder": rows, "Training steps": steps, "Training steps by part": []}


def test_rows_go_from_little_work_to_much_and_have_time_and_memory():
    rows = rows_of(Squares())
    assert [(row["resolution"], row["batch"]) for row in rows] == [(8, 1), (8, 4), (16, 1), (16, 4)]
    assert all(r["calls"] == 3 and r["ms_lower_quartile"] <= r["ms"] <= r["ms_upper_quartile"] for r in rows)
    image = 4 * 3 * 16 * 16 * 4
    assert rows[-1]["peak_gb"] == (4 * 1000 + 3 * image) / GIGA  # weights, input, square, product
    assert not cost.notes([], tables_of(rows))


def test_out_of_memory_is_a_row_and_the_others_go_on():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    rows = rows_of(Squares(lambda x: error if len(x) == 4 and x.shape[-1] == 8 else None))
    (bad,) = (row for row in rows if row["left_out"] == "out of memory")
    assert cost.notes([], tables_of(rows)) == ["tiny: encoder at 8, batch 4: out of memory"]
    assert sum(row["ms"] is not None for row in rows) == 3
    assert bad["ms"] is None
    assert bad["peak_gb"] is None


def test_another_error_is_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shapes"):
        rows_of(Squares(lambda x: RuntimeError("shapes cannot be multiplied")))


def test_weights_that_have_no_room_leave_all_rows_out(monkeypatch):
    def no_room(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    module = Squares()
    monkeypatch.setattr(module, "to", no_room)
    assert [row["left_out"] for row in rows_of(module)] == ["out of memory"] * 4


def test_a_row_that_would_fill_the_machine_is_not_tried(monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 4 * 1000 + 1.3 * 3 * 16 * 16 * 3 * 4)
    rows = rows_of(Squares(lambda x: pytest.fail("was tried") if x.numel() == 4 * 3 * 16 * 16 else None))
    assert rows[-1]["left_out"].startswith("out of memory: expected to take 0.0 GB")
    assert all(row["ms"] for row in rows[:-1])


def test_a_row_that_would_take_too_long_is_left_out_and_named(clock):
    module = Squares(lambda x: clock.wait(len(x) * x.shape[-1] ** 2 / 100))
    rows = rows_of(module, max_seconds=5)
    assert [row["left_out"] for row in rows if row["left_out"]] == ["expected to take 10 s a call, the limit is 5 s"]
    assert rows[-1]["left_out"]
    assert [row["ms"] for row in rows[:-1]] == pytest.approx([640, 2560, 2560]), "milliseconds"


# All of it, on a tiny run


@pytest.fixture(scope="module")
def run(config_source, generation_source, photographs, tmp_path_factory):
    """What the command finds of a tiny config that reads images, and of a generator's that reads a cache."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.py").write_text(config_source())
    (folder / "tiny_generator.py").write_text(generation_source())
    words = [str(folder / "tiny.py"), str(folder / "tiny_generator.py"), "--out", str(folder / "out")]
    words += ["--resolutions", "32", "64", "--batch-sizes", "1", "2", "--repeats", "2", "--devices", "2"]
    generator_of = {"config": "tiny_generator", "stage": "generation"}
    assert cli.main(["measure-cost", *words, "--cfg-options", "seed=3"]) == 0
    return folder, read_result(folder / "out" / "cost.json"), generator_of


def test_a_run_writes_the_result_and_leaves_nothing_else(run):
    folder, result, _ = run
    assert result.kind == "cost"
    assert result.subject == "tiny, tiny_generator"
    assert {path.name for path in folder.iterdir()} == {"tiny.py", "tiny_generator.py", "out"}
    assert [path.name for path in (folder / "out").iterdir() if "events" not in path.name] == ["cost.json"]
    assert result.settings["notes"] == []
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_encoder_and_decoder_are_measured_at_every_size_and_batch(run):
    rows = run[1].tables["Encoder and decoder"]
    assert {(r["part"], r["resolution"], r["batch"]) for r in rows} == {
        (part, size, batch) for part in ("encoder", "decoder") for size in (32, 64) for batch in (1, 2)
    }
    assert all(r["ms"] > 0 and r["calls"] == 2 and r["config"] == "tiny" for r in rows)
    least = run[1].metrics["tiny/decoder/parameters"] * 4 / GIGA
    peaks = {(r["resolution"], r["batch"]): r["peak_gb"] for r in rows if r["part"] == "decoder"}
    assert least < peaks[32, 1] < peaks[32, 2] < peaks[64, 2]


def test_training_steps_are_measured_whole_and_by_part(run):
    steps_, parts = run[1].tables["Training steps"], run[1].tables["Training steps by part"]
    names = ["latent_alignment", "perceptual_alignment", "decoder_refinement", "generation"]
    assert [row["stage"] for row in steps_] == names
    assert [row["images"] for row in steps_] == [2, 2, 2, 4], "one device's share of the batch"
    for row in steps_:
        of_it = {p["part"]: p for p in parts if p["stage"] == row["stage"]}
        assert sum(p["share"] for p in of_it.values()) == pytest.approx(1)
        assert max(p["peak_gb"] for p in of_it.values()) == pytest.approx(row["peak_gb"])
        assert row["device_hours"] == pytest.approx(row["steps"] * row["s_a_step"] * 2 / 3600)
        wanted = {"generator"} if row["stage"] == "generation" else {"encoder", "decoder", "losses", "discriminator"}
        assert of_it.keys() == {"data", *wanted, "optimiser", "EMA", "the rest"} | (
            {"teacher"} if row["stage"] == "perceptual_alignment" else set()
        )
        assert all(p["s"] > 0 for p in of_it.values())
    peaks = {row["stage"]: row["peak_gb"] for row in steps_}
    assert peaks["perceptual_alignment"] > peaks["decoder_refinement"]
    assert run[1].metrics["tiny/latent_alignment/s_a_step"] == steps_[0]["s_a_step"]


def test_without_data_the_step_is_measured_on_random_images_and_says_so(write_config, tmp_path, capsys):
    config = write_config(data_root=None, stages=expand_free())
    words = [config, "--no-inference", "--repeats", "1", "--out", str(tmp_path / "out")]
    assert cli.measure_cost(words) == 0
    result = read_result(tmp_path / "out/cost.json")
    assert result.tables["Training steps by part"][0]["part"] == "encoder"
    assert result.settings["notes"] == [
        "tiny: reading data is not in the steps of only: data_root names none that can be read"
    ]
    assert not result.tables["Encoder and decoder"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "tiny: reading data is not in the steps of only" in printed
    assert "Training steps by part" in printed


def expand_free():
    """One stage without start, for a quick run."""
    return [dict(name="only", steps=2, trainable=["adapter", "decoder"])]


def test_a_step_out_of_memory_is_a_row(write_config, tmp_path, monkeypatch):
    def fail(stage):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(steps, "Step", fail)
    assert measured_step(write_config(stages=expand_free()), tmp_path)["left_out"] == "out of memory"
    monkeypatch.setattr(steps, "free_bytes", lambda device: 1e6)
    monkeypatch.setattr(steps, "Step", lambda stage: pytest.fail("was built"))
    row = measured_step(write_config(stages=expand_free()), tmp_path)
    assert row["left_out"] == "out of memory: takes at least 0.0 GB, 0.0 are free"
    assert row["device_hours"] is None
    assert cost.notes([], tables_of(steps=[row])) == [f"tiny: training step of only: {row['left_out']}"]


def test_a_step_that_would_take_too_long_is_not_built(write_config, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "Step", lambda stage: pytest.fail("was built"))
    monkeypatch.setattr(steps, "seconds_per_operation", lambda device: 1.0)
    row = measured_step(write_config(stages=expand_free()), tmp_path)
    assert re.fullmatch(r"expected to take [\d,]{9,} s a call, the limit is 30 s", row["left_out"])


def measured_step(path, folder):
    (stage,) = counted(Path(path), 32).stages
    row, parts = steps.measure_step("tiny", stage, CostSettings(resolutions=(32,)), CPU, folder)
    assert not parts
    return row


def test_the_step_that_is_measured_has_every_loss_active(config_source, tmp_path):
    (tmp_path / "c.py").write_text(config_source())
    stages = expand_stages(load_config(tmp_path / "c.py"))
    assert [steps.first_full_step(stage) for stage in stages] == [2, 0, 0]
    ready = steps.for_measuring(stages[1], tmp_path, 2)
    assert (ready.settings.init_from, ready.settings.global_batch_size, ready.settings.data.val) == (None, 2, None)
    assert stages[1].settings.init_from is not None, "the config's own stage is not changed"


def test_random_images_have_the_training_size_of_several_the_first():
    stages = expand_stages(load_config(ROOT / "configs/aligntok_dinov2reg_laion_f16d32.py"))
    assert stages[0].data_to_measure().train[0]["images"].shape == (3, 256, 256)
    config = load_config(DEFAULT, {"data.train.image_size": [(192, 256), (256, 192)]})
    assert expand_stages(config)[0].data_to_measure().train[0]["images"].shape == (3, 192, 256)


# The command


def test_meta_runs_nothing_and_prints_what_the_documentation_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "130")
    page = (ROOT / "docs/cost.md").read_text()
    (command,) = re.findall(r"^python tools/measure_cost\.py (.* --meta.*)$", page, flags=re.MULTILINE)
    (shown,) = re.findall(r"^```text\n(Parameters.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert cli.measure_cost([*command.split(), "--out", str(tmp_path)]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed[:-1] == shown.splitlines()
    content = json.loads((tmp_path / "cost.json").read_text())
    assert content["settings"]["device"] is None
    assert not content["tables"]["Training steps"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "3"], "not divisible by 3"),
        (["--max-seconds", "0"], "aligntok measure-cost: --max-seconds 0; it must be int or float above 0"),
        (["--repeats", "0"], "aligntok measure-cost: --repeats 0; it must be int of at least 1"),
        (["--resolutions", "250"], "its sides must be multiples of"),
        (["--encoders", "dinov9"], "no encoder named 'dinov9'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(words, message, write_config, capsys, monkeypatch):
    monkeypatch.setattr("aligntok.evaluation.cost._measure", lambda *args: pytest.fail("measured"))
    assert cli.measure_cost([write_config(stages=expand_free()), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_result_goes_into_the_first_configs_work_folder(write_config, tmp_path, capsys):
    config = write_config(stages=expand_free(), work_dir=str(tmp_path / "work"))
    assert cli.measure_cost([config, config, "--meta", "--resolutions", "32"]) == 0
    result = read_result(tmp_path / "work/evaluation/cost/cost.json")
    assert result.subject == f"{config}, {config}"
    assert {row["config"] for row in result.tables["Parameters"]} == {config}


def test_precision_is_one_that_there_is():
    with pytest.raises(ConfigError, match="precision='int8'; it must be 'fp32', 'tf32'"):
        CostSettings(precision="int8")
