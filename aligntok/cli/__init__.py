"""``aligntok ...``: the same verbs as tools/, thin; heavy libraries load when a verb needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from aligntok.caching.settings import CacheRequest
from aligntok.check import CheckRequest
from aligntok.cli.arguments import Command, dispatch, parse_options, reporting_errors, verb
from aligntok.data.settings import DataCheck, IndexCheck, IndexRequest, MergeRequest, SelectRequest
from aligntok.evaluation.settings import (
    ComparisonRequest,
    CostRequest,
    GenerationSettings,
    LatentAnalysis,
    ProbeSettings,
    ReconstructionSettings,
    ReferenceSettings,
    ReportSettings,
    ScalingRequest,
    TextImageSettings,
)
from aligntok.sampling.settings import SampleRequest
from aligntok.settings import settings
from aligntok.training.request import ExportRequest, TrainRequest


@verb("train", "config")
def train(asked: TrainRequest) -> None:
    """Train the stages of a config."""
    from aligntok.training.config import load_config
    from aligntok.training.run import run
    from aligntok.training.run_info import run_info_of

    config, run_info = load_config(asked.config, asked.options), run_info_of(asked.config, asked.options)
    run(config, only_stage=asked.stage, dry_run=asked.dry_run, run_info=run_info, hardware=asked.hardware)


@verb("export", "source", "out")
def export(asked: ExportRequest) -> None:
    """Write the tokenizer of a work folder, or any other that can be loaded, as a folder to share."""
    if asked.format == "aligntok":
        from aligntok.loading import export_tokenizer

        export_tokenizer(asked.source, asked.out, asked.weights, asked.ema)
        print(f"Tokenizer: {asked.out}")
        return
    from aligntok.exporting import export_for_diffusers, export_onnx

    if asked.format == "diffusers":
        _, loaded_by = export_for_diffusers(asked.source, asked.out, asked.weights, asked.ema, asked.latents)
        print(f'For diffusers: {asked.out}   ({loaded_by}.from_pretrained("{asked.out}"))')
    else:
        out = export_onnx(asked.source, asked.out, asked.weights, asked.ema, asked.latents)
        print(f"ONNX: {out / 'encoder.onnx'}, {out / 'decoder.onnx'}   (onnxruntime computes them as torch does)")


@verb("cache-latents", "tokenizer", "data", "out")
def cache_latents(asked: CacheRequest) -> None:
    """Encode a data set once, for a generator to train on."""
    from aligntok import caching

    caching.cache_latents(asked)


@verb("sample", "run")
def sample(asked: SampleRequest) -> None:
    """Draw samples from a trained generator."""
    if asked.guidance_sweep is not None:
        from aligntok.sampling.guidance_sweep import sweep_guidance as draw
    else:
        from aligntok.sampling import sample_images as draw

    draw(asked)


@verb("evaluate reconstruction", "tokenizer", "data")
def _reconstruction(asked: ReconstructionSettings) -> None:
    """rFID, PSNR, SSIM, LPIPS of a tokenizer on images."""
    from aligntok.evaluation.reconstruction import evaluate_reconstruction

    evaluate_reconstruction(asked)


@verb("evaluate generation", "samples")
def _generation(asked: GenerationSettings) -> None:
    """FID, sFID, IS, KID, precision, recall of samples."""
    from aligntok.evaluation.generation import evaluate_generation

    evaluate_generation(asked)


@verb("evaluate text-image", "samples")
def _text_image(asked: TextImageSettings) -> None:
    """HPSv2, PickScore, ImageReward, CLIP score, VQAScore, GenEval of samples of prompts."""
    from aligntok.evaluation.text_image import evaluate_text_image

    evaluate_text_image(asked)


@verb("evaluate linear-probe", "tokenizer", "data")
def _linear_probe(asked: ProbeSettings) -> None:
    """Top-1 and top-5 of a linear classifier on latents."""
    from aligntok.evaluation.linear_probe import linear_probe

    linear_probe(asked)


@verb("evaluate make-reference", "data", "out")
def _make_reference(asked: ReferenceSettings) -> None:
    """The statistics of real images that samples are held to."""
    from aligntok.evaluation.references import make_reference

    print(f"Reference: {make_reference(asked)}")


@reporting_errors
def evaluate(arguments: Sequence[str] | None = None) -> int:
    """Measure reconstructions, samples, or what a linear probe sees; make references."""
    evaluations = {
        "reconstruction": _reconstruction,
        "generation": _generation,
        "text-image": _text_image,
        "linear-probe": _linear_probe,
        "make-reference": _make_reference,
    }
    return dispatch("evaluate", evaluations, arguments)


@verb("compare", "config")
def compare(asked: ComparisonRequest) -> None:
    """Train and measure several tokenizers, and a generator on each, at one budget."""
    from aligntok.evaluation import comparison

    comparison.compare(asked)


@verb("analyze-latents", "tokenizers", "data")
def analyze_latents(asked: LatentAnalysis) -> None:
    """Compare the latent spaces of tokenizers with one another and a reference encoder's."""
    from aligntok.evaluation import latent_analysis

    latent_analysis.analyze_latents(asked)


@verb("measure-cost", "configs")
def _measure_cost(asked: CostRequest) -> None:
    from aligntok.evaluation import cost

    cost.measure_cost(asked)


@verb("measure-cost scaling", "config")
def _scaling(asked: ScalingRequest) -> None:
    from aligntok.evaluation.cost.scaling import cost_scaling

    cost_scaling(asked)


@reporting_errors
def measure_cost(arguments: Sequence[str] | None = None) -> int:
    """Tell what configs cost: parameters, operations, seconds, memory; `scaling`: what more GPUs are worth."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _scaling(words[1:]) if words[:1] == ["scaling"] else _measure_cost(words)


@verb("report", "runs")
def report(asked: ReportSettings) -> None:
    """Write one HTML page about runs: curves, pictures, results."""
    from aligntok.evaluation.report import write_report

    print(f"Report: {write_report(asked)}   (open it in a browser)")


@verb("aligntok index", "shards")
def _index(asked: IndexRequest) -> None:
    from aligntok.data.index.build import build_index

    _say_index(build_index(asked))


@verb("aligntok index merge", "parts")
def _merge(asked: MergeRequest) -> None:
    """Merge indexes of different shards into one."""
    from aligntok.data.index.build import merge_indexes

    _say_index(merge_indexes(asked))


def _say_index(index: Any) -> None:
    told = f"captions in {index.caption}" if index.caption else "no captions"
    unreadable = int((index.column("height") == 0).sum())
    told += f"; {unreadable:,} images cannot be read" if unreadable else ""
    print(f"Index: {index.folder} ({len(index):,} samples of {len(index.shards):,} shards; {told})")


@verb("aligntok index check", "index")
def _check_index(asked: IndexCheck) -> int:
    """Check that shards are as they were indexed."""
    from aligntok.data.index.check import check_index

    problems, told = check_index(asked)
    print("\n".join([*problems, f"{asked.index}: {f'{len(problems)} problems, ' if problems else ''}{told}"]))
    return 2 if problems else 0


@verb("aligntok index select", "index")
def _select(asked: SelectRequest) -> None:
    """Find the samples that a training takes, before it starts; one that asks for the same opens what is found."""
    from aligntok.data.index import Index
    from aligntok.data.stream.selection import print_selection, select

    print_selection(select(Index.open(asked.index), asked))


@reporting_errors
def index(arguments: Sequence[str] | None = None) -> int:
    """Make an index of tar or parquet shards, on disks or far away, to train from."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbs = {"check": _check_index, "merge": _merge, "select": _select}
    if words and words[0] not in verbs:
        return _index(words)
    return dispatch("aligntok index", {"SHARDS ...": _index, **verbs}, words)


@verb("aligntok check", "folder")
def check(asked: CheckRequest) -> int:
    """Check that the files of a folder are as they were written, and that none is missing."""
    from aligntok.check import check_folder

    return check_folder(asked)


@verb("aligntok data check", "data")
def _data_check(asked: DataCheck) -> int:
    """Look at images before a training is paid for."""
    from aligntok.data.check import check_data

    return check_data(asked)


@reporting_errors
def data(arguments: Sequence[str] | None = None) -> int:
    """Look at data sets."""
    return dispatch("aligntok data", {"check": _data_check}, arguments)


@settings
class _Environment:
    """Versions, plugins, devices, kernels: what to send along when you report that something is wrong."""

    json: bool = False
    """For programs."""


@verb("aligntok env")
def env(asked: _Environment) -> None:
    """Say what is installed here, which devices there are, and which kernels attend."""
    import json

    from aligntok.environment import as_text, describe

    found = describe()
    print(json.dumps(found, indent=2) if asked.json else as_text(found))


@settings
class _Listing:
    """Plugins, their versions and components; failed ones with the reason."""

    json: bool = False
    """For programs."""


@settings
class _PluginCheck:
    """Import every component; exit status 1 if anything is broken."""


@verb("aligntok plugins list")
def _list(asked: _Listing) -> None:
    import json
    from dataclasses import asdict

    from aligntok.plugins import list_plugins

    found = list_plugins()
    print(json.dumps([*map(asdict, found)], indent=2) if asked.json else "\n".join(each.as_text() for each in found))


@verb("aligntok plugins check")
def _check(asked: _PluginCheck) -> int:
    from aligntok.plugins import check_components

    problems = check_components()
    print("\n".join(problems) or "every plugin loads and every component can be imported")
    return 1 if problems else 0


@reporting_errors
def plugins(arguments: Sequence[str] | None = None) -> int:
    """List the plugins and what each adds, or check that every component can be imported."""
    return dispatch("aligntok plugins", {"list": _list, "check": _check}, arguments)


VERBS: dict[str, Command] = {
    "train": train,
    "export": export,
    "cache-latents": cache_latents,
    "sample": sample,
    "evaluate": evaluate,
    "compare": compare,
    "analyze-latents": analyze_latents,
    "measure-cost": measure_cost,
    "report": report,
    "index": index,
    "check": check,
    "data": data,
    "env": env,
    "plugins": plugins,
}


@reporting_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """``aligntok VERB ...``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        from aligntok import __version__

        print(f"aligntok {__version__}")
        return 0
    return dispatch("aligntok", VERBS, words)


__all__ = ["VERBS", "main", "parse_options", "reporting_errors", *(name.replace("-", "_") for name in VERBS)]
