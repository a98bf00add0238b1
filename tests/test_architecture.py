"""What the text says of the code is so: names that it gives, rooms that it maps, pictures of flows."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

from aligntok.registry import shelves

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aligntok"
ROOMS = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
ROOMS -= {"__init__", "__pycache__", "py.typed"}
MADE = {"components.md", "configuration_keys.md"}  # by docs/generate.py, from what these tests look at
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "docs/api/index.md"]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(page for page in PAGES if page.name not in MADE)]
TEXTS += sorted((ROOT / "plugins").glob("*/README.md"))
CODE = [
    path for room in ("aligntok", "plugins", "tools", "benchmarks", "configs") for path in (ROOT / room).rglob("*.py")
]
CODE = sorted(path for path in CODE if "build" not in path.parts) + sorted((ROOT / "docs").glob("*.py"))
NAME = re.compile(r"(?<![\w./~-])~?(aligntok(?:\.[a-zA-Z_]\w*)+)(?![\w/])")
PATH = re.compile(r"(?<![\w./-])((?:aligntok|tests|docs|tools|configs|benchmarks)/[\w./-]*\w(?:\.\w+|/))(?![\w*{<])")


def name(path):
    return str(path.relative_to(ROOT))


def words_of(path):
    """A page; or docstrings and comments of code, for what it does itself is tested elsewhere."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    tree = ast.parse(text)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    told = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(told + [token.string for token in tokens if token.type == tokenize.COMMENT])


@cache
def there(dotted):
    """Whether a dotted name is a module, or something in one: a field of a class, set or only declared, as well."""
    parts = dotted.split(".")
    for number in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:number]))
        except ModuleNotFoundError:
            continue
        for part in parts[number:]:
            if part in getattr(found, "__annotations__", {}) and part == parts[-1]:
                return True
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_a_name_is_found_out():
    assert there("aligntok.encoders.Encoder.last_layer")
    assert not there("aligntok.encoders.contract")
    assert not there("aligntok.encoders.Encoder.nothing")
    assert NAME.findall("See :func:`~aligntok.loading.load_tokenizer`.") == ["aligntok.loading.load_tokenizer"]
    assert PATH.findall("`tests/golden/` and aligntok/errors.py.") == ["tests/golden/", "aligntok/errors.py"]


@pytest.mark.parametrize("path", TEXTS + CODE, ids=name)
def test_names_and_paths_in_text_are_there(path):
    words = words_of(path)
    assert [each for each in NAME.findall(words) if not there(each)] == []
    if path.is_relative_to(ROOT / "docs") or path.parent == ROOT or path.is_relative_to(PACKAGE):
        made = {"docs/_build/html/index.html", "docs/components.md", "docs/configuration_keys.md"}
        made.add("tests/test_it.py")  # of the reader's first plugin
        assert [each for each in PATH.findall(words) if each not in made and not (ROOT / each).exists()] == []


BASES = {
    "encoders": ["Encoder"],
    "adapters": ["Adapter"],
    "decoders": ["Decoder"],
    "losses": ["Loss"],
    "discriminators": ["Discriminator"],
    "generators": ["Generator"],
    "extractors": ["Extractor", "Features"],
    "text_encoders": ["TextEncoder"],
}


@pytest.mark.parametrize("room", BASES)
def test_what_a_component_must_keep_is_imported_from_its_room(room):
    module = importlib.import_module(f"aligntok.{room}")
    assert set(BASES[room]) <= set(getattr(module, "__all__", dir(module)))
    assert all(inspect.isclass(getattr(module, base)) for base in BASES[room])
    registry = shelves().get(room, {})
    classes = [each for each in map(registry.get, registry) if inspect.isclass(each)]
    ours = [each for each in classes if each.__module__.startswith("aligntok.")]
    assert all(issubclass(each, getattr(module, BASES[room][0])) for each in ours), ours


def test_plugins_import_no_base_module():
    inner = re.compile(r"aligntok\.(encoders|decoders|losses|generators|extractors)\.base import")
    texts = [path for path in TEXTS + CODE if not path.is_relative_to(PACKAGE)]
    assert [name(path) for path in texts if inner.search(path.read_text())] == []


# The map in CONTRIBUTING.md


def rows(page, heading):
    """The first table below a heading: its rows, as lists of cells."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_map_names_every_room_and_none_that_is_not_there():
    named = [each for _, cell in rows("CONTRIBUTING.md", "Which room a new line belongs to") for each in codes(cell)]
    places = [each for each in named if each.endswith(("/", ".py"))]
    training = ["config.py", "stages.py", "run.py", "builder.py"]  # in the row of training/
    for place in places:
        home = ROOT if place == "configs/" else PACKAGE / "training" if place in training else PACKAGE
        assert (home / place).exists(), place
    assert {re.split(r"[/.]", place)[0] for place in places} >= ROOMS


def test_the_map_fits_on_a_screen():
    assert len(rows("CONTRIBUTING.md", "Which room a new line belongs to")) <= 30


# docs/architecture.md


def codes(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_the_order_of_rooms_is_the_one_that_is_checked():
    (listed,) = re.findall(r"^layers = (\[.*?^\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    checked = [layer.replace("aligntok.", "").split(" | ") for layer in ast.literal_eval(listed)]
    assert [codes(cells[0]) for cells in rows("docs/architecture.md", "Who imports whom")] == checked
    assert {room for layer in checked for room in layer} == ROOMS


@pytest.fixture(scope="module")
def flows():
    spec = importlib.util.spec_from_file_location("flows", ROOT / "docs/flows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_box_of_a_picture_is_in_the_package(flows):
    assert len(flows.names()) > 50
    assert [each for each in flows.names() if not there(each)] == []


def test_the_pictures_are_those_that_the_program_draws_and_the_page_shows(flows):
    page = (ROOT / "docs/architecture.md").read_text()
    drawn = flows.pictures()
    assert len(drawn) == 4
    for file, picture in drawn.items():
        assert (ROOT / "docs/images" / file).read_text() == picture, "python docs/generate.py draws it anew"
        assert f"](images/{file})" in page
    assert set(drawn) == {path.name for path in (ROOT / "docs/images").glob("*.svg")}


def test_the_text_of_a_box_stays_inside(flows):
    for _, lanes in flows.FLOWS.values():
        for _, boxes in lanes:
            assert len(boxes) <= 3
            for dotted, words in boxes:
                room, _, shown = dotted.rpartition(".")
                assert len(shown) <= 26, shown
                assert len(room) <= 33, room
                assert len(flows.lines(words)) <= 2, words


def test_the_files_that_a_batch_passes_are_there():
    text = (ROOT / "docs/architecture.md").read_text()
    files = [each for each in codes(text) if each.endswith((".py", "/")) and each != "aligntok/"]
    assert len(files) > 40
    assert [each for each in files if not (PACKAGE / each).exists()] == []
