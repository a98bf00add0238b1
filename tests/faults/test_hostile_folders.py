"""Folders of strangers: whatever their files say, it is taken or refused in a sentence; nothing that they name runs."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from aligntok import registry
from aligntok.caching.cache import cache_latents
from aligntok.caching.settings import CacheRequest
from aligntok.data.latent_shards import (
    ENCODING,
    MANIFEST,
    LatentStatistics,
    Manifest,
    Moments,
    Shard,
    shard_path,
    write_shard,
)
from aligntok.data.latents import LatentDataset
from aligntok.data.sources import open_source
from aligntok.diffusers.export import write_autoencoder
from aligntok.engine.checkpoints import write_frozen
from aligntok.engine.saving import write_checkpoint
from aligntok.errors import AlignTokError, CheckpointError
from aligntok.evaluation.images import Samples
from aligntok.evaluation.report import write_report
from aligntok.evaluation.results import Result
from aligntok.evaluation.settings import ReportSettings
from aligntok.io.files import write_checksums, write_json
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.loading import STAGE_FORMAT, export_tokenizer, load_latent_diffusion, load_tokenizer
from aligntok.registry import shelves
from aligntok.sampling.samples import sample_images
from aligntok.sampling.settings import SampleRequest
from aligntok.tokenizer import Tokenizer

SHARD = "shard-00001-model-00001-of-00001.safetensors"
TINY = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4)
CANARY = "canary_of_strangers"


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """A module that nothing may import, with all that names in files could be after."""
    package = tmp_path / "python" / CANARY
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"from torch import nn\nopen({str(tmp_path / 'imported')!r}, 'w').close()\n"
        f"def run(*a, **k):\n    open({str(tmp_path / 'called')!r}, 'w').close()\n"
        "class Module(nn.Module):\n    def __init__(self, *a, **k):\n        run()\n"
    )
    (package / "registry.py").write_text("from . import run\nrun()\n")
    monkeypatch.syspath_prepend(str(tmp_path / "python"))
    yield
    assert CANARY not in sys.modules
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "called").exists()


#: What a stranger may write in the place of a name, and of a value that holds one.
NAMES = [CANARY, f"{CANARY}.run", f"{CANARY}.Module", f"{CANARY}.registry", f"{CANARY}:run", f"{CANARY}.nothing"]
TYPES = [*NAMES, [CANARY, "run"], {"type": f"{CANARY}.run"}, None, 7, True, "", "..", f"mlp.{CANARY}", "os.system"]


def tokenizer():
    parts = dict(encoder=dict(type="ldm_cnn", pretrained=False, **TINY), decoder=dict(type="ldm_cnn", **TINY))
    return Tokenizer(**parts, latent_dim=4, downsample_factor=2)


def generator():
    sizes = dict(input_size=4, patch_size=1, in_channels=4, hidden_size=24, depth=1, num_heads=2, num_classes=3)
    statistics = LatentStatistics((0.0,) * 4, (1.0,) * 4)
    return LatentDiffusion(dict(type="lightning_dit", **sizes), tokenizer(), statistics, (4, 4, 4))


def stage(folder, **described):
    write_frozen(folder, {}, {})
    write_json(folder / "stage.json", {"format": STAGE_FORMAT, "ema": None, "stage": "one", **described})


def saved_tokenizer(folder):
    tokenizer().save_pretrained(folder)


def trained_tokenizer(folder):
    made = tokenizer()
    stage(folder / "1_one", tokenizer=made.config)
    parts = {part: getattr(made, part).state_dict() for part in ("encoder", "adapter", "decoder")}
    write_checkpoint(folder / "1_one", 1, {"parts": parts, "ema": None}, keep=1)
    write_json(folder / "run.json", {"config": "c.py", "docstring": "", "options": {}})
    write_json(folder / "1_one/result.json", {"step": 1, "seconds": 1.0, "metrics": {"psnr": 1.0}})


def saved_generator(folder):
    generator().save_pretrained(folder)


def trained_generator(folder):
    made = generator()
    stage(folder / "generation", **made.config)
    made.tokenizer.save_pretrained(folder / "generation/tokenizer")
    content = {"parts": {"generator": made.generator.state_dict()}, "ema": None}
    write_checkpoint(folder / "generation", 1, content, keep=1)


def cache(folder):
    write_shard(
        shard_path(folder, 0), torch.rand(2, 1, 4, 2, 2), torch.zeros(2, dtype=torch.int32), torch.arange(2), []
    )
    shard = Shard(shard_path(folder, 0))
    told = {"format": 1, "tokenizer": {"identity": "x", "source": "y"}, "data": {}, "hflip": False, "dtype": "fp32"}
    write_json(folder / ENCODING, told)
    entries = [{"file": shard.path.name, "images": shard.images, "bytes": shard.bytes}]
    statistics = LatentStatistics.of(Moments.of(torch.rand(2, 4, 2, 2)))
    write_json(folder / MANIFEST, Manifest(told, 2, (4, 2, 2), statistics, (), entries, []).as_json())


def samples(folder):
    (folder / "images").mkdir(parents=True)
    write_json(folder / "samples.json", {"format": 1, "num": 1, "finished": True, "generator": {"source": "x"}})


def evaluation(folder):
    Result("reconstruction", "x", {"psnr": 1.0}, {"samples": {"generator": {"source": "y"}}}).write(folder)


def data_set(folder):
    (folder / "data").mkdir(parents=True)
    write_json(folder / "dataset_info.json", {"features": {"image": {"_type": "Image"}}, "builder_name": "parquet"})
    write_json(folder / "state.json", {"_data_files": [{"filename": "data-0.arrow"}], "_format_type": None})


def diffusers_pipeline(folder):
    folder.mkdir(parents=True)
    small = {"block_out_channels": [4], "layers_per_block": 1, "norm_num_groups": 2}
    write_json(
        folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    )
    write_json(folder / "vae/config.json", {"_class_name": "AutoencoderKL", "latent_channels": 4, **small})


def exported_tokenizer(folder):
    assert write_autoencoder(folder, tokenizer()) == "AutoencoderAlignTok"


#: Of models, and of what is no model: a loader of models refuses that before it reads any of it.
MODELS = [
    saved_tokenizer,
    trained_tokenizer,
    saved_generator,
    trained_generator,
    diffusers_pipeline,
    exported_tokenizer,
]
FOLDERS = [*MODELS, cache, samples, evaluation, data_set]


def everything_that_reads(folder, out):
    """Every way in which a folder that was downloaded is used."""
    yield lambda: load_tokenizer(folder)
    yield lambda: Tokenizer.from_pretrained(folder)
    yield lambda: load_latent_diffusion(folder)
    yield lambda: export_tokenizer(folder, out / "export")
    yield lambda: write_report(ReportSettings(runs=(folder,), out=out / "report.html"))
    yield lambda: LatentDataset(folder)[0]
    yield lambda: Samples(folder)
    yield lambda: open_source(folder)
    yield lambda: sample_images(SampleRequest(run=folder, num_samples=1, out=out / "samples"))
    yield lambda: cache_latents(CacheRequest(tokenizer=folder, data=out / "photographs", out=out / "cache", workers=0))


def poisoned(content, value):
    """Copies of JSON, each with one value, or one more `type`, that is a stranger's."""
    if isinstance(content, dict):
        for key in [*content, "type", "_target_", "_class_name", "_component_", "trusted", "components", "plugins"]:
            yield {**content, key: value}
        for key, inner in content.items():
            yield from ({**content, key: each} for each in poisoned(inner, value))
    elif isinstance(content, list):
        for place, inner in enumerate(content[:2]):
            yield from ([*content[:place], each, *content[place + 1 :]] for each in poisoned(inner, value))


def read_by_all(folder, out):
    for read in everything_that_reads(folder, out):
        with suppress(AlignTokError):
            read()


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_no_name_in_a_folder_runs_code(make, tmp_path):
    """Every type of every component in every file: dotted, undotted, scoped, nested, no string at all."""
    folder = tmp_path / "folder"
    make(folder)
    (tmp_path / "out/photographs").mkdir(parents=True)
    for file in sorted(folder.rglob("*.json")):
        kept = file.read_text()
        content = json.loads(kept)
        holders = [content, *registry._configs_in(content)]
        for number, holder in enumerate(holders):
            for name in TYPES[number % 3 :: 3]:
                before = dict(holder)
                holder["type"] = name
                file.write_text(json.dumps(content))
                load = load_latent_diffusion if "generator" in make.__name__ else load_tokenizer
                with suppress(AlignTokError):
                    load(folder)
                holder.clear()
                holder.update(before)
        file.write_text(kept)


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_every_command_is_given_a_few_of_them(make, tmp_path):
    folder = tmp_path / "folder"
    make(folder)
    (tmp_path / "out/photographs").mkdir(parents=True)
    for file in sorted(folder.rglob("*.json")):
        kept = file.read_text()
        for content in [*poisoned(json.loads(kept), {"type": f"{CANARY}.run"})][:: 37 if len(kept) > 400 else 9]:
            file.write_text(json.dumps(content))
            read_by_all(folder, tmp_path / "out")
        file.write_text(kept)


@pytest.mark.nightly
@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_every_command_is_given_all_of_them(make, tmp_path):
    folder = tmp_path / "folder"
    make(folder)
    (tmp_path / "out/photographs").mkdir(parents=True)
    for file in sorted(folder.rglob("*.json")):
        kept = file.read_text()
        for value in (f"{CANARY}.run", {"type": f"{CANARY}.run"}):
            for content in poisoned(json.loads(kept), value):
                file.write_text(json.dumps(content))
                read_by_all(folder, tmp_path / "out")
        file.write_text(kept)


@pytest.mark.parametrize("shelf", sorted(shelves()))
@pytest.mark.parametrize("name", TYPES, ids=str)
def test_no_registry_takes_a_name_of_a_file(shelf, name):
    for config in ({"type": name}, {"type": next(iter(shelves()[shelf]), "x"), "inner": [{"type": name}]}):
        with pytest.raises(AlignTokError):
            shelves()[shelf].build(config, trusted=False)


class Evil:
    def __reduce__(self):
        return exec, (f"import {CANARY}; {CANARY}.run()",)


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoints/step_00000001.pt", "checkpoints/step_00000002.pt", "checkpoints/.metadata", ".metadata"),
        *(
            f"checkpoints/step_00000001/{name}"
            for name in (".metadata", "__0_0.distcp", "state.json", "checksums.json")
        ),
        *(f"checkpoints/step_00000001/{SHARD}", "frozen.safetensors"),
    ],
)
def test_no_pickle_is_run(name, tmp_path):
    trained_tokenizer(tmp_path / "folder")
    file = tmp_path / "folder/1_one" / name
    place = file.parent
    torch.save({"format": 2, "x": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "out").mkdir()
    for content in ((tmp_path / "evil.pt").read_bytes(), pickle.dumps(Evil())):
        file.write_bytes(content)
        if place.name.startswith("step_") and file.name != "checksums.json":  # as if it had been written so
            write_checksums(place, [each.name for each in place.iterdir() if each.name != "checksums.json"])
        read_by_all(tmp_path / "folder", tmp_path / "out")
        read_by_all(tmp_path / "folder/1_one", tmp_path / "out")
    for suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors"):
        alone = Path(tmp_path / f"alone{suffix}")
        alone.write_bytes(pickle.dumps(Evil()))
        with pytest.raises(AlignTokError):
            load_tokenizer(alone)


TENSOR = {"$tensor": "parts/decoder/conv_out.bias"}
DEEP = json.loads("[" * 900 + "]" * 900)
#: What a stranger may write in ``state.json``, and in what says of which tensors a shard's are parts.
STATES = [
    *({"parts": parts} for parts in (5, None, [], "x", {"adapter": 5}, {"adapter": {"w": 5}}, TENSOR, DEEP)),
    *({"parts": {"adapter": {"w": {"$tensor": name}}}} for name in (5, None, "", "../x", "parts", [], {})),
    *({"parts": {"adapter": {"w": each}}} for each in ({"$items": 5}, {"$items": [5]}, {"$items": [[{}, 1]]})),
    *({"parts": {"adapter": {"w": each}}} for each in ({"$tuple": 5}, {"$float": "x"}, {"$float": [1]}, [TENSOR])),
    *({"step": step} for step in ("1", None, 1.5, [1], True, -1, 2, 10**6)),
    *({"format": number} for number in (1, 2, 4, "3", None, True)),
    *({"ema": ema, "ema_inference": 0.05} for ema in (5, {"averages": 5}, {"averages": {"0.05": 5}}, [TENSOR])),
]
OFFSETS = [[-1], [1], [2**60], [0, 0], [], ["0"], [None], [1.5], 0, None, "x"]


def rewritten(place, **changes):
    state = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps({**state, **changes}))
    write_checksums(place, [each.name for each in place.iterdir() if each.name != "checksums.json"])


@pytest.mark.parametrize("changes", STATES, ids=lambda changes: str(changes)[:60])
def test_a_checkpoint_of_strangers_is_taken_or_refused_in_a_sentence(tmp_path, changes):
    trained_tokenizer(tmp_path)
    stage = tmp_path / "1_one"
    rewritten(stage / "checkpoints/step_00000001", **changes)
    with pytest.raises(AlignTokError) as caught:
        load_tokenizer(tmp_path, weights="ema" if "ema" in changes else None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_a_shard_that_lies_about_its_place_is_refused(tmp_path, offsets):
    """Or is taken as what it says; nothing is made that is larger than the file."""
    trained_tokenizer(tmp_path)
    place = tmp_path / "1_one/checkpoints/step_00000001"
    with safe_open(place / SHARD, "pt") as opened:
        tensors, said = {name: opened.get_tensor(name) for name in list(opened.keys())}, opened.metadata()
    where = json.loads(said["DCP_SHARDING_INFO"])
    where["parts/decoder/conv_out.bias"]["saved_offsets"] = offsets
    save_file(tensors, place / SHARD, {**said, "DCP_SHARDING_INFO": json.dumps(where)})
    rewritten(place)
    with pytest.raises(CheckpointError, match="it is damaged or incomplete"):
        load_tokenizer(tmp_path)
    for text in ("", "5", "{}", "[" * 100_000, "null"):
        save_file(tensors, place / SHARD, {**said, "DCP_SHARDING_INFO": text})
        rewritten(place)
        with suppress(CheckpointError):
            load_tokenizer(tmp_path)


def test_a_tensor_that_two_shards_hold_is_refused(tmp_path):
    """Where the second is part of it, too; what no file that is listed holds is not read."""
    trained_tokenizer(tmp_path)
    place = tmp_path / "1_one/checkpoints/step_00000001"
    shutil.copy(place / SHARD, place / "shard-00002.safetensors")
    assert isinstance(load_tokenizer(tmp_path), nn.Module)
    rewritten(place)
    with pytest.raises(CheckpointError, match="it is damaged or incomplete"):
        load_tokenizer(tmp_path)


def test_the_folders_are_sound_as_they_are(tmp_path):
    for make in (saved_tokenizer, trained_tokenizer, saved_generator, trained_generator, cache):
        make(tmp_path / make.__name__)
    assert isinstance(load_tokenizer(tmp_path / "saved_tokenizer"), nn.Module)
    assert isinstance(load_tokenizer(tmp_path / "trained_tokenizer"), nn.Module)
    assert isinstance(load_latent_diffusion(tmp_path / "saved_generator"), nn.Module)
    assert isinstance(load_latent_diffusion(tmp_path / "trained_generator"), nn.Module)
    assert len(LatentDataset(tmp_path / "cache")) == 2
