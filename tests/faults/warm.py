"""A server of processes: forks one for each command line that it reads, with everything imported already.

A line of stdin is JSON, either ``{"argv": [...], "env": {...}, "out": FILE, "setup": CODE}``, answered with the new
process's number, or ``{"wait": NUMBER, "seconds": S}``, answered with its exit status, or null when it is still there.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time

import torch.utils.tensorboard  # noqa: F401  (for the processes)

import aligntok.caching.cache
import aligntok.evaluation.reconstruction
import aligntok.sampling.samples
import aligntok.training.run  # noqa: F401


def wait(pid, seconds):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def become(asked):
    """Be the process of a command line: its own session, its output in a file."""
    os.setsid()
    output = os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(source, number)
    os.environ.update(asked["env"])
    sys.path[:0] = filter(None, asked["env"].get("PYTHONPATH", "").split(":"))
    sys.argv = asked["argv"]
    exec(asked["setup"], {})


def serve():
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
    serve()  # returns in a child
    runpy.run_path(sys.argv[0], run_name="__main__")
