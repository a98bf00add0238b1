"""A set of samples, drawn by one process or many into one folder.

Sample i follows from its seed, `seed` + i, and its label alone. A set is drawn in batches that are cut from the numbers
0, 1, ... in order, the same whichever process draws them and whatever was there before: so its pictures do not depend
on processes and interruptions, and on the batch size only as far as the rounding of the arithmetic does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligntok.diffusion.sampling import Sampling
from aligntok.distributed import barrier, is_first, must_agree
from aligntok.distributed.job import batched, job, shares
from aligntok.errors import ConfigError, Preempted, at_least
from aligntok.io.files import lock_folder
from aligntok.sampling.folder import PictureWriter, SampleFolder, compared
from aligntok.sampling.pipeline import SamplePipeline, SampleRequest
from aligntok.sampling.sheets import open_real, write_beside


def sample_images(
    drawing: SampleRequest,
    num: int,
    out: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    npz: bool = True,
    grid: int = 64,
    beside: str | os.PathLike[str] | None = None,
    split: str | None = None,
) -> Path:
    """Draw `num` samples into a folder, and return it: ``images/000000.png``, ..., ``samples.json``; see below.

    `out` None is a folder in the generator's own, named after the settings. With `npz` there is ``samples.npz`` too:
    arr_0, uint8 (N, H, W, 3), and of a generator with classes arr_1, int64 (N,). `grid` of the samples make
    ``grid.png``, 0 none; `beside` names images, or a `split` of them, that are shown beside samples of their class in
    ``beside_real.png``. Started again it draws only batches of which something is missing, and with a larger `num`
    goes on. Collective under torchrun; `batch_size` is of one process.

    Raises ConfigError for options that cannot be, or differ from what the folder was begun with; DataError for a full
    disk; DivergenceError for samples that are not finite; what loading raises; Preempted after SIGTERM.
    """
    at_least(1, num=num, batch_size=batch_size)
    at_least(0, grid=grid)
    with job():
        drawer = SamplePipeline(drawing)
        drawer.check(num, drawer.sampling)
        if drawer.weak is not None and drawer.sampling.cfg_scale == 1:
            raise ConfigError("autoguidance with cfg_scale=1 guides nothing; give --cfg-scale, such as 2")
        settings = drawer.describe()
        must_agree(compared(settings), "another generator")
        path = default_folder(drawer, settings) if out is None else Path(out).expanduser()
        labels = drawer.labels(range(num)) if drawer.conditional else None
        real = None if beside is None else open_real(beside, split, labels)
        folder = SampleFolder(path, num, drawer.image_size, labels, {**settings, "batch_size": batch_size})
        if is_first():
            folder.check()
        with lock_folder(path, wanted=is_first()):
            draw_batches(drawer, folder, folder.begin_together(npz), batch_size)
            folder.write_npz_together(npz)
            if is_first():
                if real is not None:
                    write_beside(folder, real)
                print(folder.finish(grid))
            barrier()
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
    words += [f"shift-{sampling.shift:g}"] * (sampling.shift != plain.shift)
    words += [f"{key}-{value}" for key, value in sorted(sampling.options.items())]
    words.append("x".join(map(str, drawer.image_size)))
    if drawer.rule.rule == "listed":
        some, more = drawer.rule.listed[:4], len(drawer.rule.listed) - 4
        words.append("-".join(["classes", *map(str, some), *([f"and-{more}"] if more > 0 else [])]))
    elif drawer.rule.rule == "balanced":
        words.append("balanced")
    words += [settings["precision"]] * (settings["precision"] != "fp32")
    words += [f"seed-{settings['seed']}"] * (settings["seed"] != 0)
    words += [f"weak-{settings['autoguidance']['identity'][:8]}"] if settings["autoguidance"] else []
    return Path(drawer.drawing.source) / "samples" / "_".join([*words, settings["generator"]["identity"][:8]])
