"""Packed sequences attend as each would alone, by every kernel, and it is said by which and why not by another."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.attention.flex_attention as flex
import torch.nn.attention.varlen as varlen
from torch.nn.attention.flex_attention import flex_attention

from aligntok.errors import ConfigError
from aligntok.ops import attention as plain
from aligntok.ops import packed
from aligntok.ops.packed import attention_without, packed_attention, present
from aligntok.training.rehearsal import _as_on_a_gpu

LENGTHS = [5, 1, 9, 1, 3]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv("ALIGNTOK_ATTENTION", raising=False)
    for module, name, empty in ((packed, "_refused", {}), (plain, "_taken", {}), (plain, "_forced", [])):
        monkeypatch.setattr(module, name, empty)
    found = plain.memory_efficient_attention
    found.cache_clear()
    yield
    found.cache_clear()


@pytest.fixture
def on_cuda(monkeypatch):
    monkeypatch.setattr(plain, "_device_type", lambda q: "cuda")


def random(lengths=LENGTHS, **options):
    return [torch.randn(sum(lengths), 2, 8, requires_grad=True, **options) for _ in range(3)]


def one_by_one(q, k, v, lengths):
    """Each sequence alone, written out."""
    found = []
    for a, b, c in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        weights = torch.einsum("qhd,khd->hqk", a, b).div(a.shape[-1] ** 0.5).softmax(-1)
        found.append(torch.einsum("hqk,khd->qhd", weights, c))
    return torch.cat(found)


def assert_as_alone(lengths=LENGTHS, **options):
    qkv = random(lengths)
    expected, found = one_by_one(*qkv, lengths), packed_attention(*qkv, lengths, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    along = torch.randn_like(expected)
    gradients = [torch.autograd.grad(each, qkv, along) for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.fixture
def stand_ins(monkeypatch):
    """Of the kernels that a CPU has not: what they are given is read as they read it. Their names, as they are called.

    FlexAttention is torch's own, not compiled, which a CPU can take backward if nobody looks.
    """
    called = []

    def of_blocks(q, k, v, attn_bias):
        called.append("xformers")
        assert q.shape[0] == 1
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        mask = attn_bias.materialize(scores.shape[-2:]).to(q.dtype)
        return torch.einsum("bhqk,bkhd->bqhd", (scores + mask).softmax(-1), v)

    def varlen_attn(q, k, v, ends, same_ends, longest, same_longest):
        called.append("varlen")
        lengths = ends.diff().tolist()
        assert (ends.dtype, longest, same_longest) == (torch.int32, max(lengths), max(lengths))
        return one_by_one(q, k, v, lengths)

    def counted(*given, **options):
        called.append("flex")
        return flex_attention(*given, **options)

    monkeypatch.setattr(plain, "memory_efficient_attention", lambda: of_blocks)
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr(packed, "_flex_attention", lambda: counted)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    return called


@pytest.mark.parametrize("lengths", [LENGTHS, [1, 2], [7], [1], [1, 1, 1], [4, 4]], ids=str)
def test_each_sequence_attends_to_itself_alone(lengths):
    assert_as_alone(lengths)
    assert_as_alone(lengths, backend="sdpa")


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("backend", ["xformers", "varlen", "flex"])
def test_each_kernel_is_told_where_sequences_end(stand_ins, backend, monkeypatch):
    monkeypatch.setattr(packed, "_why_not", lambda *_: "")
    pytest.importorskip("xformers.ops.fmha.attn_bias")
    assert_as_alone(backend=backend)
    assert stand_ins == [backend]
    assert "as was asked" in plain.kernels_taken()


@pytest.mark.usefixtures("on_cuda")
def test_the_first_that_runs_is_taken_and_each_is_tried_once(stand_ins, monkeypatch):
    def refuses(*given, **options):
        stand_ins.append("refused")
        raise NotImplementedError("No operator\nand more")

    qkv = [x.bfloat16() for x in random()]
    packed_attention(*qkv, LENGTHS, who="generator")
    assert (stand_ins, plain.kernels_taken()) == (["xformers"], "generator: packed by xformers")
    monkeypatch.setattr(plain, "memory_efficient_attention", lambda: refuses)
    packed._refused.clear()
    for _ in range(2):
        packed_attention(*qkv, LENGTHS)
    assert stand_ins[1:] == ["refused", "varlen", "varlen"]
    assert plain.kernels_taken() == "others: packed by torch's varlen (xformers: No operator)"
    packed_attention(*random(), LENGTHS)  # float32
    said = "others: packed by FlexAttention (xformers: No operator; varlen: it has no kernel for float32)"
    assert plain.kernels_taken() == said
    for name in ("_by_varlen", "_by_flex"):
        kernels = {**packed._KERNELS, name[4:]: refuses}
        monkeypatch.setattr(packed, "_KERNELS", kernels)
    torch.testing.assert_close(packed_attention(*qkv, LENGTHS), one_by_one(*qkv, LENGTHS), rtol=0.05, atol=0.05)
    said = "others: packed by torch's of what is padded (xformers, varlen, flex: No operator)"
    assert plain.kernels_taken() == said


@pytest.mark.usefixtures("on_cuda", "stand_ins")
def test_where_all_is_to_be_repeatable_no_kernel_goes_back_in_any_order(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    qkv = [x.bfloat16() for x in random()]
    with pytest.raises(ConfigError, match="'varlen' was asked for.*: its backward pass is not deterministic; use 'sd"):
        packed_attention(*qkv, LENGTHS, backend="varlen")
    with torch.no_grad():
        packed_attention(*(x.detach() for x in qkv), LENGTHS, backend="varlen")


@pytest.mark.parametrize("backend", ["xformers", "varlen", "flex"])
def test_a_forced_kernel_that_cannot_run_is_refused(backend, monkeypatch):
    said = f"packed attention by '{backend}' was asked for, but it cannot run here: on CUDA alone, not on 'cpu'; use"
    with pytest.raises(ConfigError, match=said):
        packed_attention(*random(), LENGTHS, backend=backend)
    with pytest.raises(ConfigError, match="no backend of packed attention named 'flash'; known: xformers, varlen, f"):
        packed_attention(*random(), LENGTHS, backend="flash")
    monkeypatch.setattr(plain, "_device_type", lambda q: "cuda")
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(ConfigError, match=r"'xformers' was asked for, .*: xformers cannot be imported"):
        packed_attention(*random(), LENGTHS, backend="xformers")


def test_what_a_config_forces_holds_here_too():
    plain.force_backend("xformers")
    with pytest.raises(ConfigError, match="'xformers' was asked for"):
        packed_attention(*random(), LENGTHS)
    with pytest.raises(ConfigError, match="'xformers' was forced"):  # of one length: plain attention
        packed_attention(*random([2, 2]), [2, 2])
    plain.force_backend("sdpa")
    packed_attention(*random(), LENGTHS)
    assert plain.kernels_taken() == "others: packed by torch's of what is padded (as was asked)"


def test_a_full_memory_is_no_refusal(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(packed, "_why_not", lambda *_: "")
    monkeypatch.setattr(packed, "_KERNELS", {**packed._KERNELS, "xformers": full})
    with pytest.raises(torch.OutOfMemoryError):
        packed_attention(*random(), LENGTHS)
    assert not packed._refused


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([5, 13], "was given 19 tokens, but lengths of 18 together"),
        ([0, 19], "lengths is 0; it must be 1 or more"),
        ([-1, 20], "lengths is -1"),
        ([], "lengths is 0; it must be 1 or more"),
    ],
)
def test_lengths_are_those_of_the_tokens(lengths, said):
    with pytest.raises(ConfigError, match=said):
        packed_attention(*random(), lengths)


def test_shapes_are_of_three_dimensions_and_one():
    q, k, v = random()
    with pytest.raises(ConfigError, match=r"of one shape \(tokens, heads, width\), was given \(19, 2, 8\), \(18, 2, 8"):
        packed_attention(q, k[:-1], v, LENGTHS)
    with pytest.raises(ConfigError, match="of one shape"):
        packed_attention(q[None], k[None], v[None], LENGTHS)


def test_it_is_computed_in_what_autocast_says_and_kept_by_no_inference():
    qkv = random()
    with torch.autocast("cpu", torch.bfloat16):
        assert packed_attention(*qkv, LENGTHS).dtype == torch.bfloat16
    with torch.inference_mode():
        kept = packed._ends((2, 3), torch.device("cpu"))
    assert not kept.is_inference()
    assert kept.tolist() == [0, 2, 5]


def test_it_is_rehearsed_as_it_is():
    qkv = random()
    with _as_on_a_gpu():
        torch.testing.assert_close(packed_attention(*qkv, LENGTHS), one_by_one(*qkv, LENGTHS))


PADDED = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()


def assert_padding_is_left_out(mask=PADDED, dtype=torch.float32):
    q, k, v = (torch.randn(len(mask), 2, mask.shape[1], 8, dtype=dtype, requires_grad=True) for _ in range(3))
    found = attention_without(q, k, v, present(mask, q.device), who="generator")
    assert found.isfinite().all()
    assert found.shape == q.shape
    along = torch.randn_like(q) * mask[:, None, :, None]  # nobody needs what padding attends to
    gradients = torch.autograd.grad(found, (q, k, v), along)
    scores = torch.einsum("nhqd,nhkd->nhqk", q, k) / 8**0.5
    expected = scores.where(mask[:, None, None], -1e9).softmax(-1) @ v
    kept = mask[:, None, :, None].expand_as(q)
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-5, atol=1e-5)
    for own, wanted in zip(gradients, torch.autograd.grad(expected, (q, k, v), along), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-5)


def test_padding_is_masked_on_a_cpu_and_told():
    assert_padding_is_left_out()
    assert plain.kernels_taken() == "generator: torch's with padding masked, as packed kernels run on CUDA alone"


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("backend", ["xformers", "varlen", "flex", "sdpa"])
def test_what_is_there_is_packed_on_a_gpu(stand_ins, backend, monkeypatch):
    monkeypatch.setattr(packed, "_why_not", lambda *_: "")
    pytest.importorskip("xformers.ops.fmha.attn_bias")
    monkeypatch.setenv("ALIGNTOK_ATTENTION", backend)
    if backend in plain.BACKENDS:
        assert_padding_is_left_out()
        assert plain.kernels_taken() == f"generator: packed by {packed.BACKENDS[backend]} (as was asked)"
        assert stand_ins == ["xformers"] * (backend == "xformers")
    else:
        assert_padding_is_left_out(PADDED[:2])
        assert stand_ins == [backend]


def test_nothing_is_masked_where_there_is_no_padding(monkeypatch):
    everything = torch.ones(2, 5, dtype=torch.bool)
    assert present(everything, torch.device("cpu")) is None
    assert present(everything[:0], torch.device("cpu")) is None
    qkv = [torch.randn(2, 1, 5, 8) for _ in range(3)]
    assert torch.equal(attention_without(*qkv, None, who="generator"), plain.attention(*qkv))


def test_masks_without_values_are_taken_as_they_are():
    there = present(torch.ones(2, 5, dtype=torch.bool, device="meta"), torch.device("meta"))
    qkv = [torch.randn(2, 1, 5, 8, device="meta") for _ in range(3)]
    assert attention_without(*qkv, there, who="generator").shape == (2, 1, 5, 8)


def test_a_kernel_that_is_forced_where_it_cannot_run_is_refused_with_padding_too(monkeypatch):
    monkeypatch.setenv("ALIGNTOK_ATTENTION", "xformers")
    qkv = [torch.randn(3, 1, 6, 8) for _ in range(3)]
    with pytest.raises(ConfigError, match="it has no operator for the device 'cpu'"):
        attention_without(*qkv, present(PADDED, torch.device("cpu")), who="generator")
