"""A set of samples, drawn by one process or many into one folder, and beside real images in one picture to look at.

Sample i follows from its seed and its label or prompt alone. A set is drawn in batches that are cut from the numbers
0, 1, ... in order, the same whichever process draws them and whatever was there before: so its pictures do not depend
on processes and interruptions, and on the batch size only as far as the rounding of the arithmetic does.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aligntok.data.sources import open_source
from aligntok.data.sources.base import ImageSource
from aligntok.data.transforms import cover_and_crop, read_image, to_tensor
from aligntok.diffusion.settings import Sampling
from aligntok.distributed import barrier, is_first
from aligntok.distributed.job import batched, job, shares
from aligntok.distributed.output_folder import output_folder
from aligntok.errors import ConfigError, DataError, ImageError, Preempted
from aligntok.io.pictures import image_grid, save_picture, to_picture
from aligntok.sampling.folder import DESCRIPTION, FORMAT, PictureWriter, SampleFolder, compared
from aligntok.sampling.pipeline import SamplePipeline
from aligntok.sampling.settings import SampleRequest

PICTURE = "beside_real.png"
EACH, MOST = 2, 27  # real images, and samples, of a class; classes in the picture
COLUMNS = 3  # of classes


def sample_images(request: SampleRequest) -> Path:
    """Draw samples into a folder, and return it: ``images/000000.png``, ..., ``samples.json``; see below.

    Without `out` it is a folder in the generator's own, named after the settings. In ``samples.npz`` is arr_0, uint8
    (N, H, W, 3), and of a generator with classes arr_1, int64 (N,); in ``prompts.jsonl`` of one with prompts what each
    picture is of. Started again it draws only batches of which
    something is missing, and with more samples goes on. Collective under torchrun.

    Raises ConfigError for options that cannot be, or differ from what the folder was begun with; DataError for a full
    disk; DivergenceError for samples that are not finite; what loading raises; Preempted after SIGTERM.
    """
    with job():
        drawer = SamplePipeline(request)
        num = drawer.num
        drawer.check(num, drawer.sampling)
        if drawer.weak is not None and drawer.sampling.cfg_scale == 1:
            raise ConfigError("autoguidance with cfg_scale=1 guides nothing; give --cfg-scale, such as 2")
        settings = {"format": FORMAT, "num": num, **drawer.describe(), "batch_size": request.batch_size}
        path = default_folder(drawer, settings) if request.out is None else Path(request.out).expanduser()
        labels = drawer.rule.labels(num)
        real = None
        if request.real_images is not None:
            source = open_source(request.real_images, request.split, request.real_label)
            real = paired(source, labels, drawer.model.condition.class_names)
        folder = SampleFolder(path, num, drawer.image_size, labels, settings, drawer.rule.records(num))
        with output_folder(path, DESCRIPTION, settings, compared, "another generator"):
            draw_batches(drawer, folder, folder.begin_together(request.npz), request.batch_size)
            folder.write_npz_together(request.npz)
            if is_first():
                if real is not None:
                    write_beside(folder, real)
                print(folder.finish(request.grid))
    return path


def draw_batches(drawer: SamplePipeline, folder: SampleFolder, missing: set[int], batch_size: int) -> None:
    """Draw each batch of which samples are missing, and write those; collective.

    A batch is drawn whole, so that its samples are the very same as without an interruption. Raises Preempted.
    """
    left = [batch for batch in batched(range(folder.num), batch_size) if not missing.isdisjoint(batch)]
    stopped = Preempted(
        f"stopped by SIGTERM while samples were drawn into {folder.path}; the pictures that are there are whole, and "
        "the same command goes on from them"
    )
    with PictureWriter(folder) as writer:
        for batch in shares(left, "sampling", stopped, size=lambda batch: len(missing.intersection(batch))):
            drawer.to_device()  # not of a process that draws nothing
            pixels = drawer.draw(batch).pixels
            writer.write([(i, pixels[i - batch.start]) for i in batch if i in missing])
    barrier()  # the pictures of all processes are written


def default_folder(drawer: SamplePipeline, settings: Mapping[str, Any], *first: str) -> Path:
    """Return a folder inside the generator's own, named after the settings and the weights.

    The words `first` come instead of sampler, steps and scale.
    """
    sampling, plain = drawer.sampling, Sampling()
    words = [*(first or (f"{sampling.sampler}-{sampling.steps}", f"cfg-{sampling.cfg_scale:g}"))]
    if sampling.cfg_interval is not None:
        words.append("interval-{:g}-{:g}".format(*sampling.cfg_interval))
    words += [f"channels-{sampling.cfg_channels}"] * (sampling.cfg_channels is not None)
    words += ["energy"] * sampling.preserve_energy
    if sampling.shift != plain.shift:
        words.append(f"shift-{sampling.shift}" if isinstance(sampling.shift, str) else f"shift-{sampling.shift:g}")
    words += [f"{key}-{value}" for key, value in sorted(sampling.options.items())]
    words.append("x".join(map(str, drawer.image_size)))
    words += drawer.rule.name()
    if drawer.request.negative is not None:
        words.append(f"negative-{hashlib.sha256(drawer.request.negative.encode()).hexdigest()[:8]}")
    words += [settings["precision"]] * (settings["precision"] != "fp32")
    words += [f"seed-{settings['seed']}"] * (settings["seed"] != 0)
    words += [f"weak-{settings['autoguidance']['identity'][:8]}"] if settings["autoguidance"] else []
    return Path(drawer.request.run) / "samples" / "_".join([*words, settings["generator"]["identity"][:8]])


def paired(source: ImageSource, labels: Sequence[int] | None, names: Sequence[str]) -> ImageSource:
    """Return the source with the generator's numbers of classes, which are `names`: by name, if they have names.

    Raises DataError when there are no images of a class that `labels`, the samples', are of; or when classes have names
    on one side alone.
    """
    if labels is None:
        return source
    if bool(names) != bool(source.class_names):
        named, other = ("the generator", source.where) if names else (source.where, "the generator")
        raise DataError(
            f"the classes of {named} have names, those of {other} have not, so which belong together is not known; "
            "give the data that the generator was trained on"
        )
    number_of = {name: number for number, name in enumerate(names)}
    own = np.array([number_of.get(name, -1) for name in source.class_names], dtype=np.int32)
    numbers = source.labels if not names else np.where(source.labels < 0, -1, own[source.labels])
    lacking = sorted({*labels} - {*numbers.tolist()})
    if lacking:
        called = f"'{names[lacking[0]]}'" if names else str(lacking[0])
        raise DataError(
            f"{source.where} has no images of class {called}, of which there are samples; "
            "give the data that the generator was trained on"
        )
    source.labels = numbers
    return source


def write_beside(folder: SampleFolder, source: ImageSource) -> None:
    """Write ``beside_real.png``: for each class, first in the samples' order, real images on the left, samples right.

    Real images are cropped in the middle, and spread over the data of the class. Without classes, samples in order.
    """
    tiles = []
    for places, numbers in _groups(folder, source):
        real = [_real(source, place, folder.image_size) for place in places]
        drawn = [to_tensor(folder.read(number)) for number in numbers]
        white = torch.ones(3, *folder.image_size)
        tiles.append(image_grid([*(real + [white] * EACH)[:EACH], *(drawn + [white] * EACH)[:EACH]], columns=2 * EACH))
    picture = to_picture(image_grid(tiles, columns=min(COLUMNS, len(tiles)), gap=10))
    save_picture(folder.path / PICTURE, picture)


def _groups(folder: SampleFolder, source: ImageSource) -> list[tuple[list[int], list[int]]]:
    """Return the places of real images and the numbers of samples that belong beside one another."""
    if folder.labels is None:
        sets = batched(range(min(folder.num, EACH * MOST)), EACH)
        spread = _spread(np.arange(len(source)), EACH * len(sets))
        return [(spread[EACH * i : EACH * (i + 1)], list(numbers)) for i, numbers in enumerate(sets)]
    numbers_of: dict[int, list[int]] = defaultdict(list)
    for number, label in enumerate(folder.labels[: folder.num]):
        numbers_of[label].append(number)
    chosen = list(numbers_of)[:MOST]
    return [(_spread(np.flatnonzero(source.labels == c), EACH), numbers_of[c][:EACH]) for c in chosen]


def _spread(places: np.ndarray, wanted: int) -> list[int]:
    number = min(wanted, len(places))
    return [int(places[(2 * i + 1) * len(places) // (2 * number)]) for i in range(number)]


def _real(source: ImageSource, place: int, size: tuple[int, int]) -> Tensor:
    try:
        image = read_image(source, place)
    except ImageError as error:
        raise DataError(f"{source.where}: cannot read {source.names[place]} ({error}); repair or remove it") from error
    return to_tensor(cover_and_crop(image, size, size))
