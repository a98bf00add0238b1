"""Folders of a hub: a stand-in on this machine serves them, has none, refuses, or is not there at all."""

from __future__ import annotations

import http.server
import json
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import aligntok
from aligntok import LatentDiffusion, Tokenizer
from aligntok.data.latent_shards import LatentStatistics
from aligntok.errors import WeightsError

PART = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8)
GENERATOR = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=4, num_classes=5)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = Tokenizer({**PART, "pretrained": False}, None, PART, 4, 2)
    statistics = LatentStatistics((0.1, -0.2, 0.3, 0.0), (1.5, 0.5, 1.0, 2.0))
    made = LatentDiffusion(GENERATOR, tokenizer, statistics, (4, 4, 4), sampling=dict(steps=2))
    for parameter in made.generator.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.eval()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as a hub does about models of `folders`; names with "gated" or "secret" are refused."""

    folders: dict[str, object] = {}
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").removeprefix("api/models/").split("/")
        name = "/".join(parts[:2])
        folder = self.folders.get(name)
        revision = parts[parts.index("revision") + 1] if "revision" in parts else "main"
        if folder is None:
            kind = "GatedRepo" if "gated" in name else "RepoNotFound"
            self.answer(403 if "gated" in name else 404, b"{}", {"X-Error-Code": kind})
        elif revision not in ("main", COMMIT):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif self.path.startswith("/api/"):
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files = [dict(path=str(path.relative_to(folder)), size=path.stat().st_size) for path in paths]
            tree = [dict(type="file", oid=str(hash(each["path"])), **each) for each in files]
            about = dict(id=name, sha=COMMIT, private=False, tags=[], siblings=[])
            self.answer(200, json.dumps(tree if "tree" in parts else about).encode(), {})
        else:
            file = folder / "/".join(parts[4:])
            whole = file.read_bytes() if file.is_file() else b""
            code = {} if file.is_file() else {"X-Error-Code": "EntryNotFound"}
            headers = {"ETag": f'"{hash(whole)}"', "X-Repo-Commit": COMMIT}
            self.answer(200 if file.is_file() else 404, whole, {**headers, **code})

    do_HEAD = do_GET

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *told):
        pass


@pytest.fixture
def hub(model, monkeypatch, tmp_path):
    """The stand-in, with a tokenizer and a generator on it; the hub's cache is empty."""
    model.save_pretrained(tmp_path / "saved")
    handler = type("OneHub", (Hub,), dict(folders={}, asked=[]))
    handler.folders = {"me/generator": tmp_path / "saved", "me/tokenizer": tmp_path / "saved/tokenizer"}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in dict(ENDPOINT=url, HF_HUB_OFFLINE=False, HF_HUB_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield SimpleNamespace(url=url, asked=handler.asked, cache=tmp_path / "cache")
    server.shutdown()
    server.server_close()


def test_a_generator_and_a_tokenizer_of_a_hub_are_those_that_were_saved(hub, model, monkeypatch, capfd):
    x = torch.rand(1, 3, 8, 12)
    loaded = aligntok.load_latent_diffusion("me/generator")
    assert torch.equal(loaded.sample([0, 4], [3, 1]), model.sample([0, 4], [3, 1]))
    tokenizer = aligntok.load_tokenizer("me/tokenizer", revision=COMMIT)
    assert torch.equal(tokenizer.encode(x), model.tokenizer.encode(x))
    assert capfd.readouterr().out == ""
    # what was fetched once is there without the hub
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(hub.asked)
    for name, options in (("me/generator", {}), ("me/generator", dict(local_files_only=True))):
        assert torch.equal(aligntok.load_latent_diffusion(name, **options).sample([1], [2]), model.sample([1], [2]))
    assert len(hub.asked) == before


def test_a_file_of_a_hub_that_came_damaged_is_told(hub, model):
    aligntok.load_tokenizer("me/tokenizer")
    (file,) = hub.cache.rglob("model.safetensors")
    held = file.resolve()
    held.write_bytes(held.read_bytes()[:-4] + b"1234")
    with pytest.raises(WeightsError, match="its SHA-256"):
        aligntok.load_tokenizer("me/tokenizer")


@pytest.mark.parametrize("load", [aligntok.load_tokenizer, aligntok.load_latent_diffusion])
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("me/nothing", {}, r"no such folder here and no such repository at http://127.*, or a private one"),
        ("me/gated", {}, r"access to it is granted on its page at http://127.*`hf auth login`"),
        ("me/tokenizer", dict(revision="v9"), "the repository has no revision 'v9'"),
        ("me/none here", {}, "there is no such folder, and it is no name of a repository"),
        ("me/nothing", dict(local_files_only=True), r"nor a whole copy in the hub's cache \(local_files_only=True\)"),
    ],
)
def test_what_a_hub_does_not_have_is_one_sentence_that_says_why(hub, load, name, options, said):
    with pytest.raises(WeightsError, match=rf"(?s)cannot load a \w+ from '{name}': .*{said}.*give a folder written by"):
        load(name, **options)


@pytest.mark.parametrize("load", [aligntok.load_tokenizer, aligntok.load_latent_diffusion])
def test_a_hub_that_is_off_or_not_there_is_told_from_one_that_has_nothing(hub, load, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="nor a whole copy in the hub's cache .HF_HUB_OFFLINE is set."):
        load("me/tokenizer")
    assert hub.asked == []
