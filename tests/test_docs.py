"""The documentation builds without a warning, leaves nothing out, and its Python code runs."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from aligntok.cli import train
from aligntok.registry import ENCODERS, LOSSES, TEXT_ENCODERS, shelves
from aligntok.settings import check_given, fields_of
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.generator_settings import GeneratorConfig
from aligntok.training.settings import StagesConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXECUTED = [
    "README.md",
    "docs/index.md",
    "docs/quickstart.md",
    "docs/own_data.md",
    "docs/python.md",
    "docs/stages.md",
    "docs/generation.md",
    "docs/reports.md",
    "docs/plugins.md",
    "docs/baselines.md",
    "docs/diffusers.md",
]
CONFIGS = ["docs/configuration.md", "docs/resume.md", "docs/streaming.md"]
OF_A_GENERATORS_CONFIG = ("docs/evaluation.md", "docs/text_to_image.md")
OF_A_COMPARISON = ("docs/comparisons.md",)  # tests/evaluation/comparison/test_grid.py runs it
GENERATED = {"components.md", "configuration_keys.md"}
WITHOUT_COMMAND = {"architecture.md": "for those who read the code"}
FIRST_SCREEN = 25  # lines below a title
SEARCHES = {
    **dict.fromkeys(("own data", "ImageFolder", "captions", "hold out"), "own_data"),
    **dict.fromkeys(("wandb", "mlflow"), "trackers"),
    "cite": "citing",
}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDED = ((ENCODERS, "efficientnet_lite0"), (ENCODERS, "my_encoder"), (LOSSES, "st_lpips"), (LOSSES, "my_loss"))
NEEDED += ((TEXT_ENCODERS, "my_text_encoder"),)
TINY_RUN = """
_base_ = ["configs/demo/photographs_f8d16.py"]
model = dict(encoder=dict(pretrained=False), decoder=dict(attn_resolutions=()))
discriminator = dict(base_channels=32, num_layers=2)
losses = dict(st_lpips=None)
data = dict(workers=0)
global_batch_size = 2
validation = dict(perceptual=None)
log = dict(pictures=1)
generation = dict(steps=1, global_batch_size=2, latent_cache=dict(workers=0), log=dict(pictures=0))
stages = _base_.stages
for stage in stages:
    stage["steps"] = 1
del stage
"""


def python_blocks(page):
    return PYTHON.findall((ROOT / page).read_text())


# The site


def recipe():
    """The commands of `make docs`, as make would run them."""
    shown = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if "docs/generate.py" in line or "-m sphinx" in line]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, and what building it printed; the pages that come from the code are written where they belong."""
    out = tmp_path_factory.mktemp("site")
    generate, build = (shlex.split(command)[1:] for command in recipe())
    assert {"-W", "--keep-going"} <= set(build), "warnings are errors"
    build[build.index("docs/_build/html")] = str(out / "html")
    printed = ""
    for command in (generate, [*build, "-d", str(out / "doctrees")]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        printed += done.stdout + done.stderr
    return out / "html", printed


@pytest.mark.slow
def test_the_site_builds_offline_without_a_warning(site):
    folder, printed = site
    told = [line for line in printed.splitlines() if not line.startswith("[IPKernelApp]")]  # of the notebook's kernel
    assert "warning" not in "\n".join(told).lower()
    assert (folder / "index.html").is_file()


@pytest.mark.slow
def test_a_page_needs_nothing_from_the_network_to_be_read(site):
    pages = list(site[0].rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
        assert not loaded, page
    for style in site[0].rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()), style
    assert 'src="_static/katex/katex.min.js' in (site[0] / "stages.html").read_text()
    assert "katex.min.js" not in (site[0] / "index.html").read_text()


def drawn(page, profile, query=""):
    """A page as Chromium has it when its scripts have run, opened from the disk."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom")
    command = [CHROMIUM, *options, f"--user-data-dir={profile}", page.as_uri() + query]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
def test_formulas_are_drawn_when_a_page_is_opened_and_their_braces_stretch(site, tmp_path):
    shown = drawn(site[0] / "stages.html", tmp_path)
    assert shown.count('class="katex"') == shown.count('class="math notranslate') > 20
    assert 'class="katex-stretchy"' in shown
    assert "katex-error" not in shown


@pytest.mark.slow
def test_search_finds_first_the_page_that_is_about_it(site, tmp_path):
    for query, page in SEARCHES.items():
        results = drawn(site[0] / "search.html", tmp_path, f"?q={quote(query)}").partition('class="search">')[2]
        found = re.findall(r'<a href="([\w/.]+)\.html', results)
        assert found[:1] == [page], query


@pytest.mark.slow
def test_what_is_searched_for_is_a_heading_or_an_entry_of_the_index(site):
    text = (site[0] / "searchindex.js").read_text()
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    for query, page in SEARCHES.items():
        number = index["docnames"].index(page)
        named = {**index["alltitles"], **index["indexentries"]}
        assert any(query.lower() in name.lower() and number in [p[0] for p in named[name]] for name in named), query


@pytest.mark.slow
def test_the_notebook_has_run_and_shows_its_plot(site):
    page = site[0] / "notebook.html"
    assert "Tokenizer(encoder=ldm_cnn, f4d8" in text_of(page)
    (plot,) = re.findall(r'<img[^>]+src="(_images/[0-9a-f]{64}\.png)"', page.read_text())
    with Image.open(site[0] / plot) as picture:
        assert min(picture.size) > 300


@pytest.mark.slow
def test_every_component_and_every_key_is_on_its_page(site):
    components = text_of(site[0] / "components.html")
    for shelf, registry in shelves().items():
        assert f"\n{shelf}" in components
        for name in registry:
            assert f'type="{name}",' in components
            assert registry.get(name).__name__ in components
    keys = (site[0] / "configuration_keys.html").read_text()
    names = [option.name for cls in (StagesConfig, GeneratorConfig) for option in fields_of(cls)]
    for name in ["name", *names]:
        assert f'<span class="pre">{name}</span>' in keys, name


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.mark.nightly
def test_the_same_code_gives_the_same_pages(site):
    pages = [DOCS / "components.md", DOCS / "configuration_keys.md", *(DOCS / "api/generated").glob("*.md")]
    before = {page: (page.stat().st_mtime_ns, page.read_text()) for page in pages}
    subprocess.run([sys.executable, "docs/generate.py"], cwd=ROOT, check=True, timeout=120)
    assert {page: (page.stat().st_mtime_ns, page.read_text()) for page in pages} == before


@pytest.mark.slow
def test_the_api_has_a_section_for_every_public_module(site):
    text = "".join(page.read_text() for page in (site[0] / "api/generated").glob("*.html"))
    for path in (ROOT / "aligntok").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if path.name == "__main__.py":
            continue  # importing it runs it
        assert f'id="module-{module}"' in text, module


# The code in it


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder like that of a reader who has run the demo: configs, photographs, and a run of one step a stage."""
    for registry, name in NEEDED:
        if name not in registry:
            pytest.skip(f"no {registry.kind} '{name}' here: the plugins under plugins/ are not installed")
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "val/a", "val/b", "crops/a/0", "crops/b/0"):
        path = folder / "work_dirs/demo/photographs" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (160, 240, 3), dtype=np.uint8)).save(path)
    (folder / "tiny_run.py").write_text(TINY_RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(["tiny_run.py", "--cfg-options", "data_root=work_dirs/demo/photographs"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED)
def test_the_python_blocks_of_a_page_run_in_order(page, finished, monkeypatch):
    monkeypatch.chdir(finished)
    torch.manual_seed(0)
    blocks, names = python_blocks(page), {}
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, Python block {number + 1}", "exec"), names)


@pytest.mark.parametrize("block", [block for page in CONFIGS for block in python_blocks(page)])
def test_a_config_shown_in_the_documentation_is_one(block, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "shown.py").write_text(block)
    assert expand_stages(load_config(tmp_path / "shown.py"))


def test_a_part_of_a_config_shown_has_keys_that_there_are():
    for block in [block for page in OF_A_GENERATORS_CONFIG for block in python_blocks(page)]:
        shown: dict[str, object] = {}
        exec(block, shown)
        check_given(GeneratorConfig, {key: value for key, value in shown.items() if key != "__builtins__"}, "the page")


def test_every_page_starts_with_what_you_get_and_the_command():
    lacking = []
    for page in {path.name for path in DOCS.glob("*.md")} - GENERATED - {*WITHOUT_COMMAND}:
        below = re.split(r"^# .*\n", (DOCS / page).read_text(), maxsplit=1, flags=re.MULTILINE)[1]
        first = "\n".join(below.splitlines()[:FIRST_SCREEN])
        if not re.match(r"\s*[A-Za-z`*]", re.sub(r"(?s)```.*?```", "", first)):
            lacking.append(f"{page}: no sentence")
        if not re.search(r"^```(sh|python|\{code-cell\})", first, re.MULTILINE):
            lacking.append(f"{page}: no command")
    assert not lacking


def test_every_page_with_python_is_tested():
    pages = [ROOT / "README.md", *(DOCS / page for page in {path.name for path in DOCS.glob("*.md")} - GENERATED)]
    found = {str(page.relative_to(ROOT)) for page in pages if python_blocks(str(page.relative_to(ROOT)))}
    assert found == {*EXECUTED, *CONFIGS, *OF_A_GENERATORS_CONFIG, *OF_A_COMPARISON}


KEY = re.compile(
    r"(?<![\w./])(?:stages\.\d\.)?"
    r"((?:data|ema|log|checkpoint|validation|transport|latent_cache|init_from|start|sampling|lora)"
    r"\.[a-z_]+)(?=[=,\s]|\.\w|$)"
)


def test_keys_named_in_the_documentation_are_keys():
    """Dotted keys in code, those of results and paths apart."""
    keys = {option.name for cls in (StagesConfig, GeneratorConfig) for option in fields_of(cls)}
    named = []
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for code in re.findall(r"`([^`\n]+)`", page.read_text()):
            named += [(key, page.name) for key in KEY.findall(code)]
    assert len(named) > 50
    assert [found for found in named if found[0] not in keys] == []


def test_the_message_that_the_quickstart_shows_is_the_one_that_comes(capsys):
    page = (DOCS / "quickstart.md").read_text()
    shown = re.search(r"^(ConfigError: --cfg-options: .*?)\.\.\.", page, re.MULTILINE | re.DOTALL)[1]
    config = ROOT / "configs/demo/photographs_f8d16.py"
    assert train([str(config), "--dry-run", "--cfg-options", "global_bach_size=8"]) == 2
    assert capsys.readouterr().err.startswith(" ".join(shown.split()))


def test_the_tutorials_code_is_the_templates():
    text = (DOCS / "plugins.md").read_text()
    shown = set(re.findall(r"\{literalinclude\} \.\./(plugins/aligntok-template/\S+)", text))
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "plugins/aligntok-template").rglob("*.py")}
    assert shown == {path for path in code if "/build/" not in path} | {"plugins/aligntok-template/pyproject.toml"}
