"""What `aligntok plugins` shows: which plugins there are, what each added, and what is broken."""

from __future__ import annotations

from typing import Any

from aligntok.errors import AlignTokError
from aligntok.registry import PLUGIN_RECORDS, PluginRecord, shelves


class PluginReport:
    """One plugin as a person or a program reads it."""

    def __init__(self, record: PluginRecord) -> None:
        self.record = record

    def as_dict(self) -> dict[str, Any]:
        """Return name, distribution, version, components ('shelf:name') and error (None if it loaded)."""
        origin = self.record.origin
        return {
            "name": origin.plugin,
            "distribution": origin.distribution,
            "version": origin.version,
            "components": self.record.components,
            "error": self.record.error,
        }

    def __str__(self) -> str:
        origin = self.record.origin
        lines = [f"{origin.plugin}  ({origin.distribution} {origin.version})"]
        if self.record.error:
            return "\n".join([*lines, f"  failed to load: {self.record.error}"])
        by_shelf: dict[str, list[str]] = {}
        for component in self.record.components:
            shelf, name = component.split(":", 1)
            by_shelf.setdefault(shelf, []).append(name)
        return "\n".join([*lines, *(f"  {shelf}: {', '.join(sorted(names))}" for shelf, names in by_shelf.items())])


def list_plugins() -> list[PluginReport]:
    """Load all plugins and return a report of each, in loading order."""
    next(iter(shelves()["encoders"]), None)  # the first look-up loads them
    return [PluginReport(record) for record in PLUGIN_RECORDS]


def check_components() -> list[str]:
    """Import every component of every plugin; return one line a problem, none if all is well."""
    problems = [f"plugin {report.record}" for report in list_plugins() if report.record.error]
    for registry in shelves().values():
        for name in registry:
            try:
                registry.get(name)
            except (AlignTokError, ImportError) as error:
                problems.append(f"{registry.kind} '{name}': {error}")
    return problems
