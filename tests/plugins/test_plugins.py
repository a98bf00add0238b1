"""Plugins: found, loaded in one order, and a broken one reported without keeping the others out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from aligntok import cli
from aligntok.errors import UnknownComponentError
from aligntok.plugin_record import PLUGIN_RECORDS
from aligntok.plugins import check_components, load_plugins
from aligntok.registry import ADAPTERS, ENCODERS, LOSSES, shelves

GOOD = """
    from torch import nn
    from aligntok import hookimpl

    class Scale(nn.Module):
        pass

    @hookimpl
    def aligntok_register(registries):
        registries.adapters.add("{name}_adapter", Scale)
        registries.losses.add("{name}_loss", "torch.nn.MSELoss")
"""
BROKEN = {
    "imports": ("import a_module_that_is_missing", "ModuleNotFoundError: No module named 'a_module_that_is_missing'"),
    "argument": (
        """
        from aligntok import hookimpl

        @hookimpl
        def aligntok_register(registry):
            registry.encoders.add("argument_encoder", "torch.nn.Identity")
        """,
        "registry",
    ),
    "taken": (
        """
        from aligntok import hookimpl

        @hookimpl
        def aligntok_register(registries):
            registries.adapters.add("taken_first", "torch.nn.Identity")
            registries.encoders.add("timm", "torch.nn.Identity")
        """,
        "ConfigError: encoder name 'timm' is taken by aligntok",
    ),
    "twice": (
        """
        from aligntok import hookimpl

        @hookimpl
        def aligntok_register(registries):
            for _ in range(2):
                registries.adapters.add("twice_adapter", "torch.nn.Identity")
        """,
        "ConfigError: adapter name 'twice_adapter' is added twice by the same plugin",
    ),
    "hookless": ("def register(): pass", "PluginError: it implements no aligntok_register hook"),
    "unmarked": ("def aligntok_register(registries): pass", "PluginError: it implements no aligntok_register hook"),
    "raises": (
        """
        from aligntok import hookimpl

        @hookimpl
        def aligntok_register(registries):
            registries.adapters.add("raises_adapter", "torch.nn.Identity")
            raise RuntimeError("no licence file")
        """,
        "RuntimeError: no licence file",
    ),
    "swapped": (
        """
        from torch import nn
        from aligntok import hookimpl

        @hookimpl
        def aligntok_register(registries):
            registries.adapters.add(nn.Identity, "swapped_adapter")
        """,
        "ConfigError: adapter name <class 'torch.nn.modules.linear.Identity'> is no text; add(name, component)",
    ),
    "number": (
        """
        from aligntok import hookimpl

        @hookimpl
        def aligntok_register(registries):
            registries.adapters.add("number_adapter", 5)
        """,
        "ConfigError: adapter 'number_adapter' is 5, which builds none; add a class, or the import string of one",
    ),
    "built": (
        """
        from torch import nn
        from aligntok import hookimpl

        @hookimpl
        def aligntok_register(registries):
            registries.adapters.add("built_adapter", nn.Identity())
        """,
        "ConfigError: adapter 'built_adapter' is Identity(), which builds none",
    ),
    "shelfless": (
        """
        from aligntok import hookimpl

        @hookimpl
        def aligntok_register(registries):
            registries.encoder.add("x", "torch.nn.Identity")
        """,
        "AttributeError: 'Registries' object has no attribute 'encoder'",
    ),
}


def install(folder, name, source, version="0.1"):
    """Write what an installed plugin looks like: a module, and the metadata that names its entry point."""
    module = f"fake_aligntok_{name}"
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"aligntok_{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: aligntok-{name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[aligntok]\n{name} = {module}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that packages can be installed in, and registries in which nothing is loaded yet."""
    list(ENCODERS)  # what is really installed is loaded first, once and for all
    before = PLUGIN_RECORDS[:]
    PLUGIN_RECORDS.clear()
    for registry in shelves().values():
        monkeypatch.setattr(registry, "_module_dict", {})
        monkeypatch.setattr(registry, "origins", {})
    monkeypatch.delenv("ALIGNTOK_LOAD_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    PLUGIN_RECORDS[:] = before
    for module in [module for module in sys.modules if module.startswith("fake_aligntok_")]:
        del sys.modules[module]


def install_all(site):
    for name in ("zebra", "ant"):
        install(site, name, GOOD.format(name=name), version="1.2")
    for name, (source, _) in BROKEN.items():
        install(site, name, source)


def records():
    load_plugins()
    return {record.name: record for record in PLUGIN_RECORDS}


def test_a_plugin_adds_its_components_with_their_origin(site):
    install(site, "ant", GOOD.format(name="ant"), version="1.2")
    found = records()
    assert found["ant"].components == ["adapters:ant_adapter", "losses:ant_loss"]
    assert found["ant"].error is None
    assert ADAPTERS.get("ant_adapter").__name__ == "Scale"
    assert LOSSES.get("ant_loss").__name__ == "MSELoss"
    assert (LOSSES.origins["ant_loss"].distribution, LOSSES.origins["ant_loss"].version) == ("aligntok-ant", "1.2")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_recorded_and_skipped_and_the_others_load(site, name):
    install_all(site)
    found = records()
    assert BROKEN[name][1] in found[name].error
    assert found[name].components == []
    for good in ("ant", "zebra"):
        assert found[good].error is None
        assert f"{good}_adapter" in ADAPTERS
    for left in ("taken_first", "twice_adapter", "raises_adapter", "argument_encoder", "number_adapter"):
        assert not any(left in registry for registry in shelves().values())
    assert ENCODERS.origins["timm"].distribution == "aligntok"


def test_the_built_in_plugin_comes_first_and_the_others_by_name(site):
    install_all(site)
    names = list(records())
    assert names[0] == "builtins"
    assert names[1:] == sorted(names[1:])


def test_the_failure_is_told_to_whoever_asks_for_the_component(site):
    install_all(site)
    records()
    with pytest.raises(UnknownComponentError) as caught:
        ENCODERS.get("franca")
    text = str(caught.value)
    assert "no encoder named 'franca'" in text
    assert (
        "aligntok-imports 0.1 failed to load: ModuleNotFoundError: No module named 'a_module_that_is_missing'" in text
    )
    assert "fix or remove that plugin" in text


@pytest.mark.parametrize(
    ("chosen", "loaded"),
    [(None, {"ant", "zebra"}), ("", set()), ("ant", {"ant"}), (" zebra , ant,", {"ant", "zebra"})],
)
def test_an_environment_variable_chooses(site, monkeypatch, chosen, loaded):
    for name in ("ant", "zebra"):
        install(site, name, GOOD.format(name=name))
    if chosen is not None:
        monkeypatch.setenv("ALIGNTOK_LOAD_PLUGINS", chosen)
    found = records()
    assert set(found) & {"ant", "zebra"} == loaded
    assert "builtins" in found
    assert chosen is None or set(found) == {"builtins", *loaded}


def test_asking_for_a_plugin_that_is_not_installed_is_recorded(site, monkeypatch):
    monkeypatch.setenv("ALIGNTOK_LOAD_PLUGINS", "ant,bee")
    install(site, "ant", GOOD.format(name="ant"))
    found = records()
    assert found["ant"].error is None
    assert "no such plugin is installed; found: " in found["bee"].error


def test_the_list_shows_what_loaded_and_what_failed(site, capsys):
    install_all(site)
    load_plugins()
    assert cli.main(["plugins", "list"]) == 0
    printed = capsys.readouterr().out
    assert "ant  (aligntok-ant 1.2)\n  adapters: ant_adapter\n  losses: ant_loss" in printed
    assert "imports  (aligntok-imports 0.1)\n  failed to load: ModuleNotFoundError" in printed
    assert cli.main(["plugins", "list", "--json"]) == 0
    found = {plugin["name"]: plugin for plugin in json.loads(capsys.readouterr().out)}
    assert found["zebra"] == {
        "name": "zebra",
        "distribution": "aligntok-zebra",
        "version": "1.2",
        "components": ["adapters:zebra_adapter", "losses:zebra_loss"],
        "error": None,
    }
    assert found["raises"]["error"] == "RuntimeError: no licence file"
    assert "encoders:timm" in found["builtins"]["components"]


def test_check_imports_every_component_and_fails_for_what_is_broken(site, monkeypatch, capsys):
    monkeypatch.setenv("ALIGNTOK_LOAD_PLUGINS", "ant,absent")
    install(site, "ant", GOOD.format(name="ant"))
    absent = GOOD.format(name="absent").replace("torch.nn.MSELoss", "absent_package.Loss")
    install(site, "absent", absent)
    load_plugins()
    (problem,) = check_components()
    assert problem.startswith("loss 'absent_loss': loss 'absent_loss' is registered as absent_package.Loss")
    assert cli.main(["plugins", "check"]) == 1
    assert "absent_package.Loss" in capsys.readouterr().out


def test_a_fresh_process_finds_installed_plugins_by_itself(tmp_path):
    install_all(tmp_path)
    command = [sys.executable, "-W", "error", "-m", "aligntok.cli", "plugins", "list", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "ALIGNTOK_LOAD_PLUGINS": "ant,imports"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = [(plugin["name"], plugin["error"] is None) for plugin in json.loads(done.stdout)]
    assert found == [("builtins", True), ("ant", True), ("imports", False)]


SLOW = """
    import time
    from aligntok import hookimpl
    from aligntok.registry import ENCODERS

    @hookimpl
    def aligntok_register(registries):
        assert "timm" in ENCODERS  # a look-up inside of the first one
        time.sleep(0.2)
        registries.adapters.add("slow_adapter", "torch.nn.Identity")
"""


def test_threads_that_look_up_first_wait_for_all_plugins(site):
    install(site, "slow", SLOW)
    barrier = threading.Barrier(4)

    def look_up(_):
        barrier.wait(30)
        return ADAPTERS.get("slow_adapter").__name__

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(look_up, range(4))) == ["Identity"] * 4
    assert [record.error for record in PLUGIN_RECORDS if record.name in ("builtins", "slow")] == [None] * 2


def test_an_interrupted_first_look_up_is_made_anew(site):
    stopped = """
        from aligntok import hookimpl

        calls = []

        @hookimpl
        def aligntok_register(registries):
            calls.append(1)
            registries.adapters.add("ant_adapter", "torch.nn.Identity")
            if len(calls) == 1:
                raise KeyboardInterrupt
    """
    install(site, "ant", stopped)
    with pytest.raises(KeyboardInterrupt):
        list(ENCODERS)
    assert not PLUGIN_RECORDS
    assert not ENCODERS._module_dict
    assert not ENCODERS.origins
    assert "timm" in ENCODERS
    assert "ant_adapter" in ADAPTERS
    assert all(record.error is None for record in PLUGIN_RECORDS if record.name in ("builtins", "ant"))


def test_what_an_import_string_names_must_build(site):
    install(site, "ant", GOOD.format(name="ant").replace("torch.nn.MSELoss", "math.pi"), version="1.2")
    with pytest.raises(
        UnknownComponentError, match="loss 'ant_loss' is registered as math.pi, which is no class: 3.14"
    ):
        LOSSES.get("ant_loss")
    assert any("ant_loss" in problem for problem in check_components())
