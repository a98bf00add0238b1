"""What a precision means, inside of its context and after it."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from aligntok.device import (
    PRECISIONS,
    computing,
    device,
    explaining_out_of_memory,
    is_out_of_memory,
    multiplying,
    precision_on,
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


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_samples_are_drawn_in_bf16_where_a_gpu_computes_in_it(monkeypatch, native, precision):
    """Not where it is merely emulated, which `is_bf16_supported` calls support too."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert precision_on(torch.device("cuda", 0)) == precision
    assert precision_on(torch.device("cpu")) == "fp32"


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
