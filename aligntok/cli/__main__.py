"""``python -m aligntok.cli``."""

from aligntok.cli import main

raise SystemExit(main(None))
