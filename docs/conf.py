"""Sphinx settings. `make docs` builds the site offline, with warnings as errors."""

from __future__ import annotations

import gc
import html
import importlib
import re
from typing import Any

from docutils.nodes import Element, SkipNode
from sphinx.util.inspect import signature, stringify_signature

import aligntok
from aligntok.imports import quietly

with quietly():  # diffusers, of which autodoc would import it, imports xformers
    importlib.import_module("aligntok.diffusers.models")

gc.set_threshold(1_000_000, 50, 50)  # pages are trees that stay: to look for garbage in them takes a fifth of a build

project = "AlignTok"
author = "The AlignTok developers"
copyright = "2026, The AlignTok developers. Apache-2.0"
version = release = aligntok.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"AlignTok {release}"
html_math_renderer = "katex"  # from docs/_static: formulas show without a network, and as TeX sets them
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["lines.js"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
maximum_signature_line_length = 80
copybutton_exclude = ".linenos, .gp, .go"
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True
autodoc_inherit_docstrings = False  # torch's and mmengine's docstrings are not ours to show

# What RST would take for markup in a docstring: code in backquotes is left alone.
_CODE = re.compile(r"(``.+?``|:\w+:`[^`]+`)")


def keep_plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let formulas such as ``2 ** k`` and ``|x - y|_1`` stand in docstrings, and code follow a colon, as they are."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = lines[0].replace(": ", " -- ")  # napoleon takes the words before a colon here for a type
    for i, line in enumerate(lines):
        parts = _CODE.split(line)
        parts[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2]]
        lines[i] = "".join(parts)
        begins_code = i + 2 < len(lines) and not lines[i + 1].strip() and lines[i + 2].startswith("    ")
        if begins_code and line and not line.startswith(" "):
            lines[i] += ":" if line.endswith(":") else "\n\n::"


def tidy_signature(app: Any, what: str, name: str, obj: Any, options: Any, given: str | None, returns: Any) -> Any:
    """Show what ``__init__`` takes where a base class's ``__new__`` hides it, and no table drawn of a registry."""
    if what == "class" and given == "(*args, **kwargs)":
        given = stringify_signature(signature(obj.__init__, bound_method=True), show_return_annotation=False)
    return ("(...)" if given and "\u250f" in given else given), returns


try:  # `keys=STAGE_KEYS`, as it is written
    from sphinx.ext.autodoc._dynamic import _signatures

    preserve = _signatures.update_default_value
except (ImportError, AttributeError):  # a Sphinx before 9, the last for Python 3.10, or one after 9.1: they show values
    autodoc_preserve_defaults = False
else:
    autodoc_preserve_defaults = True

    def preserve_written_defaults(obj: Any, *given: Any, **named: Any) -> None:
        """Do so but for what a decorator handed on, whose defaults Sphinx would look for in the decorated one."""
        if "__signature__" not in getattr(obj, "__dict__", {}):
            preserve(obj, *given, **named)

    _signatures.update_default_value = preserve_written_defaults


def write_math(translator: Any, node: Element, tag: str) -> None:
    """Leave a formula as TeX in an element, which KaTeX draws when the page is opened: from this site's own files."""
    translator.body.append(f'<{tag} class="math notranslate nohighlight">{html.escape(node.astext())}</{tag}>')
    raise SkipNode


def load_katex(app: Any, page: str, template: str, context: Any, doctree: Any) -> None:
    """Load KaTeX in pages that have formulas."""
    if 'class="math' in context.get("body", ""):
        app.builder.add_css_file("katex/katex.min.css")
        app.builder.add_js_file("katex/katex.min.js")
        app.builder.add_js_file("katex/formulas.js")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_plain, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("html-page-context", load_katex)
    inline, block = ((lambda t, n, tag=tag: write_math(t, n, tag), None) for tag in ("span", "div"))
    app.add_html_math_renderer("katex", inline, block)
