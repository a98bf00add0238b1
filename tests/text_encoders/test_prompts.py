"""Prompts to tokens: cut with a word about what is lost, padded as asked, and refused where they are none."""

from __future__ import annotations

import logging
import pickle

import pytest
import torch

from aligntok.errors import ConfigError
from aligntok.registry import TEXT_ENCODERS

pytest.importorskip("transformers")


@pytest.fixture
def encoder(text_model):
    def build(kind="bert", **options):
        name = {"t5": "t5", "clip": "clip_text"}.get(kind, "hf_text")
        return TEXT_ENCODERS.build({"type": name, "path": str(text_model(kind)), "max_tokens": 12, **options})

    return build


def test_tokens_are_padded_to_the_longest_or_to_the_greatest_length(encoder):
    tokenize = encoder().tokenize
    found = tokenize(["cat", "a red apple"])
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "input_ids": (2, 5),  # with a beginning and an end
        "attention_mask": (2, 5),
    }
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert all(each.dtype == torch.int64 for each in found.values())
    full = tokenize(["cat"], full=True)
    assert full["input_ids"].shape == (1, 12)
    assert full["attention_mask"].sum() == 3


def test_a_prompt_is_padded_behind_even_where_the_tokenizer_pads_before(encoder):
    made = encoder("qwen3")
    assert made.tokenize.tokenizer.padding_side == "left"
    assert made.tokenize(["a", "cat"])["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize(("kind", "kept"), [("bert", 10), ("qwen3", 12), ("t5", 11), ("clip", 10)])
def test_of_ten_thousand_words_it_says_once_how_many_are_left_out(encoder, caplog, kind, kept):
    """Words of one letter: each is a token (of qwen3 and t5 with the space before it, two)."""
    tokenize = encoder(kind).tokenize
    prompt = " ".join(["a"] * 10_000)
    with caplog.at_level(logging.WARNING, logger="aligntok"):
        for _ in range(3):
            found = tokenize([prompt, "a"])
        tokenize(["a " + prompt])
    assert found["input_ids"].shape == (2, 12)
    assert found["attention_mask"][0].all()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2  # of two prompts
    words = kept if kind in ("bert", "clip") else (kept + 1) // 2
    assert f"is cut to 12, without its last {10_000 - words} words: a a a a" in said[0]


def test_of_many_prompts_that_are_cut_the_first_hundred_are_named(encoder, caplog):
    tokenize = encoder().tokenize
    with caplog.at_level(logging.WARNING, logger="aligntok"):
        for number in range(103):
            tokenize([f"{'cat ' * 11}{'a ' * number}"])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 100 == len(tokenize._told)
    assert [number for number, each in enumerate(said) if "others are cut without a word" in each] == [99]


def test_a_prompt_that_just_fits_is_not_told_of(encoder, caplog):
    tokenize = encoder().tokenize
    with caplog.at_level(logging.WARNING, logger="aligntok"):
        fits = tokenize([" ".join(["cat"] * 10)])
        assert not caplog.records
        cut = tokenize([" ".join(["cat"] * 11)])
    assert torch.equal(fits["input_ids"], cut["input_ids"])
    assert "without its last 1 words" in caplog.text


def test_what_no_token_stands_for_becomes_one_token(encoder):
    made = encoder("qwen3", pool="mean")
    assert made.tokenize.tokenizer([""])["input_ids"] == [[]]
    found = made.encode([""])
    assert found["mask"].tolist() == [[True]]
    assert found["pooled"].isfinite().all()


def test_processes_that_load_data_get_it_without_the_weights(encoder):
    made = encoder()
    sent = pickle.dumps(made.tokenize)
    assert b"torch._utils" not in sent  # where tensors are made anew
    assert torch.equal(pickle.loads(sent)(["a cat"])["input_ids"], made.tokenize(["a cat"])["input_ids"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], r'takes one prompt or more, was given none; "" is the prompt that says nothing'),
        ("a red apple", r"takes a list of prompts, was given str; put a single one in a list"),
        (None, "takes a list of prompts, was given NoneType"),
        (["a", None], "prompt 1 is NoneType, not text"),
        ([b"a"], "prompt 0 is bytes, not text"),
        ([3], "prompt 0 is int, not text"),
        (["a", "b\udce4"], r"prompt 1, 'b\\udce4', is no UTF-8; correct it"),
    ],
)
def test_what_are_no_prompts_is_refused(encoder, given, said):
    made = encoder()
    for ask in (made.tokenize, made.encode):
        with pytest.raises(ConfigError, match=said):
            ask(given)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("bert", {"max_tokens": 2}, "max_tokens=2 has no room for a prompt; set it to 3 or more"),
        ("bert", {"max_tokens": 78}, "max_tokens=78, but the model has 77 positions; set it to 77"),
        ("clip", {"max_tokens": 78}, "max_tokens=78, but the model has 77 positions; set it to 77"),
        ("bert", {"max_tokens": 0}, "max_tokens=0; it must be int of at least 1"),
        ("bert", {"max_tokens": True}, "max_tokens=True is bool; it must be int"),
        ("bert", {"layer": 3}, "layer=3, but the model has layers -3 to 2; take one"),
        ("bert", {"layer": -4}, "layer=-4, but the model has layers -3 to 2"),
        ("bert", {"pool": "max"}, "pool='max'; it must be 'mean' or 'last' or None"),
        ("t5", {"padding": "none"}, "padding='none'; it must be 'mask' or 'attend'"),
        ("t5", {"precision": "fp16"}, "precision='fp16'; .*it must be 'fp32' or 'bf16'"),
        ("t5", {"layer": -1}, "no keyword named 'layer'"),
    ],
)
def test_options_that_cannot_be_are_refused(encoder, kind, options, said):
    with pytest.raises(ConfigError, match=said):
        encoder(kind, **options)


def test_a_model_without_learned_positions_takes_any_length(encoder):
    assert encoder("qwen3", max_tokens=500).encode(["a"], full=True)["text"].shape == (1, 500, 32)
    assert encoder("t5", max_tokens=700).max_tokens == 700
