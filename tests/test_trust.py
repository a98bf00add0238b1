"""What a file says is data: no name in it is imported, no path in it leads out of its folder."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mmengine.registry
import pytest
import torch
from torch import nn

from aligntok import load_latent_diffusion, load_tokenizer, registry
from aligntok.data.latent_shards import LatentStatistics
from aligntok.engine.checkpoints import write_frozen
from aligntok.engine.saving import write_checkpoint
from aligntok.errors import ConfigError, DataError, UnknownComponentError
from aligntok.io.files import inside
from aligntok.latent_diffusion import LatentDiffusion
from aligntok.loading import STAGE_FORMAT, export_tokenizer
from aligntok.registry import ADAPTERS, ENCODERS, dotted_components, loading_line
from aligntok.tokenizer import Tokenizer
from aligntok.training.config import load_config
from aligntok.training.run import run

TINY = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4)
#: Whose configs are built without `trusted=False`, by file and function.
USERS_OWN = {
    "evaluation/metrics/features.py": {"build_extractor": "a word or a dict from the caller"},
    "evaluation/latent_analysis.py": {"load_models": "the caller's reference encoder"},
    "evaluation/metrics/online.py": {"__init__": "the caller's distances", "check": "the same"},
    "engine/optim.py": dict.fromkeys(("__call__", "_take_a_step", "_state_bytes", "kept"), "the training's config"),
    "engine/schedules.py": {"_build": "the training's config"},
    "plugins/component_checks.py": {"build": "a plugin's author"},
    "evaluation/comparison/criterion.py": {"distance_names": "the comparison's extractors, without weights"},
    "evaluation/cost/__init__.py": {"_measure": "the caller's config"},
    "evaluation/cost/count.py": {"build_encoder": "the caller's encoder"},
    "training/alignment/model.py": {
        "__init__": "the training's config",
        "_build_teacher": "the same",
    },
    "training/generation/__init__.py": {
        "look": "the training's config",
        "data_to_measure": "the same",
        "_beside_nothing": "the same",
    },
    "training/generation/data.py": {"build": "the training's config"},
    "training/generation/validation.py": {"build": "the training's config"},
    "sampling/guidance_sweep.py": {"sweep_guidance": "the caller's metrics"},
    "caching/encoder.py": {"latent_statistics": "the training's config"},
    "training/alignment/objective.py": {"__init__": "the training's config"},
    "training/builder.py": {"build_runner": "the training's config"},
    "training/alignment/__init__.py": dict.fromkeys(("build_data", "validation", "check"), "the training's config"),
    "published.py": {"_tokenizer": "written in the package"},
}
BUILDERS = {"Tokenizer", "LatentDiffusion"}


def built_without_distrust(tree, builders):
    """The functions that build components, tokenizers or generators from a config that they take for the user's."""
    for function in ast.walk(tree):
        for call in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            owner = ast.unparse(getattr(call.func, "value", call.func)).rpartition(".")[2]
            builds = (name == "build" and (owner.isupper() or owner == "registry")) or (
                name in builders and (call.keywords or call.args)
            )
            if builds and "trusted" not in ast.unparse(call):
                yield function.name


def test_whoever_builds_says_whose_config_it_is(trees):
    found = {}
    for name, tree in trees.items():
        own = {"cls"} if name in ("tokenizer.py", "latent_diffusion.py") else set()
        functions = set(built_without_distrust(tree, BUILDERS | own))
        if functions:
            found[name] = functions
    assert found == {name: set(functions) for name, functions in USERS_OWN.items()}


def test_names_out_of_files_are_joined_to_folders_by_inside_alone(trees):
    """No `folder / entry["file"]`: such a subscript is a name out of a file, but in a config, which is one's own."""
    found = [
        f"{file}:{node.lineno}: {ast.unparse(node)}"
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Subscript)
        and isinstance(node.right.slice, ast.Constant)
        and isinstance(node.right.slice.value, str)
        and not isinstance(node.left, ast.Subscript)
    ]
    assert [line.split(":")[0] for line in found] == [], found


# Names


def tokenizer(**parts):
    given = dict(encoder=dict(type="ldm_cnn", pretrained=False, **TINY), decoder=dict(type="ldm_cnn", **TINY))
    return Tokenizer(**{**given, **parts}, latent_dim=4, downsample_factor=2)


def saved_tokenizer(folder):
    tokenizer().save_pretrained(folder)
    return folder / "config.json", ("encoder", "adapter", "decoder")


def stage(folder):
    made = tokenizer()
    parts = {"encoder": made.encoder, "adapter": made.adapter, "decoder": made.decoder}
    write_frozen(folder, parts, {})
    write_checkpoint(folder, 1, {"parts": {}, "ema": None}, keep=1)
    (folder / "stage.json").write_text(json.dumps({"format": STAGE_FORMAT, "tokenizer": made.config, "ema": None}))
    return folder / "stage.json", ("encoder", "adapter", "decoder")


def generator():
    return LatentDiffusion(
        dict(
            type="lightning_dit",
            input_size=4,
            patch_size=1,
            in_channels=4,
            hidden_size=24,
            depth=1,
            num_heads=2,
            num_classes=3,
        ),
        tokenizer(),
        LatentStatistics((0.0,) * 4, (1.0,) * 4),
        (4, 4, 4),
    )


def saved_generator(folder):
    generator().save_pretrained(folder)
    return folder / "latent_diffusion.json", ("generator",)


def training_of_a_generator(folder):
    made = generator()
    made.tokenizer.save_pretrained(folder / "tokenizer")
    write_frozen(folder, {}, {})
    write_checkpoint(folder, 1, {"parts": {"generator": made.generator.state_dict()}, "ema": None}, keep=1)
    (folder / "stage.json").write_text(json.dumps({"format": STAGE_FORMAT, **made.config, "ema": None}))
    return folder / "stage.json", ("generator",)


FOLDERS = {
    saved_tokenizer: load_tokenizer,
    stage: load_tokenizer,
    saved_generator: load_latent_diffusion,
    training_of_a_generator: load_latent_diffusion,
}


@pytest.fixture(params=FOLDERS, ids=lambda make: make.__name__)
def data(request, tmp_path):
    """(JSON file, names of the components in it, loader of its folder) of everything that has components in files."""
    file, parts = request.param(tmp_path / "folder")
    return file, parts, FOLDERS[request.param]


def put(file, part, config):
    content = json.loads(file.read_text())
    holder = content["tokenizer"] if "encoder" in content.get("tokenizer", {}) else content
    holder[part] = {**holder[part], **config}
    file.write_text(json.dumps(content))


def no_imports(monkeypatch):
    """Refuse every import by name, and every process, from here on."""

    def stop(*arguments, **_):
        raise AssertionError(f"imported or started: {arguments}")

    def import_what_is_there(name, *_):
        return sys.modules[name] if name in sys.modules else stop(name)  # huggingface_hub's own names come late

    monkeypatch.setattr(registry, "import_object", stop)
    monkeypatch.setattr(importlib, "import_module", import_what_is_there)
    monkeypatch.setattr(subprocess, "Popen", stop)
    monkeypatch.setattr(os, "system", stop)


def test_the_folders_load_as_they_are(data):
    file, _, load = data
    assert isinstance(load(file.parent), nn.Module)


@pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "aligntok.adapters.MLPAdapter", "a.b"])
def test_a_dotted_name_in_a_file_is_refused_before_any_import(data, monkeypatch, name):
    file, parts, load = data
    load(file.parent)  # what is registered is imported now
    for part in parts:
        kept = file.read_text()
        put(file, part, {"type": name, "args": ["touch", "x"]})
        with monkeypatch.context() as patch:
            no_imports(patch)
            loader = sys.modules["aligntok.loading"]
            with pytest.raises(UnknownComponentError) as caught:
                getattr(loader, load.__name__)(file.parent)
        text = str(caught.value)
        assert f"'{name}' stands in a file, of which only registered names are taken (" in text
        assert "dotted names are for configs that you wrote yourself" in text
        assert loading_line(load.__name__, [name]) in text
        file.write_text(kept)


@pytest.mark.parametrize(
    "inner",
    [
        {"hidden": {"type": "subprocess.Popen"}},
        {"hidden": [{"deep": {"type": "subprocess.Popen", "args": "x"}}]},
        {"hidden": {"type": "IterTimerHook"}},
        {"type": ["mlp"]},
        {"type": None},
        {"type": {"type": "mlp"}},
    ],
)
def test_what_hides_inside_is_refused_too(data, inner):
    file, parts, load = data
    put(file, parts[-1], inner)
    with pytest.raises(UnknownComponentError):
        load(file.parent)


@pytest.mark.parametrize(
    "opening",
    [
        {"pretrained": "/etc/passwd"},
        {"pretrained": True},
        {"model_args": {"checkpoint_path": "/etc/passwd"}},
        {"model_args": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}},
        {"config": [{"cache_dir": "/etc"}]},
    ],
)
def test_a_file_names_no_other_file_to_open(data, opening):
    file, parts, load = data
    put(file, parts[-1], opening)
    with pytest.raises(ConfigError, match=r"stands in a file with \w+=.*, which would open other files"):
        load(file.parent)


def test_a_name_that_mmengine_knows_is_none_of_a_file(data):
    assert mmengine.registry.HOOKS.get("IterTimerHook")
    file, parts, load = data
    put(file, parts[0], {"type": "IterTimerHook"})
    with pytest.raises(UnknownComponentError, match="named 'IterTimerHook'"):
        load(file.parent)


def test_a_file_cannot_declare_itself_trusted(data):
    file, parts, load = data
    content = json.loads(file.read_text())
    for holder in (content, content.get("tokenizer", {})):
        if isinstance(holder, dict):
            holder.update(trusted=True, components={"subprocess.Popen": "subprocess.Popen"})
    file.write_text(json.dumps(content))
    put(file, parts[0], {"type": "subprocess.Popen"})
    with pytest.raises(UnknownComponentError, match="stands in a file"):
        load(file.parent)


class Mine(nn.Module):
    """An adapter that no plugin registers."""

    def __init__(self, in_dim, latent_dim):
        super().__init__()
        self.latent_dim = latent_dim
        self.conv = nn.Conv2d(in_dim, latent_dim, 1)

    def forward(self, x):
        return self.conv(x)

    @property
    def last_layer(self):
        return self.conv.weight


def test_a_class_that_is_given_is_taken(tmp_path, monkeypatch):
    made = tokenizer(adapter=dict(type=f"{__name__}.Mine"))
    made.save_pretrained(tmp_path)
    name = f"{__name__}.Mine"
    with pytest.raises(UnknownComponentError) as caught:
        load_tokenizer(tmp_path)
    assert f'load_tokenizer(folder, components={{"{name}": Mine}})' in str(caught.value)
    found = load_tokenizer(tmp_path, components={name: Mine})
    with pytest.raises(UnknownComponentError):
        export_tokenizer(tmp_path, tmp_path / "out")
    exported = export_tokenizer(tmp_path, tmp_path / "out", components={name: Mine})
    assert load_tokenizer(exported, components={name: Mine}).identity == made.identity
    assert isinstance(found.adapter, Mine)
    assert found.identity == made.identity
    assert torch.equal(found.adapter.conv.weight, made.adapter.conv.weight)
    with monkeypatch.context() as patch:
        patch.setitem(ADAPTERS._module_dict, name, Mine)  # as a plugin would
        assert isinstance(load_tokenizer(tmp_path).adapter, Mine)


def test_a_generators_tokenizer_takes_the_given_class_too(tmp_path):
    model = generator()
    model.tokenizer = tokenizer(adapter=dict(type=f"{__name__}.Mine"))
    model.save_pretrained(tmp_path)
    with pytest.raises(UnknownComponentError, match="stands in a file"):
        load_latent_diffusion(tmp_path)
    found = load_latent_diffusion(tmp_path, components={f"{__name__}.Mine": Mine})
    assert isinstance(found.tokenizer.adapter, Mine)


def test_the_import_paths_of_a_config_are_found_at_any_depth():
    config = {"a": {"type": "mlp"}, "b": [{"type": "my.Enc", "inner": {"type": "my.Other"}}], "c": {"type": "my.Enc"}}
    assert dotted_components(config) == ["my.Enc", "my.Other"]


def test_build_looks_before_it_imports(monkeypatch):
    assert ENCODERS.build(
        dict(type="ldm_cnn", pretrained=False, latent_dim=4, downsample_factor=2, **TINY), trusted=False
    )
    no_imports(monkeypatch)
    with pytest.raises(UnknownComponentError, match=r"stands in a file.*\(.*dinov2.*\)"):
        ENCODERS.build(dict(type="subprocess.Popen", args="x"), trusted=False)


# Paths


@pytest.mark.parametrize(
    "name", ["../../x.png", "/etc/passwd", "..", ".", "", "a/../../b", "folder", "pipe", "a\0b", 3, None]
)
def test_a_name_that_leaves_the_folder_or_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "root/folder").mkdir(parents=True)
    os.mkfifo(tmp_path / "root/pipe")
    with pytest.raises(DataError, match=r"names .*, which is no file in that folder; buy another"):
        inside(tmp_path / "root", name, DataError, "buy another")


def test_links_are_followed_inside_the_folder_only(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.png").write_text("a")
    (tmp_path / "out.png").write_text("secret")
    (root / "good.png").symlink_to(root / "a.png")
    (root / "bad.png").symlink_to(tmp_path / "out.png")
    (root / "circle").symlink_to(root / "circle")
    (root / "away").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(root)
    for name in ("a.png", "good.png", "not_there_yet.png", "sub/../a.png"):
        assert inside(tmp_path / "alias", name, DataError, "") == tmp_path / "alias" / name
    for name in ("bad.png", "away/out.png"):
        with pytest.raises(DataError, match="is no file in that folder"):
            inside(root, name, DataError, "")


# A training with a class of the user's own


def test_a_training_with_a_dotted_component_says_how_its_export_loads(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine").mkdir()
    source = Path(__file__).read_text()
    begin, end = source.index("class Mine"), source.index("def test_a_class_that_is_given")
    (tmp_path / "mine/mypkg_of_mine.py").write_text("from torch import nn\n\n\n" + source[begin:end])
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    images = tmp_path / "images/train/one"
    images.mkdir(parents=True)
    from PIL import Image

    for i in range(4):
        Image.effect_noise((32, 32), 80).convert("RGB").save(images / f"{i}.png")
    config = tmp_path / "tiny.py"
    config.write_text(f'''
"""A tiny run."""
data_root = {str(tmp_path / "images")!r}
work_dir = {str(tmp_path / "run")!r}
model = dict(
    encoder=dict(type="ldm_cnn", pretrained=False, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4),
    adapter=dict(type="mypkg_of_mine.Mine"),
    decoder=dict(type="ldm_cnn", ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=4),
    latent_dim=4,
    downsample_factor=2,
)
data = dict(train=dict(type="images", image_size=16, split="train"), val=None, workers=0)
losses = dict(l1=dict(type="l1"))
stages = [dict(name="one", steps=1, global_batch_size=2, trainable=["adapter", "decoder"])]
''')
    line = 'load_tokenizer(folder, components={"mypkg_of_mine.Mine": Mine})'
    loaded = load_config(config)
    assert run(loaded) == tmp_path / "run/tokenizer"
    assert line in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run/tokenizer")
    assert run(loaded, run_info=None) == tmp_path / "run/tokenizer"  # gone on with: the config is the user's still
    from mypkg_of_mine import Mine as Own

    for folder in (tmp_path / "run/tokenizer", tmp_path / "run"):
        with pytest.raises(UnknownComponentError) as caught:
            load_tokenizer(folder)
        assert line in str(caught.value)
        assert isinstance(load_tokenizer(folder, components={"mypkg_of_mine.Mine": Own}).adapter, Own)
