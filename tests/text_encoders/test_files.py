"""The files of text encoders: what they are known by, what of them is never run, and what is said of bad ones."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from aligntok.errors import AlignTokError, ConfigError, WeightsError
from aligntok.registry import TEXT_ENCODERS
from aligntok.weights import hub

transformers = pytest.importorskip("transformers")
NAMES = {"t5": "t5", "umt5": "t5", "clip": "clip_text"}


def built(kind, path, **options):
    return TEXT_ENCODERS.build({"type": NAMES.get(kind, "hf_text"), "path": str(path), "max_tokens": 12, **options})


@pytest.fixture
def copied(text_model, tmp_path):
    """A function that gives a copy of a tiny model's folder, to be changed."""
    return lambda kind="bert", name="copy": shutil.copytree(text_model(kind), tmp_path / name)


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# What it is known by


def test_the_identity_is_that_of_the_content_wherever_it_lies(text_model, copied):
    folder = copied()
    (folder / "README.md").write_text("of no weight")
    change(folder / "config.json", _name_or_path="/elsewhere", transformers_version="4.0.0", dtype="bfloat16")
    first = built("bert", text_model("bert")).identity
    assert len(first) == 64
    assert built("bert", folder).identity == first


@pytest.mark.parametrize(
    "other",
    [
        {"max_tokens": 11},
        {"layer": -2},
        {"pool": "mean"},
        {"pool": "last"},
        {"precision": "bf16"},
        "weight",
        "config",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
    ids=str,
)
def test_another_identity_has_whatever_changes_the_result(text_model, copied, other):
    folder, options = copied(), other if isinstance(other, dict) else {}
    if other == "weight":
        weights = load_file(folder / "model.safetensors")
        weights["encoder.layer.0.output.dense.bias"][0] += 1e-6
        save_file(weights, folder / "model.safetensors")
    elif other == "config":
        change(folder / "config.json", num_attention_heads=2)
    elif other == "tokenizer_config.json":
        change(folder / other, do_lower_case=False)
    elif isinstance(other, str):
        (folder / other).write_text((folder / other).read_text() + "\n")
    assert built("bert", folder, **options).identity != built("bert", text_model("bert")).identity
    if options and "precision" not in options:
        assert built("bert", folder, **options).identity == built("bert", text_model("bert"), **options).identity


def test_padding_is_part_of_a_t5s_identity(text_model):
    folder = text_model("t5")
    assert built("t5", folder).identity != built("t5", folder, padding="attend").identity


# Weights of other shapes and names


def whole(kind, folder):
    """Save the weights of a model around a tiny one's: with a head, with another tower, as others publish them."""
    weights = load_file(folder / "model.safetensors")
    if kind == "clip":  # a whole CLIP
        small = dict(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=16
        )
        text = json.loads((folder / "config.json").read_text())
        config = transformers.CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16})
        model = transformers.CLIPModel(config)
        model.load_state_dict({k: v for k, v in weights.items() if k.startswith("text_model.")}, strict=False)
    elif kind == "bert":  # without a pooler
        model = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(folder))
        model.load_state_dict({f"bert.{k}": v for k, v in weights.items()}, strict=False)
    elif kind == "t5":
        model = transformers.T5ForConditionalGeneration(transformers.T5Config.from_pretrained(folder))
        model.load_state_dict(weights, strict=False)
    else:
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config.from_pretrained(folder))
        model.load_state_dict({f"model.{k}": v for k, v in weights.items()}, strict=False)
    model.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["clip", "bert", "t5", "qwen3"])
def test_the_text_model_is_taken_out_of_a_larger_one(text_model, copied, kind):
    folder = copied(kind)
    whole(kind, folder)
    given, own = built(kind, folder).encode(["a red apple"]), built(kind, text_model(kind)).encode(["a red apple"])
    for name, value in own.items():
        torch.testing.assert_close(given[name], value)
    assert built(kind, folder).identity == built(kind, folder).identity  # nothing that it lacks is drawn at random


def test_weights_may_be_in_parts_or_in_a_file_of_torchs(text_model, copied):
    own = built("bert", text_model("bert"))
    parts, plain = copied(), copied(name="plain")
    weights = load_file(parts / "model.safetensors")
    names = {key: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(weights)}
    for name in {*names.values()}:
        save_file({key: value for key, value in weights.items() if names[key] == name}, parts / name)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    torch.save(weights, plain / "pytorch_model.bin")
    for folder in (parts, plain):
        (folder / "model.safetensors").unlink()
        assert built("bert", folder).identity == own.identity
    change(parts / "model.safetensors.index.json", weight_map={**names, "x": "model-00003-of-00003.safetensors"})
    with pytest.raises(WeightsError, match=r"no weights at .*model-00003-of-00003\.safetensors"):
        built("bert", parts)


def test_the_tokenizer_may_be_in_another_folder(text_model, copied):
    model, tokenizer = copied(name="text_encoder"), copied(name="tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    for name in ("config.json", "model.safetensors"):
        (tokenizer / name).unlink()
    assert built("bert", model, tokenizer=str(tokenizer)).identity == built("bert", text_model("bert")).identity
    with pytest.raises(WeightsError, match=f"{model} has no tokenizer.json or spiece.model or .*; copy it there"):
        built("bert", model)


# What is never run or opened


CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Model: ...\n"


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_adapters_and_kernels_that_a_folder_names_are_left_alone(copied, monkeypatch):
    plain, folder = copied(name="plain"), copied()
    (folder / "evil.py").write_text(CODE)
    named = {"AutoModel": "evil.Model", "AutoConfig": "evil.Model", "AutoTokenizer": ["evil.Model", "evil.Model"]}
    elsewhere = {"_attn_implementation": "owner/kernels", "transformers_weights": "/etc/passwd"}
    elsewhere |= {"quantization_config": {"quant_method": "evil"}, "fusion_config": {"patch_embeddings": True}}
    change(folder / "config.json", auto_map=named, **elsewhere)
    change(folder / "tokenizer_config.json", auto_map=named, tokenizer_file="/etc/passwd", vocab_file="/etc/passwd")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc", "peft_type": "LORA"}))
    os.mkfifo(folder / "chat_template.jinja")  # whoever opens it waits for ever
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to trust"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    found = built("bert", folder).encode(["a red apple"])["text"]
    assert torch.equal(found, built("bert", plain).encode(["a red apple"])["text"])
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("kind", ["t5", "clip", "bert"])
def test_a_model_or_tokenizer_of_code_is_refused(copied, kind):
    folder = copied(kind)
    (folder / "evil.py").write_text(CODE)
    change(folder / "config.json", model_type="evil", auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Model"})
    with pytest.raises(WeightsError, match="its config.json has model_type='evil'; it takes "):
        built(kind, folder)
    assert not (folder / "ran").exists()


def test_pickled_objects_are_refused(copied, tmp_path):
    folder = copied()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        built("bert", folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.safetensors", "link.safetensors", 3, None])
def test_parts_outside_of_the_folder_are_refused(copied, name):
    folder = copied()
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "link.safetensors").symlink_to("../outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(WeightsError, match=r"which is no file in that folder|no weights at"):
        built("bert", folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_is_no_regular_file_is_not_waited_for(copied, name):
    folder = copied()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(WeightsError, match=r"no file in that folder|no weights at|no regular file"):
        built("bert", folder)


def test_a_path_in_a_file_is_refused(text_model):
    given = {"type": "t5", "path": str(text_model("t5"))}
    with pytest.raises(ConfigError, match="text encoder 't5' stands in a file with path="):
        TEXT_ENCODERS.build(given, trusted=False)


# Bad ones


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config\.json; copy it there .*MiniLM"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors or model\.saf.*; copy it"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer\.json or spiece\.model or"),
    "cut config": (lambda f: cut(f / "config.json"), r"config\.json cannot be read \("),
    "config of a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list, not names with values"),
    "config of latin": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xe4"}'), r"config\.json cannot be read"),
    "no type": (lambda f: change(f / "config.json", model_type=None), "has model_type='None'; it takes those of"),
    "list as type": (lambda f: change(f / "config.json", model_type=["bert"]), "has model_type="),
    "width of text": (lambda f: change(f / "config.json", hidden_size="wide"), "cannot build a bert of its config"),
    "width of none": (lambda f: change(f / "config.json", hidden_size=0), "BERT|Bert|cannot build a bert"),
    "billions of layers": (lambda f: change(f / "config.json", num_hidden_layers=10**9), "is more than 1000"),
    "a vocabulary of billions": (lambda f: change(f / "config.json", vocab_size=10**10), "it declares 320,"),
    "other width": (lambda f: change(f / "config.json", hidden_size=40), r"does not fit \(.*is \(\d+.*, not \("),
    "more layers": (
        lambda f: change(f / "config.json", num_hidden_layers=3),
        r"does not fit \(missing encoder",
    ),
    "cut weights": (lambda f: cut(f / "model.safetensors"), "cannot be read as weights"),
    "other weights": (
        lambda f: save_file({"a": torch.zeros(99999)}, f / "model.safetensors"),
        r"fit \(missing",
    ),
    "cut tokenizer": (lambda f: cut(f / "tokenizer.json"), r"the tokenizer in .* cannot be read \("),
    "tokenizer of a list": (
        lambda f: (f / "tokenizer.json").write_text("[]"),
        r"the tokenizer in .* cannot be read \(",
    ),
    "cut tokenizer config": (lambda f: cut(f / "tokenizer_config.json"), r"the tokenizer in .* cannot be read \("),
    "binary tokenizer": (
        lambda f: (f / "tokenizer.json").write_bytes(b"\0\xff"),
        r"the tokenizer in .* cannot be read",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_of_a_bad_folder_one_sentence_says_what_is_wrong(copied, fault):
    folder = copied()
    spoil, said = BAD[fault]
    spoil(folder)
    with pytest.raises(AlignTokError, match=said) as caught:
        built("bert", folder)
    assert len(str(caught.value).splitlines()) <= 2
    assert "HFTextEncoder" in str(caught.value) or str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name"), [("t5", "hf_text"), ("clip", "t5"), ("bert", "clip_text"), ("t5", "clip_text")]
)
def test_a_model_of_another_kind_is_refused(text_model, kind, name):
    with pytest.raises(AlignTokError, match=r"has model_type=|gives no states"):
        TEXT_ENCODERS.build({"type": name, "path": str(text_model(kind)), "max_tokens": 12})


def test_the_tokenizer_of_a_larger_model_is_told(text_model, copied):
    folder = copied("qwen3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(text_model("clip") / name, folder / name)
    with pytest.raises(ConfigError, match=r"its tokenizer gives token \d+, but the model knows 97 tokens"):
        built("qwen3", folder).encode(["a red apple"])


def test_a_sentencepiece_file_alone_says_what_it_needs(copied, monkeypatch):
    folder = copied("t5")
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"no model")
    monkeypatch.setattr("aligntok.weights.transformers.is_here", lambda module: False)
    with pytest.raises(WeightsError, match=r'it may need sentencepiece: pip install "aligntok\[text\]"'):
        built("t5", folder)


# The hub


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the hub, and nobody to be asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "unreachable", lambda url: pytest.fail("the network was tried"))
    return tmp_path / "hub"


def in_cache(cache, repo, files, subfolder=""):
    """Put files into the cache as the hub's library does: links into a folder of blobs."""
    store = cache / f"models--{repo.replace('/', '--')}"
    snapshot = store / "snapshots" / ("0" * 40) / subfolder
    snapshot.mkdir(parents=True, exist_ok=True)
    (store / "refs").mkdir(exist_ok=True)
    (store / "refs/main").write_text("0" * 40)
    (store / "blobs").mkdir(exist_ok=True)
    for path in files:
        blob = store / "blobs" / f"{subfolder}{path.name}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))


@pytest.mark.parametrize("subfolder", ["", "text_encoder"])
def test_what_is_in_the_hubs_cache_is_used_without_asking(text_model, cache, subfolder):
    in_cache(cache, "owner/name", text_model("bert").iterdir(), subfolder)
    found = built("bert", "/".join(filter(None, ["owner/name", subfolder])))
    assert found.identity == built("bert", text_model("bert")).identity


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors", "tokenizer.json"])
def test_offline_one_error_names_the_file_and_where_it_was_looked_for(text_model, cache, lacking):
    in_cache(cache, "owner/name", [path for path in text_model("bert").iterdir() if path.name != lacking])
    with pytest.raises(WeightsError) as caught:
        built("bert", "owner/name")
    for part in (
        "HFTextEncoder: there is no folder owner/name, and ",
        lacking,
        "HF_HUB_OFFLINE is set",
        f"looked for in {cache} and at https://huggingface.co/owner/name",
        'hf download owner/name), and give path="/that/folder"',
    ):
        assert part in str(caught.value)


def test_a_reachable_hub_is_asked_for_what_is_not_in_the_cache(text_model, cache, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def download(repo, filename, revision=None):
        asked.append(filename)
        place = text_model("bert") / filename
        if not place.exists():
            raise EntryNotFoundError(filename)
        return str(place)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "unreachable", lambda url: "")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert built("bert", "owner/name@v1").identity == built("bert", text_model("bert")).identity
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {*asked}
    assert "pytorch_model.bin" not in asked


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere", "/dev/zero", "package:aligntok/nowhere"])
def test_a_folder_that_is_not_there_is_no_repository(cache, path):
    with pytest.raises(
        WeightsError, match=rf"there is no folder {path}; give the one that has config.json, model.safet"
    ):
        built("bert", path)
    with pytest.raises(WeightsError, match="no weights at nowhere.safetensors"):
        built("bert", "nowhere.safetensors")
