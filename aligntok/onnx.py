"""A tokenizer as two ONNX files, for any number and any size of images."""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import aligntok
from aligntok.data.latent_shards import LatentStatistics
from aligntok.errors import ConfigError, WriteError, first_line
from aligntok.imports import FAILURES, import_failure, import_object
from aligntok.io.checksums import sha256
from aligntok.io.files import remove, replacing, unseen, write_checksums, writing
from aligntok.tokenizer import Tokenizer

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
OPSET = 18  # the first that resizes with a low-pass filter, as position tables are
#: The largest difference of what onnxruntime computes, at two sizes, in units of the largest number.
TOLERANCE = 1e-4


class _Half(nn.Module):
    """Half of a tokenizer: images to latents, the posterior's mean where there is one; or latents to images."""

    def __init__(self, tokenizer: Tokenizer, encodes: bool) -> None:
        super().__init__()
        self.tokenizer, self.encodes = tokenizer, encodes

    def forward(self, given: Tensor) -> Tensor:
        return self.tokenizer.encode(given) if self.encodes else self.tokenizer.decode(given)


def write_onnx(
    folder: str | os.PathLike[str], tokenizer: Tokenizer, statistics: LatentStatistics | None = None
) -> None:
    """Write ``encoder.onnx``, images (N, 3, H, W) to latents (N, d, H/f, W/f), and ``decoder.onnx``, float32.

    N, H and W are free, H and W multiples of f. Metadata: `downsample_factor`, `latent_dim`, and mean and deviation of
    the latents, `latents_mean` and `latents_std`, where they are given, as JSON. onnxruntime has computed both, at two
    sizes, as torch does. Raises ConfigError without the extra, for an encoder that takes one size only, and for
    operations that ONNX does not have or onnxruntime computes otherwise; WriteError.
    """
    runtime = _needed()
    tokenizer = copy.deepcopy(tokenizer).float().cpu().eval()  # the caller's stays where and what it is
    metadata = {"downsample_factor": tokenizer.downsample_factor, "latent_dim": tokenizer.latent_dim}
    metadata |= {f"latents_{name}": each for name, each in asdict(statistics).items()} if statistics else {}
    said = {name: json.dumps(value) for name, value in {**metadata, "aligntok_version": aligntok.__version__}.items()}
    place = Path(folder)
    made = unseen(place / "onnx")
    try:
        with writing(place):
            made.mkdir(parents=True)
            for name, encodes in ((ENCODER, True), (DECODER, False)):
                _convert(made / name, _Half(tokenizer, encodes).eval(), said, runtime)
        with writing(place):
            sums = {file.name: sha256(file) for file in sorted(made.iterdir(), reverse=True)}
        write_checksums(place, sums)  # first: they say whose folder it is, and do not fit an earlier export's files
        for name in sums:  # large weights, in a file of their own, first
            with replacing(place / name) as temporary:
                os.replace(made / name, temporary)
    finally:
        remove(made)


def _needed() -> Any:
    """Return onnxruntime. Raises ConfigError where a package of the extra is missing."""
    try:
        return [import_object(name) for name in ("onnx", "onnxscript", "onnxruntime")][-1]
    except FAILURES as error:
        raise ConfigError(f"--format onnx: {import_failure(error)}") from error


def _convert(path: Path, half: _Half, metadata: Mapping[str, str], runtime: Any) -> None:
    """Write half of a tokenizer, and hold what onnxruntime makes of it, at two sizes, against torch."""
    f, channels = (half.tokenizer.downsample_factor, 3) if half.encodes else (1, half.tokenizer.latent_dim)
    shapes = ((1, channels, 3 * f, 2 * f), (3, channels, 5 * f, 7 * f))
    given = [torch.arange(math.prod(shape), dtype=torch.float32).mul(0.7).sin().view(shape) for shape in shapes]
    try:
        with torch.no_grad(), _silent():
            expected = [half(each) for each in given]
            _export(path, half, torch.zeros(2, channels, 4 * f, 6 * f), f, metadata)
        found = _run(path, given, runtime)
    except WriteError:
        raise
    except Exception as error:  # what every part of torch's exporter, and an encoder of one size, raises
        raise ConfigError(
            f"--format onnx: {_who(half)} cannot be exported for images of any size "
            f"({first_line(error.__cause__ or error)}); encoders of any size can, such as dinov2, mae, siglip2, "
            "ldm_cnn and timm's ViTs"
        ) from error
    for own, theirs in zip(expected, found, strict=True):
        difference = float((theirs - own).abs().max() / own.abs().max().clamp(min=1))
        if not difference < TOLERANCE:
            raise ConfigError(
                f"--format onnx: onnxruntime computes {_who(half)} otherwise than torch, by {difference:.2g} of the "
                "largest number; it cannot be exported"
            )


def _export(path: Path, half: _Half, example: Tensor, f: int, metadata: Mapping[str, str]) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # onnxscript brings it

    number, height, width = (torch.export.Dim(name, min=1) for name in ("N", "h", "w"))
    names = ("images", "latents") if half.encodes else ("latents", "images")
    # H = f h: the sides of images are given by those of latents.
    how: dict[str, Any] = dict(dynamic_shapes=({0: number, 2: f * height, 3: f * width},), opset_version=OPSET)
    program = torch.onnx.export(
        half, (example,), dynamo=True, input_names=names[:1], output_names=names[1:], verbose=False, **how
    )
    assert program is not None
    # Where each operation was called goes: paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata)
    with writing(path):
        program.save(path)


def _run(path: Path, given: Sequence[Tensor], runtime: Any) -> list[Tensor]:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [torch.from_numpy(session.run(None, {name: each.numpy()})[0]) for each in given]


def _who(half: _Half) -> str:
    part = half.tokenizer.encoder if half.encodes else half.tokenizer.decoder
    return str(getattr(part, "who", type(part).__name__))


@contextmanager
def _silent() -> Iterator[None]:
    """Keep quiet about what torch's exporter warns of: its own ways."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
