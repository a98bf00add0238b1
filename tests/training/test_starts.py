"""What stages begin from: whether it fits is known before anything is trained, and when it changes that is told."""

from __future__ import annotations

import shutil

import pytest

from aligntok.cli import train
from aligntok.training.config import load_config
from aligntok.training.run import expand

DATA = dict(train=dict(split="train", image_size=32), val=None, workers=0)


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        (1, dict(ema=None), "stage 'decoder_refinement' begins from stage 'perceptual_alignment' with weights='ema', "),
        (
            1,
            dict(model=dict(latent_dim=8)),
            "stage 'perceptual_alignment' begins from stage 'latent_alignment', whose ",
        ),
        (2, dict(discriminator=dict(base_channels=8)), "whose parts are others: the discriminator in what the stage"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_stage_that_cannot_follow_is_found_before_any_is_trained(
    tiny, write_config, tmp_path, capsys, stage, change, said, dry
):
    tiny["stages"][stage] |= change
    config = write_config(stages=[{"steps": 1, **each} for each in tiny["stages"]], data=DATA)
    assert train([config, "--work-dir", str(tmp_path / "run"), *dry]) == 2
    assert f"ConfigError: {said}"[-60:] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_follows_low_rank_updates_follows_them_merged(tiny, write_config):
    pytest.importorskip("peft")
    tiny["stages"][1] |= dict(lora=dict(rank=2))
    stages = expand(load_config(write_config(stages=[{"steps": 1, **each} for each in tiny["stages"]], data=DATA)))
    for i, stage in enumerate(stages):
        stage.check_follows(stages[:i])


def test_a_stage_of_another_run_has_to_be_there(tiny, write_config, tmp_path, capsys):
    (tmp_path / "before" / "1_one").mkdir(parents=True)
    begins = dict(init_from=dict(stage="one", work_dir=str(tmp_path / "before")))
    stages = [dict(name="first", steps=1), dict(name="second", steps=1, **begins)]
    config = write_config(stages=stages, data=DATA)
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 2
    said = f"starts from {tmp_path / 'before' / '1_one'}, which has no checkpoint; train that stage first"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_stages_that_began_from_what_is_trained_anew_or_further_are_named(tiny, write_config, tool, tmp_path, caplog):
    run, one = tmp_path / "run", tool.folders[0]
    changes = dict(data=DATA, log=dict(pictures=0, backends=[]))
    config = write_config(stages=[{"steps": 1, **each} for each in tiny["stages"]], **changes)
    go = [config, "--work-dir", str(run)]
    assert train(go) == 0
    assert train(go) == 0
    named = "what is trained now others have begun from"
    assert named not in caplog.text
    shutil.rmtree(run / one)
    assert train([*go, "--stage", "latent_alignment"]) == 0
    assert f"{named}, as it was before, and they stay as they are: " in caplog.text
    assert ", ".join(str(run / each) for each in tool.folders[1:]) + "; to train" in caplog.text
    caplog.clear()
    assert train([*go, "--cfg-options", "stages.1.steps=2"]) == 0
    assert f"they stay as they are: {run / tool.folders[2]}; to train" in caplog.text
    caplog.clear()
    assert train([*go, "--cfg-options", "stages.1.steps=2"]) == 0
    assert named not in caplog.text
