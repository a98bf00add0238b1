"""The scripts of tools/launch. The SLURM job: a process for each task, and back into the queue when SIGTERM stopped it,
only then. (What torchrun's scripts start is in distributed/test_machines.py.)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aligntok.engine.checkpoints import finished_steps

ROOT = Path(__file__).parents[1]
#: Starts a command as two tasks, hands SIGTERM on to them, and ends with the largest of their exit statuses.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
tasks = [dict(os.environ, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(int(os.environ["SLURM_NTASKS"]))]
running, asked = [], []
def end(*_):
    asked.append(True)
    for task in running:
        task.terminate()
signal.signal(signal.SIGTERM, end)
for env in tasks:
    running.append(subprocess.Popen(sys.argv[sys.argv.index("bash"):], env=env))
if asked:  # before all were there
    end()
sys.exit(max(task.wait() for task in running))
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


@pytest.fixture
def slurm(tmp_path):
    """A folder of stand-ins for SLURM's commands, and the environment of a job of two tasks."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    job = dict(SLURM_JOB_ID=str(os.getpid()), SLURM_NTASKS="2", SLURM_CPUS_PER_TASK="1", SLURM_JOB_NODELIST="node1")
    path = f"{commands}:{os.environ['PATH']}"
    return {**os.environ, **job, "PATH": path, "REQUEUED": str(tmp_path / "requeued"), "OMP_NUM_THREADS": "1"}


def submit(slurm, *arguments):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(["bash", str(ROOT / "tools/launch/slurm.sh"), *arguments], cwd=ROOT, env=slurm, **pipes)


def srun_of(job):
    (pid,) = (int(p) for p in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split())
    return pid


def test_each_task_knows_its_place_and_a_job_whose_time_is_up_goes_back_into_the_queue(slurm, tmp_path):
    """With a stand-in for the training, which ends with 75 at SIGTERM."""
    says = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $*"'
    lines = ("#!/bin/bash", "trap 'exit 75' TERM", says, "for _ in {1..600}; do sleep 0.1; done")
    (tmp_path / "bin/python").write_text("\n".join(lines) + "\n")
    job = submit(slurm, "a_config.py", "--cfg-options", "seed=1")
    said = f"2 127.0.0.1 {20000 + int(slurm['SLURM_JOB_ID']) % 10000} tools/train.py a_config.py --cfg-options seed=1\n"
    assert sorted(job.stdout.readline() for _ in range(2)) == [f"0 0 {said}", f"1 1 {said}"]
    os.kill(srun_of(job), signal.SIGTERM)
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == 75, printed
    assert Path(slurm["REQUEUED"]).read_text().split() == ["requeue", slurm["SLURM_JOB_ID"]]


@pytest.mark.nightly
def test_a_training_whose_time_is_up_writes_a_checkpoint_and_goes_back_into_the_queue(slurm, tmp_path, write_config):
    requeued, config = Path(slurm["REQUEUED"]), write_config()
    options = ("--stage", "latent_alignment", "--work-dir", str(tmp_path / "run"))
    job = submit(slurm, config, *options, "--cfg-options", "stages.0.steps=100000")
    for line in job.stdout:
        if "step 2/" in line:
            break
    os.kill(srun_of(job), signal.SIGTERM)
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == 75, printed
    assert requeued.read_text().split() == ["requeue", slurm["SLURM_JOB_ID"]]
    assert finished_steps(tmp_path / "run" / "1_latent_alignment") >= 2


@pytest.mark.parametrize("status", [0, 2])
def test_a_job_that_ends_well_or_fails_stays_out_of_the_queue(slurm, tmp_path, status):
    (tmp_path / "bin/python").write_text(f"#!/bin/sh\nexit {status}\n")
    job = submit(slurm, "a_config.py")
    printed, _ = job.communicate(timeout=60)
    assert job.returncode == status, printed
    assert not Path(slurm["REQUEUED"]).exists()


SCRIPTS = sorted((ROOT / "tools/launch").iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_sound(script):
    subprocess.run(["bash", "-n", script], check=True, timeout=60)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("script", "given"), [("pair.sh", ["2", "0", "node1", "29500"]), ("elastic.sh", ["node1:29500"])]
)
def test_a_script_says_what_it_takes(script, given):
    done = subprocess.run(["bash", ROOT / "tools/launch" / script, *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script} takes ")
    assert "CONFIG" in done.stderr


@pytest.mark.parametrize(("status", "stopped", "ends"), [(0, False, 0), (1, False, 1), (1, True, 75), (0, True, 0)])
def test_torchruns_end_becomes_75_where_it_was_stopped(tmp_path, status, stopped, ends):
    """With a stand-in that ends with a status of its own, after SIGTERM where there is one."""
    waits = (
        f"trap 'exit {status}' TERM; echo here; while true; do sleep 0.1; done"
        if stopped
        else f"echo here; exit {status}"
    )
    (tmp_path / "torchrun").write_text(f"#!/bin/bash\n{waits}\n")
    (tmp_path / "torchrun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "tools/launch/torchrun.sh"), "--nnodes=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "here\n"
        if stopped:
            process.terminate()
        assert process.wait(timeout=60) == ends
