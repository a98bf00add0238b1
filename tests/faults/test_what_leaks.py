"""What is made to be shared holds neither a path of this machine nor its name."""

from __future__ import annotations

import json
import os
import socket

import numpy as np
import pytest
from PIL import Image

from aligntok.caching.cache import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.data.latent_shards import read_manifest
from aligntok.evaluation.reconstruction import evaluate_reconstruction
from aligntok.evaluation.report import write_report
from aligntok.evaluation.report.collect import find
from aligntok.evaluation.settings import ReconstructionSettings, ReportSettings
from aligntok.io.folders import lock_folder
from aligntok.io.places import page_without_places, with_places, without_places
from aligntok.loading import export_tokenizer
from aligntok.sampling.samples import sample_images
from aligntok.sampling.settings import SampleRequest
from aligntok.training.config import load_config
from aligntok.training.run import run
from aligntok.training.run_info import run_info_of

#: Told to whoever runs it, not made to be shared.
OWN = (".log",)


def told(folder, *words):
    """The files below a folder in whose names or contents one of the words is."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                content = os.path.relpath(path, folder).encode() + b"\0" + file.read()
            found += [path for word in words if word.encode() in content and not name.endswith(OWN)]
    return found


CONFIG = '''
"""A tiny run."""
model = dict(
    encoder=dict(type="ldm_cnn", pretrained=False, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4),
    decoder=dict(type="ldm_cnn", ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4),
    latent_dim=4,
    downsample_factor=2,
)
data = dict(
    train=dict(type="images", image_size=16, split="train"),
    val=dict(fraction=0.3),
    workers=0,
)
losses = dict(l1=dict(type="l1"))
validation = dict(perceptual=[])
stages = [dict(name="one", steps=1, global_batch_size=2, trainable=["adapter", "decoder"])]
generation = dict(
    generator=dict(
        type="lightning_dit",
        input_size=8,
        patch_size=1,
        in_channels=4,
        hidden_size=24,
        depth=1,
        num_heads=2,
        num_classes=2,
    ),
    latent_cache=dict(image_size=16, split="train", workers=0),
    steps=1,
    global_batch_size=2,
    data=dict(workers=0),
)
'''


def test_nothing_made_to_be_shared_tells_where_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-machine")
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"photographs/train/{name}").mkdir(parents=True)
        for i in range(2):
            picture = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / f"photographs/train/{name}/{i}.png")
    (tmp_path / "tiny.py").write_text(CONFIG)
    work, data, shared = tmp_path / "work", str(tmp_path / "photographs"), tmp_path / "shared"
    options = {"data_root": data, "work_dir": str(work)}
    info = run_info_of(tmp_path / "tiny.py", options)
    assert run(load_config(tmp_path / "tiny.py", options), run_info=info)
    images = dict(data=data, split="train", image_size=16, workers=0)
    cache_latents(CacheRequest(tokenizer=work / "tokenizer", out=shared / "cache", **images))
    sample_images(SampleRequest(run=work, num_samples=2, out=shared / "samples", sampling={"steps": 1}))
    evaluate_reconstruction(
        ReconstructionSettings(tokenizer=work, out=shared / "evaluation", perceptual=None, extractor=None, **images)
    )
    export_tokenizer(work, shared / "export")
    (shared / "pages").mkdir()
    for name, source in {"run": work, "evaluation": shared / "evaluation", "samples": shared / "samples"}.items():
        page = write_report(ReportSettings(runs=(source,), out=shared / f"pages/{name}.html"))
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page.read_text()
    assert told(tmp_path / "work", str(tmp_path), "secret-machine") == []
    assert told(shared, str(tmp_path), "secret-machine") == []
    # Read back, it leads where it was.
    kept = read_manifest(shared / "cache").encoding
    assert with_places(kept["tokenizer"]["source"], shared / "cache") == str(work / "tokenizer")
    (evaluated,) = find(shared / "evaluation").results
    assert evaluated.result.subject == str(work)
    assert json.loads((work / "run.json").read_text())["options"]["data_root"] == "../photographs"
    assert run(load_config(tmp_path / "tiny.py", options))  # the same settings as before


def test_a_lock_tells_a_process_and_no_host(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-machine")
    with lock_folder(tmp_path):
        assert told(tmp_path, "secret-machine") == []
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("{top}/a/work/x", "./x"),
        ("{top}/a/work", "."),
        ("{top}/b c/d", "../../b c/d"),
        ("inception_v3:{top}/b.pth", "inception_v3:../../b.pth"),
        ("data_root={top}/b, work_dir={top}/a/work", "data_root=../../b, work_dir=."),
        ("{top}/b, {top}/a/c", "../../b, ../c"),
        ("/etc/passwd", "passwd"),
        ("~/none/x", "x"),
        ("a/b", "a/b"),
        ("owner/name", "owner/name"),
        ("hf://owner/name", "hf://owner/name"),
        ("https://etc/passwd", "https://etc/passwd"),
        ("/m/01g317", "/m/01g317"),  # the name of a class
        ("1 / 2, 3/4", "1 / 2, 3/4"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_a_place_is_told_from_the_file(tmp_path, monkeypatch, given, kept):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a/work").mkdir(parents=True)
    (tmp_path / "b c/d").mkdir(parents=True)
    text, folder = given.format(top=tmp_path), tmp_path / "a/work"
    if given.startswith("~"):
        kept = "../../none/x"
    assert without_places({"x": [text], "docstring": text}, folder) == {"x": [kept], "docstring": text}
    again = with_places(kept, folder)
    assert again == (kept if given == "/etc/passwd" else os.path.expanduser(text))
    assert without_places(again, folder) == kept


def test_a_page_tells_no_place_and_keeps_what_is_embedded(tmp_path):
    picture = f'<a href="#a/b"><img src="data:image/png;base64,AA{tmp_path}/x"> see'
    page = f"<td>{tmp_path}/x.json</td>{picture} ({tmp_path}/y).</p>"
    assert page_without_places(page, tmp_path) == f"<td>x.json</td>{picture} (y).</p>"
