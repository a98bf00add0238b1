"""What a start takes: importing the package, and the help of its commands, beside importing torch alone.

    python benchmarks/start.py [--rounds 5]

Each is a fresh interpreter of this Python; they take turns, and a first round, in which files come from the disk and
bytecode is written, is not counted. Seconds are those of the processor, whatever else runs on the machine: medians and
quartiles, and the median of the ratios within a round to `import torch`, which none of the others needs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from aligntok.evaluation.cost.measure import spread

ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from aligntok.cli import main; sys.exit(main())"
TORCH = "import torch"
STARTS = {
    "python": ["-c", "pass"],
    "import aligntok": ["-c", "import aligntok"],
    "aligntok --help": ["-c", COMMAND, "--help"],
    "aligntok train --help": ["-c", COMMAND, "train", "--help"],
    "tools/train.py --help": [str(ROOT / "tools" / "train.py"), "--help"],
    TORCH: ["-c", TORCH],
}


def seconds_of(words: list[str]) -> float:
    """Return the processor's seconds of an interpreter from its start to its end."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{words} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rounds = [{name: seconds_of(words) for name, words in STARTS.items()} for _ in range(given.rounds + 1)][1:]
    print(f"seconds of the processor, {given.rounds} rounds, beside `{TORCH}`")
    for name in STARTS:
        ratio = statistics.median(found[name] / found[TORCH] for found in rounds)
        print(f"  {name:24s} {spread([found[name] for found in rounds])}  {ratio:.2f} x")


if __name__ == "__main__":
    main()
