"""A cache of texts: the same as encoding online, made once by any number of processes, and no other's."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from aligntok.caching import text_cache
from aligntok.caching.text_cache import TextCache, cache_texts, hash_of, identities_of
from aligntok.check import CheckRequest, check_folder
from aligntok.data.loader import make_loader
from aligntok.distributed import job
from aligntok.errors import ConfigError, DataError, Preempted, WriteError
from aligntok.text_encoders import TextEncoder, check_prompts, encode_both
from aligntok.weights.load import weights_hash

TEXTS = [f"a picture of {number} {thing}" for number in range(5) for thing in ("apples", "cats", "dogs", "é")] + ["é"]
ROOT = Path(__file__).parents[2]


class Letters(TextEncoder):
    """A text encoder of a few numbers, which counts what it encodes: a random row a letter, and their mean."""

    def __init__(self, dim=6, pooled=False, seed=0, scale=1.0, max_tokens=40):
        super().__init__()
        self.dim, self.pooled_dim, self.max_tokens = dim, dim if pooled else None, max_tokens
        self.table = nn.Embedding(300, dim)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(seed)).data.mul_(scale)
        self.encoded = []
        self.freeze()

    @property
    def identity(self):
        return weights_hash(f"{self.pooled_dim} {self.max_tokens}", self)

    def tokenize(self, texts, full=False):
        rows = [[1, *text.encode()][: self.max_tokens] for text in check_prompts(texts, "Letters")]
        self.encoded += texts
        length = self.max_tokens if full else max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.bool()
        text = self.table(input_ids) * mask[..., None]
        pooled = {} if self.pooled_dim is None else {"pooled": text.sum(1) / mask.sum(1, keepdim=True)}
        return {"text": text, "mask": mask, **pooled}


def made(folder, texts=TEXTS, tokens=None, pooled=None, **options):
    options = {"shard_size": 5, "batch_size": 2, **options}
    return cache_texts(folder, texts, Letters() if tokens is None else tokens, pooled, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != ".lock"}


@pytest.fixture
def cache(tmp_path):
    """A finished cache of 22 texts in five shards, with pooled rows."""
    made(tmp_path / "cache", pooled=Letters(4, pooled=True))
    return tmp_path / "cache"


# What is in it


@pytest.mark.parametrize(("dtype", "error"), [("fp16", 2**-11), ("bf16", 2**-8), ("fp32", 0)])
@pytest.mark.parametrize("full", [False, True])
def test_it_gives_what_encoding_online_does_but_for_rounding(tmp_path, dtype, error, full):
    tokens, pooled = Letters(), Letters(4, pooled=True, seed=1)
    held = made(tmp_path / "cache", tokens=tokens, pooled=pooled, dtype=dtype)
    asked = [TEXTS[3], "", TEXTS[10], TEXTS[3], "é"]
    found, online = held.get(asked, full), encode_both(asked, tokens, pooled, full)
    assert set(found) == set(online)
    assert torch.equal(found["mask"], online["mask"])
    for name in ("text", "pooled"):
        assert found[name].dtype == torch.float32
        assert ((found[name] - online[name]).abs() <= error * online[name].abs()).all()
    assert (not error) == torch.equal(found["text"], online["text"])


def test_it_holds_the_rows_of_each_different_text_once_without_padding(cache):
    held = TextCache.open(cache)
    different = sorted({"", *TEXTS}, key=hash_of)
    assert len(held) == 22 == len(different)
    shards = [load_file(path) for path in sorted(cache.glob("*.safetensors"))]
    assert [len(shard["hashes"]) for shard in shards] == [5, 5, 5, 5, 2]
    assert [bytes(each.tolist()) for shard in shards for each in shard["hashes"]] == [hash_of(x) for x in different]
    lengths = [n for shard in shards for n in shard["offsets"].diff().tolist()]
    assert lengths == [min(40, 1 + len(text.encode())) for text in different]
    assert {shard["rows"].dtype for shard in shards} == {torch.float16}
    assert sum(len(shard["rows"]) for shard in shards) == sum(lengths)
    assert "" in held
    assert "a picture" not in held


def test_a_text_is_encoded_once_however_often_it_occurs_and_however_often_one_starts(tmp_path):
    tokens = Letters()
    held = made(tmp_path / "cache", TEXTS * 3, tokens=tokens)
    assert sorted(tokens.encoded) == sorted({"", *TEXTS})
    made(tmp_path / "cache", reversed(TEXTS), tokens=tokens)
    for _ in range(3):  # epochs
        held.get(TEXTS)
    assert len(tokens.encoded) == 22


def test_an_encoder_of_both_is_asked_once(tmp_path):
    both = Letters(pooled=True)
    held = made(tmp_path / "cache", tokens=both, pooled=both)
    assert len(both.encoded) == 22
    assert held.get([""])["pooled"].shape == (1, 6)


class _Prompts(torch.utils.data.Dataset):
    def __init__(self, held):
        self.held = held

    def __getitem__(self, index):
        return self.held.get([TEXTS[index]])["text"][0, :10]


def test_processes_that_load_data_read_it(cache):
    held = TextCache.open(cache)
    held.get(TEXTS[:1])  # its file is open when they start
    loaded = list(make_loader(_Prompts(held), [[i, i + 1] for i in range(0, 20, 2)], workers=2))
    assert torch.equal(torch.cat(loaded), held.get(TEXTS[:20])["text"][:, :10])
    again = pickle.loads(pickle.dumps(held))
    assert not again._open
    assert torch.equal(again.get(["é"])["text"], held.get(["é"])["text"])


def test_more_shards_than_may_be_open_are_read_in_turn(cache, monkeypatch):
    monkeypatch.setattr(text_cache, "_MOST_OPEN", 1)
    held = TextCache.open(cache)
    found = held.get(TEXTS)
    assert torch.equal(found["text"], TextCache.open(cache).get(TEXTS)["text"])
    assert len(held._open) == 1


def test_encoders_leave_the_device_once_all_texts_are_encoded(tmp_path, monkeypatch):
    moves, encoder = [], Letters(pooled=True)
    monkeypatch.setattr(Letters, "to", lambda self, where: moves.append((str(where), len(self.encoded))))
    monkeypatch.setattr(text_cache, "device", lambda: "there")
    made(tmp_path / "cache", tokens=encoder, pooled=encoder)
    assert moves == [("there", 0), ("cpu", 22)]
    made(tmp_path / "cache", tokens=encoder, pooled=encoder)  # nothing is left to encode
    assert len(moves) == 2


def test_what_is_not_finite_as_it_is_stored_is_refused(tmp_path):
    large = Letters(scale=1e5)
    with pytest.raises(DataError, match=r"is not finite as fp16 \(.*, in a config generator.text.cache='bf16'"):
        made(tmp_path / "cache", tokens=large)
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    held = made(tmp_path / "other", tokens=large, dtype="bf16")
    assert held.get(TEXTS)["text"].abs().max() > 65504


def test_texts_that_are_none_and_encoders_without_a_row_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cache_texts: prompt 2 is NoneType, not text"):
        made(tmp_path / "cache", ["a", None])
    with pytest.raises(ConfigError, match="Letters gives no pooled row"):
        made(tmp_path / "cache", pooled=Letters())
    with pytest.raises(ConfigError, match="no dtype named 'fp61'; did you mean 'fp16'"):
        made(tmp_path / "cache", dtype="fp61")
    with pytest.raises(ConfigError, match="batch_size is 0; it must be 1 or more"):
        made(tmp_path / "cache", batch_size=0)
    assert not (tmp_path / "cache").exists()


# How it is made


def test_two_processes_make_the_same_files_as_one(tmp_path, as_processes):
    alone, together = tmp_path / "alone", tmp_path / "together"
    made(alone)
    tokens = Letters(), Letters()
    as_processes(lambda rank: made(together, tokens=tokens[rank]))
    assert contents(together) == contents(alone)
    assert [len(each.encoded) for each in tokens] == [12, 10]  # of five shards three, and two


def test_processes_with_other_texts_are_refused(tmp_path, as_processes):
    with pytest.raises(DataError, match="other texts, other text encoders"):
        as_processes(lambda rank: made(tmp_path / "cache", TEXTS[rank:]))


def test_a_shard_that_is_missing_or_damaged_is_encoded_again_and_no_other(tmp_path, caplog):
    folder = tmp_path / "cache"
    made(folder)
    before = contents(folder)
    (folder / "shard_00001.safetensors").unlink()
    content = bytearray((folder / "shard_00003.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "shard_00003.safetensors").write_bytes(content)
    tokens = Letters()
    with caplog.at_level(logging.WARNING, logger="aligntok"):
        made(folder, tokens=tokens)
    assert contents(folder) == before
    assert len(tokens.encoded) == 10
    assert "shard_00003.safetensors is encoded again: it is damaged (its SHA-256 is not the one" in caplog.text
    assert "shard_00001" not in caplog.text


def test_one_that_lost_a_shard_is_not_finished_until_it_is_encoded_again(tmp_path):
    folder, tokens = tmp_path / "cache", Letters()
    made(folder)
    (folder / "shard_00002.safetensors").unlink()
    tokens.forward = None
    with pytest.raises(TypeError):
        made(folder, tokens=tokens)
    with pytest.raises(DataError, match="is not finished"):
        TextCache.open(folder)


def test_sigterm_stops_it_after_a_shard_and_it_goes_on(tmp_path):
    folder, tokens, again = tmp_path / "cache", Letters(), Letters()
    made(tmp_path / "whole")
    encode = tokens.forward

    def stop(**given):
        if len(tokens.encoded) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(**given)

    tokens.forward = stop
    with job.job(), pytest.raises(Preempted, match="the shards that are there are whole"):
        made(folder, tokens=tokens)
    assert len(list(folder.glob("*.safetensors"))) == 2
    with pytest.raises(DataError, match=r"is not finished; start what makes it again"):
        TextCache.open(folder)
    with job.job():
        made(folder, tokens=again)
    assert len(again.encoded) == 12
    assert contents(folder) == contents(tmp_path / "whole")


KILLED = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
write = cases.text_cache.save_tensors
def killed(path, *given, **more):
    if path.name == "shard_00002.safetensors":
        (path.parent / ".shard_00002.safetensors.0123abcd.tmp").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, *given, **more)
cases.text_cache.save_tensors = killed
cases.made(sys.argv[2])
"""


def test_killed_halfway_it_goes_on_from_the_whole_shards(tmp_path):
    folder, tokens = tmp_path / "cache", Letters()
    ended = subprocess.run([sys.executable, "-c", KILLED, __file__, folder], cwd=ROOT, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(folder.glob("shard_*.safetensors"))) == 2
    made(folder, tokens=tokens)
    made(tmp_path / "whole")
    assert len(tokens.encoded) == 12
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_full_disk_is_told_and_leaves_whole_shards(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(WriteError, match=r"shard_00000\.safetensors could not be written \(No space left on de"):
        made(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors*"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(texts=TEXTS[1:]), r"texts 22 \(.*\), now 21 \("),
        (dict(tokens=Letters(seed=3)), "tokens [0-9a-f]{16}, now [0-9a-f]{16}"),
        (dict(pooled=Letters(pooled=True)), "pooled none, now [0-9a-f]{16}"),
        (dict(dtype="fp32"), "dtype fp16, now fp32"),
        (dict(shard_size=7), "shard_size 5, now 7"),
    ],
)
def test_it_goes_on_with_the_same_alone(tmp_path, changed, said):
    made(tmp_path / "cache")
    with pytest.raises(ConfigError, match=rf"was begun otherwise \(.*{said}"):
        made(tmp_path / "cache", **changed)


# Who may read it


def test_another_encoder_is_refused_naming_both(cache):
    tokens, pooled, other = Letters(), Letters(4, pooled=True), Letters(seed=9)
    assert len(TextCache.open(cache, identities_of(tokens, pooled))) == 22
    with pytest.raises(DataError) as caught:
        TextCache.open(cache, identities_of(other, pooled))
    for part in ("text.tokens", tokens.identity[:12], other.identity[:12], "encode them with that one"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=f"text.pooled is {pooled.identity[:12]}, and none is asked for"):
        TextCache.open(cache, identities_of(tokens))


def test_a_text_that_is_not_there_is_named(cache):
    held = TextCache.open(cache)
    with pytest.raises(DataError, match="has no 'a picture of 7 cats'; encode the texts of this data, all of them"):
        held.get(["", "a picture of 7 cats"])
    with pytest.raises(ConfigError, match="takes one prompt or more"):
        held.get([])


def test_two_texts_whose_hashes_begin_alike_are_told_apart(cache, monkeypatch):
    monkeypatch.setattr(text_cache, "hash_of", lambda text: b"\0" * 31 + bytes([len(text)]))
    tokens = Letters()
    held = made(cache.parent / "alike", ["a", "bb", "ccc"], tokens=tokens, dtype="fp32")
    for text in ("", "a", "bb", "ccc"):
        assert torch.equal(held.get([text])["text"], tokens.encode([text])["text"])
    assert "dddd" not in held


def test_no_cache_and_an_unfinished_one_are_told(cache, tmp_path):
    with pytest.raises(DataError, match=r"no cache of texts in .*nowhere: it has no manifest\.json"):
        TextCache.open(tmp_path / "nowhere")
    (cache / "manifest.json").unlink()
    with pytest.raises(DataError, match="is not finished; start what makes it again: it goes on from there"):
        TextCache.open(cache)


def test_aligntok_check_knows_it(cache, capsys):
    assert check_folder(CheckRequest(folder=cache)) == []
    (cache / "shard_00002.safetensors").unlink()
    assert check_folder(CheckRequest(folder=cache))
    assert "shard_00002.safetensors" in capsys.readouterr().out
    (cache / "manifest.json").unlink()
    check_folder(CheckRequest(folder=cache))
    assert "is not finished" in capsys.readouterr().out


# Hostile files


def rewritten(cache, number=1, **changed):
    """Write a shard anew with other tensors, under checksum and manifest that fit it."""
    path = cache / f"shard_{number:05d}.safetensors"
    tensors = {**load_file(path), **changed}
    save_file({name: each for name, each in tensors.items() if each is not None}, path)
    signed(cache, path)


def signed(cache, path):
    path.with_name(path.name + ".sha256").unlink()
    manifest = json.loads((cache / "manifest.json").read_text())
    (entry,) = (each for each in manifest["shards"] if each["file"] == path.name)
    entry["bytes"] = path.stat().st_size
    (cache / "manifest.json").write_text(json.dumps(manifest))
    (cache / "checksums.json").unlink(missing_ok=True)


def declared(name, **entry):
    """Change what a shard's header declares of a tensor."""

    def spoil(cache):
        path = cache / "shard_00001.safetensors"
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        header[name].update(entry)
        head = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + content[8 + size :])
        signed(cache, path)

    return spoil


def offsets(change):
    def spoil(cache):
        given = load_file(cache / "shard_00001.safetensors")["offsets"]
        rewritten(cache, offsets=change(given.clone()))

    return spoil


def put(at, value):
    def change(given):
        given[at] = value
        return given

    return offsets(change)


HOSTILE = {
    "offsets beyond": put(-1, 10**6),
    "offsets before": put(0, -5),
    "offsets back": put(2, 0),
    "offsets far": put(2, 2**62),
    "offsets few": offsets(lambda given: given[:-1]),
    "offsets of floats": offsets(lambda given: given.double()),
    "offsets empty": offsets(lambda given: given[:0]),
    "rows of another type": lambda cache: rewritten(cache, rows=torch.zeros(100, 6)),
    "rows of another width": lambda cache: rewritten(cache, rows=torch.zeros(100, 7).half()),
    "rows of one axis": lambda cache: rewritten(cache, rows=torch.zeros(600).half()),
    "no rows": lambda cache: rewritten(cache, rows=torch.zeros(0, 6).half()),
    "rows missing": lambda cache: rewritten(cache, rows=None),
    "hashes missing": lambda cache: rewritten(cache, hashes=None),
    "hashes short": lambda cache: rewritten(cache, hashes=torch.zeros(5, 16, dtype=torch.uint8)),
    "hashes few": lambda cache: rewritten(cache, hashes=torch.zeros(4, 32, dtype=torch.uint8)),
    "hashes of others": lambda cache: rewritten(cache, hashes=torch.full((5, 32), 255, dtype=torch.uint8)),
    "pooled missing": lambda cache: rewritten(cache, pooled=None),
    "pooled few": lambda cache: rewritten(cache, pooled=torch.zeros(4, 4).half()),
    "something more": lambda cache: rewritten(cache, more=torch.zeros(4)),
    "a header that declares more": declared("rows", shape=[10**12, 6]),
    "a header that declares below 0": declared("rows", shape=[-100, -6]),
    "a header of another type": declared("rows", dtype="F64"),
    "a header that leads out": declared("rows", data_offsets=[0, 10**12]),
    "cut off": lambda cache: os.truncate(cache / "shard_00001.safetensors", 200),
    "empty": lambda cache: os.truncate(cache / "shard_00001.safetensors", 0),
    "gone": lambda cache: (cache / "shard_00001.safetensors").unlink(),
    "a pipe": lambda cache: [
        (cache / "shard_00001.safetensors").unlink(),
        os.mkfifo(cache / "shard_00001.safetensors"),
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_shard_that_is_not_what_it_should_be_is_named(cache, name):
    HOSTILE[name](cache)
    with pytest.raises(DataError, match=r"shard_0000|shards in .* are not in their order"):
        TextCache.open(cache)


def test_no_process_waits_for_a_pipe(cache, monkeypatch):
    HOSTILE["a pipe"](cache)
    monkeypatch.setattr(text_cache, "is_first_of_node", lambda: False)
    with pytest.raises(DataError, match=r"shard_00001\.safetensors.*no (regular )?file"):
        TextCache.open(cache)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["shards"][0].update(file="../x"), "names '../x', which is no file in that folder"),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), "which is no file in that folder"),
        (lambda m: m["shards"][0].update(texts=4), r"shard_00000\.safetensors cannot be read \(of 4 texts"),
        (lambda m: m["shards"][0].update(texts="many"), r"manifest\.json cannot be read"),
        (lambda m: m["shards"][0].update(bytes=7), "of 5 texts in 7 bytes"),
        (lambda m: m["shards"].clear(), "it names no shards"),
        (lambda m: m["shards"].reverse(), "are not in their order"),
        (lambda m: m.pop("shards"), "it has no 'shards'"),
        (lambda m: m["made"].update(format=2), "its format is 2, this version reads 1"),
        (lambda m: m["made"].update(dtype="fp8"), "it does not say of which encoders it is"),
        (lambda m: m["made"].update(dtype=["fp16"]), r"manifest\.json cannot be read"),
        (lambda m: m["made"].update(dim=-6), "it does not say of which encoders it is"),
        (lambda m: m["made"].update(dim=True), "it does not say of which encoders it is"),
        (lambda m: m["made"].update(max_tokens=3), r"its texts are of \d+ to \d+ rows"),
        (lambda m: m["made"].update(pooled_dim=None), "it does not say of which encoders it is"),
        (
            lambda m: m["made"].update(identities={"tokens": 3, "pooled": None}),
            "it does not say of which encoders it is",
        ),
        (lambda m: m.update(made=[]), r"manifest\.json cannot be read"),
    ],
)
def test_a_manifest_that_is_not_what_it_should_be_is_named(cache, change, said):
    (cache / "checksums.json").unlink()
    manifest = json.loads((cache / "manifest.json").read_text())
    change(manifest)
    (cache / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=said):
        TextCache.open(cache)


def test_a_changed_bit_is_found_by_one_process_of_a_machine(cache, monkeypatch):
    path = cache / "shard_00004.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"shard_00004\.safetensors cannot be read \(its SHA-256 is not the one in"):
        TextCache.open(cache)
    monkeypatch.setattr(text_cache, "is_first_of_node", lambda: False)
    monkeypatch.setattr(text_cache, "check_file", lambda *_: True)
    assert len(TextCache.open(cache)) == 22
