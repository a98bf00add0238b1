"""`aligntok env` says what is here, and works where something is broken: that is what it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from aligntok import cli, environment
from aligntok.environment import as_text, describe
from aligntok.ops import attention as kernels

PARTS = ["aligntok", "python", "packages", "variables", "torch", "devices", "attention", "compile_cache", "plugins"]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in environment.VARIABLES:
        if name.startswith("ALIGNTOK_"):
            monkeypatch.delenv(name, raising=False)
    kernels.memory_efficient_attention.cache_clear()
    yield
    kernels.memory_efficient_attention.cache_clear()


def in_a_process(*places, code="from aligntok.cli import main; import sys; sys.exit(main(['env', '--json']))"):
    path = os.pathsep.join([*map(str, places), *filter(None, [os.environ.get("PYTHONPATH")])])
    alone = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_says_the_versions_that_are_installed_and_what_is_not(monkeypatch, capsys):
    monkeypatch.setitem(environment.PACKAGES, "sklearn", "a-distribution-of-none")
    monkeypatch.setitem(environment.PACKAGES, "peft", "another-of-none")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert cli.main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == PARTS
    for name in ("torchvision", "timm", "open_clip_torch", "mmengine"):
        assert found["packages"][name] == version(name)
    assert found["packages"]["another-of-none"] == 'not installed: pip install "aligntok[lora]"'
    assert found["packages"]["a-distribution-of-none"].startswith('not installed: pip install "scikit-learn')
    assert found["variables"]["OMP_NUM_THREADS"] == "7"
    assert torch.backends.cpu.get_cpu_capability() in found["devices"]["cpu"]
    assert len(found["devices"]) == 1 + torch.cuda.device_count()
    assert found["plugins"]["builtins"]["of"] == f"aligntok {version('aligntok')}"
    assert not [part for part in found.values() if "error" in part]
    text = as_text(found)
    assert f"\n  torchvision: {version('torchvision')}\n" in text
    assert "\nplugins\n  builtins\n    of: aligntok " in text


def test_nothing_is_imported_whose_version_is_enough():
    code = "import sys; from aligntok.environment import describe; describe()\n"
    code += (
        "print([name for name in ('datasets', 'diffusers', 'peft', 'webdataset', 'xformers') if name in sys.modules])"
    )
    here = "[]" if not torch.cuda.is_available() else "['xformers']"
    assert in_a_process(code=code).strip() == here


@pytest.mark.parametrize("library", ["torch", "mmengine"])
def test_it_works_where_what_all_needs_fails(tmp_path, library):
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open it')")
    info = tmp_path / "aligntok_theirs-1.2.dist-info"
    info.mkdir()
    (tmp_path / "of_theirs.py").write_text("import torch")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aligntok-theirs\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[aligntok]\ntheirs = of_theirs\n")
    found = json.loads(in_a_process(tmp_path))
    assert list(found) == PARTS
    failed = "OSError: libcudart.so.13: cannot open it"
    told = failed + "; it is here and fails at its import: repair or update it"
    assert [found[part].get("error") for part in ("torch", "devices", "attention")] == [
        told if library == "torch" else None
    ] * 3
    assert found["packages"]["timm"] == version("timm")
    not_loaded = f"not loaded: {told}" if library == "mmengine" else failed
    assert found["plugins"]["theirs"] == {"of": "aligntok-theirs 1.2", "error": not_loaded}


def test_a_plugin_that_fails_and_a_component_that_does_are_told_with_the_reason(tmp_path):
    for name, code in {
        "broken": "import a_module_of_none",
        "lazy": "from aligntok import hookimpl\n\n\n@hookimpl\ndef aligntok_register(registries):\n"
        "    registries.losses.add('lazy', 'broken.Loss')\n    registries.losses.add('fine', 'torch.nn.MSELoss')\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"aligntok_{name}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: aligntok-{name}\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text(f"[aligntok]\n{name} = {name}\n")
    found = json.loads(in_a_process(tmp_path))["plugins"]
    missing = "ModuleNotFoundError: No module named 'a_module_of_none'; install the package that has 'a_module_of_none'"
    assert found["broken"] == {"of": "aligntok-broken 0.1", "error": f"{missing}, which aligntok-broken 0.1 needs"}
    assert found["lazy"]["components"] == 2
    assert list(found["lazy"]["broken"]) == ["losses:lazy"]
    assert missing in found["lazy"]["broken"]["losses:lazy"]


@pytest.mark.parametrize("forced", [None, "xformers"])
def test_it_says_which_kernel_attends_and_why_not_another(monkeypatch, forced):
    if forced:
        monkeypatch.setenv("ALIGNTOK_ATTENTION", forced)
    on_the_cpu = describe()["attention"]
    assert next(iter(on_the_cpu)) == "bfloat16, heads of 64"
    said = "'xformers' was forced" if forced else "torch's, as xformers runs on CUDA alone"
    assert all(said in told for told in on_the_cpu.values())
    monkeypatch.setattr(kernels, "_device_type", lambda q: "cuda")
    for name in ("xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, name, None)
    found = describe()
    assert all("xformers cannot be imported" in told for told in found["attention"].values())
    assert found["packages"]["xformers"].endswith("without its module xformers: reinstall it")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"version": {}}', '{"version": {"torch": "2.99.0+cu200"}}'])
def test_the_torch_that_xformers_was_built_for_is_told_where_its_file_says_so(monkeypatch, tmp_path, text):
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").touch()
    if text:
        (tmp_path / "xformers" / "cpp_lib.json").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "xformers", raising=False)
    monkeypatch.setattr(environment, "version_of", lambda name: "1.2")
    told = "1.2, built for torch 2.99.0+cu200" if text and "2.99" in text else "1.2"
    assert environment._packages()["xformers"] == told


def test_the_cache_of_compiled_code_is_told_with_whether_it_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "new" / "cache"))
    assert describe()["compile_cache"] == {"folder": str(tmp_path / "new" / "cache"), "state": "can be written"}
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert describe()["compile_cache"]["state"] == f"cannot be written: {tmp_path / 'file'} refuses"


def test_a_part_that_cannot_be_found_out_keeps_no_other_back(monkeypatch):
    for part in PARTS[4:]:
        monkeypatch.setattr(environment, f"_{part}", lambda: 1 / 0)
    found = describe()
    assert list(found) == PARTS
    assert found["plugins"]["error"].startswith("ZeroDivisionError: division by zero")
    assert found["packages"]["torch"] == version("torch")
