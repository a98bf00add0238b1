"""``plugins``: what is installed, and whether it works."""

from __future__ import annotations

import json
from collections.abc import Sequence

from aligntok.cli.arguments import dispatch, parse, reporting_errors
from aligntok.settings import settings


@settings
class Listing:
    """Plugins, their versions and components; failed ones with the reason."""

    json: bool = False
    """For programs."""


@settings
class Check:
    """Import every component; exit status 1 if anything is broken."""


def _list(arguments: Sequence[str] | None = None) -> int:
    """Plugins, their versions and components; failed ones with the reason."""
    asked = parse(Listing, arguments, "aligntok plugins list")

    from aligntok.plugins import list_plugins

    found = list_plugins()
    print(
        json.dumps([plugin.as_dict() for plugin in found], indent=2)
        if asked.json
        else "\n".join(plugin.as_text() for plugin in found)
    )
    return 0


def _check(arguments: Sequence[str] | None = None) -> int:
    """Import every component; exit status 1 if anything is broken."""
    parse(Check, arguments, "aligntok plugins check")

    from aligntok.plugins import check_components

    problems = check_components()
    print("\n".join(problems) or "every plugin loads and every component can be imported")
    return 1 if problems else 0


@reporting_errors
def plugins(arguments: Sequence[str] | None = None) -> int:
    """List the plugins and what each adds, or check that every component can be imported."""
    return dispatch("aligntok plugins", {"list": _list, "check": _check}, arguments)
