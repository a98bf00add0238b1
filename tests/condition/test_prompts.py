"""Prompts as a condition: what a generator is given does not depend on padding, batches, or who prepared it."""

from __future__ import annotations

import pickle
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from aligntok.condition import condition_of, same_length, split_text
from aligntok.errors import ConfigError, DataError, UnknownComponentError, WeightsError
from aligntok.generators.flux_dit import FluxDiT
from aligntok.generators.lightning_dit import LightningDiT
from aligntok.training.generation.model import GenerationModel

CPU = torch.device("cpu")
SHAPE = dict(in_channels=4, hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1, context_in_dim=32)
CAPTIONS = ["a red apple", "a cat on a dog in a photo of a green apple", "", "dog"]


@pytest.fixture
def text(text_model):
    """A function that gives `generator.text` of tiny encoders: of tokens, and pooled if wanted."""

    def of(kind="bert", pooled=True, **changes):
        tokens = dict(type="hf_text", path=str(text_model(kind)), max_tokens=32, pool="mean")
        return {**dict(tokens=tokens, pooled=tokens if pooled is True else pooled or None, dropout=0.5), **changes}

    return of


def condition(text, vec_in_dim=32, **options):
    with torch.device("meta"):
        generator = FluxDiT(**SHAPE, vec_in_dim=vec_in_dim, **options)
    return condition_of(generator, text=text)


@pytest.mark.parametrize("kind", ["bert", "qwen3"])  # which pad behind, and before
def test_a_prompt_alone_is_as_in_a_batch_and_from_words_as_from_a_batch(text, kind):
    made = condition(text(kind))
    together = made.of({"caption": CAPTIONS}, CPU)
    drawn = condition(text(kind)).from_words(CAPTIONS, CPU)
    for i, caption in enumerate(CAPTIONS):
        alone = condition(text(kind)).from_words([caption], CPU)
        for found in (together, drawn):
            there = found["mask"][i]
            assert there.sum() == alone["mask"].sum()
            torch.testing.assert_close(found["text"][i][there], alone["text"][0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found["pooled"][i], alone["pooled"][0], rtol=1e-5, atol=1e-5)


def test_one_encoder_that_has_both_parts_is_loaded_once(text):
    encoders = condition(text()).encoders
    assert encoders["tokens"] is encoders["pooled"]


@pytest.mark.parametrize(("cache", "how"), [(True, {}), ("bf16", {"dtype": "bf16"})])
def test_a_cache_keeps_rows_as_precisely_as_it_is_told(text, cache, how):
    made = condition(text(cache=cache)).to_encode(SimpleNamespace(captions=[("a",), ("b", "c")]))
    assert [*made.pop("texts")] == ["a", "b", "c"]
    assert [name for name in made if name not in ("tokens", "pooled")] == [*how]
    assert made.get("dtype") == how.get("dtype")


def test_dropped_captions_are_the_empty_prompt_for_both_encoders(text):
    made = condition(text())
    given = made.of({"caption": CAPTIONS}, CPU)
    dropped = made.drop(given, torch.tensor([True, False, False, True]))
    null = made.null(1, CPU)
    length = null["mask"].shape[1]
    for row in (0, 3):
        assert dropped["mask"][row].tolist() == [True] * length + [False] * (given["mask"].shape[1] - length)
        assert torch.equal(dropped["text"][row, :length], null["text"][0])
        assert torch.equal(dropped["pooled"][row], null["pooled"][0])
    for name, tensor in given.items():
        assert torch.equal(dropped[name][1:3], tensor[1:3])


def test_drawing_labels_and_prompts_leaves_out_what_is_no_condition(text):
    made = condition(text(dropout=0.0))
    given = made.of({"caption": CAPTIONS}, CPU)
    assert all(torch.equal(made.drop(given, torch.ones(4, dtype=torch.bool))[name], given[name]) for name in given)
    with pytest.raises(ConfigError, match="cfg_scale=2.0 leads away from the empty prompt, but with generator.text.dr"):
        made.check_guidance(2.0, "sampling")
    made.check_guidance(1.0, "sampling")


def test_a_loaders_process_prepares_tokens_without_any_weights(text):
    made = condition(text())
    collate = made.collate(None)
    assert len(pickle.dumps(collate)) < sum(p.numel() for p in made.encoders["tokens"].parameters()) * 4
    items = [{"latents": torch.zeros(2), "caption": caption} for caption in CAPTIONS]
    batch = pickle.loads(pickle.dumps(collate))(items)
    assert batch["latents"].shape == (4, 2)
    found, expected = made.of(batch, CPU), made.of({"caption": CAPTIONS}, CPU)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_generator_that_attends_to_padding_gets_the_longest_text(text):
    made = condition(text(), text_padding="attend")
    for given in (made.of({"caption": ["dog"]}, CPU), made.from_words(["dog"], CPU), made.null(2, CPU)):
        assert given["text"].shape[1:] == (32, 32)
    drawn, loaded = made.from_words(["dog"], CPU), made.of({"caption": ["dog"]}, CPU)
    torch.testing.assert_close(drawn["text"], loaded["text"])


def test_prompts_are_encoded_once(text, monkeypatch):
    made, seen = condition(text()), []
    real = made.models.encode
    monkeypatch.setattr(
        made.models,
        "encode",
        lambda given, device: seen.append(len(given["tokens"]["input_ids"])) or real(given, device),
    )
    made.from_words(["a", "b", "a"], CPU)
    made.from_words(["b", "c"], CPU)
    made.null(3, CPU)
    made.null(5, CPU)
    assert seen == [2, 1, 1]


def test_lengths_are_made_equal_behind_masked():
    short, long = (dict(text=torch.ones(1, n, 3), mask=torch.ones(1, n, dtype=torch.bool)) for n in (2, 5))
    one, other = same_length(short, long)
    assert one["mask"].tolist() == [[True, True, False, False, False]]
    assert one["text"].shape == other["text"].shape == (1, 5, 3)
    labels = torch.tensor([1])
    assert same_length(labels, labels)[0] is labels


def test_seeds_follow_from_place_and_turn(text):
    made = condition(text())
    seeds = {made.seed(seed, place, image) for seed in range(3) for place in range(3) for image in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no prompt was given; give at least one"),
        (["a", 3], "this generator takes prompts, was given 3; give text"),
    ],
)
def test_what_is_no_prompt_is_refused(text, words, told):
    with pytest.raises(ConfigError, match=told):
        condition(text()).from_words(words, CPU)


def test_text_that_does_not_fit_the_generator_is_refused(text, tmp_path):
    with pytest.raises(ConfigError, match=r"FluxDiT takes prompts, and generator.text says what encodes them"):
        condition(None)
    with pytest.raises(ConfigError, match="FluxDiT: vec_in_dim=32, but generator.text.pooled is None"):
        condition(text(pooled=False))
    with pytest.raises(ConfigError, match="FluxDiT: vec_in_dim=0, but generator.text.pooled is {"):
        condition(text(), vec_in_dim=0)
    with pytest.raises(
        ConfigError, match=r"generator.text.pooled: the text encoder gives vectors of width 32, .*vec_in_dim=8"
    ):
        condition(text(), vec_in_dim=8).check_encoders()
    plain = {**text()["tokens"], "pool": None}
    with pytest.raises(ConfigError, match="the 'hf_text' text encoder gives no pooled vector; give pool='mean'"):
        condition(text(pooled=plain)).check_encoders()
    with pytest.raises(WeightsError, match="nowhere"):
        condition(text(tokens=dict(type="hf_text", path=str(tmp_path / "nowhere")))).check_encoders()
    with pytest.raises(UnknownComponentError, match="no text encoder named 'hf_txt'; did you mean 'hf_text'"):
        condition(text(tokens=dict(type="hf_txt", path="x"))).check_encoders()
    with pytest.raises(ConfigError, match="no key named 'token'; did you mean 'tokens'"):
        condition(dict(text(), token=1))
    with torch.device("meta"), pytest.raises(ConfigError, match="conditioned on classes, and has no use for text"):
        condition_of(LightningDiT(hidden_size=32, depth=1, num_heads=2, in_channels=4), text=text())


def test_a_file_may_name_registered_encoders_alone_and_must_say_what_they_are(text):
    with torch.device("meta"):
        generator = FluxDiT(**SHAPE, vec_in_dim=32)
    with pytest.raises(ConfigError, match="stands in a file without an identity"):
        condition_of(generator, text=text(), trusted=False)
    dotted = dict(text()["tokens"], type="os.system", identity="0")
    with pytest.raises(UnknownComponentError, match="stands in a file"):
        condition_of(generator, text=dict(text(), tokens=dotted), trusted=False)


def test_data_without_captions_are_refused(text):
    with pytest.raises(DataError, match="the generator takes prompts, but the data bring no captions"):
        condition(text()).check_data([{"images": 0}])
    condition(text()).check_data([{"images": 0, "caption": "a"}])


def test_text_is_taken_off_a_generators_config():
    given = dict(type="flux_dit", depth=1, text=dict(tokens=1))
    assert split_text(given) == (dict(type="flux_dit", depth=1), dict(tokens=1))
    assert "text" in given


def test_what_weights_distilled_with_guidance_are_told_is_in_whatever_they_are_given(text):
    made = condition(text(guidance=3.5), guidance_embed=True)
    given = made.of({"caption": CAPTIONS}, CPU)
    dropped = made.drop(given, torch.tensor([True, False, False, True]))
    for found in (
        given,
        dropped,
        made.from_words(CAPTIONS, CPU),
        made.blank(4, CPU),
        *same_length(given, made.null(4, CPU)),
    ):
        assert found["guidance"].tolist() == [3.5] * 4
    with pytest.raises(ConfigError, match=r"guidance_embed=False, but generator.text.guidance is 3.5; give a number"):
        condition(text(guidance=3.5))
    with pytest.raises(ConfigError, match=r"guidance_embed=True, but generator.text.guidance is None; give a number"):
        condition(text(), guidance_embed=True)


def test_an_encoder_is_looked_at_before_anything_is_planned_for_it(text):
    tokens = text()["tokens"]
    with pytest.raises(ConfigError, match=r"generator.text.tokens is {'path': 'x'}; it must be dict\(type=..., ...\)"):
        condition(text(tokens=dict(path="x")))
    with pytest.raises(ConfigError, match=r"generator.text.tokens: text encoder 'hf_text': max_tokens='abc' is str"):
        condition(text(tokens=dict(tokens, max_tokens="abc"))).blank(1, CPU)
    blank = condition(text(tokens=dict(tokens, max_tokens=10**9))).blank(1, CPU)  # of no memory, until it is used
    assert blank["text"].shape == (1, 10**9, 32)


def test_encoders_are_not_moved_while_another_thread_asks_them(text, monkeypatch):
    models, told, begun = condition(text()).models, [], threading.Event()
    encoder, tokens = models.encoders["tokens"], models.tokens(["dog"], False)

    def states(*given):
        begun.set()
        told.append("asked")
        time.sleep(0.3)
        told.append("answered")
        return type(encoder).states(encoder, *given)

    monkeypatch.setattr(encoder, "states", states)
    thread = threading.Thread(target=models.encode, args=(tokens, CPU))
    thread.start()
    assert begun.wait(30)
    monkeypatch.setattr(encoder, "to", lambda where: told.append(where))
    models.leave(torch.device("mps"))
    thread.join()
    assert told == ["asked", "answered", "cpu", "cpu"]


@pytest.mark.parametrize(("precision", "ahead"), [("fp32", True), ("bf16", True), ("tf32", False)])
def test_nothing_is_encoded_beside_a_step_that_rounds_otherwise(precision, ahead):
    training = SimpleNamespace(diffusion=SimpleNamespace(condition=SimpleNamespace(encodes=True)), precision=precision)
    assert GenerationModel.encodes_ahead.fget(training) is ahead
