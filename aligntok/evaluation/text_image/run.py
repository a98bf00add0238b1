"""Measuring folders of pictures against their prompts: each picture is read once, and seen by all metrics."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aligntok.device import computing, device, explaining_out_of_memory
from aligntok.distributed import gather
from aligntok.distributed.job import job
from aligntok.errors import ConfigError, DataError, some_of
from aligntok.evaluation.results import Result, check_out, publish, result_folder
from aligntok.evaluation.settings import TextImageSettings
from aligntok.evaluation.text_image.geneval import TASKS, Colours, GenEval
from aligntok.evaluation.text_image.image_reward import ImageReward
from aligntok.evaluation.text_image.needs import ASKING
from aligntok.evaluation.text_image.questions import Answerer, DPGBench, SoftTIFA, VQAScore
from aligntok.evaluation.text_image.samples import PromptedSamples, PromptSet, matched
from aligntok.evaluation.text_image.scorers import CLIP, Aesthetic, CLIPScore, HPSv2, PickScore, Scorer
from aligntok.evaluation.text_image.summary import Numbers, by_category, mean_of, preferred, score, side_by_side
from aligntok.io.files import writing_text

logger = logging.getLogger("aligntok.evaluation")


class Models:
    """What metrics are on, each built when it is first wanted, and shared."""

    def __init__(self, asked: TextImageSettings) -> None:
        self.asked = asked
        self.places = {name: Path(path).expanduser() for name, path in asked.weights.items()}

    @cached_property
    def clip(self) -> CLIP:
        """The one that scores, and tells colours."""
        return CLIP(self.places["clip"], "weights 'clip'")

    @cached_property
    def answerer(self) -> Answerer:
        """The one that is asked."""
        return Answerer(self.places["vqa"], "weights 'vqa'", self.asked.precision)

    def scorer(self, metric: str) -> Scorer:
        """Return a metric, on this process's device."""
        build: Mapping[str, Callable[[str], Scorer]] = {
            "hpsv2": lambda who: HPSv2(self.places["hpsv2"], "2.0", who),
            "hpsv2.1": lambda who: HPSv2(self.places["hpsv2.1"], "2.1", who),
            "pickscore": lambda who: PickScore(CLIP(self.places["pickscore"], who)),
            "imagereward": lambda who: ImageReward(self.places["imagereward"], who),
            "aesthetic": lambda who: Aesthetic(self.places["aesthetic"], self.clip, who),
            "clip": lambda who: CLIPScore(self.clip),
            "vqascore": lambda who: VQAScore(self.answerer),
            "geneval": self._geneval,
            "geneval2": lambda who: SoftTIFA(self.answerer),
            "dpg": lambda who: DPGBench(self.answerer),
        }
        return build[metric](f"metric '{metric}'").to(device())

    def _geneval(self, who: str) -> Scorer:
        from aligntok.evaluation.text_image.detector import Detector

        detector = Detector(self.places["detector"], who)
        sources = detector.source, self.clip.source
        return GenEval(detector.to(device()), Colours(self.clip.to(device())), detector.classes, sources)


def evaluate(asked: TextImageSettings) -> Result:
    """See :func:`aligntok.evaluation.text_image.evaluate_text_image`."""
    with job():
        prompts = PromptSet(asked.prompt_set)
        folders = [PromptedSamples(each, prompts) for each in asked.samples]
        both, alone = matched(folders[0].samples, folders[-1].samples)
        _check_matched(both, alone, folders)
        _check_known(asked, folders)
        folder = result_folder(asked.out, folders[0].path, "text_image", inside=bool(folders[0].description))
        check_out(folder)
        models = Models(asked)
        scorers = [models.scorer(metric) for metric in dict.fromkeys(asked.metrics)]
        for scorer in scorers:
            for sample in [sample for each in folders for sample in each.samples]:
                scorer.check(sample)
        values = [score_all(each, scorers, asked.batch_size, asked.workers) for each in folders]
        metrics, tables = summarise(values, folders, scorers, both)
        subject, settings = " and ".join(map(str, asked.samples)), _settings(asked, folders, scorers, alone)
        result = Result("text_image", subject, metrics, settings, tables)
        return publish(result, folder, lambda out: write_table(out / "per_image.csv", values, folders, scorers))


def _check_matched(both: Sequence[Any], alone: Sequence[str], folders: Sequence[PromptedSamples]) -> None:
    if not both:
        raise DataError(
            f"{folders[0].path} and {folders[-1].path} have no prompt in common; draw both from one file of prompts"
        )
    if alone:
        logger.warning(
            "%d pictures have none of their prompt and turn in the other folder: %s", len(alone), some_of(alone)
        )


def _check_known(asked: TextImageSettings, folders: Sequence[PromptedSamples]) -> None:
    """Raise what says that the prompt set is not that of the pictures: an error where a metric asks by it."""
    samples = [sample for each in folders for sample in each.samples]
    strange = list(dict.fromkeys(ascii(sample.prompt[:60]) for sample in samples if not sample.said))
    for metric in [metric for metric in asked.metrics if metric in ASKING]:
        if not asked.prompt_set:
            raise ConfigError(f"metric '{metric}' asks by a file of its own; give --prompt-set, {ASKING[metric]}")
        if strange:
            raise DataError(
                f"metric '{metric}': {len(strange)} prompts of the pictures are not in the prompt set, such as "
                f"{some_of(strange, 2)}; give {ASKING[metric]}, from which they were drawn"
            )
    if asked.prompt_set and strange:
        logger.warning("%d prompts are not in the prompt set: %s", len(strange), some_of(strange))
    tasks = {sample.category for sample in samples}
    if "geneval" in asked.metrics and (left := [task for task in TASKS if task not in tasks]):
        logger.warning("GenEval has six tasks; the pictures have none of %s", ", ".join(left))


def score_all(folder: PromptedSamples, scorers: Sequence[Scorer], batch_size: int, workers: int) -> Numbers:
    """Return every number (N, K) of a folder's pictures, in their order; collective. Raises DataError for NaN."""
    folder.sees = [scorer.see for scorer in scorers]
    width = sum(len(scorer.columns) for scorer in scorers)
    kept = [torch.empty(0, 1 + width, dtype=torch.float64)]
    for batch in folder.batches(batch_size, workers):
        samples = [folder.samples[place] for place in batch.places]
        with (
            torch.inference_mode(),
            computing("fp32", whole=True),
            explaining_out_of_memory(f"{len(samples)} images", "lower the batch size"),
        ):
            found = [
                scorer([each.to(device(), non_blocking=True) for each in seen], samples).double().cpu()
                for scorer, seen in zip(scorers, batch.seen, strict=True)
            ]
        kept.append(torch.cat([torch.tensor(batch.places, dtype=torch.float64)[:, None], *found], dim=1))
    rows = torch.cat(gather(torch.cat(kept))).clone()
    values: Numbers = rows[rows[:, 0].argsort(), 1:].numpy()
    if len(bad := np.argwhere(~np.isfinite(values))):
        column = [name for scorer in scorers for name in scorer.columns][bad[0, 1]]
        raise DataError(
            f"{column} is not finite for {folder.samples[bad[0, 0]].file} of {folder.path}; look at that picture, and "
            "at the metric's weights"
        )
    return values


def summarise(
    values: Sequence[Numbers],
    folders: Sequence[PromptedSamples],
    scorers: Sequence[Scorer],
    both: Sequence[tuple[int, int]],
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Return the means with their errors, and the tables, of one folder's numbers or of two.

    Of two the folder's name begins each metric's; of their PickScores there is also the mean chance of each folder's
    pictures to be preferred, softmax over both, which the paper calls PickScore.
    """
    columns = [name for scorer in scorers for name in scorer.columns]
    by_task = [scorer.by_category for scorer in scorers for _ in scorer.columns]
    names = _names([each.path for each in folders])
    metrics: dict[str, float] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, numbers, folder in zip(names, values, folders, strict=True):
        of = f"{name}/" if len(folders) > 1 else ""
        for place, column in enumerate(columns):
            mean = score(numbers[:, place], folder.samples, by_task[place])
            metrics[f"{of}{column}"] = mean.value
            metrics |= {f"{of}{column}, standard error": mean.error} if mean.error == mean.error else {}
        metrics[f"{of}images"] = float(len(folder))
        tables["By category" + (f", {name}" if of else "")] = by_category(numbers, columns, folder.samples)
    if len(folders) > 1:
        x, y = (numbers[[pair[side] for pair in both]] for side, numbers in enumerate(values))
        prompts = [folders[0].samples[place].prompt for place, _ in both]
        metrics |= _pairwise(x, y, columns, names, prompts)
        by_name = [(f"{name}{more}", f"{name}/", more) for name in names for more in ("", ", standard error")]
        tables["Means"] = [
            {"metric": column, **{told: metrics.get(f"{of}{column}{more}") for told, of, more in by_name}}
            for column in columns
        ]
        tables[f"Side by side, {len(both)} pictures of a prompt and turn"] = side_by_side(x, y, columns, names, prompts)
    return metrics, {title: rows for title, rows in tables.items() if rows}


def _pairwise(
    x: Numbers, y: Numbers, columns: Sequence[str], names: Sequence[str], prompts: Sequence[str]
) -> dict[str, float]:
    """Return the mean chance of each folder's picture to be preferred, by the PickScores of matched pictures (N, K)."""
    found: dict[str, float] = {}
    for place, column in enumerate(columns):
        if column.startswith("PickScore-"):
            chance = mean_of(preferred(x[:, place], y[:, place]), prompts).value
            told = column.replace("PickScore", "PickScore pairwise", 1)
            found |= {f"{names[0]}/{told}": chance, f"{names[1]}/{told}": 1 - chance}
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """Return what two folders are called, as much of their paths as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, 9):
        names = ["-".join(part[-depth:]) for part in parts]
        if len({*names}) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _settings(
    asked: TextImageSettings, folders: Sequence[PromptedSamples], scorers: Sequence[Scorer], alone: Sequence[str]
) -> dict[str, Any]:
    told = {
        "samples": [each.description or None for each in folders],
        "prompt_set": [str(path) for path in asked.prompt_set],
        "metrics": [scorer.describe() for scorer in scorers],
    }
    return {**told, "unmatched": len(alone)} if len(folders) > 1 else told


def write_table(
    path: Path, values: Sequence[Numbers], folders: Sequence[PromptedSamples], scorers: Sequence[Scorer]
) -> None:
    """Write a row a picture, in the order of the folders: folder, file, prompt, turn, category and every number."""
    columns = [name for scorer in scorers for name in scorer.columns]
    names = _names([each.path for each in folders])
    with writing_text(path) as file:
        table = csv.writer(file)
        table.writerow(["folder", "file", "prompt", "turn", "category", *columns])
        for name, numbers, folder in zip(names, values, folders, strict=True):
            for sample, row in zip(folder.samples, numbers.tolist(), strict=True):
                table.writerow([name, sample.file, sample.prompt, sample.turn, sample.category, *row])
