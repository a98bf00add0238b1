"""How near samples are to real images: FID and its kin, of samples that were saved, against a reference."""

from __future__ import annotations

from aligntok.data.transforms import to_tensor
from aligntok.distributed.job import job
from aligntok.evaluation.images import Samples
from aligntok.evaluation.metrics.online import GenerationMetric
from aligntok.evaluation.results import Result, check_out, publish, result_folder
from aligntok.evaluation.settings import GenerationSettings
from aligntok.io.pictures import image_grid, save_picture, to_picture
from aligntok.registry import with_keywords

SHOWN = 64  # samples in the picture


def evaluate_generation(asked: GenerationSettings) -> Result:
    """Measure samples against a reference: FID, sFID, IS, precision, recall, KID, density, coverage (paper, Table 4).

    The samples are what :class:`Samples` takes, the extractor what :func:`build_extractor` does; metrics of others than
    Inception-v3 carry its name. Which of them there are depends on what the extractor gives and the reference holds.

    Writes into `out` (None: ``evaluation/`` in the folder of ``tools/sample.py``; of other samples in the current
    folder, never among pictures, where it would be taken for one) ``generation.json``, ``samples.png`` and
    ``report.html``. Collective under torchrun. Raises DataError for samples or a reference that cannot be used,
    ConfigError or WeightsError for the extractor, Preempted after SIGTERM.
    """
    with job():
        drawn = Samples(asked.samples, asked.num_samples, asked.batch_size, asked.workers)
        extractor = with_keywords(asked.extractor, asked.extractor_options, "extractor_options")
        metric = GenerationMetric(str(asked.reference), extractor)
        found = metric.reference
        folder = result_folder(
            asked.out, drawn.path, "generation_" + found.name.replace("/", "_"), inside=bool(drawn.description)
        )
        check_out(folder)
        for batch in drawn:
            metric.add(batch.pixels, batch.indices)
        metrics = {name.rpartition("/")[2]: value for name, value in metric.evaluate(len(drawn)).items()}
        metrics["images"] = float(len(drawn))
        settings = {
            "samples": drawn.description or None,
            "num": len(drawn),
            "image_size": list(drawn.image_size),
            "reference": {"file": str(asked.reference), "name": found.name, "images": found.num_images},
            "extractor": {"title": metric.extractor.title, "identity": metric.extractor.identity},
        }
        pictures = {"The first samples": "samples.png"}
        first = [to_tensor(drawn[i][1]) for i in range(min(SHOWN, len(drawn)))]
        return publish(
            Result("generation", str(asked.samples), metrics, settings, pictures=pictures),
            folder,
            lambda folder: save_picture(folder / "samples.png", to_picture(image_grid(first))),
        )
