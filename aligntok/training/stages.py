"""What every kind of training is: a stage, complete as data, and what a run asks of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import Dataset
from typing_extensions import Self

from aligntok.distributed import world
from aligntok.distributed.parallel import Unit, exchange_gradients
from aligntok.engine.ahead import arriving, send
from aligntok.engine.checkpoints import PartStates, finished_steps
from aligntok.engine.compile import compile_blocks
from aligntok.engine.mmengine import BaseModel, Hook
from aligntok.engine.optim import KeptBuffers
from aligntok.engine.runner import StepBatch
from aligntok.errors import ConfigError
from aligntok.loading import STAGE_FILE
from aligntok.ops.dropout import follow_samples, set_seeds
from aligntok.rng import rng, seed_torch, torch_state
from aligntok.training.settings import TrainingSettings


class StageData(NamedTuple):
    """What a stage trains on, what it is validated on, and what of the former its model is built with."""

    train: Any
    val: Any = None
    made_with: Any = None


class RandomItems(Dataset[Any]):
    """A data set of one random item, over and over: what a step is measured on where there is no data."""

    def __init__(self, item: Mapping[str, Any], number: int) -> None:
        self.item, self.number = dict(item), number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: Any) -> dict[str, Any]:
        return self.item


class MicroBatch(NamedTuple):
    """Which part of a step a backward pass is of: `number` of `of`.

    `scale` multiplies every loss: the micro-batch's share of the step, times the loss scale of float16.
    """

    step: int
    number: int
    of: int
    scale: Tensor | float = 1.0

    def samples(self, each: int) -> tuple[int, int]:
        """Return the size of the step's batch, and the place in it where this process's micro-batch of `each` begins.

        What is drawn for a sample follows from the step and that place, or from both as the sample's number in the run:
        so it is the same one however the batch is split.
        """
        rank, processes = world()
        return each * processes * self.of, (self.number * processes + rank) * each

    def numbers(self, each: int) -> range:
        """Return the numbers, in the run, of the samples of this process's micro-batch of `each`."""
        total, first = self.samples(each)
        return range(self.step * total + first, self.step * total + first + each)


class TrainedModel(BaseModel):
    """What a stage trains, beside what it is trained with, as the `settings` of the stage say.

    Has ``parts()``, ``trained_parts()``, ``frozen_parts()`` and ``averaged_parts()``, each a dict of modules,
    ``load_start(states)`` and ``val_step``; and ``backward``, from which `train_step` is made. `seed`, with the step,
    is the source of every random number that it draws.
    """

    #: What a step does nothing with but compute; labels are looked at before, and tokens go to their encoder.
    travels: ClassVar[tuple[str, ...]] = ("images", "latents", "encoded")

    def __init__(self, settings: Any, seed: int) -> None:
        super().__init__()
        self.settings, self.seed, self.precision = settings, seed, settings.precision
        self._buffers_before: KeptBuffers | None = None
        self._dropouts: list[Any] | None = None

    def trained_parts(self) -> dict[str, nn.Module]:
        """Return what changes in the stage."""
        raise NotImplementedError

    def units(self) -> list[Unit]:
        """Return what a step calls, one by one, with its blocks: how the model is spread over processes."""
        raise NotImplementedError

    def bytes_beside(self) -> dict[str, int]:
        """Return the bytes of weights that a step needs but for `parts`, by name. Raises as their check does."""
        return {}

    @property
    def prepares(self) -> bool:
        """Whether something of the next step can be done beside the present one."""
        return self.device().type == "cuda"

    def prepare(self, step: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Begin with a step's micro-batches beside the step before; return them, with what comes of it."""
        send(step[0], self.travels, self.device())
        return step

    def backward(self, batch: Mapping[str, Tensor], place: MicroBatch) -> dict[str, Tensor]:
        """Give what is trained the gradients of a micro-batch; return what to log."""
        raise NotImplementedError

    def train_step(self, data: StepBatch, optim_wrapper: Any) -> dict[str, Tensor]:
        """Do one optimiser step; every process calls it with its share of the same step.

        Returns what to log, averaged over micro-batches. Of a step that is left out nothing stays, in buffers neither.
        Raises ConfigError where layers draw numbers of a batch that is split, which are others without the split.
        """
        seed_torch("layers", self.seed, data.step)  # what these draw themselves: nothing to save, nothing to lose
        if self._buffers_before is None:
            self._buffers_before = KeptBuffers(self)
        self._buffers_before.keep()
        count, logs = len(data.micro_batches), []
        scale = optim_wrapper.loss_scale(self.device()) / count
        before = torch_state(self.device())
        for i, batch in enumerate(arriving(data.micro_batches, self.travels, self.device())):
            exchange_gradients(self, i == count - 1)
            logs.append(self.backward(batch, MicroBatch(data.step, i, count, scale)))
        if (count, world()[1]) != (1, 1) and torch_state(self.device()) != before:
            raise ConfigError(
                f"layers draw random numbers that follow from the batch's split, {world()[1]} processes x {count} "
                "micro-batches, and not from the image, as patch dropout and DropBlock do; switch those off (dropout, "
                "also attention's, and stochastic depth follow the image), or train in one process without accumulation"
            )
        averaged = {key: torch.stack([log[key] for log in logs]).mean(dim=0) for key in logs[0]}
        losses = [value for key, value in averaged.items() if key.startswith("loss/")]
        with record_function("optimiser"):
            logged = {**averaged, **optim_wrapper.step_parts(self.trained_parts(), losses)}
        if not getattr(optim_wrapper, "took_step", True):
            self._buffers_before.put_back()
        return logged

    def seed_dropouts(self, samples: Sequence[int]) -> None:
        """Have what layers drop follow the samples, by their numbers in the run."""
        if self._dropouts is None:
            self._dropouts = follow_samples(self)
        if self._dropouts:
            drawn = [int(rng("dropout", self.seed, number).integers(2**31)) for number in samples]
            set_seeds(self._dropouts, torch.tensor(drawn, dtype=torch.int32, device=self.device()))

    def compile_parts(self, *parts: nn.Module | None, apart: Collection[nn.Parameter] = ()) -> None:
        """Compile parts block by block, those with a weight set `apart` excepted, if the settings say so."""
        options = self.settings.compile
        if options:
            compile_blocks([*parts], {} if options is True else options, apart)

    def device(self) -> torch.device:
        """Return the device that it is on."""
        return next(self.parameters()).device


@dataclass(frozen=True)
class Stage(ABC):
    """One training of a run, complete: its place, its folder, its settings.

    A new kind of training is a folder beside `alignment` and `generation`, with a class that answers these questions,
    and a line in :func:`aligntok.training.run.expand`. The models they build are as :class:`TrainedModel`.
    """

    index: int
    name: str
    folder: Path
    seed: int
    settings: TrainingSettings

    #: Whether its data are there only once the stages before it are exported.
    waits: ClassVar[bool] = False
    #: What the table of its results is called at the end of a run; None for no table.
    results_title: ClassVar[str | None] = None

    @property
    def description(self) -> Path:
        """The file in its folder that says what it trains, and how."""
        return self.folder / STAGE_FILE

    @property
    def has_begun(self) -> bool:
        """Whether it goes on from a checkpoint of its own; before the first, what was written counts for nothing."""
        return self.description.is_file() and finished_steps(self.folder) > 0

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"stage '{self.name}'"

    @property
    def start_folder(self) -> Path | None:
        """The folder of the stage that this one begins from, if any."""
        return None

    @property
    @abstractmethod
    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        """The config of the optimiser of each side that it may train; the first one's learning rate is scheduled."""

    @property
    @abstractmethod
    def validates(self) -> bool:
        """Whether its result is measured."""

    @property
    @abstractmethod
    def reads_data(self) -> bool:
        """Whether the config names data that a step can read as they are."""

    @abstractmethod
    def build_model(self, data: StageData | None = None) -> Any:
        """Build what is trained; without data on the meta device, right in every shape and keyword, without weights."""

    def look(self) -> Any:
        """Open what it trains on, as far as that is there before anything is made, and check it; None: it is not.

        Raises DataError or ConfigError.
        """
        return None

    def completed(self) -> Self:
        """Return it with what its settings leave to the data. Raises as :meth:`look` does."""
        return self

    @abstractmethod
    def build_data(self) -> StageData:
        """Open, or make, what it trains on. Collective. Raises DataError, ConfigError or WeightsError."""

    @abstractmethod
    def check(self, model: Any) -> None:
        """Raise ConfigError for what its model, on the meta device, does not check itself."""

    def check_batch(self, model: Any, images: int) -> None:
        """Raise ConfigError unless its model can be trained on micro-batches of so many images over all processes."""
        return

    def check_follows(self, stages: list[Stage]) -> None:
        """Raise ConfigError where it does not fit what the `stages` before it make; nothing is read."""
        return

    def check_encoders(self) -> None:
        """Raise WeightsError or ConfigError for encoders that are missing or do not fit; no weights are read."""
        return

    def check_beforehand(self, stages: list[Stage]) -> None:
        """Check what it needs of the `stages` before it, and elsewhere, before any is trained. Raises our errors."""
        return

    @property
    def needs_stages(self) -> bool:
        """Whether it cannot begin before the stages before it are exported."""
        return self.waits

    @property
    def taken(self) -> tuple[Path, Collection[str]] | None:
        """Whose averages and optimiser's state it begins with, and which of these; None: it begins them itself."""
        return None

    def read_start(self) -> PartStates | None:
        """Read the weights that it begins from; None: as its model is built."""
        return None

    def is_of_classes(self, data: StageData) -> bool:
        """Tell whether what it trains is given the classes of its data, which may then not change on the way."""
        return False

    def collate(self, data: StageData) -> Any:
        """Return what puts a batch together in the loader's processes; None: torch's own way."""
        return getattr(data.train, "collate", None)

    @abstractmethod
    def validation(self, data: StageData) -> dict[str, Any]:
        """Return mmengine's keywords of its validation; none without one."""

    @abstractmethod
    def hooks(self, data: StageData) -> list[Hook]:
        """Return its own hooks, beside those of every run."""

    @abstractmethod
    def describe(self, model: Any) -> dict[str, Any]:
        """Return what its description says beside its settings; what loading it needs more is written, too."""

    @abstractmethod
    def export(self) -> Path:
        """Write what it makes, once it is finished, say where, and return the folder; the first process alone."""

    @abstractmethod
    def without_pretrained(self) -> Self:
        """Return it with random weights in place of pretrained ones, from no other stage, validating nothing."""

    @abstractmethod
    def data_to_measure(self) -> StageData:
        """Return what a step is measured on: the config's data where they can be read, or random ones of its size."""

    @abstractmethod
    def an_item(self) -> dict[str, Any]:
        """Return a random item of the size that the config is made for, as its data set would."""

    @abstractmethod
    def rehearse(self, model: Any) -> None:
        """Run forward everything that a step of one sample does, on the meta device."""


def place_key(data: Mapping[str, Any]) -> str:
    """Return the keyword by which a data set's config says where its data are."""
    return "index" if data.get("type") == "stream" else "root"


def placed(data: Mapping[str, Any], data_root: str | None) -> dict[str, Any]:
    """Return a data set's config with the run's `data_root`, unless it has a place of its own."""
    return {**({} if data_root is None else {place_key(data): data_root}), **data}


def check_placed(data: Mapping[str, Any], split: str = "train") -> None:
    """Raise ConfigError for images that are nowhere, as far as the config says."""
    if data["type"] in ("images", "stream") and place_key(data) not in data:
        key, example = "data_root", "/path/to/images (a folder, a zip, shards, parquet files, or hf://owner/name)"
        if data["type"] == "stream":
            key, example = f"data.{split}.index", "/path/to/index (as `aligntok index` makes it)"
        raise ConfigError(f"{key} is not set, so there is nothing to train on; add --cfg-options {key}={example}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` merged into it, dict by dict; a dict with ``_delete_=True`` replaces what was there."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, dict) and not value.get("_delete_"):
            merged[key] = merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
            if isinstance(merged[key], dict):
                merged[key].pop("_delete_", None)
    return merged
