"""Trackers of runs beside the run's own files: TensorBoard, Weights & Biases, MLflow. None stops or delays a training.

A stage is a run of the tracker, in a group (W&B) or an experiment (MLflow) that the work folder is called after. Which
run it is stays in the stage's folder, so that a training that is gone on with goes on in it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmengine.registry import VISBACKENDS

from aligntok.distributed.job import batched
from aligntok.engine.mmengine import BaseVisBackend, LocalVisBackend
from aligntok.errors import AlignTokError, ConfigError, first_line
from aligntok.imports import FAILURES, import_failure
from aligntok.io.files import read_json, write_json

logger = logging.getLogger("aligntok.engine")
#: What ``log.backends`` may name; the last two are packages of that name.
Backend = Literal["tensorboard", "wandb", "mlflow"]
PAUSE = 300.0  # seconds after a failure before a tracker is tried again
LAST = 60.0  # seconds that a stage waits at its end for what a tracker has not sent
WAITING = 2000  # messages that a tracker may be behind


def check_backends(backends: Sequence[Backend]) -> None:
    """Raise ConfigError, with what installs it, for a tracker whose package is not here or cannot be imported."""
    for name in backends:
        if name != "tensorboard":
            _quiet_environment()
            try:
                import_module(name)
            except FAILURES as error:
                raise ConfigError(f"log.backends has '{name}': {import_failure(error)}") from error


def vis_backends(backends: Sequence[Backend], folder: Path, shown: str) -> list[dict[str, Any]]:
    """Return mmengine's configs of the visualizer's backends for a stage in `folder`: ``scalars.json``, and these.

    shown: what trackers show of the stage, flat, as JSON.
    """
    about = {"folder": str(folder), "shown": shown}
    kinds = {kind.name: {"type": kind.__name__, **about} for kind in (TensorBoardTracker, WandbTracker, MLflowTracker)}
    return [{"type": Scalars.__name__}, *(kinds[name] for name in dict.fromkeys(backends))]


def add_picture(visualizer: Any, name: str, picture: np.ndarray[Any, Any], step: int) -> None:
    """Show a picture (H, W, 3), uint8, in every backend but the one of files, which has it already."""
    for backend in visualizer._vis_backends.values():
        if not isinstance(backend, LocalVisBackend):
            backend.add_image(name, picture, step=step)


@VISBACKENDS.register_module()
class Scalars(LocalVisBackend):
    """The run's own ``scalars.json``, in a folder that is made anew where somebody has removed it."""

    def _dump(self, value_dict: dict[str, Any], file_path: str, file_format: str) -> None:
        Path(file_path).parent.mkdir(parents=True, exist_ok=True)
        super()._dump(value_dict, file_path, file_format)


class Tracker(BaseVisBackend):
    """One stage's run in a tracker. A thread of its own talks to it: what fails there, or hangs, is said once."""

    name = ""
    begins_anew = False  # after a failure: what it writes by is of no more use

    def __init__(self, folder: str, shown: str, save_dir: str = "") -> None:
        super().__init__(save_dir)
        self.folder, self.shown = Path(folder), dict[str, Any](json.loads(shown))
        self._left: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._has_begun = self._has_told = False
        self._again = 0.0

    @abstractmethod
    def begin(self, known: str | None) -> str:
        """Begin the tracker's run, or go on with the `known` one, and return which it is; "" where it has no name."""

    @abstractmethod
    def send_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Send numbers of a step."""

    @abstractmethod
    def send_picture(self, name: str, picture: np.ndarray[Any, Any], step: int) -> None:
        """Send a picture (H, W, 3), uint8."""

    @abstractmethod
    def end(self) -> None:
        """End the tracker's run."""

    @property
    def experiment(self) -> Any:
        """The tracker itself, whose own objects live in its thread."""
        return self

    def _init_env(self) -> None:
        """Leave it to the thread."""

    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, file_path: Any = None, **kwargs: Any) -> None:
        scalars = {name: float(value) for name, value in scalar_dict.items()}
        self._put(lambda: self.send_scalars(scalars, step))

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        self.add_scalars({name: value}, step)

    def add_image(self, name: str, image: np.ndarray[Any, Any], step: int = 0, **kwargs: Any) -> None:
        picture = np.array(image)
        self._put(lambda: self.send_picture(name, picture, step))

    def close(self) -> None:
        """Send what is left, for LAST seconds at most, and end the tracker's run."""
        if self._thread is None:
            return
        self._again = 0.0
        self._put(self.end)
        self._put(None)
        self._thread.join(LAST)
        if self._thread.is_alive():
            self._tell(f"it has not taken everything after {LAST:g} s")
        self._thread = None

    def _put(self, work: Callable[[], None] | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"aligntok-{self.name}", daemon=True)
            self._thread.start()
        try:
            self._left.put_nowait(work)
        except queue.Full:
            self._tell(f"it does not take what it is sent, {WAITING} messages by now")

    def _work(self) -> None:
        while (work := self._left.get()) is not None:
            if time.monotonic() < self._again:
                continue
            try:
                if not self._has_begun:
                    self._begin()
                    self._has_begun = True
                work()
            except FAILURES as error:
                self._again = time.monotonic() + PAUSE
                self._has_begun = self._has_begun and not self.begins_anew
                self._tell(
                    f"{type(error).__name__}: {error if isinstance(error, AlignTokError) else first_line(error)}"
                )

    def _begin(self) -> None:
        path = self.folder / f"{self.name}.json"
        cure = "remove it: the tracker then begins another run"
        known = read_json(path, ConfigError, cure, lambda content: str(content["run"])) if path.is_file() else None
        run = self.begin(known)
        if run and run != known:
            write_json(path, {"run": run})

    def _tell(self, reason: str) -> None:
        if not self._has_told:
            self._has_told = True
            logger.warning("%s misses something of this training, which goes on: %s", self.name, reason)


@VISBACKENDS.register_module()
class TensorBoardTracker(Tracker):
    """TensorBoard: event files beside ``scalars.json``, flushed every two minutes; after a failure another one."""

    name = "tensorboard"
    begins_anew = True

    def begin(self, known: str | None) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._save_dir)
        return ""

    def send_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def send_picture(self, name: str, picture: np.ndarray[Any, Any], step: int) -> None:
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def end(self) -> None:
        self._writer.close()


@VISBACKENDS.register_module()
class WandbTracker(Tracker):
    """Weights & Biases: offline, in the stage's folder, unless WANDB_MODE or a key says otherwise."""

    name = "wandb"

    def begin(self, known: str | None) -> str:
        import wandb

        run = known or secrets.token_hex(8)
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")  # wandb checks it
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "aligntok"),
            group=self.folder.resolve().parent.name,
            name=self.folder.name,
            id=run,
            resume="allow",
            dir=str(self.folder),
            config=self.shown,
            mode=mode,
            reinit="create_new",
            # it is asked for nothing on the terminal, and tells nobody what this machine is called
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_meta=True, host="host"),
        )
        self._run.define_metric("*", step_metric="step")  # an earlier step, after an interruption, is no error
        return run

    def send_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **scalars})

    def send_picture(self, name: str, picture: np.ndarray[Any, Any], step: int) -> None:
        import wandb

        self._run.log({"step": step, name: wandb.Image(picture)})

    def end(self) -> None:
        self._run.finish()


def _has_key() -> bool:
    """Tell whether W&B can log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("//")[2].split("/")[0]
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


@VISBACKENDS.register_module()
class MLflowTracker(Tracker):
    """MLflow: a data base and pictures in the work folder, unless MLFLOW_TRACKING_URI names a server."""

    name = "mlflow"

    def begin(self, known: str | None) -> str:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        work_dir = self.folder.resolve().parent
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work_dir / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=place)
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._run = known
            return known
        experiment = self._client.get_experiment_by_name(work_dir.name)
        pictures = (work_dir / "mlflow_pictures").as_uri() if place.startswith("sqlite:") else None
        number = experiment.experiment_id if experiment else self._client.create_experiment(work_dir.name, pictures)
        self._run = self._client.create_run(number, run_name=self.folder.name).info.run_id
        params = [Param(name, str(value)[:500]) for name, value in self.shown.items()]
        for some in batched(params, 100):  # what it takes at once
            self._client.log_batch(self._run, params=some)
        return str(self._run)

    def send_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = [Metric(name.replace("=", "-"), value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self._run, metrics=named)

    def send_picture(self, name: str, picture: np.ndarray[Any, Any], step: int) -> None:
        self._client.log_image(self._run, picture, f"{name}_{step:08d}.png")

    def end(self) -> None:
        self._client.set_terminated(self._run)


def _quiet_environment() -> None:
    """Keep trackers from asking, from telling their makers of this run, and from trying for minutes."""
    for name, value in (
        ("WANDB_SILENT", "true"),
        ("WANDB_ERROR_REPORTING", "false"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
    ):
        os.environ.setdefault(name, value)
