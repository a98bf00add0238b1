"""Processes that do not go in the groups of `parallel` are refused before anything is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from aligntok import training
from aligntok.cli import train
from aligntok.training.config import load_config
from aligntok.training.run import expand


def test_groups_of_three_of_four_processes_are_refused_before_any_work(write_config, tmp_path, monkeypatch, capsys):
    config = write_config(parallel=dict(shard=3), data_root="/no/such/folder")
    monkeypatch.setattr(training.run, "world", lambda: (0, 4))
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 2
    said = (
        "stage 'latent_alignment': parallel=dict(shard=3) with 4 processes, which go in equal groups; 2, 4 would do, or"
    )
    assert said in capsys.readouterr().err
    assert not Path(tmp_path / "run").exists()


@pytest.mark.parametrize(("processes", "fits"), [(4, True), (3, False)])
def test_a_generator_is_held_against_the_processes_that_there_are(write_generation, monkeypatch, processes, fits):
    (stage,) = expand(load_config(write_generation(parallel=dict(shard=2), global_batch_size=12)))
    monkeypatch.setattr(training.generation, "world", lambda: (0, processes))
    if fits:
        stage.check_beforehand([])
    else:
        with pytest.raises(
            training.generation.ConfigError, match="with 3 processes, which go in equal groups; 3 would"
        ):
            stage.check_beforehand([])
