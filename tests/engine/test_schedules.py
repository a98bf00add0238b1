"""Schedules move the rate as a config says, or are refused; more steps find them whole, stretched only when asked."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS

from aligntok.cli import train
from aligntok.engine.schedules import check_schedule, complete_schedule, end_of_schedule, go_on_schedules
from aligntok.errors import ConfigError

NEEDED = {
    "CosineAnnealing": dict(eta_min=0.0),
    "CosineRestart": dict(periods=[4, 20], restart_weights=[1, 1], eta_min=0.0),
    "Exponential": dict(gamma=0.9),
    "MultiStep": dict(milestones=[4]),
    "Step": dict(step_size=4),
    "Linear": dict(start_factor=0.1),
}
#: Those whose rates depend on where they end, and those that are the same wherever that is.
SHAPED = ("Constant", "CosineAnnealing", "Linear", "Poly")
SAVED = (*SHAPED, "CosineRestart", "Exponential", "MultiStep", "Step")


def one(name, suffix="LR", **more):
    return dict(type=name + suffix, **NEEDED.get(name, {}), **more)


def test_every_scheduler_of_mmengine_is_one_that_is_tried_here():
    others = {"OneCycle", "ReduceOnPlateau"}
    kinds = {name.removesuffix("LR") for name in PARAM_SCHEDULERS.module_dict if name.endswith("LR")}
    assert kinds == {*SAVED, *others}


@pytest.mark.parametrize("name", SAVED)
def test_each_is_taken_by_the_step_and_refused_by_the_epoch(name):
    check_schedule([one(name), one(name, by_epoch=False)], "here", 12)
    for key in (dict(by_epoch=True), dict(by_epoch=1), dict(convert_to_iter_based=True, by_epoch=True)):
        with pytest.raises(ConfigError, match="here, schedule: .*, but schedules are counted in steps"):
            check_schedule([one(name, **key)], "here", 12)


@pytest.mark.parametrize("name", [name for name in sorted(PARAM_SCHEDULERS.module_dict) if not name.endswith("LR")])
def test_what_moves_something_else_is_refused(name):
    for more in ({}, dict(by_epoch=True)):
        kind = name.removesuffix("Momentum").removesuffix("ParamScheduler")
        needed = dict(param_name="momentum") if name.endswith("ParamScheduler") else {}
        with pytest.raises(ConfigError):
            check_schedule([one(kind, name.removeprefix(kind), **needed, **more)], "here", 12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (one("MultiStep", end=4), "milestones=[4] of MultiStepLR, which begins at step 0 and goes to step 4"),
        (one("MultiStep") | dict(milestones=[-1]), "milestones=[-1]"),
        (one("MultiStep") | dict(milestones=[1.5]), "milestones=[1.5]"),
        (one("Step") | dict(step_size=0), "step_size=0 of StepLR"),
        (one("CosineRestart") | dict(periods=[0, 20]), "step"),
        (one("Exponential", begin=-1), "begin=-1 of ExponentialLR"),
        (one("Exponential", begin=float("nan")), "begin=nan"),
        (one("Exponential", end=None), "end=None"),
        (one("Exponential") | dict(gamma=-1), "takes the learning rate -1-fold at step 1"),
        (one("Exponential") | dict(gamma=1e3), "-fold at step 1"),
        (one("Exponential") | dict(gamma=True), "gamma=True is bool"),
        (one("Linear") | dict(start_factor=0), "it has no rate at step 1 (float division by zero)"),
        (one("Linear", begn=1), "no keyword named 'begn'; did you mean 'begin'?"),
        (one("ReduceOnPlateau", by_epoch=False), "is no scheduler of mmengine"),
        (dict(start_factor=0.5), "each must be dict(type='LinearLR', ...)"),
        ("LinearLR", "schedule holds 'LinearLR'"),
    ],
)
def test_what_could_not_move_the_rate_as_it_says_is_refused(given, said):
    with pytest.raises(ConfigError) as caught:
        check_schedule([given], "here", 12)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            one("MultiStep") | dict(milestones=[4, 100]),
            "milestones=[4, 100] of MultiStepLR, which begins at step 0",
        ),
        (one("MultiStep") | dict(milestones=[12]), "goes to step 12: not all of that comes"),
        (one("MultiStep", begin=8), "milestones=[4] of MultiStepLR, which begins at step 8"),
        (one("Step") | dict(step_size=12), "step_size=12 of StepLR"),
        (one("CosineRestart") | dict(periods=[12, 20]), "periods=[12, 20] of CosineRestartLR"),
        (one("Exponential", begin=12, end=20), "begin=12 of ExponentialLR"),
    ],
)
def test_what_a_stage_is_too_short_for_is_told(given, said, caplog):
    """A trial of a few steps has the schedule of the whole training."""
    check_schedule([given], "here", 12)
    assert said in caplog.text
    caplog.clear()
    check_schedule([given], "here", 200)
    assert not caplog.text


@pytest.mark.parametrize("name", SAVED)
def test_which_schedules_depend_on_the_last_step(name):
    assert end_of_schedule([one("Exponential"), one(name)], 12) == (12 if name in SHAPED else None)
    assert end_of_schedule([one(name, end=9)], 12) is None
    assert end_of_schedule([one(name, begin=20)], 12) == (12 if name in SHAPED else None)


def rates(schedule, steps, begun=None, lr=0.3):
    """The rates of `steps` steps; of a run that goes on, those from where it is. begun: (its rates' states, step)."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    built = [PARAM_SCHEDULERS.build({**each, "optimizer": optimizer}) for each in schedule]
    if begun:
        state, states, step = begun
        go_on_schedules(built, states, step, lambda: optimizer.load_state_dict(state))
    seen = []
    for _ in range(begun[2] if begun else 0, steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for each in built:
            each.step()
    return seen, (optimizer.state_dict(), [each.state_dict() for each in built], steps)


@pytest.mark.parametrize("name", SAVED)
def test_a_longer_run_has_the_rates_of_one_that_was_long_from_the_start(name):
    schedule = [one("Linear", end=3), one(name)]
    whole, _ = rates(complete_schedule(schedule, 12), 12)
    _, begun = rates(complete_schedule(schedule, 6), 6)
    assert rates(complete_schedule(schedule, 12), 12, begun)[0] == whole[6:]
    kept, _ = rates(complete_schedule(schedule, 6), 12, begun)  # as it was, the rate stays where it ended
    assert len(set(kept[1:])) == 1


def test_a_stretched_cosine_is_a_cosine():
    seen, _ = rates(complete_schedule([one("CosineAnnealing")], 12), 12)
    assert seen == pytest.approx([0.15 * (1 + math.cos(math.pi * step / 12)) for step in range(12)])


def rates_of(run):
    lines = [json.loads(line) for file in run.rglob("scalars.json") for line in file.read_text().splitlines()]
    return {line["step"]: line["lr/autoencoder"] for line in lines if "lr/autoencoder" in line}


def test_more_steps_of_a_schedule_that_ends_with_them_are_refused_or_it_is_stretched_when_asked(
    write_config, tmp_path, capsys, caplog
):
    cosine = [dict(type="CosineAnnealingLR")]
    images = dict(train=dict(split="train", image_size=32), val=None, workers=0)
    config = write_config(steps=6, schedule=cosine, log=dict(every=1, pictures=0), data=images)
    run = [config, "--work-dir", str(tmp_path / "run"), "--stage", "latent_alignment"]
    assert train([*run, "--cfg-options", "stages.0.steps=3"]) == 0
    assert train(run) == 2
    said = capsys.readouterr().err
    assert "(schedule_end: 3 -> 6), and schedule_end cannot change on the way" in said
    assert "schedule_end=3 keeps the schedule, schedule_end=6 stretches it" in said
    assert train([*run, "--cfg-options", "schedule_end=6"]) == 0
    assert "schedule_end: 3 -> 6" in caplog.text
    wanted = {step: 5e-4 * (1 + math.cos(math.pi * (step - 1) / 6)) for step in (4, 5, 6)}
    found = rates_of(tmp_path / "run")
    assert {step: found[step] for step in wanted} == pytest.approx(wanted, rel=1e-6)
    caplog.clear()
    assert train([*run, "--cfg-options", "stages.0.steps=7", "schedule_end=6"]) == 0  # kept, as is said
    assert "other settings" not in caplog.text
    assert rates_of(tmp_path / "run")[7] == rates_of(tmp_path / "run")[6]
