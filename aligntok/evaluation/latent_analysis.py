"""What the latent spaces of tokenizers are like, beside one another and a reference encoder's (paper, Sec. C.6)."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from aligntok.data.sampler import evenly_spaced
from aligntok.distributed import total
from aligntok.distributed.job import shares
from aligntok.errors import DataError
from aligntok.evaluation.images import EvaluationImages, begins_anew
from aligntok.evaluation.latent_models import (
    REFERENCE,
    Collection,
    Draws,
    LatentModel,
    collect,
    distinct_names,
    encoder_config,
    load_models,
)
from aligntok.evaluation.metrics.latent_space import cknna, density_measures
from aligntok.evaluation.results import Result, evaluating, publish, result_folder
from aligntok.evaluation.settings import FEWEST, LatentAnalysis
from aligntok.io.pictures import pca_pictures, pca_sheet, save_picture, tsne_plot

PERPLEXITY = 30
DENSITY = ("density CV", "Gini coefficient", "normalised entropy")
PCA = "Input, and the three leading principal components of the latents"

Tables = dict[str, list[dict[str, Any]]]


def analyze_latents(asked: LatentAnalysis) -> Result:
    """Measure and show the latent spaces of tokenizers beside a reference encoder's (paper, Table 16 and Fig. 7).

    Tokenizers are what :func:`load_tokenizer` takes, data what :class:`EvaluationImages` does; where tokenizers have
    one factor, and the encoder is told none, it gets theirs: grids of one size. Writes ``latent_space.json``,
    ``pca.png``, ``tsne_<name>.png`` and ``report.html``. Collective under torchrun. Raises ConfigError and WeightsError
    for what cannot be measured with, DataError for the images, Preempted after SIGTERM.
    """
    names = distinct_names([os.fspath(source) for source in asked.tokenizers], asked.names)
    encoder = encoder_config(asked.encoder) if isinstance(asked.encoder, str) else asked.encoder
    folder = result_folder(asked.out, asked.tokenizers[0], "latent_space")
    if asked.out is None and len(names) > 1:
        folder = Path("evaluation", "_".join(name.replace("/", "-") for name in names)[:100], "latent_space")
    with evaluating(folder, asked.precision):
        images, fewest = EvaluationImages(asked), max(FEWEST, asked.topk + 2)
        if len(images) < fewest:
            raise DataError(
                f"{images.source.where}: {len(images)} images are too few for neighbours and densities; give at least "
                f"{fewest} for topk={asked.topk}, better thousands"
            )
        models = load_models(asked, names, {**encoder, **asked.encoder_options}, images.image_size)
        draws = Draws.of(asked.seeds, len(images), asked.tsne_points)
        collection = collect(models, images, draws, evenly_spaced(len(images), asked.pca_images))
        maps = embed(collection, draws, asked.seeds)
        metrics, tables = tables_of(collection, maps, asked)
        settings = {
            "data": images.source.where,
            **images.described,
            "models": {each.name: {**each.what, "latent": list(each.shape)} for each in models},
            **{"weights": asked.weights, "precision": asked.precision, "topk": asked.topk},
            "tsne": {"points": len(maps[0][0]), "perplexity": PERPLEXITY, "seeds": list(asked.seeds)},
        }
        pictures = {PCA: "pca.png"}
        for title, model in zip(titles_of(models), models, strict=True):
            pictures[f"t-SNE of latents: {title}"] = _tsne_file(model)
        subject = ", ".join(map(str, asked.tokenizers))
        result = Result("latent_space", subject, metrics, settings, tables, pictures)
        return publish(result, folder, lambda folder: write_pictures(folder, collection, maps, draws))


def embed(collection: Collection, draws: Draws, seeds: Sequence[int]) -> list[npt.NDArray[Any]]:
    """Return the t-SNEs (S, P, 2) of every model, one a seed, shared out among the processes; collective.

    Images that could not be read are left out. Raises Preempted, and DataError for latents that have no map.
    """
    wanted = [collection.read[rows] > 0 for rows in draws.rows]
    check_they_differ(collection, wanted)
    fewest = min(int(each.sum()) for each in wanted)
    jobs = [(model, seed) for model in range(len(collection.models)) for seed in range(len(seeds))]
    points = torch.zeros(len(collection.models), len(seeds), fewest, 2, dtype=torch.float64)
    for model, seed in shares(jobs, "t-SNE", begins_anew(), size=lambda _: 1, unit="map"):
        latents = collection.models[model].points[seed, wanted[seed]][:fewest]
        points[model, seed] = torch.from_numpy(tsne(latents, seeds[seed]))
    return list(total(points).numpy())


def check_they_differ(collection: Collection, wanted: Sequence[Tensor]) -> None:
    """Raise DataError for a model whose drawn latents, those `wanted` of each repetition, are alike or on one line.

    There is no map of them: of latents that are all alike scikit-learn's t-SNE raises nothing, but ends the process.
    """
    for each in collection.models:
        for points, rows in zip(each.points, wanted, strict=True):
            drawn = points[rows].double()
            variances = torch.linalg.eigvalsh(torch.cov(drawn.T, correction=0).reshape(drawn.shape[1], -1))
            if (variances > (1e-6 * drawn.abs().max()) ** 2).sum() < 2:
                raise DataError(
                    f"the latents of {each.model.name} hardly differ from image to image, or in one direction only, "
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


def tables_of(
    collection: Collection, maps: Sequence[npt.NDArray[Any]], asked: LatentAnalysis
) -> tuple[dict[str, float], Tables]:
    """Return the metrics, and tables with a row a model, the reference encoder's last: the paper's Table 16.

    Densities are means over seeds; how they spread over several, and those of each map, have tables of their own.
    """
    read, models = collection.read > 0, [each.model for each in collection.models]
    reference, titles = collection.models[-1].pooled[read], titles_of(models)
    columns = (f"CKNNA-{_type(models[-1])}", "spatial variance", "total variation", *DENSITY)
    densities = [[density_measures(points) for points in each] for each in maps]
    metrics: dict[str, float] = {}
    spaces, every = [], []
    for title, each, found in zip(titles, collection.models, densities, strict=True):
        means = [float(x[read].mean()) for x in (each.variance, each.variation)]
        values = [cknna(each.pooled[read], reference, asked.topk), *means, *np.mean(found, axis=0).tolist()]
        row = dict(zip(columns, values, strict=True))
        spaces.append({"model": title, "latent": "x".join(map(str, each.model.shape)), **row})
        prefix = "" if len(models) == 2 and each.model is models[0] else f"{each.model.name}/"
        metrics.update({prefix + column: value for column, value in row.items()})
        every += [
            {"model": title, "seed": seed, **dict(zip(DENSITY, values, strict=True))}
            for seed, values in zip(asked.seeds, found, strict=True)
        ]
    tables = {
        "Latent spaces": spaces,
        "Difference from the reference encoder, %": [
            {"model": row["model"], **{name: _percent(row[name], spaces[-1][name]) for name in columns[1:]}}
            for row in spaces[:-1]
        ],
    }
    if len(asked.seeds) == 1:
        return metrics, {**tables, "Density on the t-SNE": every}
    spread = [
        {"model": title, **dict(zip(DENSITY, np.std(found, axis=0, ddof=1).tolist(), strict=True))}
        for title, found in zip(titles, densities, strict=True)
    ]
    return metrics, {**tables, "Deviation over seeds": spread, "Density on each t-SNE": every}


def _percent(value: float, base: float) -> float | None:
    return 100 * (value / base - 1) if base else None


def titles_of(models: Sequence[LatentModel]) -> list[str]:
    """Return what tables call the models."""
    return [*(each.name for each in models[:-1]), f"{_type(models[-1])} ({REFERENCE})"]


def _type(reference: LatentModel) -> str:
    config = reference.what["encoder"]
    return str(config.get("model_name", config["type"]))


def _tsne_file(model: LatentModel) -> str:
    return f"tsne_{re.sub(r'[^A-Za-z0-9.-]+', '_', model.name)}.png"


def write_pictures(folder: Path, collection: Collection, maps: Sequence[npt.NDArray[Any]], draws: Draws) -> None:
    """Write the PCA picture, and the first seed's t-SNE of every model."""
    models = [each.model for each in collection.models]
    titles = [*(each.name for each in models[:-1]), _type(models[-1])]
    columns = [pca_pictures(each.shown) for each in collection.models]
    save_picture(folder / "pca.png", pca_sheet(collection.inputs, titles, columns))
    rows = draws.rows[0][collection.read[draws.rows[0]] > 0]
    labels = collection.labels[rows][: len(maps[0][0])].numpy()
    for title, model, (first, *_) in zip(titles, models, maps, strict=True):
        save_picture(folder / _tsne_file(model), tsne_plot(first, labels, title))
