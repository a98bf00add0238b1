"""How components get in: one pluggy hook, the built-in plugin first, then the entry points of group ``aligntok``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import pluggy

import aligntok
from aligntok.annotations import checked
from aligntok.errors import AlignTokError, ConfigError, PluginError, unknown
from aligntok.imports import FAILURES, import_failure
from aligntok.plugin_record import LOADING, PLUGIN_RECORDS, PluginRecord
from aligntok.registry import ComponentRegistry, Registries, shelves

GROUP = "aligntok"
hookspec = pluggy.HookspecMarker(GROUP)


@hookspec
def aligntok_register(registries: Registries) -> None:
    """Add components. Called once per process, at the first registry look-up.

    `registries` has one shelf a registry (encoders, adapters, decoders, losses, discriminators, generators, extractors,
    text_encoders, datasets, metrics, hooks); ``registries.encoders.add("mynet", MyNetEncoder)`` adds a class, or the
    import string of one. A name that is taken is an error: the whole plugin is then skipped and reported.
    """


class Registration:
    """Holds back what one plugin adds until all of it is known to be good, so a plugin gets in whole or not at all."""

    def __init__(self, registry: ComponentRegistry) -> None:
        self.registry = registry
        self.held: dict[str, type | str] = {}

    def add(self, name: str, component: type | str) -> None:
        """Add a component class, or its import string, under `name`. Raises ConfigError if either is none, or the name
        taken.
        """
        self.registry.check_new(name, component)
        if name in self.held:
            raise ConfigError(f"{self.registry.kind} name '{name}' is added twice by the same plugin")
        self.held[name] = component


def register_plugin(manager: pluggy.PluginManager, load: Callable[[], Any], record: PluginRecord) -> PluginRecord:
    """Let one plugin add its components. What it raises, loading included, is recorded, and nothing of it is kept."""
    PLUGIN_RECORDS.append(record)
    held = {shelf: Registration(registry) for shelf, registry in shelves().items()}
    try:
        plugin = load()
        manager.register(plugin, name=record.name)
        others = [other for other in manager.get_plugins() if other is not plugin]
        called = manager.subset_hook_caller("aligntok_register", remove_plugins=others)
        if not called.get_hookimpls():
            raise PluginError("it implements no aligntok_register hook; decorate the function with @aligntok.hookimpl")
        called(registries=Registries(**held))
    except FAILURES as error:  # whatever a plugin does wrong must not keep the others out
        unimported = isinstance(error, ImportError)
        known = f"{record.distribution} {record.version}"
        record.error = import_failure(error, known) if unimported else f"{type(error).__name__}: {error}"
        return record
    for shelf, registration in held.items():
        for name, component in registration.held.items():
            registration.registry.add(name, component, record)
            record.components.append(f"{shelf}:{name}")
    return record


def load_plugins() -> list[PluginRecord]:
    """Load the built-in plugin and the chosen installed ones, and return what became of each, in loading order.

    The environment variable ALIGNTOK_LOAD_PLUGINS chooses: unset all, '' none, otherwise names separated by commas.
    Interrupted, it leaves everything as it was, for the next look-up to begin anew.
    """
    with LOADING:
        before = [(shelf, dict(shelf.module_dict), dict(shelf.origins)) for shelf in shelves().values()]
        try:
            _load_plugins()
        except BaseException:
            PLUGIN_RECORDS.clear()
            for shelf, components, origins in before:
                shelf._module_dict, shelf.origins = components, origins
            raise
    return PLUGIN_RECORDS


def _load_plugins() -> None:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(sys.modules[__name__])
    ours = PluginRecord("builtins", "aligntok", aligntok.__version__)
    record = register_plugin(manager, lambda: importlib.import_module("aligntok.builtins"), ours)
    if record.error:  # a defect of ours, not of a user's plugin
        raise RuntimeError(f"the built-in plugin {record}")
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    wanted = os.environ.get("ALIGNTOK_LOAD_PLUGINS")
    names = {point.name for point in found} if wanted is None else {name.strip() for name in wanted.split(",")} - {""}
    for name in sorted(names - {point.name for point in found}):
        error = f"ALIGNTOK_LOAD_PLUGINS asks for it, but no such plugin is installed; found: {[p.name for p in found]}"
        PLUGIN_RECORDS.append(PluginRecord(name, name, "(not installed)", error=error))
    for point in (point for point in found if point.name in names):
        known = (point.dist.name, point.dist.version) if point.dist else (point.name, "(unknown version)")
        register_plugin(manager, point.load, PluginRecord(point.name, *known))


def list_plugins() -> list[PluginRecord]:
    """Load all plugins, unless they are, and return what became of each, in loading order."""
    next(iter(shelves()["encoders"]), None)  # the first look-up loads them
    return PLUGIN_RECORDS


@checked
def list_components(kind: str) -> list[str]:
    """Return the names that a config may use of a kind of component, such as "encoders" or "losses", sorted.

    Raises ConfigError, naming the kinds, for another.
    """
    if kind not in shelves():
        raise ConfigError(unknown("kind of component", kind, shelves()))
    return list(shelves()[kind])


def check_components() -> list[str]:
    """Import every component of every plugin; return one line a problem, none if all is well."""
    problems = [f"plugin {record}" for record in list_plugins() if record.error]
    for registry in shelves().values():
        for name in registry:
            try:
                registry.get(name)
            except AlignTokError as error:
                problems.append(f"{registry.kind} '{name}': {error}")
    return problems
