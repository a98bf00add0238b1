"""The alignment of a tokenizer: a stage trains some of its parts, beside losses, a discriminator and a teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from typing_extensions import Self

from aligntok.data.buckets import AspectBuckets
from aligntok.data.images import find_buckets
from aligntok.data.loader import make_loader
from aligntok.data.sampler import batches_in_buckets, evenly_spaced
from aligntok.distributed import world
from aligntok.engine.checkpoints import PartStates, finished_steps, part_states
from aligntok.engine.hooks import PictureHook, draw_reconstructions
from aligntok.engine.runner import ShareValLoop
from aligntok.errors import AlignTokError, CheckpointError, ConfigError, first_line, multiples_of
from aligntok.loading import load_stage_tokenizer, read_merged_parts
from aligntok.registry import (
    ADAPTERS,
    DATASETS,
    DECODERS,
    DISCRIMINATORS,
    ENCODERS,
    LOSSES,
    METRICS,
    default_of,
    dotted_components,
    import_components,
    without_weights,
)
from aligntok.settings import read
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.plan import check_start
from aligntok.training.settings import InitFrom, RunSettings, StageSettings
from aligntok.training.stages import RandomItems, Stage, StageData, check_placed, merge, place_key, placed
from aligntok.weights.lora import lora_scaling, without_lora

_HOLD_OUT = "hold some out {} with data.val.fraction=0.05, name others with {}, or set data.val=None for none"


def expand_stages(config: Mapping[str, Any]) -> list[AlignmentStage]:
    """Return the stages of a checked config, in order, complete; the config is not changed.

    Dicts of a stage are merged into the top's, key by key; ``_delete_=True`` in one replaces it; None removes a loss.
    Raises ConfigError for settings that cannot work.
    """
    base = {key: value for key, value in config.items() if key not in asdict(RunSettings())}
    stages: list[AlignmentStage] = []
    for i, overrides in enumerate(config["stages"]):
        given = merge(base, {key: value for key, value in overrides.items() if key != "name"})
        given["losses"] = {name: loss for name, loss in given.get("losses", {}).items() if loss is not None}
        encoder = given.get("model", {}).get("encoder")
        if given.get("init_from") is not None and isinstance(encoder, dict):
            given["model"]["encoder"] = without_weights(ENCODERS, encoder)  # they come from the earlier stage
        settings = read(StageSettings, given, f"stage '{overrides['name']}'")
        start = _find_start(settings.init_from, stages, f"stage '{overrides['name']}'")
        data, root = settings.data, config.get("data_root")
        val = None if data.val is None else placed(data.val, root)
        settings = replace(settings, data=replace(data, train=placed(data.train, root), val=val))
        name, folder = overrides["name"], Path(config["work_dir"]) / f"{i + 1}_{overrides['name']}"
        stages.append(AlignmentStage(i, name, folder, config["seed"] + i, settings, start))
    return stages


def _find_start(init_from: InitFrom | None, earlier: Sequence[Stage], where: str) -> Path | None:
    """Return the folder of the stage that one begins from, if any."""
    if init_from is None:
        return None
    folders = {stage.name: stage.folder for stage in earlier}
    source = "the stages before it"
    if init_from.work_dir is not None:
        found = sorted(Path(init_from.work_dir).expanduser().glob("[0-9]*_*"))
        folders, source = {folder.name.partition("_")[2]: folder for folder in found}, f"those in {init_from.work_dir}"
    if init_from.stage not in folders:
        raise ConfigError(f"{where} begins from stage '{init_from.stage}'; {source}: {', '.join(folders) or 'none'}")
    return folders[init_from.stage]


@dataclass(frozen=True)
class AlignmentStage(Stage):
    """One stage of a tokenizer (paper, Sec. 3.2). `start_folder`: of the stage that it begins from, if any."""

    settings: StageSettings
    start_folder: Path | None = None

    results_title = "Reconstruction of held-out images"

    @property
    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        """Those of the autoencoder, with losses that have weights, and of the discriminator."""
        return {"autoencoder": self.settings.optimizer, "discriminator": self.settings.discriminator_optimizer}

    @property
    def validates(self) -> bool:
        """Whether it has held-out images."""
        return self.settings.data.val is not None

    @property
    def reads_data(self) -> bool:
        """Whether the training images are known."""
        return place_key(self.settings.data.train) in self.settings.data.train

    def build_model(self, data: StageData | None = None) -> AlignmentModel:
        """Build tokenizer, losses, discriminator and teacher; without data on the meta device."""
        if data is not None:
            return AlignmentModel(self.settings, self.seed)
        with torch.device("meta"):  # shapes do not depend on what is compiled
            return AlignmentModel(replace(self.without_pretrained().settings, compile=False), self.seed)

    def look(self) -> Any:
        """Open the images that are trained on, and those held out, where the config says where they are."""
        return self.build_data().train if self.reads_data else None

    def build_data(self) -> StageData:
        """Open the training images and those held out, if any. Raises DataError or ConfigError."""
        given = self._data()
        for split, images in zip(("train", "val"), given, strict=True):
            if images is not None:
                check_placed(images, split)
        train = DATASETS.build({"train": True, "seed": self.seed, **given[0]})
        if given[1] is None:
            return StageData(train)
        val = DATASETS.build({"train": False, **given[1]})
        if not given[1].get("held_out") and hasattr(train, "placed") and hasattr(val, "placed"):
            of_stream = ("by number", "data.val.where or data.val.index"), ("by name", "data.val.split")
            train.check_apart(val, _HOLD_OUT.format(*of_stream[given[1]["type"] != "stream"]))
        wanted = self.settings.validation.num_images
        return StageData(train, Subset(val, evenly_spaced(len(val), wanted)) if wanted else val)

    def _data(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the configs of training images and held-out ones; `data.val.fraction` takes these from those."""
        train, val = self.settings.data.train, self.settings.data.val
        fraction = None if val is None else val.get("fraction")
        if val is None or fraction is None:
            return train, val
        place = place_key(train)
        if any(val.get(key, train.get(key)) != train.get(key) for key in ("type", place)):
            raise ConfigError(
                f"{self.where}: data.val.fraction={fraction} holds out some of the training images, so data.val cannot "
                f"have a type or {place} of its own; leave it, or the fraction, out"
            )
        shared = place, "split", "label", "where", "blocked_domains"
        same: dict[str, Any] = {key: train[key] for key in shared if key in train}
        own = {key: value for key, value in val.items() if key not in ("split", "label")}
        return {**train, "fraction": fraction}, {**own, **same, "held_out": True}

    def check_batch(self, model: AlignmentModel, images: int) -> None:
        """Raise ConfigError unless the batch goes in the groups that losses and norms take."""
        model.check_batch(images, self.where)

    def check(self, model: AlignmentModel) -> None:
        """Raise ConfigError for images of sizes that the tokenizer, its losses or the discriminator cannot take.

        Images of the smallest training size and of the largest go through everything that the last step computes, on
        the meta device: only shapes are computed. Raises what components raise about them, too.
        """
        sizes: dict[str, list[tuple[int, int]]] = {"train": [], "val": []}
        for split in sizes:
            data = getattr(self.settings.data, split)
            if data is None:
                continue
            size = data.get("image_size", default_of(DATASETS.get(data["type"]), "image_size"))
            sizes[split] = [] if size is None else list(AspectBuckets(size).sizes)
            for each in sizes[split]:
                what = f"{self.where}, data.{split}: {DATASETS.kind} '{data['type']}': image_size"
                multiples_of(model.tokenizer.downsample_factor, what, each)
        for registry, part in ((DISCRIMINATORS, self.settings.discriminator), (ENCODERS, self.settings.teacher)):
            if isinstance(part, Mapping):  # whether or not a loss asks for it
                registry.check(part, self.where)
                with torch.device("meta"):
                    registry.build(without_weights(registry, part))
        validation = self.settings.validation
        METRICS.get("reconstruction").check(validation.perceptual, validation.extractor, f"{self.where}, validation")
        model.eval()  # a batch norm over all processes would have to exchange numbers
        trained = sizes["train"]
        for each in {min(trained, key=math.prod), max(trained, key=math.prod)} if trained else ():
            try:
                model.values(torch.empty(2, 3, *each, device="meta"), self.settings.steps - 1)
            except AlignTokError:
                raise
            except Exception as error:
                if isinstance(error, NotImplementedError) or "meta" in str(error):
                    return  # a component that cannot run without data: its first step will tell
                raise ConfigError(
                    f"{self.where}: images of {each} do not go through its parts ({first_line(error)}); sizes or "
                    "channels of two of them do not fit"
                ) from error

    def check_follows(self, stages: list[Stage]) -> None:
        """Raise ConfigError where one of the `stages` before it, which it begins from, makes weights of other shapes.

        Or no averages, which are asked for. Of one that has its steps the weights themselves are looked at later.
        """
        start = self.settings.init_from
        before: Any = next((stage for stage in stages if stage.folder == self.start_folder), None)
        if start is None or before is None or finished_steps(self.folder):
            return
        if finished_steps(before.folder) >= before.settings.steps:
            return
        where = f"{self.where} begins from stage '{before.name}'"
        if start.weights == "ema" and before.settings.ema is None:
            raise ConfigError(f"{where} with weights='ema', but that one has ema=None; set its ema, or weights='raw'")
        model, lora = before.build_model(), before.settings.lora
        states = part_states({**model.frozen_parts(), **model.trained_parts()})
        if lora is not None:
            states["encoder"] = without_lora(states["encoder"], lora_scaling(asdict(lora)))
        try:
            self.build_model().load_start(states)
        except CheckpointError as error:
            raise ConfigError(f"{where}, whose parts are others: {error}") from error

    def check_beforehand(self, stages: list[Stage]) -> None:
        """Check whether it fits the stage that it begins from, and whether one of another run is there."""
        self.check_follows(stages)
        if self.start_folder not in [stage.folder for stage in stages]:
            check_start(self)

    def read_start(self) -> PartStates | None:
        """Read the weights of the stage that it begins from, raw or averaged, low-rank updates merged."""
        start = self.settings.init_from
        folder = self.start_folder
        return None if folder is None or start is None else read_merged_parts(folder, start.weights)

    def validation(self, data: StageData) -> dict[str, Any]:
        """Return how held-out images are reconstructed and measured; each process takes every so-manieth."""
        if data.val is None:
            return {}
        settings, loading, (rank, processes) = self.settings.validation, self.settings.data, world()
        shares = Subset(data.val, range(rank, len(data.val), processes) or [0])
        buckets = find_buckets(data.val, self.folder.parent)
        all_sizes = np.zeros(len(data.val), dtype=np.uint8) if buckets is None else buckets
        each = [[*batches_in_buckets(all_sizes[i::processes], settings.batch_size)] for i in range(processes)]
        batches, rounds = each[rank], max(map(len, each))
        counted = [i < len(batches) for i in range(rounds)]
        metric = {"type": "reconstruction", "perceptual": settings.perceptual, "extractor": settings.extractor}
        return {
            "val_dataloader": make_loader(
                shares, [*batches, *[[0]] * counted.count(False)], min(2, loading.workers), timeout=loading.timeout
            ),
            "val_cfg": {"type": ShareValLoop.__name__, "num_images": len(data.val), "counted": counted},
            "val_evaluator": [METRICS.build(metric)],
        }

    def hooks(self, data: StageData) -> list[Any]:
        """Return the one that draws held-out images beside their reconstructions, if pictures are wanted."""
        log, ema = self.settings.log, self.settings.ema
        if data.val is None or not log.pictures:
            return []
        shown = [data.val[i]["images"] for i in evenly_spaced(len(data.val), log.pictures)]
        draw, inference = partial(draw_reconstructions, images=shown), ema.inference if ema else None
        return [PictureHook("reconstruction", draw, log.pictures_every, inference)]

    def describe(self, model: AlignmentModel) -> dict[str, Any]:
        """Return the tokenizer's config, which rebuilds it."""
        return {"tokenizer": model.tokenizer.config}

    def export(self) -> Path:
        """Write the tokenizer into the run's work folder."""
        folder = self.folder.parent / "tokenizer"
        own = import_components(dotted_components({"model": self.settings.model}))
        load_stage_tokenizer(self.folder, components=own).save_pretrained(folder)
        print(f"Tokenizer: {folder}   (aligntok.load_tokenizer('{folder}'))")
        if pictures := sorted((self.folder / "pictures").glob("*.png")):
            print(f"Reconstructions of held-out images: {pictures[-1]}")
        return folder

    def without_pretrained(self) -> Self:
        model, losses = self.settings.model, self.settings.losses
        parts = {"encoder": ENCODERS, "adapter": ADAPTERS, "decoder": DECODERS}
        changes = {
            "model": {**model, **{part: without_weights(parts[part], model[part]) for part in parts if part in model}},
            "losses": {name: without_weights(LOSSES, loss) for name, loss in losses.items()},
            "discriminator": without_weights(DISCRIMINATORS, self.settings.discriminator),
            "teacher": without_weights(ENCODERS, self.settings.teacher),
            "init_from": None,
            "data": replace(self.settings.data, val=None),
        }
        return replace(self, settings=replace(self.settings, **changes), start_folder=None)

    def data_to_measure(self) -> StageData:
        """Return the config's training images, or random ones of the size that it crops to."""
        if self.reads_data:
            return StageData(self.build_data().train)
        return StageData(RandomItems(self.an_item(), self.settings.global_batch_size))

    def an_item(self) -> dict[str, Any]:
        """Return a random image of the size that the config crops to."""
        return {"images": torch.rand(3, *self._size()) * 2 - 1}

    def rehearse(self, model: AlignmentModel) -> None:
        """Take an image through tokenizer, losses, discriminator and teacher, as the last step does."""
        model.eval()
        model.values(torch.empty(1, 3, *self._size(), device="meta"), self.settings.steps - 1)

    def _size(self) -> tuple[int, int]:
        """Return (H, W) of the training images, as the config crops them; of several sizes the first."""
        return AspectBuckets(self.settings.data.train.get("image_size", 256)).sizes[0]
