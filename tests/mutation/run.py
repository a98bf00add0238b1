"""Break the code, one place at a time, and see whether its tests fail: what survives shows where they are blind.

    python tests/mutation/run.py --seed 1 --each 8
    python tests/mutation/run.py --seed 1 --each 40 --only diffusion/samplers data/sampler
    python tests/mutation/run.py --only diffusion/samplers --line 80

Of each file in MODULES so many mutants are drawn from the seed (none without the seed: all that --line names are
tried), and the file's own tests run on each until one fails; then, if none did, those that are named beside them. All
of it happens in copies of the tree, which is only read. A test imports torch for seconds, so a process that has it
forks for each mutant; that, and numbers outside of functions and defaults, which are mutated too, is why this is no
ready-made tool. A survivor is not always a hole: it may compute the same by another way. Look at each.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from changes import changes, is_other_code
from files import MODULES
from trying import IMPORTED, ROOT, Copy, Trial, side_by_side


def chosen(modules: Sequence[str], seed: int | None, each: int, lines: Sequence[int]) -> list[Trial]:
    """Draw the mutants to be tried: of each module `each`, from the seed and its name."""
    trials = []
    for module in modules:
        source = (ROOT / "aligntok" / f"{module}.py").read_text()
        found = [change for change in changes(source) if not lines or change.line in lines]
        if seed is not None:
            random.Random(f"{seed} {module}").shuffle(found)
        real = islice((change for change in found if is_other_code(change, source)), None if seed is None else each)
        trials += [Trial(module, change) for change in sorted(real, key=lambda change: change.line)]
    return trials


def main(arguments: Sequence[str] | None = None) -> int:
    """Try mutants, print those that survive as they are found, and a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="which mutants are drawn; without it all are tried")
    parser.add_argument("--each", type=int, default=8, help="mutants of each file")
    parser.add_argument("--only", nargs="+", default=[*MODULES], choices=MODULES, metavar="FILE", help="of MODULES")
    parser.add_argument("--line", type=int, nargs="+", default=[], help="only mutants of these lines")
    parser.add_argument("--quick", action="store_true", help="without the tests that come after a file's own")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no other one is begun")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the copies are removed, and what runs is ended
    for name in IMPORTED:
        importlib.import_module(name)
    trials = chosen(options.only, options.seed, options.each, options.line)
    print(f"{len(trials)} mutants of {len(options.only)} files, seed {options.seed}", flush=True)
    found: list[tuple[Trial, str]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy(Path(folder) / str(job)) for job in range(options.jobs)]
        try:
            for trial, verdict in side_by_side(copies, trials, 60 * options.minutes, options.quick):
                found.append((trial, verdict))
                if verdict != "killed":
                    told = f"{trial.module}.py:{trial.change.line}: {trial.change.told}"
                    print(f"{verdict:9} {told}", flush=True)
        finally:
            for copy in copies:
                copy.stop()
    _print_table(found)
    return 0


def _print_table(found: Sequence[tuple[Trial, str]]) -> None:
    counts: Mapping[str, Counter[str]] = {module: Counter() for module in MODULES}
    for trial, verdict in found:
        counts[trial.module][verdict.split(":")[0]] += 1
    for module, count in counts.items():
        if count:
            print(f"{module:36} " + ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items())))
    killed, survived = (sum(count[verdict] for count in counts.values()) for verdict in ("killed", "survived"))
    print(f"{killed} of {killed + survived} killed, {survived} survived, of {len(found)} tried")


if __name__ == "__main__":
    raise SystemExit(main())
