"""What a precision means, inside of its context and after it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import pytest
import torch

from aligntok.device import (
    PRECISIONS,
    computing,
    device,
    devices,
    explaining_out_of_memory,
    is_out_of_memory,
    multiplying,
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


def test_a_full_memory_is_told_with_its_cure():
    with (
        pytest.raises(ConfigError, match="^9 images at once do not fit into the memory of this device; take fewer$"),
        explaining_out_of_memory("9 images", "take fewer"),
    ):
        raise torch.OutOfMemoryError


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
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)

def step():
    first = torch.zeros(4_000_000)
    return [first + i for i in range(8)]

for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_a_step_frees_is_there_for_the_next_one():
    def faults(how, **said):
        env = {**os.environ, **said}
        return int(subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True, env=env))

    assert faults("keep") < 1000 < 10_000 < faults("leave")
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072") > 10_000  # who has said otherwise is heeded


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
        found = devices()
        assert found["cpu"].endswith(torch.backends.cpu.get_cpu_capability() + said)
        assert found["cuda:0"] == "A card, 85.0 GiB, 9.0, bf16"
        assert found["cuda:1"] == "A card, 85.0 GiB, 9.0, no bf16"
