"""Trackers get every scalar and picture, go on in the run that they began, and never stop or delay a training."""

from __future__ import annotations

import errno
import json
import pkgutil
import shutil
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from aligntok.cli import train
from aligntok.engine import trackers
from aligntok.engine.trackers import (
    MLflowTracker,
    TensorBoardTracker,
    Tracker,
    WandbTracker,
    add_picture,
    check_backends,
)

PICTURE = np.zeros((4, 6, 3), np.uint8)


class Dying(Tracker):
    """A tracker that fails, or waits for ever, in one of the things that it does."""

    name = "dying"

    def __init__(self, folder, fails="", how=None):
        super().__init__(str(folder), "{}")
        self.fails, self.how, self.done = fails, how or self.die, []

    def die(self):
        raise OSError("the server is gone\nreally")

    def _do(self, what):
        if what == self.fails:
            self.how()
        self.done.append(what)

    def begin(self, known):
        self._do("begin")
        return known or "first"

    def send_scalars(self, scalars, step):
        self._do("scalars")

    def send_picture(self, name, picture, step):
        self._do("picture")

    def end(self):
        self._do("end")


def use(tracker):
    tracker.add_scalar("loss", 1.0, step=1)
    tracker.add_scalars({"loss": 2.0}, step=2)
    tracker.add_image("drawn", PICTURE, step=2)
    tracker.close()


@pytest.mark.parametrize("fails", ["begin", "scalars", "picture", "end"])
def test_a_tracker_that_dies_is_told_of_once_and_stops_nothing(fails, tmp_path, caplog):
    tracker = Dying(tmp_path, fails)
    use(tracker)
    assert fails not in tracker.done
    said = "dying misses something of this training, which goes on: OSError: the server is gone"
    assert [each.getMessage() for each in caplog.records] == [said]


def test_a_tracker_that_died_is_tried_again_after_a_pause(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "PAUSE", 0.0)
    tracker = Dying(tmp_path, "begin")
    tracker.add_scalar("loss", 1.0)
    while not tracker._has_told:
        time.sleep(0.01)
    tracker.fails = ""
    use(tracker)
    assert tracker.done == ["begin", "scalars", "scalars", "picture", "end"]


def test_a_tracker_that_hangs_is_left_behind(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "LAST", 0.2)
    monkeypatch.setattr(trackers, "WAITING", 3)
    hangs = threading.Event()
    tracker = Dying(tmp_path, "scalars", hangs.wait)
    began = time.monotonic()
    for step in range(20):
        tracker.add_scalar("loss", 1.0, step)
    tracker.close()
    assert time.monotonic() - began < 5
    assert [each.getMessage().split(": ")[1] for each in caplog.records] == [
        "it does not take what it is sent, 3 messages by now"
    ]
    hangs.set()


def test_a_tracker_that_is_late_at_the_end_is_left_behind_too(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "LAST", 0.2)
    hangs = threading.Event()
    use(Dying(tmp_path, "end", hangs.wait))
    assert "it has not taken everything after 0.2 s" in caplog.text
    hangs.set()


def test_which_run_it_is_stays_in_the_folder(tmp_path, caplog):
    begun = []
    for _ in range(2):
        tracker = Dying(tmp_path)
        tracker.begin = lambda known: begun.append(known) or known or "first"
        use(tracker)
    assert begun == [None, "first"]
    (tmp_path / "dying.json").write_text("{")
    use(Dying(tmp_path))
    assert "remove it: the tracker then begins another run" in caplog.text


def test_a_picture_goes_to_every_backend_but_the_files():
    class Backend(trackers.BaseVisBackend):
        experiment = None
        _init_env = None

        def add_image(self, name, image, step):
            seen.append((name, image.shape, step))

    seen = []
    local = trackers.LocalVisBackend("")
    add_picture(SimpleNamespace(_vis_backends={"local": local, "a": Backend(""), "b": Backend("")}), "x", PICTURE, 3)
    assert seen == [("x", (4, 6, 3), 3)] * 2


def disk_is_full(writer, *given, **named):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.filterwarnings("ignore")  # of TensorBoard's own thread, and libraries
@pytest.mark.parametrize(
    "broken",
    [
        "tensorboard.summary.writer.record_writer.RecordWriter.write",
        "tensorboard.summary.writer.record_writer.RecordWriter.flush",
        "torch.utils.tensorboard.SummaryWriter.add_scalar",
        "torch.utils.tensorboard.SummaryWriter.__init__",
        "torch.utils.tensorboard.SummaryWriter.close",
    ],
)
def test_tensorboard_that_cannot_write_ends_no_training(broken, write_generation, tmp_path, monkeypatch, capfd):
    home, _, name = broken.rpartition(".")
    monkeypatch.setattr(pkgutil.resolve_name(home), name, disk_is_full)
    config = write_generation(steps=3, log=dict(every=1))
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 0
    told = capfd.readouterr().err
    assert told.count("tensorboard misses something of this training, which goes on: OSError: [Errno 28] No space") == 1
    assert len(next(tmp_path.rglob("scalars.json")).read_text().splitlines()) >= 3


def test_tensorboard_that_failed_begins_another_file(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(trackers, "PAUSE", 0.0)
    tracker = TensorBoardTracker(str(tmp_path), "{}", str(tmp_path / "vis_data"))
    fails = [True]
    send = tracker.send_scalars
    monkeypatch.setattr(tracker, "send_scalars", lambda *given: disk_is_full(*given) if fails.pop() else send(*given))
    fails[:] = [False, True, False]
    use(tracker)
    tracker = TensorBoardTracker(str(tmp_path), "{}", str(tmp_path / "vis_data"))
    use(tracker)
    assert len([*tmp_path.glob("vis_data/events.out.tfevents.*")]) == 3


def test_scalars_are_kept_when_somebody_removes_their_folder(tmp_path):
    scalars = trackers.Scalars(str(tmp_path / "vis_data"))
    scalars.add_scalars({"loss": 1.0}, step=1)
    shutil.rmtree(tmp_path / "vis_data")
    scalars.add_scalars({"loss": 2.0}, step=2)
    assert json.loads((tmp_path / "vis_data/scalars.json").read_text()) == {"loss": 2.0, "step": 2}


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for W&B's package, which keeps what it is sent."""

    class Run(SimpleNamespace):
        def log(self, content):
            self.logged.append(content)

        def define_metric(self, *names, **steps):
            pass

        def finish(self):
            self.finished = True

    module = ModuleType("wandb")
    module.runs = []
    module.init = lambda **asked: module.runs.append(Run(asked=asked, logged=[])) or module.runs[-1]
    module.Settings = lambda **given: given
    module.Image = lambda picture: picture
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere/netrc")
    return module


@pytest.fixture
def mlflow(monkeypatch):
    """A stand-in for MLflow's package, which keeps what it is sent."""
    sent = []

    class Client:
        def __init__(self, tracking_uri):
            self.place = tracking_uri

        def get_experiment_by_name(self, name):
            return None

        def create_run(self, number, run_name):
            sent.append(("run", number, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

        def log_image(self, run, picture, name):
            sent.append(("picture", run, picture.shape, name))

        def log_batch(self, run, metrics=(), params=()):
            sent.append(("numbers", run, {each.key: each.value for each in metrics}, len(params)))

        def __getattr__(self, name):
            return lambda *given, **named: sent.append((name, *given)) or "e1"

    def made(*names):
        return lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))

    modules = {name: ModuleType(name) for name in ("mlflow", "mlflow.entities", "mlflow.tracking")}
    modules["mlflow.entities"].Metric = made("key", "value", "timestamp", "step")
    modules["mlflow.entities"].Param = made("key", "value")
    modules["mlflow.tracking"].MlflowClient = Client
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return sent


@pytest.mark.slow
def test_scalars_and_pictures_of_a_training_reach_every_tracker_and_a_longer_one_goes_on(
    write_generation, tmp_path, wandb, mlflow
):
    config = write_generation(steps=2, log=dict(every=1, pictures=2, backends=["tensorboard", "wandb", "mlflow"]))
    assert train([config, "--work-dir", str(tmp_path / "my_run")]) == 0
    stage = tmp_path / "my_run/generation"
    (run,) = wandb.runs
    scalars = json.loads(next(stage.glob("*/vis_data/scalars.json")).read_text().splitlines()[0])
    assert {**run.logged[0], "step": 1} == scalars
    pictures = [each for each in run.logged if any(isinstance(value, np.ndarray) for value in each.values())]
    assert [each["step"] for each in pictures] == [2]
    assert run.finished
    asked = run.asked
    assert (asked["group"], asked["name"], asked["mode"], asked["dir"]) == (
        "my_run",
        "generation",
        "offline",
        str(stage),
    )
    assert asked["config"]["global_batch_size"] == 8
    assert not any(str(tmp_path) in str(value) for value in asked["config"].values())
    kinds = [each[0] for each in mlflow]
    assert kinds[:3] == ["create_experiment", "run", "numbers"]
    assert ("run", "e1", "generation") in mlflow
    assert mlflow[0][1:] == ("my_run", (tmp_path / "my_run/mlflow_pictures").as_uri())
    assert [each[3] for each in mlflow if each[0] == "picture"] == ["samples_00000002.png"]
    assert kinds[-1] == "set_terminated"
    mlflow.clear()
    assert train([config, "--work-dir", str(tmp_path / "my_run"), "--cfg-options", "steps=3"]) == 0
    assert wandb.runs[1].asked["id"] == asked["id"]
    assert [each["step"] for each in wandb.runs[1].logged] == [3] * len(wandb.runs[1].logged)
    assert mlflow[0] == ("update_run", "m1")


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"NETRC": "netrc"}, "online"),
        ({"NETRC": "netrc", "WANDB_BASE_URL": "https://other.example/x"}, "offline"),
    ],
)
def test_wandb_stays_offline_where_it_would_have_to_ask(environment, mode, wandb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n")
    (tmp_path / "netrc").chmod(0o600)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    use(WandbTracker(str(tmp_path), "{}"))
    assert wandb.runs[0].asked["mode"] == mode


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_before_the_first_step(
    name, write_generation, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, name, None)
    config = write_generation(log=dict(backends=[name]))
    assert train([config, "--work-dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert f'pip install "aligntok[{name}]"' in told
    assert "What is going to be trained" not in told
    assert not (tmp_path / "run").exists()
    assert train([config, "--dry-run"]) == 0
    assert f"refused by the run: log.backends has '{name}': " in capsys.readouterr().out


def test_an_unknown_tracker_is_answered_with_those_there_are(write_generation, capsys):
    assert train([write_generation(log=dict(backends=["aim"])), "--dry-run"]) == 2
    assert "'tensorboard', 'wandb' or 'mlflow'" in capsys.readouterr().err


def test_no_tracker_is_one_too(write_generation, tmp_path):
    assert train([write_generation(steps=1, log=dict(backends=[])), "--work-dir", str(tmp_path / "run")]) == 0
    assert not [*tmp_path.rglob("events.out.tfevents*")]
    assert [*tmp_path.rglob("scalars.json")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the tracker's own libraries
def test_the_real_wandb_writes_offline_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason='wandb is not installed: pip install "aligntok[wandb]"')
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere/netrc")
    folder = tmp_path / "my_run/only"
    folder.mkdir(parents=True)
    check_backends(["wandb"])
    for step in (1, 2):
        tracker = WandbTracker(str(folder), '{"steps": 2}')
        tracker.add_scalars({"loss/l1": 0.25 * step}, step=step)
        tracker.add_image("drawn", PICTURE, step=step)
        tracker.close()
    run = json.loads((folder / "wandb.json").read_text())["run"]
    written = sorted(folder.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb"))
    assert len(written) == 2
    ends = time.monotonic() + 60  # wandb's own process writes it a moment after the end
    for number, path in enumerate(written, 1):
        texts = [text.encode() for text in ("loss/l1", str(0.25 * number), "my_run", "drawn")]
        while not all(text in path.read_bytes() for text in texts) and time.monotonic() < ends:
            time.sleep(0.1)
        assert [text for text in texts if text not in path.read_bytes()] == []
    assert len([*folder.glob("wandb/offline-run-*/files/media/images/*.png")]) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the tracker's own libraries
def test_the_real_mlflow_has_scalars_and_pictures_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    reason = 'mlflow is not installed: pip install "aligntok[mlflow]", in an environment of its own (make test-release)'
    client = pytest.importorskip("mlflow.tracking", reason=reason).MlflowClient
    monkeypatch.setattr(trackers, "LAST", 600.0)  # a new data base takes seconds, and minutes on a busy machine
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "my_run/only"
    folder.mkdir(parents=True)
    check_backends(["mlflow"])
    for step in (1, 2):
        tracker = MLflowTracker(str(folder), json.dumps({f"key_{number}": number for number in range(130)}))
        tracker.add_scalars({"loss/l1": 0.25 * step, "loss_at_time/0.00-0.10": 1.0}, step=step)
        tracker.add_image("drawn", PICTURE, step=step)
        tracker.close()
    found = client(tracking_uri=f"sqlite:///{tmp_path / 'my_run/mlflow.db'}")
    run = json.loads((folder / "mlflow.json").read_text())["run"]
    assert [(each.step, each.value) for each in found.get_metric_history(run, "loss/l1")] == [(1, 0.25), (2, 0.5)]
    assert found.get_run(run).info.status == "FINISHED"
    assert found.get_run(run).info.run_name == "only"
    assert len(found.get_run(run).data.params) == 130
    assert len([*tmp_path.glob("my_run/mlflow_pictures/*/artifacts/drawn_*.png")]) == 2
