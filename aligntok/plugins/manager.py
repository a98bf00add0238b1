"""Finds, loads and records plugins: the built-in one first, then the entry points of group ``aligntok`` by name."""

from __future__ import annotations

import importlib
import os
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

import aligntok
from aligntok import plugins
from aligntok.errors import AlignTokError, ConfigError, PluginError
from aligntok.registry import PLUGIN_RECORDS, ComponentRegistry, ComponentSource, PluginRecord, Registries, shelves

GROUP = "aligntok"
BUILTINS = ComponentSource(plugin="builtins", distribution="aligntok", version=aligntok.__version__)


class Registration:
    """Holds back what one plugin adds until all of it is known to be good, so a plugin gets in whole or not at all."""

    def __init__(self, name: str, registry: ComponentRegistry) -> None:
        self.name = name
        self.registry = registry
        self.held: dict[str, type | str] = {}

    def add(self, name: str, component: type | str) -> None:
        """Add a component class, or its import string, under `name`. Raises ConfigError if the name is taken."""
        if name in self.held:
            raise ConfigError(f"{self.registry.kind} name '{name}' is added twice by the same plugin")
        self.registry.check_free(name)
        self.held[name] = component

    def commit(self, origin: ComponentSource) -> list[str]:
        for name, component in self.held.items():
            self.registry.add(name, component, origin)
        return [f"{self.name}:{name}" for name in self.held]


def register_plugin(manager: pluggy.PluginManager, plugin: Any, origin: ComponentSource) -> PluginRecord:
    """Let one plugin add its components. What it raises is recorded, and nothing of it is kept."""
    record = PluginRecord(origin)
    PLUGIN_RECORDS.append(record)
    held = {name: Registration(name, registry) for name, registry in shelves().items()}
    try:
        manager.register(plugin, name=origin.plugin)
        others = [other for other in manager.get_plugins() if other is not plugin]
        registries = Registries(**{f.name: held[f.name] for f in fields(Registries)})
        called = manager.subset_hook_caller("aligntok_register", remove_plugins=others)
        if not called.get_hookimpls():
            raise PluginError("it implements no aligntok_register hook; decorate the function with @aligntok.hookimpl")
        called(registries=registries)
    except Exception as error:  # whatever a plugin does wrong must not keep the others out
        record.error = f"{type(error).__name__}: {error}"
        return record
    record.components = [added for shelf in held.values() for added in shelf.commit(origin)]
    return record


def load_plugins() -> list[PluginRecord]:
    """Load the built-in plugin and the chosen installed ones, and return what became of each.

    The environment variable ALIGNTOK_LOAD_PLUGINS chooses: unset all, '' none, otherwise names separated by commas.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(plugins)
    builtins = importlib.import_module("aligntok.builtins")
    record = register_plugin(manager, builtins, BUILTINS)
    if record.error:  # a defect of ours, not of a user's plugin
        raise RuntimeError(f"the built-in plugin {record}")
    for point in _chosen(sorted(entry_points(group=GROUP), key=lambda point: point.name)):
        _load_entry_point(manager, point)
    return PLUGIN_RECORDS


def _chosen(found: list[EntryPoint]) -> list[EntryPoint]:
    wanted = os.environ.get("ALIGNTOK_LOAD_PLUGINS")
    if wanted is None:
        return found
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in sorted(set(names) - {point.name for point in found}):
        error = f"ALIGNTOK_LOAD_PLUGINS asks for it, but no such plugin is installed; found: {[p.name for p in found]}"
        PLUGIN_RECORDS.append(PluginRecord(ComponentSource(name, name, "(not installed)"), error=error))
    return [point for point in found if point.name in names]


def _load_entry_point(manager: pluggy.PluginManager, point: EntryPoint) -> None:
    distribution = point.dist.name if point.dist else point.name
    version = point.dist.version if point.dist else "(unknown version)"
    origin = ComponentSource(point.name, distribution, version)
    try:
        plugin = point.load()
    except Exception as error:  # a broken plugin is reported where its component is asked for, not here
        PLUGIN_RECORDS.append(PluginRecord(origin, error=f"{type(error).__name__}: {error}"))
        return
    register_plugin(manager, plugin, origin)


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
