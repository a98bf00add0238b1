"""Registries: components by name, imported when they are asked for, and clear about what is not there."""

from __future__ import annotations

import subprocess
import sys

import mmengine.dataset
import mmengine.hooks
import pytest
from torch import nn

from aligntok.adapters import MLPAdapter
from aligntok.annotations import check_keywords
from aligntok.engine.optim import check_optimizer
from aligntok.engine.schedules import check_schedule
from aligntok.errors import AlignTokError, ConfigError, PluginError, UnknownComponentError
from aligntok.plugin_record import PluginRecord
from aligntok.registry import (
    ADAPTERS,
    ASKED,
    DATASETS,
    DECODERS,
    DISCRIMINATORS,
    ENCODERS,
    EXTRACTORS,
    GENERATORS,
    HOOKS,
    LOSSES,
    METRICS,
    TEXT_ENCODERS,
    ComponentRegistry,
    shelves,
)

BUILT_IN = {
    "encoders": {"dinov2", "mae", "siglip2", "timm", "open_clip", "ldm_cnn"},
    "adapters": {"mlp", "linear", "identity"},
    "decoders": {"ldm_cnn", "vit_cnn"},
    "losses": {"l1", "lpips", "gan", "semantic_preservation", "kl", "vf"},
    "discriminators": {"patchgan"},
    "text_encoders": {"t5", "clip_text", "hf_text"},
    "datasets": {"images"},
    "metrics": {"reconstruction"},
}


@pytest.fixture
def shelf():
    return ComponentRegistry("widget", "widget")


def test_every_shelf_is_there_under_its_name():
    assert shelves() == {
        "encoders": ENCODERS,
        "adapters": ADAPTERS,
        "decoders": DECODERS,
        "losses": LOSSES,
        "discriminators": DISCRIMINATORS,
        "generators": GENERATORS,
        "extractors": EXTRACTORS,
        "text_encoders": TEXT_ENCODERS,
        "datasets": DATASETS,
        "metrics": METRICS,
        "hooks": HOOKS,
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_shipped_is_registered_and_can_be_imported(name):
    registry = shelves()[name]
    assert set(registry) >= BUILT_IN[name]
    for component in BUILT_IN[name]:
        assert isinstance(registry.get(component), type)
        assert component in registry
        assert registry.origins[component].distribution == "aligntok"


def test_a_component_is_built_from_its_config():
    adapter = ADAPTERS.build(dict(type="mlp", in_dim=6, latent_dim=3))
    assert isinstance(adapter, MLPAdapter)
    assert ADAPTERS.build(adapter) is adapter
    dotted = ADAPTERS.build(dict(type="aligntok.adapters.MLPAdapter", in_dim=6, latent_dim=3))
    assert isinstance(dotted, MLPAdapter)
    assert isinstance(ADAPTERS.build(dict(type=MLPAdapter, latent_dim=3), in_dim=6), MLPAdapter)


def test_an_import_string_costs_nothing_until_it_is_asked_for(shelf):
    shelf.add("lazy", "nowhere.to.be.Found", PluginRecord("lazy", "aligntok-lazy", "2.0"))
    assert list(shelf) == ["lazy"]
    with pytest.raises(UnknownComponentError) as caught:
        shelf.get("lazy")
    assert str(caught.value) == (
        "widget 'lazy' is registered as nowhere.to.be.Found, which cannot be imported: ModuleNotFoundError: No module "
        "named 'nowhere'; install the package that has 'nowhere', which aligntok-lazy 2.0 needs"
    )


def test_an_unknown_name_says_what_is_known_and_what_is_near():
    with pytest.raises(LookupError) as caught:
        ENCODERS.get("dinov3")
    text = str(caught.value)
    assert text.startswith("no encoder named 'dinov3'; did you mean 'dinov2'? known: ")
    assert "siglip2" in text
    assert "install a plugin that gives an encoder of that name (`aligntok plugins list`)" in text
    assert isinstance(caught.value, AlignTokError)
    with pytest.raises(UnknownComponentError, match="known: none"):
        ComponentRegistry("none", "none").get("zzz")


def test_a_name_is_given_once(shelf):
    shelf.add("a", nn.Linear, PluginRecord("a", "aligntok-a", "1.0"))
    with pytest.raises(ConfigError, match="widget name 'a' is taken by aligntok-a 1.0; choose another name"):
        shelf.add("a", nn.Conv2d)
    assert shelf.get("a") is nn.Linear


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (dict(in_dim=3), "adapter config {'in_dim': 3} has no 'type'; known: identity, linear, mlp"),
        (
            dict(type="mlp", in_dim=3, laten_dim=4),
            "adapter 'mlp' takes no keyword named 'laten_dim'; did you mean 'latent_dim'?",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_error(config, said):
    with pytest.raises(ConfigError) as caught:
        ADAPTERS.build(config)
    assert said in str(caught.value)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_module_without_keywords_takes_none_though_torch_would_say_so_late(monkeypatch, compiled):
    if compiled:  # torch.compile puts a wrapper there for the rest of the process
        original = nn.Module.__init__
        monkeypatch.setattr(nn.Module, "__init__", lambda self, *args, **kwargs: original(self, *args, **kwargs))

    class Bare(nn.Module):
        pass

    class Open(nn.Module):
        def __init__(self, **options):
            super().__init__()

    check_keywords(Bare, {}, who="bare")
    check_keywords(Open, {"anything": 1}, who="open")
    with pytest.raises(ConfigError, match="bare takes no keyword named 'width'; known: none"):
        check_keywords(Bare, {"width": 1}, who="bare")
    with pytest.raises(ConfigError, match="did you mean 'weight'"):
        check_keywords(Bare, {"wieght": 1}, who="bare", also=("weight",))


def test_mmengines_own_classes_are_found_behind_ours():
    assert HOOKS.get("CheckpointHook") is mmengine.hooks.CheckpointHook
    assert DATASETS.get("ConcatDataset").__name__ == "ConcatDataset"
    assert "CheckpointHook" not in HOOKS
    with pytest.raises(UnknownComponentError, match="no hook named 'ChekpointHook'"):
        HOOKS.get("ChekpointHook")


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The name of a module that nothing has imported, with a function, a class, and a `registry` as mmengine's have."""
    folder = tmp_path / "canary_of_registries"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "def run(*args, **kwargs):\n    raise AssertionError('called')\n\nclass Odd: ...\n"
    )
    (folder / "registry.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, nothing in (("_requirements", []), ("packages_distributions", {})):  # these read all that is installed
        monkeypatch.setattr(f"aligntok.imports.{name}", lambda *_, nothing=nothing: nothing)
    yield folder.name
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


@pytest.mark.parametrize("name", [*shelves()])
def test_a_name_without_a_dot_is_never_imported_and_a_dotted_one_is_a_subclass(name, canary):
    registry = shelves()[name]
    for undotted in (canary, f"{canary}:run", f" {canary}", "", "."):
        with pytest.raises(UnknownComponentError):
            registry.get(undotted)
    assert canary not in sys.modules
    for dotted in ("", ".run", ".Odd", ".registry", ".registry.x", "..run", ".run.", ".none"):
        with pytest.raises(UnknownComponentError, match=rf"no .* named|{canary}{dotted}' cannot be imported: Module"):
            registry.get(f"{canary}{dotted}")
    with pytest.raises(UnknownComponentError, match=f"a dotted name imports a subclass of {registry.contract}"):
        registry.build({"type": "subprocess.Popen", "args": "exit"})


def test_optimisers_and_schedules_are_registered_names_or_subclasses_too(canary):
    for name in (canary, f"{canary}.run", f"{canary}.Odd", "subprocess.Popen", "torch.nn.Linear", None, 3, ["Adam"]):
        with pytest.raises(ConfigError, match="no optimiser named"):
            check_optimizer({"type": name, "lr": 1.0}, "here")
        with pytest.raises(ConfigError, match="is no scheduler of mmengine|schedule holds"):
            check_schedule([{"type": name}], "here", steps=9)
    check_optimizer({"type": "torch.optim.AdamW", "lr": 1.0}, "here")
    check_optimizer({"type": "AdamW", "lr": 1.0}, "here")
    check_schedule([{"type": "LinearLR", "start_factor": 0.5}], "here", steps=9)


def test_a_component_is_built_in_a_bare_interpreter():
    program = (
        "from aligntok.registry import ADAPTERS; print(ADAPTERS.build(dict(type='linear', in_dim=2, latent_dim=3)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("LinearAdapter")


@pytest.mark.parametrize("shelf", [name for name, asked in ASKED.items() if asked != ("forward",)])
def test_what_is_built_has_what_each_of_its_kind_has(shelf, monkeypatch):
    registry, asked = shelves()[shelf], ASKED[shelf]
    list(registry)
    whole = type("Whole", (nn.Module,), dict.fromkeys(asked))
    monkeypatch.setitem(registry._module_dict, "whole", whole)
    assert isinstance(registry.build({"type": "whole"}), whole)
    monkeypatch.setitem(registry._module_dict, "part", type("Part", (nn.Module,), dict.fromkeys(asked[:-1])))
    with pytest.raises(PluginError, match=f"{registry.kind} 'part' has no {asked[-1]}, as each {registry.kind} has"):
        registry.build({"type": "part"})


def test_an_adapter_is_a_module(monkeypatch):
    list(ADAPTERS)
    monkeypatch.setitem(ADAPTERS._module_dict, "plain", type("Plain", (), {"forward": None}))
    with pytest.raises(PluginError, match=r"adapter 'plain' has no torch.nn.Module as its base"):
        ADAPTERS.build({"type": "plain"})
