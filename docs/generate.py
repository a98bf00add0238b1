"""Write the pages that come from the code: components, configuration keys, one API page a package; pictures of flows.

    python docs/generate.py

`make docs` calls it. The same code gives the same pages; each is replaced whole, and only when it changed.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import flows  # beside this file

import aligntok
from aligntok.annotations import in_words, keywords_checked
from aligntok.io.files import replacing
from aligntok.registry import ComponentRegistry, shelves
from aligntok.settings import fields_of
from aligntok.training.generator_settings import GeneratorSettings
from aligntok.training.settings import RunSettings, StageSettings

DOCS = Path(__file__).parent
API = DOCS / "api" / "generated"


def components_page() -> str:
    """Return the page of every component of every registry, with the keywords it takes in a config."""
    text = "# Components\n\nEverything that the installed plugins register, the built-in one among them.\n"
    text += "A config names a component by `type`; the values shown are the defaults, `...` must be given.\n"
    for shelf, registry in shelves().items():
        text += f"\n## {shelf}\n\n"
        if registry.parent is not None:
            text += f"mmengine's own {registry.kind} classes can be named here as well.\n\n"
        text += "\n".join(_component(registry, name) for name in registry) or f"No {registry.kind} yet.\n"
    return text


def _component(registry: ComponentRegistry, name: str) -> str:
    component, origin = registry.get(name), registry.origins[name]
    path = f"`{component.__module__}.{component.__qualname__}`"
    link = f"{{py:class}}{path}" if path.startswith("`aligntok.") else path
    source = f"{link}, from {origin.distribution} {origin.version}."
    checked = {key: in_words(annotation) for key, (annotation, _) in keywords_checked(component).items()}
    keywords = [_keyword(p, checked.get(p.name)) for p in inspect.signature(component).parameters.values()]
    example = "\n".join(["dict(", f'    type="{name}",', *keywords, ")"])
    return f"### `{name}`\n\n{source}\n{_first_paragraph(component)}\n\n```python\n{example}\n```\n"


def _keyword(parameter: inspect.Parameter, allowed: str | None) -> str:
    empty = inspect.Parameter.empty
    value = "..." if parameter.default is empty else repr(parameter.default).replace("'", '"')
    annotation = allowed or inspect.formatannotation(parameter.annotation).strip("'")
    return f"    {parameter.name}={value}," + ("" if parameter.annotation is empty else f"  # {annotation}")


def _first_paragraph(component: Any) -> str:
    paragraph = " ".join((inspect.getdoc(component) or "").split("\n\n")[0].split())
    return _markdown(re.sub(r":\w+:`~?([^`]+)`", r"`\1`", paragraph))


def _markdown(text: str) -> str:
    """Return plain text whose code is in backquotes as Markdown."""
    parts = re.split(r"(`+[^`]+`+)", text)
    parts[::2] = [re.sub(r"([*_|<\[\]])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def keys_page() -> str:
    """Return the page of every key of a config."""
    text = "# Every key of a config\n\nMade from the classes that check configs (`aligntok/training/settings.py`).\n"
    text += f"An unknown key is an error.\n\n## Of a run\n\n{_table(RunSettings)}\n## Of a stage\n\n"
    text += "Set at the top of a config they hold for all stages; in a stage, for that one.\n"
    text += f"A stage also has its `name`.\n\n{_table(StageSettings)}\n## Of a generator's training\n\n"
    text += "In a config without stages they stand at the top, in one with stages below `generation`.\n\n"
    return text + _table(GeneratorSettings)


def _table(cls: Any) -> str:
    rows = ["| key | default | may be | meaning |", "|---|---|---|---|"]
    for option in fields_of(cls):
        given = "" if dataclasses.is_dataclass(option.default) else f"`{option.default!r}`"
        default = "must be given" if option.default is dataclasses.MISSING else given
        rows.append(f"| `{option.name}` | {default} | {_markdown(option.allowed)} | {_markdown(option.doc)} |")
    return "\n".join(rows) + "\n"


def api_pages() -> dict[str, str]:
    """Return one page a package, by file name: every public module of it, from the docstrings."""
    found = [m for m in pkgutil.walk_packages(aligntok.__path__, "aligntok.") if "._" not in m.name]
    pages = {name: [name] for name in ("aligntok", *(m.name for m in found if m.ispkg))}
    for module in sorted(m.name for m in found if not m.ispkg):
        pages[module.rpartition(".")[0]].append(module)
    return {f"{package}.md": _api_page(package, members) for package, members in sorted(pages.items())}


def _api_page(package: str, modules: list[str]) -> str:
    sections = [
        f"```{{eval-rst}}\n.. automodule:: {module}\n{_shown_above(package, module)}```\n" for module in modules
    ]
    titles = [f"# {package}\n", *(f"## {module}\n" for module in modules[1:])]
    return "\n".join(f"{title}\n{section}" for title, section in zip(titles, sections, strict=True))


def _shown_above(package: str, module: str) -> str:
    """Return the option that leaves out what the package itself exports, and so shows at the top of the page."""
    home, there = importlib.import_module(package), importlib.import_module(module)
    exported = getattr(home, "__all__", ()) if there is not home else ()
    names = [name for name in exported if getattr(there, name, None) is getattr(home, name)]
    return f"   :exclude-members: {', '.join(names)}\n" if names else ""


def main() -> None:
    pages = {DOCS / "components.md": components_page(), DOCS / "configuration_keys.md": keys_page()}
    pages.update({API / name: text for name, text in api_pages().items()})
    pages.update({DOCS / "images" / name: text for name, text in flows.pictures().items()})
    for stale in set(API.glob("*.md")) - set(pages):
        stale.unlink()
    for path, text in pages.items():
        if not path.is_file() or path.read_text() != text:
            with replacing(path) as temporary:
                temporary.write_text(text)


if __name__ == "__main__":
    main()
