"""What a killed process leaves behind goes at the next start, and a claim on a folder goes with the run."""

from __future__ import annotations

import os
import signal

import pytest

from aligntok.errors import ConfigError
from aligntok.io.files import replacing
from aligntok.io.folders import check_writable, lock_folder, remove_leftovers

HALF = "x.json", "model.safetensors"


def leave_behind(folder):
    """As a process that is killed in the midst of writing does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in HALF:
        (folder / f".{name}.0a1b2c3d.tmp").write_bytes(b"half")


def there(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_temporary_files_are_swept_and_nobody_elses(tmp_path):
    for name in (".x.tmp", "x.0a1b2c3d.tmp", ".x.0a1b2c3d.tmp~", ".x.0a1b2c3g.tmp", ".hidden"):
        (tmp_path / name).write_text("mine")
    before = there(tmp_path)
    leave_behind(tmp_path)
    leave_behind(tmp_path / "in")
    check_writable(tmp_path)  # of a folder that others may write in, what is below stays
    assert there(tmp_path) - before == {"in", *(f"in/.{name}.0a1b2c3d.tmp" for name in HALF)}
    remove_leftovers(tmp_path)
    assert there(tmp_path) - before == {"in"}


def test_the_names_that_are_swept_are_those_that_are_written(tmp_path):
    with replacing(tmp_path / "a b.json") as temporary:
        temporary.write_text("half")
        remove_leftovers(tmp_path)
        assert not there(tmp_path)
        temporary.write_text("whole")
    assert there(tmp_path) == {"a b.json"}


def test_a_claim_goes_at_the_end_and_does_not_name_the_machine(tmp_path):
    (tmp_path / ".lock").write_text("process 1, which was killed")
    with lock_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()}"
    assert there(tmp_path) == set()
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path):
        raise ZeroDivisionError
    assert there(tmp_path) == set()


def fork(work):
    """Do something in another process: a claim is a process's. Returns its number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = work()
        finally:
            os._exit(status)
    return pid


def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def claim_many(folder, times):
    """Claim the folder again and again; fails when another process is in it at the same time."""
    taken = 0
    while taken < times:
        try:
            with lock_folder(folder):
                inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # fails when it is there
                os.close(inside)
                os.unlink(folder / "inside")
            taken += 1
        except ConfigError:
            continue
    return 0


def test_no_two_processes_hold_a_folder_though_claims_come_and_go(tmp_path):
    assert [status_of(pid) for pid in [fork(lambda: claim_many(tmp_path, 300)) for _ in range(3)]] == [0, 0, 0]
    assert there(tmp_path) == set()


def test_a_claim_that_was_opened_before_it_was_removed_is_made_anew(tmp_path, monkeypatch):
    """Another process ends its run between the two steps, opening and locking, of this one."""
    from aligntok.io import folders

    plain, first = folders.fcntl.lockf, iter([True])

    def lock(file, how):
        if next(first, False):
            (tmp_path / ".lock").unlink()
        plain(file, how)

    monkeypatch.setattr(folders.fcntl, "lockf", lock)
    with lock_folder(tmp_path):  # to read the file here would end the claim, as POSIX has it
        assert status_of(fork(lambda: tried(tmp_path))) == 7


def tried(folder):
    try:
        with lock_folder(folder):
            return 0
    except ConfigError:
        return 7


def test_a_killed_training_leaves_nothing_that_the_next_start_does_not_sweep(start, write_config, tmp_path):
    words = [write_config(), "--work-dir", tmp_path / "run", "--stage", "latent_alignment"]
    process = start("train", *words).until("step 2/")
    process.signal(signal.SIGKILL, group=True)
    process.status(20)
    for place in ("", "tokenizer", "1_latent_alignment/checkpoints"):
        leave_behind(tmp_path / "run" / place)
    assert start("train", *words).end()[0] == 0
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.is_file()]
