"""What a precision means, and what is computed to the same bits again, inside of its context and after it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from aligntok.device import (
    PRECISIONS,
    computing,
    device,
    devices,
    explaining_out_of_memory,
    going_back_repeatably,
    is_out_of_memory,
    multiplying,
    precision_on,
    precision_taken,
    put,
    repeatable,
)
from aligntok.errors import ConfigError


def state():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


#: Of matrix products, and of convolutions where they are settled too.
ROUNDED = {"fp32": (False, False), "tf32": (True, True), "bf16": (False, True), "fp16": (False, True)}


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("arithmetic", [multiplying, computing])
def test_float32_is_multiplied_as_the_precision_says_and_then_as_before(
    arithmetic, precision, convolutions, monkeypatch
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", convolutions)
    before = state()
    products, whole = ROUNDED[precision]
    with suppress(KeyError), arithmetic(precision):
        assert state() == ("high" if products else "highest", convolutions)
        raise KeyError
    assert state() == before
    with arithmetic(precision):
        torch.backends.cudnn.allow_tf32 = not convolutions  # somebody else's thread, meanwhile: it is not ours to undo
    assert state()[1] is not convolutions
    torch.backends.cudnn.allow_tf32 = convolutions
    with suppress(KeyError), arithmetic(precision, whole=True):
        assert state() == ("high" if whole else "highest", whole)
        raise KeyError
    assert state() == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_autocast_is_on_for_half_precisions_alone_and_ended_by_the_others(precision):
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), computing(precision, torch.device("cpu")):
        assert (x @ x).dtype == (PRECISIONS[precision] or torch.float32)
    with computing(precision):  # on this process's device
        assert (x @ x).dtype == (PRECISIONS[precision] or torch.float32) or device().type == "cuda"


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_samples_are_drawn_in_bf16_where_a_gpu_computes_in_it(monkeypatch, native, precision):
    """Not where it is merely emulated, which `is_bf16_supported` calls support too."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert precision_on(torch.device("cuda", 0)) == precision
    assert precision_on(torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError(), RuntimeError("not enough memory")])
def test_a_full_memory_is_told_with_its_cure(error):
    with (
        pytest.raises(ConfigError, match="^9 images at once do not fit into the memory of this device; take fewer$"),
        explaining_out_of_memory("9 images", "take fewer"),
    ):
        raise error


def test_another_error_is_no_full_memory():
    with pytest.raises(RuntimeError, match="^shapes$"), explaining_out_of_memory("9 images", "take fewer"):
        raise RuntimeError("shapes")


def test_weights_that_do_not_fit_on_a_device_are_told_with_what_would(monkeypatch):
    module = torch.nn.Linear(1000, 250)
    assert put(module, dtype=torch.float64).weight.dtype == torch.float64

    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(ConfigError, match=r"^0.00 GB of weights at once do not fit .*; another device .*bfloat16"):
        put(module, torch.device("cpu"))
    assert put(module) is module


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA"), True),
        (RuntimeError("CUDA error: Out of Memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory"), False),  # somebody's words
    ],
)
def test_memory_that_there_was_not_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_device_is_the_current_gpu_of_several(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert device() == torch.device("cuda:3")


def test_the_device_is_a_gpu_with_its_number_or_the_cpu():
    assert device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (device().index is None) is (device().type == "cpu")


FAULTS = """
import resource, sys
import torch
from aligntok.device import keep_freed_memory
torch.set_num_threads(1)

def step():
    first = torch.zeros(4_000_000)
    return [first + i for i in range(8)]

for how in sys.argv[1:]:
    if how == "keep":
        keep_freed_memory()
    for _ in range(4):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_a_step_frees_is_there_for_the_next_one():
    def faults(*how, **said):
        command = [sys.executable, "-c", FAULTS, *how]
        return map(int, subprocess.check_output(command, text=True, env={**os.environ, **said}).split())

    left, kept = faults("leave", "keep")
    assert kept < left / 4, (kept, left)
    (heeded,) = faults("keep", MALLOC_TRIM_THRESHOLD_="131072")  # of who has said otherwise
    assert heeded > 4 * kept


def test_what_can_be_computed_on_is_told_in_words(monkeypatch):
    assert list(devices()) == ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    gpu = SimpleNamespace(name="A card", total_memory=85 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    monkeypatch.setattr(torch.cuda, "device", lambda number: nullcontext())
    answers = iter([True, False])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: next(answers))
    for wide, said in ((lambda: True, ""), (lambda: False, "; without avx512_bf16: bf16 is slower than fp32")):
        answers = iter([True, False])
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", wide, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        found = devices()
        assert found["cpu"].endswith(torch.backends.cpu.get_cpu_capability() + said)
        assert found["cuda:0"] == "A card, 85.0 GiB, 9.0, bf16"
        assert found["cuda:1"] == "A card, 85.0 GiB, 9.0, no bf16"


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "taken"),
    [(True, False, "bf16"), (False, True, "bf16"), (True, True, "bf16"), (False, False, "fp32")],
)
def test_auto_is_bf16_on_a_cpu_that_multiplies_it_and_fp32_on_another(avx512_bf16, amx, taken, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    cpu = torch.device("cpu")
    assert precision_taken("auto", cpu) == taken
    assert [precision_taken(each, cpu) for each in PRECISIONS] == list(PRECISIONS)
    with computing("auto", cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[taken]
        assert torch.is_autocast_enabled("cpu") is (taken == "bf16")
    assert not torch.is_autocast_enabled("cpu")


CUBLAS, NCCL = "CUBLAS_WORKSPACE_CONFIG", "NCCL_NVLS_ENABLE"


def modes():
    flags = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    return *flags, *cudnn, os.environ.get(CUBLAS), os.environ.get(NCCL)


@pytest.fixture
def as_before(monkeypatch):
    for name in (CUBLAS, NCCL):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_all_that_makes_results_repeatable_is_set_inside_and_as_before_afterwards(workspace, monkeypatch):
    if workspace:
        monkeypatch.setenv(CUBLAS, workspace)
    before = modes()
    assert before == (False, False, False, True, workspace, None)
    with repeatable(False):
        assert modes() == before
    with suppress(KeyError), repeatable():
        assert modes() == (True, False, True, False, workspace or ":4096:8", "0")
        with repeatable(False):
            assert modes()[0]
        raise KeyError
    assert modes() == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with repeatable():
            assert modes()[:2] == (True, False)
        assert modes()[:2] == (True, True)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(("name", "value", "right"), [(CUBLAS, ":0:0", ":4096:8 or :16:8"), (NCCL, "1", "0")])
def test_an_environment_in_which_sums_vary_is_refused_and_left_as_it_is(monkeypatch, name, value, right):
    monkeypatch.setenv(name, value)
    before = modes()
    said = f"environment says {name}={value}, .*; unset it, or set it to {right}$"
    with pytest.raises(ConfigError, match=said), repeatable():
        pytest.fail("entered")
    assert modes() == before


@pytest.mark.usefixtures("as_before")
def test_an_operation_without_a_deterministic_form_is_refused_by_its_name():
    before = modes()
    said = "^deterministic=True, but 'put_' has no deterministic form on a GPU; take a component without it, or"
    with pytest.raises(ConfigError, match=said), repeatable():
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))  # one that torch has none of on a CPU, either
    assert modes() == before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or otherwise, "
            "but this operation is not deterministic because it uses CuBLAS: CUBLAS_WORKSPACE_CONFIG=:4096:8",
            "cuBLAS was used in this process before; set CUBLAS_WORKSPACE_CONFIG=:4096:8 before it starts",
        ),
        (
            "operator is non-deterministic, but `torch.use_deterministic_algorithms` is set",
            "xformers has no attention here whose backward pass is deterministic; set attention='sdpa'",
        ),
    ],
)
def test_what_libraries_say_of_results_that_vary_is_one_sentence(error, said):
    with pytest.raises(ConfigError, match=f"^deterministic=True, but {said}$"), repeatable():
        raise NotImplementedError(error)
    with pytest.raises(NotImplementedError), repeatable(False):
        raise NotImplementedError(error)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="^sizes differ$"), repeatable():
        raise RuntimeError("sizes differ")


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(16, 16), (5, 9), (30, 44), (7, 20), (1, 1)])
def test_resampling_goes_back_by_products_as_it_does_in_torch(mode, size):
    """Registered for the CPU, whose own is the measure: in GPUs' place."""
    source = torch.Generator().manual_seed(1)
    along, x = torch.randn(2, 3, *size, generator=source), torch.randn(2, 3, 14, 11, generator=source)

    def gradient(**how):
        own = x.clone().requires_grad_()
        F.interpolate(own, mode=mode, antialias=True, **how).backward(along)
        return own.grad

    for how in (dict(size=size), dict(size=size, align_corners=True)):
        expected = gradient(**how)
        with going_back_repeatably("CPU"):
            found = gradient(**how)
        assert size == (1, 1) or not torch.equal(found, expected)  # ours, not the same code twice
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(gradient(**how), expected)


def test_on_a_gpu_they_are_there_only_inside():
    before = torch._C._dispatch_dump("aten::reflection_pad2d_backward")
    with going_back_repeatably():
        inside = torch._C._dispatch_dump("aten::reflection_pad2d_backward").splitlines()
        assert any(line.startswith("CUDA: ") and "torch/library.py" in line for line in inside)
    assert torch._C._dispatch_dump("aten::reflection_pad2d_backward") == before


OPERATIONS = {
    "resampled by factors": lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bicubic", antialias=True),
    "pooled": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "pooled to more": lambda x: F.adaptive_avg_pool2d(x, (13, 11)),
    "reflected": lambda x: F.pad(x, (2, 0, 1, 4), mode="reflect"),
    "reflected as far as can be": lambda x: F.pad(x, (7, 7, 8, 8), mode="reflect"),
    "reflected, without a batch": lambda x: F.pad(x[0], (0, 3, 0, 0), mode="reflect"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_pooled_and_reflected_goes_back_as_it_does_in_torch(name):
    x, found = torch.randn(2, 2, 9, 8), []
    for key in ("Meta", "CPU"):
        own = x.clone().requires_grad_()
        with going_back_repeatably(key):
            y = OPERATIONS[name](own)
            y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
        found.append(own.grad)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
