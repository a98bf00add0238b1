"""Going on with another config: what may change, what is reported, what is refused; all before the first step."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import aligntok
from aligntok import load_tokenizer
from aligntok.cli import train
from aligntok.data.stream.dataset import StreamDataset
from aligntok.engine.checkpoints import read_newest
from aligntok.engine.snapshots import write_snapshot
from aligntok.errors import CheckpointError
from aligntok.io.files import write_checksums, write_json
from aligntok.loading import STAGE_FORMAT
from aligntok.settings import fields_of
from aligntok.training.config import FIXED, FREE, FREE_BELOW, HOW_IT_IS_READ, config_diff
from aligntok.training.generator_settings import GeneratorSettings
from aligntok.training.settings import StageSettings

ROOT = Path(__file__).parents[2]
FIRST = "1_latent_alignment"
ONE = ("--stage", "latent_alignment", "--cfg-options")


@pytest.fixture(scope="module")
def begun(tmp_path_factory, config_source):
    """A stage after two of its four steps: (work folder, config file)."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "tiny.py").write_text(config_source(steps=4))
    assert train([str(folder / "tiny.py"), "--work-dir", str(folder / "run"), *ONE, "stages.0.steps=2"]) == 0
    return folder / "run", str(folder / "tiny.py")


@pytest.fixture
def go_on(begun, tmp_path):
    """Go on with a copy of it and more options; returns the exit status."""
    shutil.copytree(begun[0], tmp_path / "run")

    def go(*options):
        return train([begun[1], "--work-dir", str(tmp_path / "run"), *ONE, *options])

    return go


def test_nothing_is_said_of_what_does_not_matter(go_on, caplog):
    free = ("stages.0.steps=3", "checkpoint.every=1", "data.workers=1", "data.timeout=60", "log.every=3")
    assert go_on(*free) == 0
    assert "other settings" not in caplog.text


def test_a_learning_rate_that_is_lowered_is_reported_and_holds(go_on, tmp_path, caplog):
    assert go_on("optimizer.lr=1e-5", "losses.gan.weight=0.1") == 0
    assert "was trained with other settings" in caplog.text
    assert "optimizer.lr: 0.001 -> 1e-05" in caplog.text
    assert "losses.gan.weight: 0.5 -> 0.1" in caplog.text
    content = read_newest(tmp_path / "run" / FIRST)
    assert content["step"] == 4
    assert content["optimizers"]["sides"]["autoencoder"]["param_groups"][0]["lr"] == 1e-5
    assert json.loads((tmp_path / "run" / FIRST / "stage.json").read_text())["optimizer"]["lr"] == 1e-5


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("optimizer.type=RAdam", "optimizer.type: 'Adam' -> 'RAdam'"),
        ("schedule=[dict(type='LinearLR',start_factor=0.1,begin=0,end=4)]", None),
        ("stages.0.trainable=['decoder']", "trainable: ['adapter', 'decoder'] -> ['decoder']"),
    ],
)
def test_what_the_saved_state_depends_on_cannot_change(go_on, tmp_path, capsys, write_config, option, said):
    before = (tmp_path / "run" / FIRST / "stage.json").read_text()
    if said is None:
        config = write_config(steps=4, schedule=[dict(type="LinearLR", start_factor=0.1, begin=0, end=4)])
        assert train([config, "--work-dir", str(tmp_path / "run"), *ONE, "seed=0"]) == 2
        said = "schedule: None -> "
    else:
        assert go_on(option) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "cannot change on the way. Set it back, or remove the folder" in printed
    assert (tmp_path / "run" / FIRST / "stage.json").read_text() == before


@pytest.mark.parametrize("option", ["model.latent_dim=8", "model.decoder.ch=64", "discriminator.base_channels=8"])
def test_a_checkpoint_of_another_shape_is_found_before_training(go_on, tmp_path, capsys, option):
    before = (tmp_path / "run" / FIRST / "stage.json").read_text()
    assert go_on(option) == 2
    printed = capsys.readouterr().err
    assert "CheckpointError: the " in printed
    assert "does not fit the config's" in printed
    assert (tmp_path / "run" / FIRST / "stage.json").read_text() == before


def test_what_is_refused_at_loading_leaves_the_description_as_it_was(go_on, tmp_path, capsys):
    before = (tmp_path / "run" / FIRST / "stage.json").read_text()
    assert go_on("ema.sigma_rel=[0.05,0.2]") == 2
    assert "the checkpoint holds EMA widths or decays 0.05, 0.1, but" in capsys.readouterr().err
    assert (tmp_path / "run" / FIRST / "stage.json").read_text() == before
    assert go_on("seed=0") == 0


def test_a_finished_stage_of_other_settings_is_reported(go_on, caplog, capsys):
    assert go_on("seed=0") == 0
    caplog.clear()
    assert go_on("optimizer.lr=1e-5", "optimizer.type=RAdam") == 0
    assert "finished already, skipped" in capsys.readouterr().err
    assert "remove its folder, and those of later stages, to train it again" in caplog.text


def test_a_work_folder_of_another_format_is_refused_by_whoever_reads_it(go_on, tmp_path, capsys):
    assert go_on("seed=0") == 0
    described = tmp_path / "run" / FIRST / "stage.json"
    said = json.loads(described.read_text())
    assert (said["format"], said["aligntok_version"]) == (STAGE_FORMAT, aligntok.__version__)
    described.write_text(json.dumps({**said, "format": 1, "aligntok_version": "0.0.9"}))
    message = "is a training of AlignTok 0.0.9, whose stage.json has format 1; this version reads 2"
    assert go_on("seed=0") == 2
    assert message in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path / "run")
    del said["format"], said["aligntok_version"]
    described.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="is a training of an earlier AlignTok"):
        load_tokenizer(tmp_path / "run" / FIRST)


STATES = {
    "optimizers": ["x", {}, {"sides": [1]}],
    "schedulers": [None, [5]],
    "ema": [5, {"step": 2}],
    "seconds": ["x", None],
    "parts": [None],
}


def test_a_checkpoint_that_says_something_else_is_told_before_a_step_is_taken(go_on, tmp_path, capsys):
    """Its checksums are those of what it says: whoever changed it could make them."""
    (newest,) = (tmp_path / "run" / FIRST / "checkpoints").iterdir()
    state = json.loads((newest / "state.json").read_text())
    optimizers, averages = state["optimizers"], state["ema"]
    guards = [{**optimizers["guard"], key: "x"} for key in ("judged", "skipped", "skipped_in_a_row", "norms")]
    wrong = {
        **{**STATES, "optimizers": STATES["optimizers"] + [{**optimizers, "guard": each} for each in guards]},
        "ema": [*STATES["ema"], {**averages, "step": -3}],
    }
    for key, values in wrong.items():
        for value in values:
            (newest / "state.json").write_text(json.dumps({**state, key: value}))
            write_checksums(newest, [each.name for each in newest.iterdir() if each.name != "checksums.json"])
            assert go_on("seed=0") == 2, (key, value)
            assert f"CheckpointError: {newest} cannot be read (" in (said := capsys.readouterr().err), (key, value)
            assert said.rstrip().endswith("it is damaged or incomplete")


def test_what_an_abandoned_attempt_left_is_removed(go_on, tmp_path):
    stage = tmp_path / "run" / FIRST
    write_snapshot(stage, 900, {"0.05": {"encoder": {"weight": torch.ones(1)}}})
    write_json(stage / "result.json", {"step": 900, "seconds": 1.0, "metrics": {"psnr": 99.0}})
    assert go_on("validation.every=None") == 0
    assert not [*(stage / "ema_snapshots").iterdir()]
    assert json.loads((stage / "result.json").read_text())["step"] == 4


@pytest.mark.parametrize(
    "schedule",
    [[{"type": "canary_of_a_file.Rates"}], "x", 5, [5], [None], {"a": 1}, [{"type": "LinearLR", "begin": "x"}]],
)
def test_a_schedule_in_a_file_is_compared_and_never_built(monkeypatch, tmp_path, schedule):
    (tmp_path / "canary_of_a_file.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = [{"type": "CosineAnnealingLR", "eta_min": 0.0}]
    for now in (None, own):
        found = config_diff({"schedule": schedule, "steps": 4}, {"schedule": now, "steps": 9, "schedule_end": None})
        assert {key.split(".")[0] for key in found} == {"schedule"}
    stretched = config_diff({"schedule": own, "steps": 4}, {"schedule": own, "steps": 9, "schedule_end": None})
    assert stretched == {"schedule_end": (4, 9)}


def test_settings_that_may_change_and_those_that_may_not_are_keys():
    keys = {option.name for cls in (StageSettings, GeneratorSettings) for option in fields_of(cls)}
    assert {*FREE, *FREE_BELOW, *FIXED} - {
        "model.encoder.pretrained",
        "optimizer.type",
        "discriminator_optimizer.type",
        *(f"data.train.{name}" for name in HOW_IT_IS_READ),
    } <= keys
    assert {*HOW_IT_IS_READ} <= {*inspect.signature(StreamDataset).parameters}


def test_the_page_names_every_setting_that_may_change_and_that_may_not():
    page = (ROOT / "docs/resume.md").read_text()
    for answer, settings in (("nothing is said", {*FREE, *FREE_BELOW}), ("an error: the saved", {*FIXED})):
        rows = re.findall(rf"^\| (.*) \| {answer}", page, re.MULTILINE)
        named = set(re.findall(r"`([\w.]+)`", " ".join(rows)))
        short = {name.removeprefix("data.train.") for name in settings}
        assert short <= named
        assert named - short <= {"fraction", "deterministic"}  # of data.val, which may not; of the run, not of a stage


def test_differences_are_named_by_their_keys():
    old = {"optimizer": {"lr": 1e-4}, "losses": {"l1": {"type": "l1"}}, "steps": 5, "trainable": ["decoder"], "gone": 1}
    new = {"optimizer": {"lr": 1e-5}, "losses": {}, "steps": 9, "trainable": ("decoder",), "ema": None}
    assert config_diff(old, new) == {
        "optimizer.lr": (1e-4, 1e-5),
        "losses.l1.type": ("l1", None),
        "losses": (None, {}),
    }
