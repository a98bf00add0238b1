"""Losing the terminal does not end a training, and what prints into a pipe that nobody reads ends quietly."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from aligntok.cli import reporting_errors
from aligntok.engine.checkpoints import finished_steps

ONE = ("--stage", "latent_alignment")
#: Standard output and error are pipes that nobody reads.
UNREAD = "import os\nread, write = os.pipe()\nos.close(read)\nfor number in {numbers}: os.dup2(write, number)"
FULL = "import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)"


def test_a_training_goes_on_when_nobody_reads_what_it_prints(start, write_config, tmp_path):
    setup = UNREAD.format(numbers=(1, 2))
    process = start("train", write_config(), "--work-dir", tmp_path / "run", *ONE, setup=setup)
    assert process.end()[0] == 0
    assert finished_steps(tmp_path / "run/1_latent_alignment") == 4
    assert process.output == ""


@pytest.mark.parametrize(
    ("env", "status"), [({}, 0), pytest.param({"TORCHELASTIC_RUN_ID": "torchrun's"}, 75, marks=pytest.mark.nightly)]
)
def test_a_training_goes_on_without_its_terminal_but_torchrun_does_not(start, write_config, tmp_path, env, status):
    words = [write_config(steps=8), "--work-dir", tmp_path / "run", *ONE, "--cfg-options", "data.workers=1"]
    process = start("train", *words, env=env).until("step 2/8")
    process.signal(signal.SIGHUP, group=True)
    assert process.end()[0] == status
    assert (finished_steps(tmp_path / "run/1_latent_alignment") == 8) == (status == 0)


@pytest.mark.parametrize(
    ("setup", "status", "said"),
    [
        (UNREAD.format(numbers=(1,)), 0, ""),
        (FULL, 2, "WriteError: what was printed is not whole (No space left on device); make room\n"),
    ],
)
def test_a_table_that_nobody_reads_ends_quietly_and_one_that_is_not_whole_does_not(
    start, write_config, tmp_path, setup, status, said
):
    process = start("train", write_config(), "--work-dir", tmp_path / "run", "--dry-run", setup=setup)
    assert process.end()[0] == status
    assert process.output == said


def command(work):
    return reporting_errors(lambda arguments: work() or 0)


def test_streams_that_were_closed_at_the_start_are_none_to_fail_at(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert command(lambda: print("x", file=sys.stderr, flush=True))(None) == 0
    assert sys.stdout is None


def interrupted():
    raise KeyboardInterrupt


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [(interrupted, 130, "stopped by Ctrl-C; "), (terminated, 75, "Preempted: stopped by SIGTERM at once; ")],
)
def test_a_signal_to_a_command_that_finishes_nothing_first(work, status, said, capsys):
    assert command(work)(None) == status
    assert capsys.readouterr().err.startswith(said)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


#: A thread that the interpreter's end waits for, as one that reads from a disk that hangs.
STUCK = """
import sys, threading, time
import aligntok.ends
aligntok.ends.GRACE_SECONDS = 0.5
def work(arguments):
    threading.Thread(target=time.sleep, args=(60,)).start()
    if STATUS == 1:
        raise RuntimeError("a defect")
    print("the last line", flush=True)
    return STATUS
aligntok.ends.leave(work)
"""


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_thread_that_hangs_does_not_hold_the_process(start, status):
    process = start("train", setup=STUCK.replace("STATUS", str(status)))
    assert process.end(20) == (status, pytest.approx(0.5, abs=4))
    assert ("RuntimeError: a defect" if status == 1 else "the last line") in process.output
