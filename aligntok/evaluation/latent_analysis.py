"""What the latent spaces of tokenizers are like, beside one another and a reference encoder's (paper, Sec. C.6)."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor

from aligntok.caching.encoder import latent_shape
from aligntok.data.sampler import evenly_spaced
from aligntok.device import precision_taken
from aligntok.distributed import total
from aligntok.distributed.job import shares
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.images import EvaluationImages, begins_anew, frozen
from aligntok.evaluation.metrics.latent_space import cknna, density_measures, spatial_variance, total_variation
from aligntok.evaluation.results import Result, evaluating, identity, publish, result_folder
from aligntok.evaluation.settings import FEWEST, LatentAnalysis
from aligntok.io.folders import told_apart
from aligntok.io.pictures import pca_pictures, pca_sheet, save_picture, tsne_plot
from aligntok.loading import load_tokenizer
from aligntok.registry import ENCODERS
from aligntok.rng import rng

PERPLEXITY = 30
DENSITY = ("density CV", "Gini coefficient", "normalised entropy")
PCA = "Input, and the three leading principal components of the latents"
REFERENCE = "reference"
#: Encoder types whose models have names of their own, written as ``timm:MODEL``.
WITH_MODELS = ("timm", "open_clip")


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
            **{"weights": asked.weights, "precision": precision_taken(asked.precision), "topk": asked.topk},
            "tsne": {"points": len(maps[0][0]), "perplexity": PERPLEXITY, "seeds": list(asked.seeds)},
        }
        own = zip(models, map_files(models), strict=True)
        pictures = {PCA: "pca.png", **{f"t-SNE of latents: {each.title}": file for each, file in own}}
        result = Result("latent_space", ", ".join(map(str, asked.tokenizers)), metrics, settings, tables, pictures)
        return publish(result, folder, lambda folder: write_pictures(folder, collection, maps, draws))


@dataclass(frozen=True)
class LatentModel:
    """A model whose latents are looked at: images (N, 3, H, W) in [-1, 1] to latents (N, C, h, w).

    name: in metrics and files. label: in pictures. shape: (C, h, w) of an image's latent. what: which, as JSON types.
    """

    name: str
    label: str
    encode: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]
    what: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.label} ({REFERENCE})" if self.name == REFERENCE else self.label


def map_files(models: Sequence[LatentModel]) -> list[str]:
    """Return the file of the picture of each model's t-SNE."""
    return [f"tsne_{name}.png" for name in told_apart([re.sub(r"[^A-Za-z0-9.-]+", "_", each.name) for each in models])]


def load_models(
    asked: LatentAnalysis, names: Sequence[str], encoder: Mapping[str, Any], size: tuple[int, int]
) -> list[LatentModel]:
    """Load the tokenizers, by these names, and, last, the reference encoder of this config.

    Raises what loading and building do, ConfigError for an image size that a model cannot take.
    """
    loaded = [load_tokenizer(source, weights=asked.weights) for source in asked.tokenizers]
    config = on_grid_of(encoder, {each.downsample_factor for each in loaded})
    models = []
    for name, source, own in zip(names, asked.tokenizers, loaded, strict=True):
        shape, encode = latent_shape(own, size), frozen(own, asked.precision, "encode")
        what = dict(source=os.fspath(source), identity=identity(own), downsample_factor=own.downsample_factor)
        models.append(LatentModel(name, name, encode, shape, what))
    encode = frozen(ENCODERS.build(dict(config)), asked.precision)
    channels, height, width = encode(torch.zeros(1, 3, *size)).shape[1:]
    label = str(config.get("model_name", config["type"]))
    return [*models, LatentModel(REFERENCE, label, encode, (channels, height, width), {"encoder": config})]


def encoder_config(encoder: str) -> dict[str, Any]:
    """Return the config that a word stands for: a registry name, ``timm:MODEL`` or ``open_clip:MODEL``.

    Raises ConfigError for a type without the model that it needs.
    """
    kind, _, model = encoder.partition(":")
    if kind in WITH_MODELS and not model:
        raise ConfigError(f"reference encoder '{encoder}' names no model; write {kind}:MODEL")
    return {"type": kind, "model_name": model} if model else {"type": kind}


def on_grid_of(config: Mapping[str, Any], factors: set[int]) -> dict[str, Any]:
    """Give an encoder's config the factor of the tokenizers, where it says none, takes one, and they have but one."""
    takes = inspect.signature(ENCODERS.get(config["type"])).parameters if "type" in config else {}
    filled = {"downsample_factor": min(factors)} if len(factors) == 1 and "downsample_factor" in takes else {}
    return {**filled, **config}


def distinct_names(sources: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """Return a name for each tokenizer: those given, or the parts of their paths that tell them apart.

    Raises ConfigError for given names that are too many, too few, not different, or the reference's, and for a
    tokenizer given twice without names.
    """
    if names is None and len(set(sources)) == len(sources):
        parts = [list(Path(os.path.abspath(source) if os.path.exists(source) else source).parts) for source in sources]
        while len(parts) > 1 and min(map(len, parts)) > 1 and len({each[-1] for each in parts}) == 1:
            parts = [each[:-1] for each in parts]  # the end that all have, such as .../tokenizer
        shown = (["/".join(each[-count:]) for each in parts] for count in range(1, max(map(len, parts)) + 1))
        found = next((found for found in shown if len(set(found)) == len(found)), list(sources))
        return found if REFERENCE not in found else list(sources)
    if names is None:
        raise ConfigError(f"a tokenizer is given twice: {', '.join(sources)}; leave one out, or give both --names")
    if len(names) != len(sources) or len({*names, REFERENCE}) != len(names) + 1:
        raise ConfigError(
            f"names {', '.join(names)} for {len(sources)} tokenizers; give as many, all different, and none of them "
            f"'{REFERENCE}'"
        )
    return list(names)


@dataclass(frozen=True)
class Draws:
    """Which latents are drawn for t-SNE: of each repetition one position of each of P images.

    rows: (S, P), which images. positions: (S, P, 2) in [0, 1), where in the image: the same for every grid.
    """

    rows: Tensor
    positions: Tensor

    @classmethod
    def of(cls, seeds: Sequence[int], images: int, points: int) -> Draws:
        """Draw `points` of the images, or all of them if there are fewer, for each seed."""
        rows, positions = [], []
        for seed in seeds:
            generator = rng("points", seed)
            rows.append(torch.randperm(images, generator=generator)[:points])
            positions.append(torch.rand(len(rows[-1]), 2, generator=generator))
        return cls(torch.stack(rows), torch.stack(positions))


@dataclass
class Collected:
    """What is kept of N images' latents of a model; images that could not be read have zeros.

    pooled: (N, C) means over positions, L2-normalised. variance, variation: (N,). points: (S, P, C), the drawn latents.
    shown: (M, C, h, w), those of the images in pictures.
    """

    model: LatentModel
    pooled: Tensor
    variance: Tensor
    variation: Tensor
    points: Tensor
    shown: Tensor


@dataclass(frozen=True)
class Collection:
    """Everything kept of the images: of each model, and labels (N,), which were read (N,), pictures (M, 3, H, W)."""

    models: list[Collected]
    labels: Tensor
    read: Tensor
    inputs: Tensor


def collect(models: Sequence[LatentModel], images: EvaluationImages, draws: Draws, shown: Sequence[int]) -> Collection:
    """Encode every image with every model; collective. `shown` are the rows, among the images, of pictures.

    An image's numbers depend on it alone, as far as rounding goes, and on the batch it is in not at all between
    numbers of processes. Raises DataError for latents that are not finite, and what reading the images does.
    """
    num = len(images)
    kept = [
        Collected(
            model,
            torch.zeros(num, model.shape[0], dtype=torch.float64),
            torch.zeros(num, dtype=torch.float64),
            torch.zeros(num, dtype=torch.float64),
            torch.zeros(*draws.rows.shape, model.shape[0]),
            torch.zeros(len(shown), *model.shape),
        )
        for model in models
    ]
    labels, read = torch.zeros(2, num, dtype=torch.int64)
    inputs = torch.zeros(len(shown), 3, *images.image_size)
    for batch in images:
        rows = images.rows(batch)
        labels[rows], read[rows] = batch.labels.long(), 1
        seeds, points, drawn = (draws.rows[..., None] == rows).nonzero().T
        pictures, seen = (torch.tensor(shown)[:, None] == rows).nonzero().T
        inputs[pictures] = batch.images[seen]
        for own in kept:
            latents = own.model.encode(batch.images).cpu()
            finite = latents.isfinite().flatten(1).all(1)
            if not finite.all():
                name = images.source.names[int(batch.indices[~finite][0])]
                raise DataError(
                    f"{own.model.name} gives latents of {name} that are not finite; take --precision fp32, and leave "
                    "the model out if they are not finite in fp32 either"
                )
            own.pooled[rows] = F.normalize(latents.double().mean(dim=(2, 3)), dim=1)
            own.variance[rows], own.variation[rows] = spatial_variance(latents), total_variation(latents)
            y, x = (draws.positions[seeds, points] * torch.tensor(latents.shape[2:])).long().T
            own.points[seeds, points] = latents[drawn, :, y, x]
            own.shown[pictures] = latents[seen]
    for own in kept:
        vars(own).update({name: total(each) for name, each in vars(own).items() if isinstance(each, Tensor)})
    return Collection(kept, total(labels), total(read), total(inputs))


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
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Return the metrics, and tables with a row a model, the reference encoder's last: the paper's Table 16.

    Densities are means over seeds; how they spread over several, and those of each map, have tables of their own.
    """
    read, reference = collection.read > 0, collection.models[-1]
    columns = (f"CKNNA-{reference.model.label}", "spatial variance", "total variation", *DENSITY)
    densities = [[density_measures(points) for points in each] for each in maps]
    metrics: dict[str, float] = {}
    spaces, every, spread = [], [], []
    for each, found in zip(collection.models, densities, strict=True):
        title = {"model": each.model.title}
        means = [float(x[read].mean()) for x in (each.variance, each.variation)]
        alike = cknna(each.pooled[read], reference.pooled[read], asked.topk)
        row = dict(zip(columns, [alike, *means, *np.mean(found, axis=0).tolist()], strict=True))
        spaces.append({**title, "latent": "x".join(map(str, each.model.shape)), **row})
        prefix = "" if len(densities) == 2 and each is not reference else f"{each.model.name}/"
        metrics.update({prefix + column: value for column, value in row.items()})
        every += [
            {**title, "seed": seed, **dict(zip(DENSITY, values, strict=True))}
            for seed, values in zip(asked.seeds, found, strict=True)
        ]
        if len(asked.seeds) > 1:
            spread.append({**title, **dict(zip(DENSITY, np.std(found, axis=0, ddof=1).tolist(), strict=True))})
    base, rest = spaces[-1], columns[1:]
    differences = [
        {"model": row["model"], **{name: 100 * (row[name] / base[name] - 1) if base[name] else None for name in rest}}
        for row in spaces[:-1]
    ]
    tables = {"Latent spaces": spaces, "Difference from the reference encoder, %": differences}
    several = {"Deviation over seeds": spread} if spread else {}
    return metrics, {**tables, **several, f"Density on {'each' if spread else 'the'} t-SNE": every}


def write_pictures(folder: Path, collection: Collection, maps: Sequence[npt.NDArray[Any]], draws: Draws) -> None:
    """Write the PCA picture, and the first seed's t-SNE of every model."""
    models = [each.model for each in collection.models]
    columns = [pca_pictures(each.shown) for each in collection.models]
    save_picture(folder / "pca.png", pca_sheet(collection.inputs, [each.label for each in models], columns))
    rows = draws.rows[0][collection.read[draws.rows[0]] > 0]
    labels = collection.labels[rows][: len(maps[0][0])].numpy()
    for model, file, (first, *_) in zip(models, map_files(models), maps, strict=True):
        save_picture(folder / file, tsne_plot(first, labels, model.label))
