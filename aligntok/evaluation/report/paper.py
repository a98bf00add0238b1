"""The paper's numbers beside ours, only where a run is the paper's: same model, schedule, images and metric."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from aligntok.errors import DataError
from aligntok.evaluation.report.found import Evaluated, Run, Training, find, part
from aligntok.evaluation.report.names import plain, without_place
from aligntok.evaluation.results import Result

_LATENT_SPACE = "the paper leaves open how many images, neighbours and seeds its latent-space numbers (Table 16) are of"
_SAME = {"reconstruction": {"rfid": "rfid", "fid": "rfid"}, "generation": {"gfid": "fid", "fid": "fid"}}


@dataclass(frozen=True)
class PaperNumbers:
    """What the paper has to say of a result: values by metric's plain name with their table, or why there are none."""

    note: str
    values: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    def of(self, kind: str, name: str) -> tuple[float, str] | None:
        """Return the paper's value of the metric of that very name, and the table that it is in."""
        own = plain(without_place(name)) if "-" not in name or plain(name) == "top1" else name
        return self.values.get(_SAME.get(kind, {}).get(own, own))


@cache
def paper() -> dict[str, Any]:
    """Return the paper's numbers (paper.json)."""
    content: dict[str, Any] = json.loads(files(__package__).joinpath("paper.json").read_text(encoding="utf-8"))
    return content


def compare(run: Run, found: Evaluated) -> PaperNumbers:
    """Return the paper's numbers for a result of a run, or the reason why none is put beside it."""
    kind, result = found.result.kind, found.result
    run = run if run.trainings else _run_behind(run, result)
    if kind == "latent_space":
        return PaperNumbers(f"No numbers of the paper beside these: {_LATENT_SPACE}.")
    if kind == "cost":
        return PaperNumbers(_of_cost(run, result))
    if kind == "comparison":
        return PaperNumbers(
            "No numbers of the paper beside these: a comparison's tokenizers are compared with one another."
        )
    wanted = paper()["evaluated"][kind]
    images = images_of(result)
    if images != wanted["images"]:
        seen = "an unknown number" if images is None else f"{images:,}"
        return PaperNumbers(
            f"No numbers of the paper beside these: its own are of {wanted['images']:,} {wanted['of']}, "
            f"these of {seen}."
        )
    return _generated(run, result) if kind == "generation" else _tokenized(run, found)


def _run_behind(run: Run, result: Result) -> Run:
    """Return the run that an evaluation alone is of, where its subject leads to one."""
    source = _find(result.settings, "generator") or {}
    for place in (result.subject, str(source.get("source") or "")):
        for folder in (Path(place), Path(place).parent) if place else ():
            if _holds_training(folder):
                try:
                    return find(folder)
                except DataError:
                    continue
    return run


def _holds_training(folder: Path) -> bool:
    descriptions = [*folder.glob("[0-9]*_*/stage.json"), folder / "generation" / "generation.json"]
    return any(path.is_file() for path in descriptions)


def _tokenized(run: Run, found: Evaluated) -> PaperNumbers:
    stages = _evaluated_stages(run, found.result)
    if not stages or (found.result.step is not None and found.result.step < stages[-1].steps):
        return PaperNumbers("No numbers of the paper beside these: the training that was evaluated is not there whole.")
    own = tokenizer_facts(stages)
    same = next((entry for entry in paper()["tokenizers"] if entry["match"] == own), None)
    if same is None:
        return PaperNumbers(f"No numbers of the paper beside these: it has no such tokenizer ({_short(own)}).")
    return _of_paper(same["title"], same["values"].get(found.result.kind, {}))


def _generated(run: Run, result: Result) -> PaperNumbers:
    own = generator_facts(run.generators[-1]) if run.generators else {}
    same = next((entry for entry in paper()["generators"] if entry["match"] == own), None)
    if same is None:
        return PaperNumbers(f"No numbers of the paper beside these: it has no such generator ({_short(own)}).")
    sampling = _find(result.settings, "sampling") or {}
    steps, scale = sampling.get("steps"), sampling.get("cfg_scale")
    for each in same["values"]:
        if steps == each["sampler_steps"] and scale is not None and (scale != 1) == each["guided"]:
            how = f"{same['title']}, {steps} sampling steps, {'with' if each['guided'] else 'without'} guidance"
            return _of_paper(how, each["generation"])
    return PaperNumbers(
        f"No numbers of the paper beside these: it has none of {steps or '?'} steps at scale {scale or '?'}."
    )


def _of_paper(title: str, values: Mapping[str, Mapping[str, Any]]) -> PaperNumbers:
    tables = {plain(name): (value["value"], value["table"]) for name, value in values.items()}
    return PaperNumbers(f"The paper's column: {title}. Only metrics of the very same name are compared.", tables)


def _of_cost(run: Run, result: Result) -> str:
    if paper_costs(run, result):
        return "The paper's cost of this model is below; its seconds and gigabytes are of its own GPUs."
    return "No costs of the paper beside these: its tables are of DINOv2-L, f16d32, with the LDM decoder."


def paper_costs(run: Run, result: Result) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Return the paper's cost tables where the run, or a config that was measured, is theirs, else nothing."""
    cost: Mapping[str, Any] = paper()["cost"]
    configs = [Path(word).stem for word in result.subject.split(", ")]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = cost["tables"]
    same = cost["match"].items() <= tokenizer_facts(run.stages).items()
    return tables if same or cost["config"] in configs else {}


def _evaluated_stages(run: Run, result: Result) -> list[Training]:
    """Return the stages up to the one that was evaluated, if they are finished."""
    subject = Path(result.subject).name
    names = [stage.folder.resolve().name for stage in run.stages]
    stages = run.stages[: names.index(subject) + 1] if subject in names else run.stages
    whole = all(stage.step >= (stage.steps or 1) for stage in stages)
    return list(stages) if whole else []


def tokenizer_facts(stages: Sequence[Training]) -> dict[str, Any]:
    """Return what makes a tokenizer's training the paper's, under the keys of paper.json's ``match``."""
    if not stages:
        return {}
    settings = stages[-1].settings
    tokenizer, data = part(settings, "tokenizer"), part(part(settings, "data"), "train")
    second = stages[1].settings if len(stages) > 1 else None
    semantic = part(part(second, "losses"), "semantic") if second else {}
    loss = [semantic.get("weight", 0.0), semantic.get("distance", "l2"), semantic.get("on", "latents")]
    return {
        "encoder": part(tokenizer, "encoder").get("type"),
        "latent_dim": tokenizer.get("latent_dim"),
        "downsample_factor": tokenizer.get("downsample_factor"),
        "decoder": part(tokenizer, "decoder").get("type"),
        "decoder_ch": part(tokenizer, "decoder").get("ch"),
        "decoder_depth": part(tokenizer, "decoder").get("depth"),
        "global_batch_size": settings.get("global_batch_size"),
        "image_size": data.get("image_size"),
        "steps": [stage.settings.get("steps") for stage in stages],
        "semantic": loss if second else None,
        "stage_2_lr": part(second, "optimizer").get("lr") if second else None,
        "lora": any(stage.settings.get("lora") is not None for stage in stages),
        "ema": all(stage.settings.get("ema") is not None for stage in stages),
    }


def generator_facts(training: Training) -> dict[str, Any]:
    """Return what makes a generator's training the paper's, under the keys of paper.json's ``match``."""
    settings = training.settings
    generator = part(settings, "generator")
    tokenizer = _read_tokenizer(training.folder)
    return {
        "tokenizer_encoder": part(tokenizer, "encoder").get("type"),
        "latent_dim": tokenizer.get("latent_dim"),
        "downsample_factor": tokenizer.get("downsample_factor"),
        "generator": generator.get("type"),
        "size": generator.get("size"),
        "steps": settings.get("steps"),
        "global_batch_size": settings.get("global_batch_size"),
        "classes": generator.get("num_classes"),
        "qknorm": bool(generator.get("use_qknorm")),
    }


def _read_tokenizer(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "tokenizer" / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def images_of(result: Result) -> int | None:
    """Return of how many images a result is, where it says so."""
    names = ("images", "num_images", "samples", "num_samples", "num")
    for place in (result.metrics, result.settings):
        for name, value in place.items():
            if without_place(name) in names and isinstance(value, (int, float)) and not isinstance(value, bool):
                return int(value)
    return None


def _find(settings: Any, key: str) -> Mapping[str, Any] | None:
    """Return the dict under `key`, at any depth."""
    if not isinstance(settings, Mapping):
        return None
    if isinstance(settings.get(key), Mapping):
        found: Mapping[str, Any] = settings[key]
        return found
    return next(filter(None, (_find(value, key) for value in settings.values())), None)


def _short(facts: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in facts.items() if value is not None}
    if not shown:
        return "no training is beside these results"
    first = shown.get("encoder") or shown.get("generator") or "?"
    size = f"f{shown.get('downsample_factor', '?')}d{shown.get('latent_dim', '?')}"
    steps = shown.get("steps")
    text = " + ".join(f"{each:,}" for each in (steps if isinstance(steps, list) else [steps]) if isinstance(each, int))
    return f"{first}, {size}, {text or '?'} steps of {shown.get('global_batch_size', '?')}"
