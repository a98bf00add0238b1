"""How near samples are to real images: FID and its kin, of samples that were saved, against a reference."""

from __future__ import annotations

from pathlib import Path

from aligntok.data.transforms import to_tensor
from aligntok.distributed import barrier, is_first
from aligntok.distributed.job import job
from aligntok.evaluation.images import Samples
from aligntok.evaluation.metrics.online import GenerationMetric
from aligntok.evaluation.results import Result, check_out, default_folder, publish
from aligntok.evaluation.settings import GenerationSettings
from aligntok.io.pictures import image_grid, save_picture, to_picture

SHOWN = 64  # samples in the picture


def evaluate_generation(asked: GenerationSettings) -> Result:
    """Measure samples against a reference: FID, sFID, IS, precision, recall, KID, density, coverage (paper, Table 4).

    The samples are what :class:`Samples` takes, the extractor what :func:`build_extractor` does; metrics of others than
    Inception-v3 carry its name. Which of them there are depends on what the extractor gives and the reference holds.

    Writes into `out` (None: ``evaluation/`` in the folder of ``tools/sample.py``; of other samples in the current
    folder) ``generation.json``, ``samples.png`` and ``report.html``. Collective under torchrun. Raises DataError for
    samples or a reference that cannot be used, ConfigError or WeightsError for the extractor, Preempted after SIGTERM.
    """
    with job():
        drawn = Samples(asked.samples, asked.num_samples, asked.batch_size, asked.workers)
        metric = GenerationMetric(str(asked.reference), asked.extractor)
        name = f"generation_{metric.reference.name}"
        folder = own_folder(drawn, name) if asked.out is None else Path(asked.out).expanduser()
        check_out(folder)
        for batch in drawn:
            metric.add(batch.pixels, batch.places)
        metrics = {name.rpartition("/")[2]: value for name, value in metric.evaluate(len(drawn)).items()}
        metrics["images"] = float(len(drawn))
        found = metric.reference
        settings = {
            "samples": drawn.description or None,
            "num": len(drawn),
            "image_size": list(drawn.image_size),
            "reference": {"file": str(asked.reference), "name": found.name, "images": found.num_images},
            "extractor": {"title": metric.extractor.title, "identity": metric.extractor.identity},
        }
        result = Result(
            "generation", str(asked.samples), metrics, settings, pictures={"The first samples": "samples.png"}
        )
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            write_samples(folder / "samples.png", drawn)
            publish(result, folder)
        barrier()
    return result


def own_folder(samples: Samples, name: str) -> Path:
    """Return where the result goes when no folder is named: never among pictures, where it would be taken for one."""
    return default_folder(samples.path, name, inside=bool(samples.description))


def write_samples(path: Path, samples: Samples) -> None:
    """Write the first samples as one picture."""
    first = [to_tensor(samples[i][1]) for i in range(min(SHOWN, len(samples)))]
    save_picture(path, to_picture(image_grid(first)))
