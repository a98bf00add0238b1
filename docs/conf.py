"""Sphinx settings. `make docs` builds the site offline, with warnings as errors."""

from __future__ import annotations

import re
from typing import Any

from docutils.nodes import Element, SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.inspect import signature, stringify_signature

import aligntok

project = "AlignTok"
author = "The AlignTok developers"
copyright = "2026, The AlignTok developers. Apache-2.0"
version = release = aligntok.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"AlignTok {release}"
html_math_renderer = "mathml"  # browsers draw it themselves: formulas show without a network, which MathJax needs
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
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


def write_math(translator: Any, node: Element, block: bool) -> None:
    translator.body.append(tex2mathml(node.astext(), as_block=block))
    raise SkipNode


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_plain, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", tidy_signature)
    inline, block = ((lambda t, n, b=b: write_math(t, n, b), None) for b in (False, True))
    app.add_html_math_renderer("mathml", inline, block)
