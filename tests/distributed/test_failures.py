"""One process fails, dies or hangs: all end, promptly, with the reason on every log, and the checkpoints are whole."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from aligntok.distributed import job
from aligntok.engine.checkpoints import finished_steps, read_newest
from aligntok.errors import ProcessError

FIRST = "1_latent_alignment"
ENDLESS = ("--stage", "latent_alignment", "--cfg-options", "stages.0.steps=100000", "checkpoint.every=1")
STEP = "latent_alignment: step 3/"


@pytest.fixture
def pair(warm, tool, write_config, tmp_path):
    """Start two processes that torchrun would have started, without it, which would end one when the other is gone."""
    words = (tool.program, write_config(), "--work-dir", tmp_path / "run", *ENDLESS)
    return lambda *options: warm.several(2, *words, *options)


def logs(stage, rank):
    return "".join(path.read_text() for path in stage.rglob("*.log") if path.stem.endswith(f"rank{rank}"))


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(pid):
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next((int(v.partition("=")[2]) for v in variables if v.startswith("RANK=")), None)


def ranks_under(torchrun):
    return {rank_of(pid): pid for pid in children(torchrun.pid) if rank_of(pid) is not None}


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_killed_process_takes_the_other_with_it(pair, tmp_path, dead):
    processes = pair()
    processes[0].until(STEP)
    processes[dead].kill()
    began = time.monotonic()
    printed, _ = processes[1 - dead].communicate(timeout=60)
    processes[dead].communicate()
    assert time.monotonic() - began < 20
    assert processes[1 - dead].returncode == 2, printed
    assert "ProcessError: " in printed
    assert "Traceback" not in printed
    assert not dead or "no answer from process 1, killed" in printed or "process has ended" in printed
    assert "ProcessError: " in logs(tmp_path / "run" / FIRST, 1 - dead)
    assert read_newest(tmp_path / "run" / FIRST)["step"] >= 2


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (
            (0, 1),
            "(Connection closed by peer); no answer from process 2, 3, killed (out of memory?) or its machine gone: ",
        ),
        (
            (0, 1, 2, 3),
            "(Connection closed by peer); all processes answer, so one of them is stuck, or has lost its net",
        ),
    ],
)
def test_who_does_not_answer_when_an_exchange_breaks_off_is_named(monkeypatch, there, said):
    """Four processes' watches; in the first an exchange breaks off."""
    store, watches = torch.distributed.HashStore(), []
    monkeypatch.setattr(job, "connect_to_store", lambda: store)
    monkeypatch.setattr(job, "REASON_SECONDS", 1.5)
    monkeypatch.setattr(job, "world", lambda: (0, 4))
    for rank in there[1:]:
        watches.append(job._FailureWatch(rank, 4, silence=60))
        watches[-1].start()
    with pytest.raises(ProcessError) as raised, job.ending_together(60):
        raise RuntimeError("Connection closed by peer")
    for watch in watches:
        watch.stop()
    assert said in str(raised.value)


@pytest.mark.nightly
def test_a_process_that_falls_silent_is_missed(pair, tmp_path):
    processes = pair("process_timeout=6")
    processes[0].until(STEP)
    processes[1].signal(signal.SIGSTOP)
    printed, _ = processes[0].communicate(timeout=60)
    processes[1].kill()
    processes[1].communicate()
    said = "process 1 gave no sign of life for 6 s (process_timeout)"
    assert processes[0].returncode == 2, printed
    assert said in printed
    assert said in logs(tmp_path / "run" / FIRST, 0)
    assert read_newest(tmp_path / "run" / FIRST)["step"] >= 2


def told_to_all(run):
    """Whether the logs of both processes say that a data-loading process of the second died."""
    said = "DataError: a data-loading process ended or got stuck"
    return said in logs(run / FIRST, 1) and f"failed: {said}" in logs(run / FIRST, 0)


@pytest.mark.slow
def test_a_reason_in_one_process_reaches_the_log_of_every_other(pair, tmp_path):
    """The reason is a data-loading process of the second that dies."""
    processes = pair("data.workers=1")
    processes[0].until(STEP)
    (worker,) = processes[1].children()
    os.kill(worker, signal.SIGKILL)
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], printed
    assert "DataError: a data-loading process ended or got stuck" in printed[1]
    assert told_to_all(tmp_path / "run")
    assert read_newest(tmp_path / "run" / FIRST)["step"] >= 2


@pytest.mark.nightly
def test_a_reason_reaches_every_log_under_torchrun_too(write_config, tool, tmp_path):
    torchrun = ("--standalone", "--nproc_per_node=2")
    process = tool.launch(write_config(), tmp_path / "run", *ENDLESS, "data.workers=1", torchrun=torchrun)
    process.until(STEP)
    (worker,) = [pid for pid in children(ranks_under(process)[1]) if rank_of(pid) == 1]
    os.kill(worker, signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1, printed  # torchrun's own, whatever that of its processes
    assert "DataError: a data-loading process ended or got stuck" in printed
    assert told_to_all(tmp_path / "run")
    assert read_newest(tmp_path / "run" / FIRST)["step"] >= 2


@pytest.mark.nightly
def test_torchrun_may_start_the_processes_again_and_they_go_on(write_config, tool, tmp_path, slow_steps):
    """What the first life posted about its end must not end the second."""
    torchrun = ("--standalone", "--nproc_per_node=2", "--max-restarts=1")
    config, (slow, env) = write_config(steps=12, checkpoint=dict(every=1)), slow_steps
    options = ("--stage", "latent_alignment", "--cfg-options", slow)
    process = tool.launch(config, tmp_path / "run", *options, torchrun=torchrun, env=env)
    process.until(STEP)
    os.kill(ranks_under(process)[1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert finished_steps(tmp_path / "run" / FIRST) == 12
    assert "latent_alignment: step 12/12" in printed


@pytest.mark.nightly
def test_sigterm_to_torchrun_stops_all_after_one_step_and_the_run_goes_on(write_config, tool, tmp_path, slow_steps):
    torchrun = ("--standalone", "--nproc_per_node=2")
    config, one = write_config(steps=12, checkpoint=dict(every=1000)), ("--stage", "latent_alignment")
    slow, env = slow_steps
    process = tool.launch(config, tmp_path / "run", *one, "--cfg-options", slow, torchrun=torchrun, env=env)
    process.until(STEP)
    process.signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    step = finished_steps(tmp_path / "run" / FIRST)
    assert 3 <= step < 12
    for rank in (0, 1):
        assert f"stopped by SIGTERM after step {step} of 12" in logs(tmp_path / "run" / FIRST, rank)
    again = tool.launch(config, tmp_path / "run", *one, torchrun=torchrun)
    printed, _ = again.communicate(timeout=120)
    assert again.returncode == 0, printed
    whole = tool.launch(config, tmp_path / "whole", *one, torchrun=torchrun)
    printed, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, printed
    assert tool.same(tool.newest(tmp_path / "run" / FIRST), tool.newest(tmp_path / "whole" / FIRST))


FULL = """
import errno, os, safetensors.torch
from mmengine.hooks import Hook

class Full(Hook):
    save, count = staticmethod(safetensors.torch.save_file), 0

    def before_train(self, runner):
        if os.environ["RANK"] == "1":
            safetensors.torch.save_file = self.full

    def full(self, *args):
        self.count += 1
        if self.count > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.save(*args)
"""


@pytest.mark.nightly
def test_a_disk_that_is_full_for_the_second_process_ends_all_and_what_was_there_stays(write_config, tool, tmp_path):
    """In the writing aside of its shards, the third time."""
    (tmp_path / "full_hook.py").write_text(FULL)
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    options = (*ENDLESS, "parallel=shard", "hooks=[{'type': 'full_hook.Full'}]")
    torchrun = ("--standalone", "--nproc_per_node=2")
    process = tool.launch(write_config(), tmp_path / "run", *options, torchrun=torchrun, env=env)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 1, printed
    said = (
        "checkpoints/step_00000003/shard-00002-model-00001-of-00001.safetensors could not be written (No space left on"
    )
    for rank in (0, 1):
        assert said in logs(tmp_path / "run" / FIRST, rank)
    assert (
        'Traceback (most recent call last):\n  File "/' not in printed.split("] failed (exitcode")[0]
    )  # its own follows
    assert finished_steps(tmp_path / "run" / FIRST) == 2


@pytest.mark.nightly
def test_a_folder_that_another_run_holds_is_refused_by_every_process_of_the_second(pair, write_config, tool, tmp_path):
    first = tool.launch(write_config(), tmp_path / "run", *ENDLESS).until(STEP)
    second = pair()
    try:
        for process in second:
            printed, _ = process.communicate(timeout=300)
            assert process.returncode == 2, printed
            assert f"is in use by another run (process {first.pid})" in printed
        assert first.returncode is None
    finally:
        for process in (first, *second):
            process.kill()
            process.communicate()
