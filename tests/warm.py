"""Programs as processes of their own, forked from one that has imported everything: a start costs a moment, not six
seconds.

Run as a program, this file is that one, the server: it forks a process for each line of stdin that is JSON
``{"argv": [...], "env": {...}, "cwd": FOLDER, "out": FILE, "setup": CODE}``, answered with the new process's number;
``{"wait": NUMBER, "seconds": S}`` is answered with its exit status, or null when it is still there.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import count
from pathlib import Path

#: What programs would import one by one.
EVERYTHING = ["matplotlib.pyplot", "timm", "torch.utils.tensorboard", "tyro"]
EVERYTHING += ["aligntok.caching.cache", "aligntok.evaluation.reconstruction", "aligntok.sampling.samples"]
EVERYTHING += ["aligntok.training.run"]


class Process:
    """A program that runs; `output` is what it printed so far."""

    def __init__(self, server, pid, out):
        self._server, self.pid, self._out, self._status = server, pid, out, None

    @property
    def output(self):
        return self._out.read_text(errors="replace") if self._out.exists() else ""

    @property
    def returncode(self):
        return self.status(0)

    def until(self, text, seconds=120):
        """Wait until it printed a text; fails when it ends, or does not in that time."""
        ends = time.monotonic() + seconds
        while text not in self.output:
            waits = time.monotonic() < ends and self.status(0.02) is None
            assert waits or text in self.output, f"no {text!r} in:\n{self.output}"
        return self

    def status(self, seconds):
        """Its exit status, negative for a signal's, None while it runs after so many seconds."""
        if self._status is None:
            self._status = self._server.ask(wait=self.pid, seconds=seconds)
        return self._status

    def end(self, seconds=120):
        """Wait for its end, and tell (exit status, seconds since its last line); fails when it takes longer."""
        status = self.status(seconds)
        assert status is not None, f"it did not end:\n{self.output}"
        return status, max(0.0, time.time() - self._out.stat().st_mtime)

    def communicate(self, timeout=120):
        """Wait for its end, and return all that it printed; as of ``subprocess.Popen``."""
        self.end(timeout)
        return self.output, None

    def children(self):
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in found.read_text().split()] if found.exists() else []

    def signal(self, number, group=False):
        (os.killpg if group else os.kill)(self.pid, number)

    def kill(self):
        if self.status(0) is None:
            self.signal(signal.SIGKILL)


class Server:
    """The process that has imported everything, and what is started from it; all of it prints into `folder`."""

    strict = "import warnings; warnings.simplefilter('error')"  # a setup: what -W error is to an interpreter

    def __init__(self, folder):
        self._folder, self._numbers, self._started = folder, count(), []
        self._own = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **self._own})
        self._process = subprocess.Popen([sys.executable, __file__], **pipes)

    def ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, program, *words, setup="", env=()):
        """Start a program, by its file, in a session of its own; setup: code that it runs before."""
        argv, out = [str(program), *map(str, words)], self._folder / f"{next(self._numbers)}.txt"
        own = {**os.environ, **self._own, **dict(env)}
        pid = self.ask(argv=argv, env=own, cwd=os.getcwd(), out=str(out), setup=setup)
        self._started.append(Process(self, pid, out))
        return self._started[-1]

    def torchrun(self, *words, **more):
        """Start torchrun itself, whose processes import what they need on their own."""
        return self.start(find_spec("torch.distributed.run").origin, *words, **more)

    def several(self, processes, program, *words, env=(), **more):
        """Start a program in several processes, as torchrun would."""
        many = str(processes)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            meeting = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(taken.getsockname()[1]))
        meeting |= dict(WORLD_SIZE=many, LOCAL_WORLD_SIZE=many, **dict(env))
        ranks = [dict(meeting, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(processes)]
        return [self.start(program, *words, env=own, **more) for own in ranks]

    def together(self, processes, program, *words, **more):
        """Run a program in several processes to their end; return what each printed. Fails when one does."""
        started = self.several(processes, program, *words, **more)
        printed = [process.communicate(300)[0] for process in started]
        assert [process.returncode for process in started] == [0] * processes, "\n".join(printed)
        return printed

    def end_all(self):
        """End what still runs, and all that it started."""
        for process in self._started:
            if process.status(0) is None:
                process.signal(signal.SIGKILL, group=True)
                process.status(5)
        self._started.clear()

    def close(self):
        self.end_all()
        self._process.kill()
        with self._process:  # closes its pipes
            pass


def wait(pid, seconds):
    ends = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= ends:
            return None
        time.sleep(0.02)


def become(asked):
    """Be the process of a command line: its own session, its output in a file."""
    os.setsid()
    output = os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(source, number)
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [os.path.dirname(asked["argv"][0]), *(place for place in places if place and place not in sys.path)]
    sys.argv = asked["argv"]
    exec(asked["setup"], {})


def serve():
    """Answer requests; returns in a new process, and ends this one where there are no more."""
    for name in EVERYTHING:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            print(json.dumps(wait(asked["wait"], asked["seconds"])), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            become(asked)
            return
        print(pid, flush=True)
    raise SystemExit(0)


if __name__ == "__main__":
    serve()
    runpy.run_path(sys.argv[0], run_name="__main__")
