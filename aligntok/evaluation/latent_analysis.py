"""What the latent spaces of tokenizers are like, beside one another and a reference encoder's (paper, Sec. C.6)."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from aligntok.data.sampler import evenly_spaced
from aligntok.device import multiplying
from aligntok.distributed import barrier, is_first, total
from aligntok.distributed.job import job, shares
from aligntok.errors import DataError
from aligntok.evaluation.images import RESIZE, EvaluationImages, begins_anew
from aligntok.evaluation.latent_models import (
    REFERENCE,
    Collection,
    Draws,
    LatentModel,
    collect,
    distinct_names,
    encoder_config,
    on_grid_of,
    reference_subject,
    tokenizer_subject,
)
from aligntok.evaluation.metrics.latent_space import DensityMeasures, cknna, density_measures
from aligntok.evaluation.results import Result, check_out, default_folder, publish
from aligntok.evaluation.settings import FEWEST, LatentAnalysis
from aligntok.io.pictures import pca_pictures, pca_sheet, save_picture, tsne_plot
from aligntok.loading import load_tokenizer
from aligntok.settings import Precision

PERPLEXITY = 30
DENSITY = ("density CV", "Gini coefficient", "normalised entropy")
PCA = "Input, and the three leading principal components of the latents"


class LatentSpaceRow(NamedTuple):
    """A subject's numbers: three of all images, and those of each repetition's t-SNE."""

    cknna: float
    variance: float
    variation: float
    densities: list[DensityMeasures]

    def values(self) -> list[float]:
        """Return the six measures of the paper's Table 16, densities as means over repetitions."""
        return [self.cknna, self.variance, self.variation, *np.mean(self.densities, axis=0).tolist()]


def analyze_latents(settings: LatentAnalysis) -> Result:
    """Measure and show the latent spaces of tokenizers beside a reference encoder's (paper, Table 16 and Fig. 7).

    Tokenizers are what :func:`load_tokenizer` takes, data what :class:`EvaluationImages` does; where tokenizers have
    one factor, and the encoder is told none, it gets theirs: grids of one size. Writes ``latent_space.json``,
    ``pca.png``, ``tsne_<name>.png`` and ``report.html``. Collective under torchrun. Raises ConfigError and WeightsError
    for what cannot be measured with, DataError for the images, Preempted after SIGTERM.
    """
    tokenizers, seeds, precision = settings.tokenizers, settings.seeds, settings.precision
    called = distinct_names([os.fspath(source) for source in tokenizers], settings.names)
    word = settings.encoder
    encoder = {**(encoder_config(word) if isinstance(word, str) else word), **settings.encoder_options}
    folder = _folder(tokenizers, called) if settings.out is None else Path(settings.out).expanduser()
    with job(), multiplying(precision):
        check_out(folder)
        images = EvaluationImages(
            settings.data,
            settings.image_size,
            settings.split,
            settings.num_images,
            settings.batch_size,
            settings.workers,
        )
        check_enough(images, settings.topk)
        subjects = load_subjects(tokenizers, called, encoder, images.image_size, settings.weights, precision)
        draws = Draws.of(seeds, len(images), settings.tsne_points)
        collection = collect(subjects, images, draws, evenly_spaced(len(images), settings.pca_images))
        embedded = embed(collection, draws, seeds)
        measured = measure(collection, embedded, settings.topk)
        told = {
            **_of_images(images, collection, settings.split),
            "models": {each.name: {**each.what, "latent": list(each.shape)} for each in subjects},
            **{"weights": settings.weights, "precision": precision, "topk": settings.topk},
            "tsne": {"points": len(embedded[0][0]), "perplexity": PERPLEXITY, "seeds": list(seeds)},
        }
        result = describe(", ".join(map(str, tokenizers)), measured, subjects, told, seeds)
        if is_first():
            write_pictures(folder, collection, embedded, draws)
            publish(result, folder)
        barrier()
    return result


def _of_images(images: EvaluationImages, collection: Collection, split: str | None) -> dict[str, Any]:
    return {
        "data": images.source.where,
        "split": split,
        "image_size": list(images.image_size),
        "resize": RESIZE,
        "images": int(collection.read.sum()),
        "unreadable": images.skipped,
    }


def check_enough(images: EvaluationImages, topk: int) -> None:
    """Raise DataError for too few images."""
    if len(images) < max(FEWEST, topk + 2):
        raise DataError(
            f"{images.source.where}: {len(images)} images are too few for neighbours and densities; give at least "
            f"{max(FEWEST, topk + 2)} for topk={topk}, better thousands"
        )


def load_subjects(
    tokenizers: Sequence[str | Path],
    names: Sequence[str],
    encoder: Mapping[str, Any],
    size: tuple[int, int],
    weights: str | None,
    precision: Precision,
) -> list[LatentModel]:
    """Load the tokenizers and, last, the reference encoder."""
    chosen: dict[str, Any] = {} if weights is None else {"weights": weights}
    loaded = [load_tokenizer(source, **chosen) for source in tokenizers]
    config = on_grid_of(encoder, {each.downsample_factor for each in loaded})
    subjects = [
        tokenizer_subject(name, os.fspath(source), tokenizer, size, precision)
        for name, source, tokenizer in zip(names, tokenizers, loaded, strict=True)
    ]
    return [*subjects, reference_subject(config, size, precision)]


def embed(collection: Collection, draws: Draws, seeds: Sequence[int]) -> list[list[npt.NDArray[Any]]]:
    """Return the t-SNE (P, 2) of every subject and seed, shared out among the processes; collective.

    Images that could not be read are left out. Raises Preempted, and DataError for latents that have no map.
    """
    wanted = [collection.read[rows] > 0 for rows in draws.rows]
    check_they_differ(collection, wanted)
    fewest = min(int(each.sum()) for each in wanted)
    jobs = [(subject, seed) for subject in range(len(collection.subjects)) for seed in range(len(seeds))]
    points = torch.zeros(len(collection.subjects), len(seeds), fewest, 2, dtype=torch.float64)
    for subject, seed in shares(jobs, "t-SNE", begins_anew(), size=lambda _: 1, unit="map"):
        latents = collection.subjects[subject].points[seed, wanted[seed]][:fewest]
        points[subject, seed] = torch.from_numpy(tsne(latents, seeds[seed]))
    return [list(each.numpy()) for each in total(points)]


def check_they_differ(collection: Collection, wanted: Sequence[Tensor]) -> None:
    """Raise DataError for a subject whose drawn latents, those `wanted` of each repetition, are alike or on one line.

    There is no map of them: of latents that are all alike scikit-learn's t-SNE raises nothing, but ends the process.
    """
    for each in collection.subjects:
        for points, rows in zip(each.points, wanted, strict=True):
            drawn = points[rows].double()
            variances = torch.linalg.eigvalsh(torch.cov(drawn.T, correction=0).reshape(drawn.shape[1], -1))
            if (variances > (1e-6 * drawn.abs().max()) ** 2).sum() < 2:
                raise DataError(
                    f"the latents of {each.subject.name} hardly differ from image to image, or in one direction only, "
                    "so their space has no map and no density; leave that model out"
                )


def tsne(latents: Tensor, seed: int) -> npt.NDArray[Any]:
    """Return scikit-learn's t-SNE (P, 2) of latents (P, C), begun with their PCA; on one thread, so always the same.

    They must differ, in two directions at least.
    """
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(latents) - 1) // 3)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
        return np.asarray(transform.fit_transform(latents.numpy()), dtype=np.float64)


def measure(collection: Collection, embedded: Sequence[Sequence[npt.NDArray[Any]]], topk: int) -> list[LatentSpaceRow]:
    """Return every subject's numbers, the reference encoder's last."""
    read = collection.read > 0
    reference = collection.subjects[-1].pooled[read]
    return [
        LatentSpaceRow(
            cknna(each.pooled[read], reference, topk),
            float(each.variance[read].mean()),
            float(each.variation[read].mean()),
            [density_measures(points) for points in maps],
        )
        for each, maps in zip(collection.subjects, embedded, strict=True)
    ]


def describe(
    subject: str,
    measured: Sequence[LatentSpaceRow],
    subjects: Sequence[LatentModel],
    settings: Mapping[str, Any],
    seeds: Sequence[int],
) -> Result:
    """Return the result: tables with a row a model, the reference encoder's last, and the metrics of all."""
    columns = (f"CKNNA-{_type(subjects[-1])}", "spatial variance", "total variation", *DENSITY)
    titles = [*(each.name for each in subjects[:-1]), f"{_type(subjects[-1])} ({REFERENCE})"]
    values, metrics = [dict(zip(columns, each.values(), strict=True)) for each in measured], {}
    for row, model in zip(values, subjects, strict=True):
        prefix = "" if len(subjects) == 2 and model is subjects[0] else f"{model.name}/"
        metrics.update({prefix + column: value for column, value in row.items()})
    base, rest = values[-1], columns[1:]
    tables: dict[str, list[dict[str, Any]]] = {
        "Latent spaces": [
            {"model": title, "latent": "x".join(map(str, model.shape)), **row}
            for title, model, row in zip(titles, subjects, values, strict=True)
        ],
        "Difference from the reference encoder, %": [
            {"model": title, **{name: 100 * (row[name] / base[name] - 1) if base[name] else None for name in rest}}
            for title, row in zip(titles[:-1], values[:-1], strict=True)
        ],
        **_repetitions(titles, measured, seeds),
    }
    pictures = {PCA: "pca.png"}
    pictures |= {f"t-SNE of latents: {title}": _tsne_file(s.name) for title, s in zip(titles, subjects, strict=True)}
    return Result("latent_space", subject, metrics, settings, tables, pictures)


def _repetitions(
    titles: Sequence[str], measured: Sequence[LatentSpaceRow], seeds: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """Return a table of the deviations over seeds, where there are several, and one of every map's densities."""
    named = list(zip(titles, measured, strict=True))
    every = [
        {"model": title, "seed": seed, **dict(zip(DENSITY, found, strict=True))}
        for title, each in named
        for seed, found in zip(seeds, each.densities, strict=True)
    ]
    if len(seeds) == 1:
        return {"Density on the t-SNE": every}
    deviations = [(title, np.std(each.densities, axis=0, ddof=1).tolist()) for title, each in named]
    spread = [{"model": title, **dict(zip(DENSITY, values, strict=True))} for title, values in deviations]
    return {"Deviation over seeds": spread, "Density on each t-SNE": every}


def _type(reference: LatentModel) -> str:
    config = reference.what["encoder"]
    return str(config.get("model_name", config["type"]))


def _tsne_file(name: str) -> str:
    return f"tsne_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.png"


def write_pictures(
    folder: Path, collection: Collection, embedded: Sequence[Sequence[npt.NDArray[Any]]], draws: Draws
) -> None:
    """Write the PCA picture, and the first seed's t-SNE of every subject."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = [*(each.subject.name for each in collection.subjects[:-1]), _type(collection.subjects[-1].subject)]
    columns = [pca_pictures(each.shown) for each in collection.subjects]
    save_picture(folder / "pca.png", pca_sheet(collection.inputs, titles, columns))
    rows = draws.rows[0][collection.read[draws.rows[0]] > 0]
    for title, each, maps in zip(titles, collection.subjects, embedded, strict=True):
        labels = collection.labels[rows][: len(maps[0])].numpy()
        save_picture(folder / _tsne_file(each.subject.name), tsne_plot(maps[0], labels, title))


def _folder(tokenizers: Sequence[str | Path], names: Sequence[str]) -> Path:
    if len(tokenizers) == 1:
        return default_folder(tokenizers[0], "latent_space")
    return Path("evaluation", "_".join(name.replace("/", "-") for name in names)[:100], "latent_space")
