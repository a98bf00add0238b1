"""Write the pages that come from the code: components, configuration keys, one API page a module; pictures of flows.

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
from aligntok.imports import quietly
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
    """Return one page a public module, by file name, from the docstrings; a package's page leads to its modules."""
    modules = [
        "aligntok",
        *(m.name for m in pkgutil.walk_packages(aligntok.__path__, "aligntok.") if "._" not in m.name),
    ]
    return {f"{module}.md": _api_page(module, modules) for module in sorted(modules) if not module.endswith("__main__")}


def _api_page(module: str, modules: list[str]) -> str:
    """Return the page of a module. All but the first are no part of the sidebar, which each page would repeat whole."""
    head = "" if module == "aligntok" else "---\norphan: true\n---\n\n"
    up = module.rpartition(".")[0]
    above = f"In [{up}]({up}.md).\n\n" if up else ""
    below = [name for name in modules if name.rpartition(".")[0] == module and not name.endswith("__main__")]
    listed = "".join(f"- [{name}]({name}.md): {_first_sentence(name)}\n" for name in below)
    return (
        f"{head}# {module}\n\n{above}```{{eval-rst}}\n.. automodule:: {module}\n{_shown_above(module)}```\n\n{listed}"
    )


def _first_sentence(module: str) -> str:
    paragraph = " ".join((importlib.import_module(module).__doc__ or "").split("\n\n")[0].split())
    return _markdown(paragraph)


def _shown_above(module: str) -> str:
    """Return the option that leaves out what the module's package exports, and so shows on its own page."""
    home, there = importlib.import_module(module.rpartition(".")[0] or module), importlib.import_module(module)
    exported = getattr(home, "__all__", ()) if there is not home else ()
    names = [name for name in exported if getattr(there, name, None) is getattr(home, name)]
    return f"   :exclude-members: {', '.join(names)}\n" if names else ""


def main() -> None:
    pages = {DOCS / "components.md": components_page(), DOCS / "configuration_keys.md": keys_page()}
    with quietly():  # diffusers imports xformers
        pages.update({API / name: text for name, text in api_pages().items()})
    pages.update({DOCS / "images" / name: text for name, text in flows.pictures().items()})
    for stale in set(API.glob("*.md")) - set(pages):
        stale.unlink()
    for path, text in pages.items():
        if not path.is_file() or path.read_text("utf-8") != text:
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
