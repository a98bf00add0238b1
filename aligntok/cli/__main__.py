"""``python -m aligntok.cli``, and what is installed as ``aligntok``."""

from __future__ import annotations

from typing import NoReturn

from aligntok.cli import main
from aligntok.ends import leave


def end() -> NoReturn:
    """``aligntok VERB ...``, and then the end of the process."""
    leave(main)


if __name__ == "__main__":
    end()
