"""Attention is the same by xformers and by torch, and says why when it cannot be had."""

import logging
import subprocess
import sys
import types
import warnings
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from aligntok.errors import ConfigError
from aligntok.ops import attention as module
from aligntok.ops.attention import attention


@pytest.fixture
def qkv():
    return [torch.randn(2, 3, tokens, 8) for tokens in (5, 7, 7)]  # (B, heads, tokens, dim)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("ALIGNTOK_ATTENTION", raising=False)
    monkeypatch.setattr(module, "_refused", set())
    monkeypatch.setattr(module, "_forced", [])
    module.memory_efficient_attention.cache_clear()
    yield
    module.memory_efficient_attention.cache_clear()


@pytest.fixture
def calls():
    return []


@pytest.fixture
def stand_in(monkeypatch, calls):
    """A library that imports like xformers, in its layout (B, tokens, heads, dim), and notes its calls."""

    def memory_efficient_attention(q, k, v):
        calls.append(tuple(q.shape))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v)

    _install(monkeypatch, memory_efficient_attention)


def _install(monkeypatch, function):
    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = function
    package = types.ModuleType("xformers")
    package.ops = ops
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


@pytest.fixture
def on_cuda(monkeypatch):
    monkeypatch.setattr(module, "_device_type", lambda q: "cuda")


def test_cpu_takes_sdpa_without_importing_xformers_whose_import_then_says_nothing():
    code = (
        "import sys, torch; from aligntok.ops import attention as a; x = torch.randn(1, 2, 3, 4); a.attention(x, x, x);"
        "print('xformers' in sys.modules); found = a.memory_efficient_attention(); print(found and found.__module__)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    imported, where = done.stdout.splitlines()
    assert imported == "False"
    assert where.startswith("xformers.ops" if find_spec("xformers") else "None")
    assert done.stderr == ""


def test_cpu_result_is_softmax_attention(qkv):
    q, k, v = qkv
    expected = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v), expected)


@pytest.mark.usefixtures("stand_in", "on_cuda")
@pytest.mark.parametrize("backend", [None, "xformers"])
def test_cuda_takes_xformers_in_its_own_layout(qkv, calls, backend):
    out = attention(*qkv, backend=backend)
    assert calls == [(2, 5, 3, 8)]
    torch.testing.assert_close(out, F.scaled_dot_product_attention(*qkv))


@pytest.mark.usefixtures("stand_in", "on_cuda")
def test_the_environment_forces_a_backend(qkv, calls, monkeypatch):
    monkeypatch.setenv("ALIGNTOK_ATTENTION", "sdpa")
    attention(*qkv)
    assert calls == []


@pytest.mark.usefixtures("stand_in", "on_cuda")
def test_a_config_outranks_the_environment_until_it_leaves_the_choice_open(qkv, calls, monkeypatch):
    monkeypatch.setenv("ALIGNTOK_ATTENTION", "xformers")
    module.force_backend("sdpa")
    attention(*qkv)
    assert not calls
    module.force_backend(None)
    attention(*qkv)
    assert calls
    with pytest.raises(ConfigError, match="no attention backend named 'flash'; known: xformers, sdpa"):
        module.force_backend("flash")


@pytest.mark.usefixtures("stand_in", "on_cuda")
def test_the_argument_outranks_the_environment(qkv, calls, monkeypatch):
    monkeypatch.setenv("ALIGNTOK_ATTENTION", "sdpa")
    attention(*qkv, backend="xformers")
    assert len(calls) == 1


@pytest.mark.usefixtures("on_cuda")
def test_without_xformers_cuda_takes_sdpa(qkv, monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    torch.testing.assert_close(attention(*qkv), F.scaled_dot_product_attention(*qkv))


@pytest.mark.usefixtures("on_cuda")
def test_tensors_that_xformers_refuses_go_to_sdpa_after_one_try(qkv, calls, monkeypatch):
    def refuse(q, k, v):
        calls.append(1)
        raise NotImplementedError("No operator found\nfor these inputs")

    _install(monkeypatch, refuse)
    for _ in range(3):
        torch.testing.assert_close(attention(*qkv), F.scaled_dot_product_attention(*qkv))
    assert len(calls) == 1
    with pytest.raises(ConfigError, match=r"operator for torch\.float32 heads of width 8 here: No operator found"):
        attention(*qkv, backend="xformers")


@pytest.mark.usefixtures("stand_in")
def test_forcing_xformers_on_cpu_is_a_clear_error(qkv, monkeypatch):
    monkeypatch.setenv("ALIGNTOK_ATTENTION", "xformers")
    with pytest.raises(ConfigError, match=r"no operator for the device 'cpu'; use 'sdpa'"):
        attention(*qkv)


@pytest.mark.usefixtures("on_cuda")
def test_forcing_xformers_that_is_not_installed_is_a_clear_error(qkv, monkeypatch):
    for name in ("xformers", "xformers.ops"):  # another test may have imported it
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="pip install xformers"):
        attention(*qkv, backend="xformers")


def test_an_unknown_backend_is_refused(qkv):
    with pytest.raises(ConfigError, match="no attention backend named 'flash'; known: xformers, sdpa"):
        attention(*qkv, backend="flash")


def test_it_compiles_into_one_graph(qkv):
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*qkv), attention(*qkv))


@pytest.mark.usefixtures("on_cuda")
def test_a_refusal_is_of_a_type_and_a_width_of_heads_alone(monkeypatch, calls):
    def refuse(q, k, v):
        calls.append((q.dtype, tuple(q.shape)))
        raise NotImplementedError

    _install(monkeypatch, refuse)
    for dtype, heads, tokens, width in [
        (torch.float32, 3, 5, 8),
        (torch.float32, 2, 7, 8),  # refused already
        (torch.float32, 3, 5, 16),
        (torch.bfloat16, 3, 5, 8),
        (torch.bfloat16, 1, 1, 8),
    ]:
        x = torch.randn(2, heads, tokens, width, dtype=dtype)
        torch.testing.assert_close(attention(x, x, x), F.scaled_dot_product_attention(x, x, x))
    assert calls == [(torch.float32, (2, 5, 3, 8)), (torch.float32, (2, 5, 3, 16)), (torch.bfloat16, (2, 5, 3, 8))]


def test_an_empty_variable_of_the_environment_leaves_the_choice_open(qkv, monkeypatch):
    monkeypatch.setenv("ALIGNTOK_ATTENTION", "")
    torch.testing.assert_close(attention(*qkv), F.scaled_dot_product_attention(*qkv))


@pytest.mark.parametrize("broken", [False, True])
def test_importing_it_logs_and_warns_of_nothing_and_leaves_its_logger_as_it_was(monkeypatch, broken):
    logger, heard = logging.getLogger("xformers"), []

    class Ops(types.ModuleType):
        def __getattr__(self, name):
            heard.append([level for level in (logging.WARNING, logging.ERROR) if logger.isEnabledFor(level)])
            warnings.warn("built for another torch", stacklevel=1)
            if broken:
                raise OSError("undefined symbol")
            return len

    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", Ops("xformers.ops"))
    logger.setLevel(logging.INFO)
    try:
        assert module.memory_efficient_attention() is (None if broken else len)
        assert module.memory_efficient_attention() is (None if broken else len)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(logging.NOTSET)
    assert heard[0] == [logging.ERROR]
