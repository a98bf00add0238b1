"""``measure_cost``: what a config costs, counted and measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aligntok.cli.arguments import parse_options, reporting_errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure_cost",
        description="Tell what configs cost: parameters and multiply-accumulates; latency and memory of encoder and "
        "decoder; time and memory of training steps, whole and by part; device-hours of the schedule. Weights are "
        "random. On a GPU if there is one.",
    )
    add = parser.add_argument
    add("configs", nargs="+", metavar="CONFIG", help="config files, such as configs/aligntok_dinov2_f16d32.py")
    add("--meta", action="store_true", help="only what needs no run: parameters, multiply-accumulates, schedule")
    add("--no-inference", action="store_true", help="do not measure encoder and decoder")
    add("--no-training", action="store_true", help="do not measure training steps")
    add("--encoders", nargs="+", default=[], metavar="NAME", help="also these encoders, such as ldm_cnn")
    add("--resolutions", nargs="+", type=int, default=[256, 512, 1024], metavar="N", help="pixels a side")
    add("--batch-sizes", nargs="+", type=int, default=[1, 4, 8], metavar="N", help="of encoder and decoder")
    add("--repeats", type=int, default=10, metavar="N", help="timed calls of each kind (default: 10)")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32", help="of encoder and decoder")
    add("--max-seconds", type=float, default=30.0, metavar="S", help="leave out calls that take longer (default: 30)")
    add("--devices", type=int, default=1, metavar="N", help="that share a training step's batch (default: 1)")
    add("--out", help="folder of cost.json (default: evaluation/cost in the first config's work_dir)")
    add("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of every config")
    return parser


@reporting_errors
def measure_cost(arguments: Sequence[str] | None = None) -> int:
    """Tell what configs cost: parameters, operations, seconds, memory."""
    given = _parser().parse_args(arguments)
    options = parse_options(given.cfg_options)

    from aligntok.evaluation.cost import CostSettings
    from aligntok.evaluation.cost import measure_cost as measure

    names = ("resolutions", "batch_sizes", "repeats", "precision", "max_seconds", "devices")
    settings = CostSettings(**{name: getattr(given, name) for name in names})
    left_out = {"inference": given.meta or given.no_inference, "training": given.meta or given.no_training}
    measured = [name for name, left in left_out.items() if not left]
    measure(given.configs, options, settings, given.encoders, measured, given.out)
    return 0
