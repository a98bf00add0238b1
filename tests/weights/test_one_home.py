"""Weights have one home: whoever needs some asks the rooms of aligntok.weights for them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "aligntok"
#: Folders that keep what this project wrote itself: checkpoints, snapshots, files of our own.
OWN_FILES = ("engine", "training", "io", "loading.py")
#: Calls that fetch, that read a file of weights, and that put weights into a module.
FETCHES = {"urlopen", "hf_hub_download", "snapshot_download", "download_url_to_file", "load_state_dict_from_url"}
READS = {"load_file", "safe_open"}
#: By place: what looks like one of these and is none.
ELSEWHERE = {
    "plugins/component_checks.py:load_state_dict": "a copy of a module, in memory",
    "evaluation/references.py:safe_open": "statistics, not weights",
    "data/lightningdit.py:torch.load": "mean and deviation of latents, read as plain tensors",
    "distributed/parallel.py:load_state_dict": "a state that was read, shared out",
    "caching/text_cache.py:safe_open": "embeddings of texts, not weights",
    "distributed/dcp.py:safe_open": "shards of a checkpoint, checked by their sums",
}


def names(tree):
    """The functions that a module calls, by their last name, torch's own with its name before it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            yield text if text == "torch.load" else text.rpartition(".")[2], node.lineno


def does_it_itself(tree):
    return [(name, line) for name, line in names(tree) if name in FETCHES | READS | {"torch.load", "load_state_dict"}]


def test_weights_are_fetched_read_and_put_into_modules_in_one_place(trees):
    for place, tree in trees.items():
        if place.startswith("weights/"):
            continue
        for name, line in does_it_itself(tree):
            ours = place.startswith(OWN_FILES) and name not in FETCHES
            assert ours or f"{place}:{name}" in ELSEWHERE, f"{place}:{line} calls {name}; weights.hub and .load do that"


def test_whether_a_host_answers_is_asked_in_one_place():
    asked = [path.name for path in PACKAGE.rglob("*.py") if "urlopen(" in path.read_text()]
    assert asked == ["hub.py"]


def hashes_weights(tree):
    """The functions that take a digest of what a state dict holds."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    called = {f.name: {name for name, _ in names(f)} for f in functions}
    return [name for name, calls in called.items() if {"sha256", "state_dict"} <= calls]


def test_what_weights_are_known_by_is_made_in_one_place(trees):
    found = {file: hashes_weights(tree) for file, tree in trees.items()}
    assert {place: made for place, made in found.items() if made} == {"weights/load.py": ["weights_hash"]}


@pytest.mark.parametrize(
    "code", ["torch.load(path)", "hub.hf_hub_download(repo)", "load_file(path)", "self.net.load_state_dict(tensors)"]
)
def test_a_new_place_is_found_out(code):
    assert len(does_it_itself(ast.parse(code))) == 1


def test_a_new_digest_is_found_out():
    assert hashes_weights(ast.parse("def digest(m):\n    return hashlib.sha256(repr(m.state_dict()).encode())")) == [
        "digest"
    ]
