"""Attention is the same by xformers and by torch, and says why when it cannot be had."""

import logging
import re
import subprocess
import sys
import types
import warnings
from importlib.util import find_spec

import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.transformer import Transformer, VisionTransformer

from aligntok.encoders.timm import TimmEncoder
from aligntok.errors import ConfigError
from aligntok.ops import attention as module
from aligntok.ops.attention import attention, route_attention
from aligntok.training.rehearsal import _as_on_a_gpu


@pytest.fixture
def qkv():
    return [torch.randn(2, 3, tokens, 8) for tokens in (5, 7, 7)]  # (B, heads, tokens, dim)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("ALIGNTOK_ATTENTION", raising=False)
    monkeypatch.setattr(module, "_refused", {})
    monkeypatch.setattr(module, "_taken", {})
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
    with pytest.raises(ConfigError, match=r"attend with torch\.float32 heads of width 8 here: No operator found"):
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
    with pytest.raises(ConfigError, match=r"cannot be imported: .*; pip install \"xformers"):
        attention(*qkv, backend="xformers")


def test_an_unknown_backend_is_refused(qkv):
    with pytest.raises(ConfigError, match="no attention backend named 'flash'; known: xformers, sdpa"):
        attention(*qkv, backend="flash")


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_it_compiles_into_one_graph(qkv, calls, where, monkeypatch):
    monkeypatch.setattr(module, "_device_type", lambda q: where)
    torch.compiler.reset()
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*qkv), F.scaled_dot_product_attention(*qkv))
    assert not calls
    said = {"cpu": "as xformers runs on CUDA alone", "cuda": "as it is compiled"}
    assert module.kernels_taken() == f"others: torch's, {said[where]}"


@pytest.mark.usefixtures("on_cuda")
def test_a_kernel_that_fails_in_any_way_is_refused_but_memory_is_not_its_fault(qkv, calls, monkeypatch):
    fails = [AttributeError("another torch"), torch.OutOfMemoryError("CUDA out of memory")]

    def broken(q, k, v):
        calls.append(1)
        raise fails[len(calls) - 1]

    _install(monkeypatch, broken)
    for _ in range(2):
        torch.testing.assert_close(attention(*qkv), F.scaled_dot_product_attention(*qkv))
    assert len(calls) == 1
    with pytest.raises(torch.OutOfMemoryError):
        attention(*qkv, backend="xformers")


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


#: A small model of every way in which the libraries attend, and whether it has layers that do no more than attend.
LIBRARIES = {
    "vit_tiny_patch16_224": (dict(depth=2), True),
    "eva02_tiny_patch14_224": (dict(depth=2), True),  # turns queries and keys, and norms of them
    "vit_tiny_patch16_dinov3_qkvb": (dict(depth=2), True),
    "beit_base_patch16_224": (dict(depth=1, embed_dim=48, num_heads=2), False),  # biases of relative positions
    "swin_tiny_patch4_window7_224": (dict(depths=(1, 1, 1, 1)), False),
    "hiera_tiny_224": (dict(stages=(1, 1, 1, 1)), True),
    "pvt_v2_b0": (dict(depths=(1, 1, 1, 1)), True),
    "twins_svt_small": (dict(depths=(2, 1, 1, 1)), True),  # in groups, too
    "davit_tiny": (dict(depths=(1, 1, 1, 1)), True),
    "xcit_nano_12_p16_224": (dict(depth=1, cls_attn_layers=0), False),  # over channels, in a scale of its own
    "cait_xxs24_224": (dict(depth=1), True),
    "samvit_base_patch16_224": (dict(depth=1, embed_dim=48, num_heads=2), False),
    "maxvit_pico_rw_256": ({}, False),
    "mobilenetv4_hybrid_medium": ({}, False),  # one head of keys for all
}


def seen(model, pixels):
    with torch.random.fork_rng(), torch.no_grad():
        return model.forward_features(pixels)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", LIBRARIES)
def test_layers_of_timm_call_it_and_give_what_they_gave(name, calls, monkeypatch):
    options, attends = LIBRARIES[name]
    model = timm.create_model(name, num_classes=0, **options).eval()
    side = model.default_cfg["input_size"][-1]
    pixels, before = torch.randn(1, 3, side, side), {key: id(each) for key, each in model.state_dict().items()}
    expected, names = seen(model, pixels), [type(each).__name__ for each in model.modules()]
    route_attention(model)
    assert torch.equal(seen(model, pixels), expected)
    assert [type(each).__name__ for each in model.modules()] == names
    assert model.state_dict().keys() == before.keys()
    assert not calls
    monkeypatch.setattr(module, "_device_type", lambda q: "cuda")
    torch.testing.assert_close(seen(model, pixels), expected, rtol=1e-3, atol=1e-3)
    assert bool(calls) == attends


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("options", [{}, dict(batch_first=False)], ids=["", "tokens first"])
def test_layers_of_open_clip_call_it_too(calls, monkeypatch, options):
    model = VisionTransformer(32, 8, 48, 2, 3, 4.0, output_dim=8, output_tokens=True).eval()
    if options:
        model.transformer = Transformer(48, 2, 3, 4.0, **options).eval()
    pixels = torch.randn(2, 3, 32, 32)
    expected = model(pixels)[1]
    route_attention(model)
    assert torch.equal(model(pixels)[1], expected)
    assert not calls
    monkeypatch.setattr(module, "_device_type", lambda q: "cuda")
    torch.testing.assert_close(model(pixels)[1], expected)
    assert len(calls) == 2
    module.force_backend("xformers")
    with torch.no_grad():  # where torch has a kernel of its own
        torch.testing.assert_close(model(pixels)[1], expected)
    assert len(calls) == 4


def test_what_masks_or_drops_is_left_to_torch(qkv, monkeypatch):
    monkeypatch.setattr(module, "attention", lambda *_: pytest.fail("asked for plain attention"))
    q, k, v = qkv
    mask = torch.zeros(5, 7)
    mask[:, 3] = -torch.inf
    for options in (dict(attn_mask=mask), dict(is_causal=True), dict(scale=0.5), dict(dropout_p=0.5)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = module._as_pytorch(q, k, v, **options)
            torch.manual_seed(0)
            assert torch.equal(found, F.scaled_dot_product_attention(q, k, v, **options))


def test_a_forced_kernel_that_cannot_run_is_refused_by_encoders_too():
    encoder = TimmEncoder("vit_tiny_patch16_224", pretrained=False, model_args=dict(depth=1))
    module.force_backend("xformers")
    with pytest.raises(ConfigError, match="'xformers' was forced .* no operator for the device 'cpu'"):
        encoder(torch.zeros(1, 3, 32, 32))


def test_a_kernel_is_not_asked_where_nothing_is_computed():
    module.force_backend("xformers")
    with torch.device("meta"):
        x = torch.zeros(1, 2, 3, 4)
    assert attention(x, x, x).is_meta


@pytest.mark.usefixtures("on_cuda")
def test_under_autocast_xformers_is_given_what_torchs_own_takes(qkv, monkeypatch):
    given = []
    _install(monkeypatch, lambda q, k, v: given.extend((q.dtype, k.dtype, v.dtype)) or q)
    q, k, v = qkv
    with torch.autocast("cpu", torch.bfloat16):
        attention(q, k.bfloat16(), v)
    assert given == [torch.bfloat16] * 3


@pytest.mark.usefixtures("stand_in")
def test_what_attends_is_told_with_why_not_by_another_kernel(qkv, monkeypatch):
    attention(*qkv, who="encoders")
    attention(*qkv, who="decoder")
    assert module.kernels_taken() == "encoders, decoder: torch's, as xformers runs on CUDA alone"
    assert module.kernels_taken() == ""
    monkeypatch.setattr(module, "_device_type", lambda q: "cuda")
    attention(*qkv, who="generator")
    attention(*qkv, who="decoder", backend="sdpa")
    assert re.fullmatch(r"generator: xformers \S.*; decoder: torch's, as was asked", module.kernels_taken())

    def refuses(q, k, v):
        raise NotImplementedError("No operator found for these inputs\nand many lines more")

    _install(monkeypatch, refuses)
    module.memory_efficient_attention.cache_clear()
    for _ in range(2):
        torch.testing.assert_close(attention(*qkv, who="generator"), F.scaled_dot_product_attention(*qkv))
    said = "generator: torch's, as xformers refuses float32 heads of 8 (No operator found for these inputs)"
    assert module.kernels_taken() == said
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    module.memory_efficient_attention.cache_clear()
    attention(*qkv)
    said = "others: torch's, as xformers cannot be imported (ModuleNotFoundError: import of xformers.ops halted"
    assert module.kernels_taken().startswith(said)


@pytest.mark.usefixtures("on_cuda")
def test_a_refusal_under_autocast_is_of_what_it_computes_in_and_asked_for_once(qkv, monkeypatch):
    tried = []

    def refuses(q, k, v):
        tried.append(q.dtype)
        raise NotImplementedError("no")

    _install(monkeypatch, refuses)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            attention(*qkv, who="generator")
    assert tried == [torch.bfloat16]
    assert module.kernels_taken() == "generator: torch's, as xformers refuses bfloat16 heads of 8 (no)"


def test_masked_attention_is_rehearsed_as_plain_is(qkv):
    """A rehearsal has a function of its own in PyTorch's place, which takes what PyTorch's takes."""
    q, k, v = qkv
    mask = torch.zeros(2, 3, 5, 7)
    mask[..., 2] = -torch.inf
    with _as_on_a_gpu():
        found = module._as_pytorch(q, k, v, attn_mask=mask, dropout_p=0.0)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_in_half_a_precision_on_a_cpu_it_is_computed_in_float32_and_rounded(qkv):
    exact = F.scaled_dot_product_attention(*(x.double() for x in qkv))
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(*qkv)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, F.scaled_dot_product_attention(*qkv).bfloat16())  # of what was given, in float32
    halves = [x.bfloat16().requires_grad_() for x in qkv]
    found, plain = attention(*halves), F.scaled_dot_product_attention(*halves)
    assert found.dtype == torch.bfloat16
    for ours, torchs in zip(
        (found, *torch.autograd.grad(found.sum(), halves)),
        (plain, *torch.autograd.grad(plain.sum(), halves)),
        strict=True,
    ):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, torchs, rtol=0.02, atol=0.02)
    assert (found - exact).abs().max() < 0.02
