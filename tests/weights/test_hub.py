"""Pretrained weights: where files are looked for, and a hub or an address that can't be reached."""

from __future__ import annotations

import time

import pytest
import timm
import torch
from safetensors.torch import save_file

from aligntok.encoders.timm import TimmEncoder
from aligntok.errors import WeightsError
from aligntok.weights import hub

TINY = "vit_tiny_patch16_224"
SHORT = {"depth": 2}


@pytest.fixture
def no_files(monkeypatch, tmp_path):
    """Neither cache nor hub: an address of the range set aside for documentation, where nobody answers."""
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://192.0.2.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_hub_that_does_not_answer_is_one_error_within_five_seconds(no_files):
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        TimmEncoder(f"{TINY}.augreg_in21k_ft_in1k")
    assert time.monotonic() - start < 5
    for part in (
        TINY,
        "192.0.2.1/timm/vit_tiny",
        "model.safetensors",
        "checkpoints/timm--vit_tiny",
        'pretrained="/path/',
    ):
        assert part in str(caught.value)


def test_the_offline_switch_is_heeded_at_once(no_files, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "unreachable", lambda url: pytest.fail("the network was tried"))
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        TimmEncoder(f"{TINY}.augreg_in21k_ft_in1k")


def test_a_file_placed_where_the_error_says_is_used(no_files):
    place = hub.placed_file("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors")
    place.parent.mkdir(parents=True)
    given = timm.create_model(TINY, **SHORT).state_dict()
    save_file(given, place)
    own = TimmEncoder(TINY, model_args=SHORT).backbone.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in own.items())


def test_a_file_in_the_hubs_cache_is_used_without_asking_the_hub(no_files, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "unreachable", lambda url: pytest.fail("the network was tried"))
    place = tmp_path / "model.safetensors"
    given = timm.create_model(TINY, **SHORT).state_dict()
    save_file(given, place)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name, revision=None: str(place))
    own = TimmEncoder(TINY, model_args=SHORT).backbone.state_dict()
    assert torch.equal(own["norm.weight"], given["norm.weight"])


def test_a_reachable_hub_is_asked_for_the_file(no_files, monkeypatch, tmp_path):
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def download(repo, filename, revision=None):
        asked.append((repo, filename, revision))
        if filename == "a":
            raise EntryNotFoundError("a")
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, "unreachable", lambda url: "")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert hub.fetch("o/r@v1", "me", ("a", "b")) == tmp_path / "b"
    assert asked == [("o/r", "a", "v1"), ("o/r", "b", "v1")]
    with pytest.raises(WeightsError, match="has none of a"):
        hub.fetch("o/r", "me", ("a",))


def test_a_connection_that_is_lost_is_told_from_a_file_that_there_is_not(no_files, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def download(repo, filename, revision=None):
        raise EntryNotFoundError("404") if filename in absent else LocalEntryNotFoundError("429 Too Many Requests")

    absent = []
    monkeypatch.setattr(hub, "unreachable", lambda url: "")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(WeightsError, match="cannot be fetched: LocalEntryNotFoundError: 429 Too Many Requests"):
        hub.fetch("o/r", "me", ("a", "b"))
    repository = hub.Repository("o/r", "me")
    for wanted in (repository.file, repository.find):  # a tokenizer would be made of fewer files
        with pytest.raises(WeightsError, match="a of the hub's .* cannot be had: LocalEntryNotFoundError: 429"):
            wanted("a")
    absent += ["a", "b"]
    assert repository.find("a", "b") is None
    with pytest.raises(WeightsError, match="the repository has none of a, b"):
        hub.fetch("o/r", "me", ("a", "b"))


def test_a_plain_address_that_does_not_answer_is_one_error(no_files, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    with pytest.raises(WeightsError, match=r"(?s)192.0.2.1.*place it at .*checkpoints/w-[0-9a-f]{12}\.pth"):
        hub.fetch("http://192.0.2.1/w.pth", "me")


def test_addresses_that_end_alike_have_files_of_their_own(no_files, monkeypatch):
    monkeypatch.setattr(hub, "unreachable", lambda url: "")
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, place, *_, **__: hub.Path(place).write_text(url))
    urls = [f"https://{host}/{run}/model.safetensors" for host in "ab" for run in "12"]
    urls += ["https://a/model.safetensors?download=true", "https://a/model.safetensors?version=2"]
    files = [hub.fetch(url, "me") for url in (*urls, *urls)]
    assert [file.read_text() for file in files] == [*urls, *urls]
    assert {file.suffix for file in files} == {".safetensors"}


def test_a_file_that_is_there_is_held_against_its_sha256(no_files):
    place = hub.placed_url("https://a/w-12.pth")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    digest = "0" * 8
    assert place.name == "w-12.pth"
    assert hub.fetch("https://a/w-12.pth", "me", published=True) == place
    assert hub.fetch("https://a/w-12.pth", "me", sha256=hub.sha256_of(place)[:8]) == place
    with pytest.raises(WeightsError, match=f"me: {place} is not the file of https://a/w-12.pth, whose .* {digest};"):
        hub.fetch("https://a/w-12.pth", "me", sha256=digest)


def test_a_file_placed_by_hand_is_of_its_revision_and_name(no_files):
    names = [
        hub.placed_file(repo, file).name
        for repo in ("o/r", "o/r@v1")
        for file in ("model.safetensors", "open_clip_pytorch_model.bin", "ema.safetensors", "sub/model.safetensors")
    ]
    assert names[:4] == ["o--r.safetensors", "o--r.bin", "o--r--ema.safetensors", "o--r--sub--model.safetensors"]
    assert len({*names}) == 8
    place = hub.placed_file("o/r", "model.safetensors")
    place.parent.mkdir(parents=True)
    place.touch()
    assert hub.fetch("o/r", "me", ("model.safetensors",)) == place
    with pytest.raises(WeightsError, match="place it at .*/o--r@v1.safetensors"):
        hub.fetch("o/r@v1", "me", ("model.safetensors",))
