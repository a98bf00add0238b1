"""What hooks say of a training before its first step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aligntok.engine.hooks import KernelsHook


@pytest.mark.parametrize(
    ("precision", "fast", "told"),
    [
        ("auto", True, ["bf16, which 'auto' means on this cpu: it is fast in bf16"]),
        ("auto", False, ["fp32, which 'auto' means on this cpu: it is slow in bf16"]),
        ("bf16", False, ["bf16, in which this cpu is slower than in fp32; 'auto' takes it where it is fast alone"]),
        ("bf16", True, []),
        ("fp32", False, []),
    ],
)
def test_what_auto_means_and_a_slow_bf16_are_logged(precision, fast, told, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    model, logged = nn.Linear(1, 1), []
    model.precision, model.device = precision, lambda: torch.device("cpu")
    logger = SimpleNamespace(info=lambda text, *given: logged.append(text % given))
    KernelsHook().before_train(SimpleNamespace(trained_model=model, logger=logger))
    assert logged == [f"precision: {each}" for each in told]
