"""The alignment of a tokenizer: a stage trains some of its parts, beside losses, a discriminator and a teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from typing_extensions import Self

from aligntok.data.buckets import AspectBuckets, batches_in_buckets
from aligntok.data.images import find_buckets
from aligntok.data.loader import make_loader
from aligntok.data.sampler import evenly_spaced
from aligntok.distributed import world
from aligntok.engine.checkpoints import PartStates
from aligntok.engine.hooks import ReconstructionGridHook
from aligntok.engine.runner import ShareValLoop
from aligntok.errors import AlignTokError, ConfigError, multiples_of
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
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.alignment.settings import complete_stages
from aligntok.training.stages import RandomItems, Stage, StageData


def expand_stages(config: Mapping[str, Any]) -> list[AlignmentStage]:
    """Return the stages of a checked config, in order. Raises ConfigError for settings that cannot work."""
    return [AlignmentStage(*complete) for complete in complete_stages(config)]


@dataclass(frozen=True)
class AlignmentStage(Stage):
    """One stage of a tokenizer (paper, Sec. 3.2): settings with every key of ``STAGE_KEYS``."""

    results_title = "Reconstruction of held-out images"

    @property
    def start_folder(self) -> Path | None:
        """The folder of the stage that this one begins from, if any."""
        start = self["start"]
        return Path(start["folder"]) if start else None

    @property
    def optimizers(self) -> dict[str, Mapping[str, Any]]:
        """Those of the autoencoder, with losses that have weights, and of the discriminator."""
        return {"autoencoder": self["optimizer"], "discriminator": self["discriminator_optimizer"]}

    @property
    def validates(self) -> bool:
        """Whether it has held-out images."""
        return self["data"]["val"] is not None

    @property
    def reads_data(self) -> bool:
        """Whether the training images are known."""
        return "root" in self["data"]["train"]

    @property
    def model_settings(self) -> dict[str, Any]:
        """The keywords of :class:`aligntok.training.alignment.model.AlignmentModel`."""
        taken = ("losses", "trains", "discriminator", "teacher", "precision", "grad_checkpointing", "compile", "lora")
        return {"tokenizer": self["model"], "seed": self.seed, **{key: self[key] for key in taken}}

    def build_model(self, data: StageData | None = None) -> AlignmentModel:
        """Build tokenizer, losses, discriminator and teacher; without data on the meta device."""
        if data is not None:
            return AlignmentModel(**self.model_settings)
        with torch.device("meta"):  # shapes do not depend on what is compiled
            return AlignmentModel(**{**self.without_pretrained().model_settings, "compile": False})

    def build_data(self) -> StageData:
        """Open the training images and those held out, if any. Raises DataError or ConfigError."""
        data = self["data"]
        for split in ("train", "val"):
            if data[split] is not None and data[split]["type"] == "images" and "root" not in data[split]:
                raise ConfigError(
                    "data_root is not set, so there is nothing to train on; add --cfg-options "
                    "data_root=/path/to/images (a folder, a zip, shards, parquet files, or hf://owner/name)"
                )
        train = DATASETS.build({"train": True, "seed": self.seed, **data["train"]})
        if data["val"] is None:
            return StageData(train)
        val = DATASETS.build({"train": False, **data["val"]})
        wanted = self["validation"]["num_images"]
        return StageData(train, Subset(val, evenly_spaced(len(val), wanted)) if wanted else val)

    def check(self, model: AlignmentModel) -> None:
        """Raise ConfigError for images of sizes that the tokenizer, its losses or the discriminator cannot take."""
        for split in ("train", "val"):
            data = self["data"][split]
            sizes = [] if data is None else _sizes(data)
            for size in sizes:
                f = model.tokenizer.downsample_factor
                multiples_of(f, f"{self.where}, data.{split}: {DATASETS.kind} '{data['type']}': image_size", size)
            if split == "train" and sizes:
                _try_sizes(model, sizes, self["steps"])

    def read_start(self) -> PartStates | None:
        """Read the weights of the stage that it begins from, raw or averaged, low-rank updates merged."""
        folder = self.start_folder
        return None if folder is None else read_merged_parts(folder, self["start"]["weights"])

    def validation(self, data: StageData) -> dict[str, Any]:
        """Return how held-out images are reconstructed and measured; each process takes every so-manieth."""
        if data.val is None:
            return {}
        settings, loading, (rank, processes) = self["validation"], self["data"], world()
        shares = Subset(data.val, range(rank, len(data.val), processes))
        buckets = find_buckets(data.val, self.folder.parent)
        one_size = np.zeros(len(data.val), dtype=np.uint8)
        own = (one_size if buckets is None else buckets)[rank::processes]
        batches = list(batches_in_buckets(own, settings["batch_size"]))
        measured = {key: settings[key] for key in ("perceptual", "extractor")}
        return {
            "val_dataloader": make_loader(shares, batches, min(2, loading["workers"]), timeout=loading["timeout"]),
            "val_cfg": {"type": ShareValLoop.__name__, "num_images": len(data.val)},
            "val_evaluator": [METRICS.build({"type": "reconstruction", **measured})],
        }

    def hooks(self, data: StageData) -> list[Any]:
        """Return the one that draws held-out images beside their reconstructions, if pictures are wanted."""
        log = self["log"]
        if data.val is None or not log["pictures"]:
            return []
        shown = [data.val[i]["images"] for i in evenly_spaced(len(data.val), log["pictures"])]
        return [ReconstructionGridHook(shown, log["pictures_every"], self["ema"]["inference"] if self["ema"] else None)]

    def describe(self, model: AlignmentModel) -> dict[str, Any]:
        """Return the tokenizer's config, which rebuilds it."""
        return {"tokenizer": model.tokenizer.config}

    def export(self) -> Path:
        """Write the tokenizer into the run's work folder."""
        folder = self.folder.parent / "tokenizer"
        own = import_components(dotted_components({"model": self["model"]}))
        load_stage_tokenizer(self.folder, components=own).save_pretrained(folder)
        print(f"Tokenizer: {folder}   (aligntok.load_tokenizer('{folder}'))")
        if pictures := sorted((self.folder / "pictures").glob("*.png")):
            print(f"Reconstructions of held-out images: {pictures[-1]}")
        return folder

    def without_pretrained(self) -> Self:
        """Return it with random weights in place of pretrained ones, beginning from no other stage."""
        model, losses = self["model"], self["losses"]
        parts = {"encoder": ENCODERS, "adapter": ADAPTERS, "decoder": DECODERS}
        changes = {
            "model": {**model, **{part: without_weights(parts[part], model[part]) for part in parts if part in model}},
            "losses": {name: without_weights(LOSSES, loss) for name, loss in losses.items()},
            "discriminator": without_weights(DISCRIMINATORS, self["discriminator"]),
            "teacher": without_weights(ENCODERS, self["teacher"]),
            "start": None,
        }
        return replace(self, settings={**self.settings, **changes})

    def data_to_measure(self) -> StageData:
        """Return the config's training images, or random ones of the size that it crops to."""
        if self.reads_data:
            return StageData(self.build_data().train)
        return StageData(RandomItems({"images": torch.rand(3, *self._size()) * 2 - 1}, self["global_batch_size"]))

    def rehearse(self, model: AlignmentModel) -> None:
        """Take an image through tokenizer, losses, discriminator and teacher, as the last step does."""
        model.eval()
        model.values(torch.empty(1, 3, *self._size(), device="meta"), self["steps"] - 1)

    def _size(self) -> tuple[int, int]:
        """Return (H, W) of the training images, as the config crops them; of several sizes the first."""
        return AspectBuckets(self["data"]["train"].get("image_size", 256)).sizes[0]


def _sizes(data: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the sizes that a data set crops to, its default if none is given; none if it has none."""
    given = data.get("image_size", default_of(DATASETS.get(data["type"]), "image_size"))
    return [] if given is None else list(AspectBuckets(given).sizes)


def _try_sizes(model: AlignmentModel, sizes: Sequence[tuple[int, int]], steps: int) -> None:
    """Send images of the smallest and of the largest size through everything that the last step computes.

    On the meta device, so only shapes are computed. Raises what components raise about them.
    """
    model.eval()  # a batch norm over all processes would have to exchange numbers
    for size in {min(sizes, key=math.prod), max(sizes, key=math.prod)}:
        try:
            model.values(torch.empty(2, 3, *size, device="meta"), steps - 1)
        except AlignTokError:
            raise
        except Exception:  # of a component that cannot run without data: its first step will tell
            return
