"""Run several of AlignTok's commands one after the other in one interpreter, which imports torch only once.

    python tests/golden/batch.py COMMANDS.json

COMMANDS.json: a list of commands, each a list of words that begins with the path of a tool. Ends with the status of the
first command that fails.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path


def run(words: list[str]) -> int:
    """Run one tool as the interpreter would, and return its status."""
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main(path: str) -> int:
    for words in json.loads(Path(path).read_text()):
        began = time.monotonic()
        status = run(list(words))
        print(f"golden: {time.monotonic() - began:5.1f} s  {' '.join(words)}", file=sys.stderr, flush=True)
        if status:
            return status
    import torch

    if (threads := torch.get_num_threads()) != 1:
        print(f"torch computed on {threads} threads; bits depend on how many", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
