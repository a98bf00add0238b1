"""Commands as processes of their own, forked from one that has imported everything: a fault costs a second, not six."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
#: What any process may take from its last line to its end.
SECONDS = 10


class Process:
    """A command that runs; `output` is what it printed so far."""

    def __init__(self, server, pid, out):
        self._server, self.pid, self._out, self._status = server, pid, out, None

    @property
    def output(self):
        return self._out.read_text(errors="replace") if self._out.exists() else ""

    def until(self, text, seconds=60):
        """Wait until it printed a text; fails when it ends, or does not in that time."""
        ends = time.monotonic() + seconds
        while text not in self.output:
            waits = time.monotonic() < ends and self.status(0.05) is None
            assert waits, f"no {text!r} in:\n{self.output}"
        return self

    def status(self, seconds):
        """Its exit status, negative for a signal's, None while it runs after so many seconds."""
        if self._status is None:
            self._status = self._server.ask(wait=self.pid, seconds=seconds)
        return self._status

    def end(self, seconds=60):
        """Wait for its end, and tell (exit status, seconds since its last line); fails when it takes longer."""
        status = self.status(seconds)
        assert status is not None, f"it did not end:\n{self.output}"
        return status, max(0.0, time.time() - self._out.stat().st_mtime)

    def children(self):
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in found.read_text().split()] if found.exists() else []

    def signal(self, number, group=False):
        (os.killpg if group else os.kill)(self.pid, number)


class Server:
    """See warm.py."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, str(Path(__file__).with_name("warm.py"))]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self._process, self._started = subprocess.Popen(command, **pipes), []

    def ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, tool, out, *words, setup="", env=()):
        argv = [str(TOOLS / f"{tool}.py"), *map(str, words)]
        pid = self.ask(argv=argv, env=dict(env), out=str(out), setup=setup)
        self._started.append(Process(self, pid, out))
        return self._started[-1]

    def end_all(self):
        """End what still runs, and all that it started."""
        for process in self._started:
            if process.status(0) is None:
                process.signal(signal.SIGKILL, group=True)
                process.status(5)
        self._started.clear()

    def close(self):
        self._process.kill()
        with self._process:  # closes its pipes
            pass


@pytest.fixture(scope="session")
def _server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def start(_server, tmp_path):
    """Start a tool of ours as a process: (name, words of its command line, setup=code that it runs before, env=)."""
    numbers = iter(range(1000))
    yield lambda tool, *words, **more: _server.start(tool, tmp_path / f"output_{next(numbers)}.txt", *words, **more)
    _server.end_all()
