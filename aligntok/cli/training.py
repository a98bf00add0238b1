"""Verbs that train, and that hand on what was trained."""

from __future__ import annotations

from typing import Any

from aligntok.caching.settings import CacheRequest
from aligntok.cli.commands import verb
from aligntok.training.request import ExportRequest, TrainRequest


@verb("train", "config")
def train(asked: TrainRequest) -> Any:
    """Train the stages of a config."""
    from aligntok.training.run import look_ahead, read_request, run

    config, run_info = read_request(asked)
    if asked.dry_run:
        return {"stages": look_ahead(config, asked.stage, asked.hardware)}
    return {"work_dir": config["work_dir"], "exported": run(config, only_stage=asked.stage, run_info=run_info)}


@verb("export", "source", "out", works=False)
def export(asked: ExportRequest) -> Any:
    """Write the tokenizer of a work folder, or any other that can be loaded, as a folder to share."""
    if asked.format == "aligntok":
        from aligntok.loading import export_tokenizer

        export_tokenizer(asked.source, asked.out, asked.weights, asked.ema)
        print(f"Tokenizer: {asked.out}")
        return {"tokenizer": asked.out}
    from aligntok.exporting import export_for_diffusers, export_onnx

    if asked.format == "diffusers":
        _, loaded_by = export_for_diffusers(asked.source, asked.out, asked.weights, asked.ema, asked.latents)
        print(f'For diffusers: {asked.out}   ({loaded_by}.from_pretrained("{asked.out}"))')
        return {"folder": asked.out, "class": loaded_by}
    out = export_onnx(asked.source, asked.out, asked.weights, asked.ema, asked.latents)
    print(f"ONNX: {out / 'encoder.onnx'}, {out / 'decoder.onnx'}   (onnxruntime computes them as torch does)")
    return {"encoder": out / "encoder.onnx", "decoder": out / "decoder.onnx"}


@verb("cache-latents", "tokenizer", "data", "out")
def cache_latents(asked: CacheRequest) -> Any:
    """Encode a data set once, for a generator to train on."""
    from aligntok import caching

    return {"cache": caching.cache_latents(asked)}
