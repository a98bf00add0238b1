"""``evaluate``, ``analyze-latents``, ``measure-cost``: what tokenizers, samples and configs are measured to be."""

from __future__ import annotations

from collections.abc import Sequence

from aligntok.cli.arguments import Command, dispatch, parse, reporting_errors


def _reconstruction(arguments: Sequence[str] | None = None) -> int:
    """rFID, PSNR, SSIM, LPIPS of a tokenizer on images."""
    from aligntok.evaluation.settings import ReconstructionSettings

    asked = parse(ReconstructionSettings, arguments, "evaluate reconstruction", positional=("tokenizer", "data"))

    from aligntok.evaluation.reconstruction import evaluate_reconstruction

    evaluate_reconstruction(asked)
    return 0


def _generation(arguments: Sequence[str] | None = None) -> int:
    """FID, sFID, IS, KID, precision, recall of samples."""
    from aligntok.evaluation.settings import GenerationSettings

    asked = parse(GenerationSettings, arguments, "evaluate generation", positional=("samples",))

    from aligntok.evaluation.generation import evaluate_generation

    evaluate_generation(asked)
    return 0


def _linear_probe(arguments: Sequence[str] | None = None) -> int:
    """Top-1 and top-5 of a linear classifier on latents."""
    from aligntok.evaluation.settings import ProbeSettings

    asked = parse(ProbeSettings, arguments, "evaluate linear-probe", positional=("tokenizer", "data"))

    from aligntok.evaluation.linear_probe import linear_probe

    linear_probe(asked)
    return 0


def _make_reference(arguments: Sequence[str] | None = None) -> int:
    """The statistics of real images that samples are held to."""
    from aligntok.evaluation.settings import ReferenceSettings

    asked = parse(ReferenceSettings, arguments, "evaluate make-reference", positional=("data", "out"))

    from aligntok.evaluation.references import make_reference

    print(f"Reference: {make_reference(asked)}")
    return 0


EVALUATIONS: dict[str, Command] = {
    "reconstruction": _reconstruction,
    "generation": _generation,
    "linear-probe": _linear_probe,
    "make-reference": _make_reference,
}


@reporting_errors
def evaluate(arguments: Sequence[str] | None = None) -> int:
    """Measure reconstructions, samples, or what a linear probe sees; make references."""
    return dispatch("evaluate", EVALUATIONS, arguments)


@reporting_errors
def analyze_latents(arguments: Sequence[str] | None = None) -> int:
    """Compare the latent spaces of tokenizers with one another and a reference encoder's."""
    from aligntok.evaluation.settings import LatentAnalysis

    asked = parse(LatentAnalysis, arguments, "analyze-latents", positional=("tokenizers", "data"))

    from aligntok.evaluation import latent_analysis

    latent_analysis.analyze_latents(asked)
    return 0


@reporting_errors
def measure_cost(arguments: Sequence[str] | None = None) -> int:
    """Tell what configs cost: parameters, operations, seconds, memory."""
    from aligntok.evaluation.settings import CostRequest

    asked = parse(CostRequest, arguments, "measure-cost", positional=("configs",))

    from aligntok.evaluation import cost

    cost.measure_cost(asked)
    return 0
