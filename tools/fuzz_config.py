"""Mutate configs from a seed and say what becomes of each: refused in a sentence, accepted, or what must not be.

    python tools/fuzz_config.py --mutations 2000 --seed 0 [--show accepted] [--configs aligned generator]

Each mutation gives one key of a tiny config, one that it has or one that it could have, a value that it should not
have; or misspells, moves or swaps keys. `aligntok train --dry-run` of it runs in a child that is forked from this warm
process, with a limit of time and of memory; of every tenth mutation that is accepted so, two steps are trained as well.
Good is: refused with status 2 and one sentence, or accepted and sensible, which `--show accepted` lets you judge. Bad,
and status 1 here: a traceback, a hang, and what only the training finds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-every", type=int, default=10, help="train two steps of every so-manieth accepted one")
    parser.add_argument("--seconds", type=float, default=60.0, help="for one dry run, and for two steps")
    parser.add_argument("--gigabytes", type=float, default=6.0, help="of address space, beside what this process has")
    parser.add_argument("--configs", nargs="*", help="only these: aligned, lora, vavae, own, generator, encoding")
    parser.add_argument("--show", nargs="*", help="list these outcomes; by default those that must not be")
    asked = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "fuzz"))
    from judging import OUTCOMES, fuzz

    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(
            asked.mutations,
            asked.seed,
            Path(folder),
            run_every=asked.run_every,
            seconds=asked.seconds,
            gigabytes=asked.gigabytes,
            only=asked.configs,
            show=OUTCOMES[2:] if asked.show is None else asked.show,
        )
    print(f"seed {asked.seed}: " + ", ".join(f"{len(found[kind])} {kind}" for kind in OUTCOMES))
    return int(any(found[kind] for kind in OUTCOMES[2:]))


if __name__ == "__main__":
    sys.exit(main())
