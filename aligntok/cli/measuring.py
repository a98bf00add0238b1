"""Verbs that measure, compare and report."""

from __future__ import annotations

from typing import Any

from aligntok.cli.commands import group, verb
from aligntok.evaluation.cost_settings import CostRequest, ScalingRequest
from aligntok.evaluation.settings import (
    ComparisonRequest,
    GenerationSettings,
    LatentAnalysis,
    ProbeSettings,
    ReconstructionSettings,
    ReferenceSettings,
    ReportSettings,
    TextImageSettings,
)


@verb("evaluate reconstruction", "tokenizer", "data")
def _reconstruction(asked: ReconstructionSettings) -> Any:
    """rFID, PSNR, SSIM, LPIPS of a tokenizer on images."""
    from aligntok.evaluation.reconstruction import evaluate_reconstruction

    return evaluate_reconstruction(asked)


@verb("evaluate generation", "samples")
def _generation(asked: GenerationSettings) -> Any:
    """FID, sFID, IS, KID, precision, recall of samples."""
    from aligntok.evaluation.generation import evaluate_generation

    return evaluate_generation(asked)


@verb("evaluate text-image", "samples")
def _text_image(asked: TextImageSettings) -> Any:
    """HPSv2, PickScore, ImageReward, CLIP score, VQAScore, GenEval of samples of prompts."""
    from aligntok.evaluation.text_image import evaluate_text_image

    return evaluate_text_image(asked)


@verb("evaluate linear-probe", "tokenizer", "data")
def _linear_probe(asked: ProbeSettings) -> Any:
    """Top-1 and top-5 of a linear classifier on latents."""
    from aligntok.evaluation.linear_probe import linear_probe

    return linear_probe(asked)


@verb("evaluate make-reference", "data", "out")
def _make_reference(asked: ReferenceSettings) -> Any:
    """The statistics of real images that samples are held to."""
    from aligntok.evaluation.references import make_reference

    path = make_reference(asked)
    print(f"Reference: {path}")
    return {"reference": path}


evaluate = group(
    "evaluate",
    {
        "reconstruction": _reconstruction,
        "generation": _generation,
        "text-image": _text_image,
        "linear-probe": _linear_probe,
        "make-reference": _make_reference,
    },
)


@verb("compare", "config")
def compare(asked: ComparisonRequest) -> Any:
    """Train and measure several tokenizers, and a generator on each, at one budget."""
    from aligntok.evaluation import comparison

    return comparison.compare(asked)


@verb("analyze-latents", "tokenizers", "data")
def analyze_latents(asked: LatentAnalysis) -> Any:
    """Compare the latent spaces of tokenizers with one another and a reference encoder's."""
    from aligntok.evaluation import latent_analysis

    return latent_analysis.analyze_latents(asked)


@verb("measure-cost", "configs")
def _measure_cost(asked: CostRequest) -> Any:
    from aligntok.evaluation import cost

    return cost.measure_cost(asked)


@verb("measure-cost scaling", "config")
def _scaling(asked: ScalingRequest) -> Any:
    from aligntok.evaluation.cost.scaling import cost_scaling

    return cost_scaling(asked)


measure_cost = group("measure-cost", {"scaling": _scaling}, _measure_cost)


@verb("report", "runs", works=False)
def report(asked: ReportSettings) -> Any:
    """Write one HTML page about runs: curves, pictures, results."""
    from aligntok.evaluation.report import write_report

    path = write_report(asked)
    print(f"Report: {path}   (open it in a browser)")
    return {"report": path}
