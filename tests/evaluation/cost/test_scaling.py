"""What more GPUs are worth is what a hand computes from one GPU's step, bytes and bandwidths."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from aligntok import cli
from aligntok.distributed.parallel import Unit
from aligntok.evaluation.cost.scaling import Scaled, cost_scaling, scale
from aligntok.evaluation.cost_settings import ScalingRequest

GENERATOR = Path(__file__).parents[3] / "configs" / "generator" / "lightningdit_b_aligntok_f16d32_100k.py"
ONE = Scaled(1, 8, 0.0, 0.0, 9.0)  # 8 images in 9 s, of which 6 s are the backward pass


def asked(**changes):
    given = dict(config=GENERATOR, node_bandwidth=0.01, network_bandwidth=0.001, overlap=0.5)
    return ScalingRequest(**{**given, **changes})


def test_a_step_of_several_gpus_is_as_computed_by_hand():
    units = [Unit(nn.Linear(1000, 1000, bias=False), [])]  # 4 MB of gradients
    assert scale(units, ONE, 1, 8, asked()) == ONE
    within = scale(units, ONE, 8, 8, asked())  # 2 * 7/8 * 4 MB at 10 MB/s, hidden
    assert within == pytest.approx((8, 8, 7e6, 0.7, 9.0))
    between = scale(units, ONE, 16, 8, asked())  # 2 * 15/16 * 4 MB at 1 MB/s, of which 3 s are hidden
    assert between == pytest.approx((16, 8, 7.5e6, 7.5, 9 + 7.5 - 3))
    assert between.images_per_second == pytest.approx(16 * 8 / 13.5)
    halves = scale(units, ONE, 16, 4, asked())  # half the images: half of the time, and of what hides the exchange
    assert halves.seconds == pytest.approx(4.5 + 7.5 - 1.5)
    waiting = scale(units, ONE, 16, 8, asked(), micro=3)  # only the last micro-batch's backward pass hides it
    assert waiting.seconds == pytest.approx(9 + 7.5 - 1)
    shares = scale(units, ONE, 16, 8, asked(parallel=dict(shard=8)))
    # 7/8 * 4 MB of weights and of gradients within a node, 2 * 1/2 * 4 MB / 8 between the two
    assert shares == pytest.approx((16, 8, 7.5e6, 0.7 + 0.5, 9.0))


def test_the_table_has_the_numbers_of_gpus_that_can_be():
    grown = cost_scaling(asked(step_seconds=[0.1]))["generation"]
    assert [row.gpus for row in grown] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert {row.images for row in grown} == {128}  # the config's 1024 on a node of eight
    shared = cost_scaling(asked(step_seconds=[0.1], fixed_batch=True, gpus=[3, 4, 2048], parallel="shard"))
    assert [(row.gpus, row.images) for row in shared["generation"]] == [(4, 256)]
    groups = cost_scaling(asked(step_seconds=[0.1], images=2, parallel=dict(shard=8)))
    assert [row.gpus for row in groups["generation"]] == [8, 16, 32, 64, 128, 256]


def test_the_command_says_that_it_computes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = ["measure-cost", "scaling", str(GENERATOR), "--step-seconds", "0.1"]
    assert cli.main([*command, "--gpus", "8", "16"]) == 0
    printed = capsys.readouterr().out
    for words in (
        "generation, computed",
        "1,024 *",
        "efficiency",
        "Arithmetic, nothing of it measured: 300 GB/s a GPU",
    ):
        assert words in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "genration"], "no stage named 'genration'; did you mean 'generation'?"),
        (["--step-seconds", "0.1", "0.2"], "--step-seconds has 2 numbers; give one for each of generation"),
        (["--step-seconds", "0"], "--step-seconds 0; it must be"),
        (["--overlap", "2"], "--overlap 2; it must be"),
        (["--gpus", "0"], "--gpus 0; it must be"),
        (["--gpus-per-node", "3"], "global_batch_size 1024 is not divisible by 3"),
    ],
)
def test_what_cannot_be_computed_is_one_sentence(capsys, arguments, said):
    assert cli.measure_cost(["scaling", str(GENERATOR), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_step_of_one_gpu_is_measured_where_none_is_given(write_config, capsys):
    config = write_config(
        data_root=None, data=dict(train=dict(image_size=32)), discriminator=dict(type="patchgan", group_images=4)
    )
    found = cost_scaling(asked(config=config, stage="latent_alignment", images=2, gpus=[1, 2]))["latent_alignment"]
    assert found[0].seconds > 0
    assert "measuring a training step of latent_alignment" in capsys.readouterr().err
