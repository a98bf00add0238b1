"""How components get in: one pluggy hook, the built-in plugin and installed ones alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from aligntok.registry import Registries
hookspec = pluggy.HookspecMarker("aligntok")


@hookspec
def aligntok_register(registries: Registries) -> None:
    """Add components. Called once per process, at the first registry look-up.

    `registries` has one shelf a registry (encoders, adapters, decoders, losses, discriminators, generators,
    text_encoders, datasets, metrics, hooks); ``registries.encoders.add("mynet", MyNetEncoder)`` adds a class, or the
    import string of one. A name that is taken is an error: the whole plugin is then skipped and reported.
    """
