"""What is kept of an arm is what was measured after its last step, and one process at a time is at an arm."""

from __future__ import annotations

import json
import math
import threading
import time
from types import SimpleNamespace

import pytest

from aligntok.errors import DataError, DivergenceError
from aligntok.evaluation.comparison import kept
from aligntok.evaluation.comparison.kept import generation_curves, in_turn, made_in_turn
from aligntok.evaluation.comparison.plan import Arm
from aligntok.evaluation.comparison.records import Made, read_record


def test_numbers_are_of_the_last_step_whatever_the_log_has_kept(tmp_path):
    """A log is flushed line by line, and its last may be missing; what was measured at the end has its own file."""
    arm = Arm("one", 0, tmp_path / "one.py", tmp_path)
    stage = tmp_path / "generator" / "generation"
    (stage / "now" / "vis_data").mkdir(parents=True)
    (stage / "now" / "vis_data" / "scalars.json").write_text('{"step": 2, "a/FID": 9.0, "b/FID": 8.0}\n')
    (stage / "result.json").write_text(json.dumps({"step": 4, "metrics": {"a/FID": 5.0, "c/KID": 1.0, "a/images": 3}}))
    assert generation_curves(arm) == {"a/FID": {2: 9.0, 4: 5.0}, "c/KID": {4: 1.0}}
    (stage / "result.json").unlink()
    with pytest.raises(DataError, match="result.json.* remove .*generator to train it anew"):
        generation_curves(arm)


def test_who_comes_to_an_arm_that_is_worked_at_waits_and_says_so(tmp_path, capsys):
    arm = Arm("one", 0, tmp_path / "one.py", tmp_path / "one" / "seed_0")
    began, order = threading.Event(), []

    def other():
        began.wait()
        with in_turn(arm):
            order.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with in_turn(arm):
        began.set()
        while "is waited for" not in capsys.readouterr().err:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("number", [3, None])
def test_a_set_of_the_grid_that_diverges_is_kept_as_such_and_a_main_training_ends_all(number, tmp_path, monkeypatch):
    def diverge(*_):
        raise DivergenceError("11 steps in a row had to be left out")

    monkeypatch.setattr(kept, "run_arm", diverge)
    monkeypatch.setattr(kept, "find", lambda *_: None)
    monkeypatch.setattr(kept, "made_with", lambda *_: Made({"lr": 9.0}))
    arm = Arm("one", 0, tmp_path / "one.py", tmp_path / "one" / "set_3", number=number)
    comparison = SimpleNamespace(results=tmp_path)
    if number is None:
        with pytest.raises(DivergenceError):
            made_in_turn(comparison, arm, dict)
        return
    made = made_in_turn(comparison, arm, dict)
    assert made == read_record(tmp_path / "grid_one_3.json")
    assert made.value("any") == math.inf
