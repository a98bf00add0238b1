"""Several machines, as torchrun's agents on the loopback: they meet, one is lost, one comes back, all are stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch

from aligntok.engine.checkpoints import finished_steps

ROOT = Path(__file__).parents[2]
STAGE = "1_latent_alignment"
ONE = ("--stage", "latent_alignment")
#: Rounding stays rounding: without a GAN, and with what is 0 but for it not made much of.
ADAM = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9), eps=1e-2)
ALONE = dict(name="latent_alignment", trainable=["adapter", "decoder"], steps=12)
SETTINGS = dict(seed=1, global_batch_size=8, optimizer=ADAM, losses=dict(l1=dict(type="l1")), discriminator=None)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture
def machine(tmp_path, slow_steps):
    """A function that starts a script of tools/launch as a machine would; all end with the test."""
    started, (slow, slowly) = [], slow_steps

    def start(script, *words, processes=1, options=(), **env):
        environment = {**os.environ, **slowly, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "SLOW": "1", **env}
        environment |= {"PROCESSES": str(processes), "PET_RDZV_CONF": "last_call_timeout=1,keep_alive_interval=1"}
        command = ["bash", str(ROOT / "tools/launch" / script), *map(str, words), *ONE]
        command += ["--cfg-options", "checkpoint.every=1", slow, *options]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        ends(process)
        process.stdout.close()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def torchrun_of(process):
    (pid,) = children(process.pid)
    return pid


def ends(process):
    """End a machine with all that runs on it."""
    for pid in [*everything(process.pid)][::-1]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def everything(pid):
    yield pid
    try:
        for child in children(pid):
            yield from everything(child)
    except FileNotFoundError:
        return


def until(process, text, seconds=120):
    """Read a machine's output up to the line that has `text` in it, or to its end; return what was read."""
    read, last = [], time.monotonic() + seconds
    for line in process.stdout:
        read.append(line)
        if text in line or time.monotonic() > last:
            break
    return "".join(read)


def finish(*processes, seconds=400):
    printed = [process.communicate(timeout=seconds)[0] for process in processes]
    return [process.returncode for process in processes], "\n".join(printed)


@pytest.fixture
def config(write_config):
    return write_config(stages=[ALONE], **SETTINGS)


@pytest.mark.nightly
def test_a_pair_is_stopped_and_goes_on(machine, tool, config, tmp_path):
    """The scheduler tells one machine: its line ends with 75, the other's with torchrun's 1."""
    port, run = free_port(), tmp_path / "run"
    pair = [machine("pair.sh", 2, i, "127.0.0.1", port, config, "--work-dir", run) for i in range(2)]
    assert "step 2/" in until(pair[0], "step 2/")
    pair[1].terminate()
    codes, printed = finish(*pair)
    assert codes == [1, 75], printed
    step = finished_steps(run / STAGE)
    assert 2 <= step < 12
    assert printed.count(f"stopped by SIGTERM after step {step} of 12") == 2


def elastic(machine, config, run, nodes, processes, *options):
    """A function that starts one machine of an elastic run; the first keeps the endpoint."""
    port = free_port()

    def start():
        words = (f"127.0.0.1:{port}", config, "--work-dir", run)
        made, ends = machine("elastic.sh", *words, processes=processes, options=options, NODES=nodes), time.time() + 60
        while time.time() < ends:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.1)
        return made

    return start


def assert_near(run, whole, tool, atol):
    found, expected = (tool.newest(each / STAGE) for each in (run, whole))
    assert found["step"] == expected["step"] == 12
    torch.testing.assert_close(found["parts"], expected["parts"], rtol=0, atol=atol)
    torch.testing.assert_close(found["ema"]["averages"], expected["ema"]["averages"], rtol=0, atol=atol)


def undisturbed(tool, config, folder, *options):
    """A run of four processes that nothing happens to."""
    words, four = (*ONE, "--cfg-options", *options), ("--standalone", "--nproc_per_node=4")
    codes, printed = finish(tool.launch(config, folder, *words, torchrun=four))
    assert codes == [0], printed
    return folder


@pytest.mark.nightly
def test_a_machine_is_lost_and_the_other_goes_on(machine, tool, config, tmp_path):
    start = elastic(machine, config, tmp_path / "run", "1:2", 1)
    first = start()
    second = start()
    said = until(first, "step 3/")
    assert "2 processes x" in " ".join(said.replace("│", " ").split())
    os.kill(torchrun_of(second), signal.SIGKILL)  # its process is left over, and ends by itself
    codes, printed = finish(first)
    assert codes == [0], printed
    assert "step 12/12" in printed
    assert "1 process x" in " ".join(printed.replace("│", " ").split())
    assert "the torchrun that started this process was killed" in finish(second)[1]


@pytest.mark.nightly
@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_of_two_machines_one_is_lost_and_the_end_is_the_same(machine, tool, config, tmp_path, parallel):
    start = elastic(machine, config, tmp_path / "run", "1:2", 2, f"parallel={parallel}")
    first = start()
    second = start()
    assert "step 3/" in until(first, "step 3/")
    ends(second)
    codes, printed = finish(first)
    assert codes == [0], printed
    assert_near(tmp_path / "run", undisturbed(tool, config, tmp_path / "whole", f"parallel={parallel}"), tool, 1e-6)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "atol"),
    [(["parallel=replicate"], 1e-6), (["parallel=replicate", "deterministic=True"], 0), (["parallel=shard"], 0)],
    ids=["replicate", "deterministic", "shard"],
)
def test_a_machine_takes_the_place_of_one_lost_and_the_end_is_the_same(machine, tool, config, tmp_path, options, atol):
    """Its torchrun counts restarts from 0, the other's has counted one.

    Of more than two replicas DDP adds up gradients in another order in the first step after a start: rounding, but
    where all is to be repeatable.
    """
    start = elastic(machine, config, tmp_path / "run", "2", 2, *options)
    first = start()
    second = start()
    assert "step 3/" in until(first, "step 3/")
    os.kill(torchrun_of(second), signal.SIGKILL)
    codes, printed = finish(first, start())
    assert codes == [0, 0], printed
    assert_near(tmp_path / "run", undisturbed(tool, config, tmp_path / "whole", *options), tool, atol)


@pytest.mark.nightly
def test_a_machine_that_is_told_to_stop_leaves_and_the_other_goes_on(machine, tool, config, tmp_path):
    start = elastic(machine, config, tmp_path / "run", "1:2", 1)
    first = start()
    second = start()
    assert "step 3/" in until(first, "step 3/")
    second.terminate()
    codes, printed = finish(first, second)
    assert codes == [0, 75], printed
    assert "stopped by SIGTERM after step" in printed
    assert "step 12/12" in printed


@pytest.mark.nightly
def test_a_machine_that_comes_later_takes_part(machine, tool, config, tmp_path):
    start = elastic(machine, config, tmp_path / "run", "1:2", 1)
    first = start()
    said = until(first, "step 3/")
    assert "1 process x" in " ".join(said.replace("│", " ").split())
    codes, printed = finish(first, start())
    assert codes == [0, 0], printed
    assert "2 processes x" in " ".join(printed.replace("│", " ").split())
    assert finished_steps(tmp_path / "run" / STAGE) == 12
