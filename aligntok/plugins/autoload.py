"""Imported by the registries at their first look-up; importing it loads the plugins."""

from aligntok.plugins.manager import load_plugins

load_plugins()
