"""How components get in: one pluggy hook, the built-in plugin and installed ones alike."""
