"""What is known of a plugin, and of all that a process has met."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class PluginRecord:
    """A plugin by its entry-point name, distribution and version, and what became of it: the components it added as
    'shelf:name', or the error that kept it out.
    """

    name: str
    distribution: str
    version: str
    components: list[str] = field(default_factory=list)
    error: str | None = None

    def __str__(self) -> str:
        state = f"failed to load: {self.error}" if self.error else f"{len(self.components)} components"
        return f"{self.distribution} {self.version} {state}"

    def as_text(self) -> str:
        """Return the plugin and its components, a line a shelf, or what kept it out, for people."""
        lines = [f"{self.name}  ({self.distribution} {self.version})"]
        if self.error:
            return "\n".join([*lines, f"  failed to load: {self.error}"])
        by_shelf: dict[str, list[str]] = {}
        for shelf, _, name in (component.partition(":") for component in self.components):
            by_shelf.setdefault(shelf, []).append(name)
        return "\n".join([*lines, *(f"  {shelf}: {', '.join(sorted(names))}" for shelf, names in by_shelf.items())])


#: Every plugin met so far in this process, in loading order.
PLUGIN_RECORDS: list[PluginRecord] = []
#: Held while they are loaded: other threads wait for the last one; a plugin's hook may look up what came before it.
LOADING = threading.RLock()
