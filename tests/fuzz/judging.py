"""What becomes of a mutation: a dry run, and two steps, in a fork of this warm process with limits; and the counts."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from mutations import Mutation, mutations, source

from aligntok import cli
from configs import base_configs

#: What a batch says that does not fit into the memory that a child has.
MEMORY = ("can't allocate memory", "MemoryError")
#: Keys that make two steps many, or minutes of a compiler's.
LONG = ("steps", "compile")
#: How a training begins to say that there are no weights, or no data: a dry run needs neither.
NEITHER = ("WeightsError", "ConfigError: data_root is not set")
#: Of a mutation, by what became of it; the last four must be none.
OUTCOMES = ("refused", "accepted", "traceback", "hang", "unclear", "found by the run")


class Outcome(NamedTuple):
    """What became of a mutation, one of OUTCOMES, and what was printed about it."""

    kind: str
    said: str


def judge(mutation: Mutation, folder: Path, seconds: float, gigabytes: float) -> Outcome:
    """Dry-run a mutation in a forked child; return what became of it."""
    file = folder / "mutated.py"
    file.write_text(source(mutation.config), "utf-8", "surrogateescape")
    return in_child(["train", str(file), "--dry-run"], folder, seconds, gigabytes)


def train_it(folder: Path, seconds: float, gigabytes: float) -> Outcome:
    """Train two steps of the mutation that was judged last; return what became of it."""
    with tempfile.TemporaryDirectory(dir=folder) as work_dir:
        words = ["train", str(folder / "mutated.py"), "--work-dir", work_dir]
        judged = in_child(words, folder, seconds, gigabytes)
    if judged.said.startswith(NEITHER) or any(word in judged.said for word in MEMORY):
        return Outcome("accepted", "")
    if judged.kind in ("accepted", "hang"):
        return judged
    return Outcome("found by the run", f"{judged.kind}: {judged.said}")


def in_child(words: list[str], folder: Path, seconds: float, gigabytes: float) -> Outcome:
    """Run a command of ours in a fork of this process, with so much time and so much more memory; say how it ended."""
    printed = folder / "printed"
    child = os.fork()
    if not child:
        _be_the_child(words, printed, gigabytes)
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome("hang", f"more than {seconds:g} s; {printed.read_text('utf-8', 'replace')[-300:]}")
        time.sleep(0.005)
    said, status = printed.read_text("utf-8", "replace"), os.waitstatus_to_exitcode(ended[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left running
    if status == 0:
        return Outcome("accepted", "")
    told = [line for line in said.splitlines() if line.strip()]
    if status == 2 and "Traceback" not in said and told and len([line for line in told if "Error: " in line]) == 1:
        return Outcome("refused", next(line for line in told if "Error: " in line))
    return Outcome(
        "traceback" if "Traceback" in said else "unclear", f"status {status}: {' / '.join(told[-4:])}"[-600:]
    )


def _be_the_child(words: list[str], printed: Path, gigabytes: float) -> None:
    os.setpgid(0, 0)
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115 (until it ends)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = used + int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = 1
    try:
        status = cli.main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def fuzz(
    number: int,
    seed: int,
    folder: Path,
    *,
    run_every: int = 10,
    seconds: float = 30.0,
    gigabytes: float = 6.0,
    only: list[str] | None = None,
    show: Collection[str] = (),
) -> dict[str, list[str]]:
    """Try so many mutations; return what was done and said, by outcome.

    `only`: names of configs. `show`: outcomes that are printed as they come.
    """
    configs = {name: config for name, config in base_configs(folder).items() if only is None or name in only}
    found: dict[str, list[str]] = {kind: [] for kind in OUTCOMES}
    for name, config in configs.items():  # right as they are; once in this process, which is warm afterwards
        (folder / "whole.py").write_text(source(config))
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main(["train", str(folder / "whole.py"), "--dry-run"])
        judged = judge(Mutation(name, "as it is", config), folder, seconds, gigabytes)
        if judged.kind != "accepted":
            raise RuntimeError(f"{name} as it is: {judged.said}")
    for _, mutation in zip(range(number), mutations(configs, seed), strict=False):
        judged = judge(mutation, folder, seconds, gigabytes)
        due = judged.kind == "accepted" and len(found["accepted"]) % run_every == 0
        if due and not any(key in mutation.done for key in LONG):
            trained = train_it(folder, seconds, gigabytes)
            judged = trained if trained.kind != "accepted" else judged
        told = f"{mutation.name}: {mutation.done}" + (f"  =>  {judged.said}" if judged.said else "")
        found[judged.kind].append(told)
        if judged.kind in show:
            print(f"{judged.kind}: {told}", flush=True)
    return found
