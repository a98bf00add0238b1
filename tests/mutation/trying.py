"""Running tests on mutants: in copies of the tree, in processes that have imported the slow things."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from changes import Change
from files import MODULES, OF_ALL

ROOT = Path(__file__).resolve().parents[2]
#: What tests need that does not need AlignTok: imported once.
IMPORTED = ("torch", "torchvision", "timm", "mmengine", "mmengine.runner", "scipy.stats", "pytest", "hypothesis", "PIL")
LEAST_SECONDS = 60.0  # that a mutant's tests get; else four times what they take without it


class Copy:
    """A copy of the tree in which one mutant at a time is tried, in a process forked from this one."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log = folder / ROOT.name, folder / "log"
        listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        if (ROOT.parent / "shared").is_dir():
            (folder / "shared").symlink_to(ROOT.parent / "shared")
        self.child = 0

    def start(self, path: Path, source: str, tests: Sequence[str]) -> None:
        """Begin the tests on a source of a file."""
        (self.root / path).write_text(source)
        sys.stdout.flush()
        self.child = os.fork()
        if not self.child:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.setsid()
                descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                os._exit(self._run(tests))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        self.path, self.began = path, time.monotonic()

    def _run(self, tests: Sequence[str]) -> int:
        import pytest

        os.chdir(self.root)
        sys.dont_write_bytecode = True
        roots = [self.root, *(self.root / "plugins").glob("aligntok-*")]
        sys.path[:0] = map(str, roots)
        own = dict(PYTHONPATH=os.pathsep.join(sys.path), PYTHONDONTWRITEBYTECODE="1", CI="1")  # hypothesis: one seed
        os.environ.update(own)
        wanted = [f"tests/{name}.py" for name in tests]
        return int(pytest.main(["-x", "-q", "-n0", "--assert=plain", "-p", "no:cacheprovider", *wanted]))

    def ended(self, limit: float) -> bool | None:
        """Tell whether the tests passed; None while they run. Past the limit they are ended, and have not."""
        pid, status = os.waitpid(self.child, os.WNOHANG)
        if not pid and time.monotonic() - self.began < limit:
            return None
        self.stop()
        return bool(pid) and os.waitstatus_to_exitcode(status) == 0

    def stop(self) -> None:
        """End what runs, and put the file back."""
        if self.child:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.child, 0)
            shutil.copy2(ROOT / self.path, self.root / self.path)
            self.child = 0


class Trial(NamedTuple):
    """A mutant that is to be tried."""

    module: str
    change: Change


def passes(
    copy: Copy, module: str, source: str | None, tests: Sequence[str], limit: float
) -> Generator[None, None, bool]:
    """Run tests on a source of a module (None: as it is); yield while they run, and return whether they passed."""
    path = Path("aligntok") / f"{module}.py"
    copy.start(path, (ROOT / path).read_text() if source is None else source, tests)
    while (found := copy.ended(limit)) is None:
        yield
    return found


def judged(
    copy: Copy, trials: list[Trial], seconds: dict[tuple[str, int], float], quick: bool
) -> Iterator[tuple[Trial, str] | None]:
    """Take trials from the list and yield each with what became of it, or None while its tests run."""
    while trials:
        trial = trials.pop(0)
        verdict = "survived"
        own, more = MODULES[trial.module]
        for which, tests in enumerate((own, [OF_ALL, *(() if quick else more)])):
            key = trial.module, which
            if key not in seconds:
                began = time.monotonic()
                passed = yield from passes(copy, trial.module, None, tests, 1200)
                seconds[key] = time.monotonic() - began if passed else 0.0
                if not passed:
                    print(copy.log.read_text()[-3000:])
            if not seconds[key]:
                verdict = f"not tried: {', '.join(tests)} fail as it is"
                break
            limit = max(LEAST_SECONDS, 4 * seconds[key])
            if not (yield from passes(copy, trial.module, trial.change.source, tests, limit)):
                verdict = "killed"
                break
        yield trial, verdict


def side_by_side(
    copies: Sequence[Copy], trials: list[Trial], seconds: float, quick: bool
) -> Iterator[tuple[Trial, str]]:
    began, known = time.monotonic(), dict[tuple[str, int], float]()
    running = [judged(copy, trials, known, quick) for copy in copies]
    while running:
        for one in list(running):
            result = next(one, "done")
            if result == "done":
                running.remove(one)
            elif result is not None:
                yield result
        if time.monotonic() - began > seconds:
            trials.clear()
        time.sleep(0.05)
