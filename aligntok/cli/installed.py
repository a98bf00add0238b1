"""``plugins``: what is installed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from aligntok.cli.arguments import reporting_errors


@reporting_errors
def plugins(arguments: Sequence[str] | None = None) -> int:
    """List the plugins and what each adds, or check that every component can be imported."""
    parser = argparse.ArgumentParser(prog="aligntok plugins", description="What is installed, and whether it works.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="plugins, their versions and components; failed ones with the reason")
    listing.add_argument("--json", action="store_true", help="for programs")
    verbs.add_parser("check", help="import every component; exit status 1 if anything is broken")
    given = parser.parse_args(arguments)

    from aligntok.plugins.manager import check_components, list_plugins

    if given.verb == "check":
        problems = check_components()
        print("\n".join(problems) or "every plugin loads and every component can be imported")
        return 1 if problems else 0
    found = list_plugins()
    print(json.dumps([plugin.as_dict() for plugin in found], indent=2) if given.json else "\n".join(map(str, found)))
    return 0
