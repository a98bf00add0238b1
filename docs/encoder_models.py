"""Write the page of every timm and open_clip model as an encoder: it is built and run on the meta device, no weights.

    python docs/encoder_models.py

It takes 24 minutes of processor time, so the page is kept, and made anew for new versions of the two libraries.
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import open_clip
import timm
import torch

from aligntok.encoders.open_clip import OpenCLIPEncoder
from aligntok.encoders.timm import LevelEncoder, TimmEncoder
from aligntok.errors import AlignTokError, ConfigError
from aligntok.io.files import replacing

PAGE = Path(__file__).with_name("encoder_models.md")
COMMAND = (
    "python tools/train.py configs/aligntok_dinov2_f16d32.py --dry-run --cfg-options "
    "model.encoder.type=timm model.encoder.model_name=convnext_tiny"
)
HEAD = """# timm's and open_clip's models

Every model of timm {timm} and of open_clip {open_clip} as an encoder, `dict(type="timm", model_name=...)` and
`dict(type="open_clip", model_name=...)`, with the defaults: f16, the last block or level whose stride is at most 16.
Made by `python docs/encoder_models.py`, which builds each on the meta device and runs it at three sizes.

```sh
{command}
```

shows what a training with one of them would be, without its weights.

Strides are those that `stride=` can choose; channels and the stride in bold are those of the level that is taken. The
backbone sees images resized by stride / f, and a size is what it sees: that which the model was made for, or multiples
of the stride where grids of 16 x 16 and 14 x 20 were right too. Weights were not loaded. Licences are those of the
published weights, as timm has them; read the one of the weights you take.

"""
COLUMNS = ("model", "strides", "channels", "sizes", "licence of the weights")
Row = tuple[str, ...]


def timm_row(name: str) -> Row:
    """Return what the page says of one of timm's models."""
    tags = timm.list_pretrained(f"{name}.*")
    licences = {str(getattr(timm.get_pretrained_cfg(tag), "license", None) or "not said") for tag in tags}
    return (
        f"`{name}`",
        *_found(lambda **options: TimmEncoder(name, **options)),
        ", ".join(sorted(licences)) or "no weights",
    )


def open_clip_row(name: str) -> Row:
    """Return what the page says of one of open_clip's models."""
    return (f"`{name}`", *_found(lambda **options: OpenCLIPEncoder(name, **options)), "its publisher's")


def _found(build: Callable[..., LevelEncoder]) -> tuple[str, str, str]:
    """Strides, channels and sizes of a model, or the reason why it is none."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # timm's, about old names
        try:
            encoder = build(pretrained=False)
        except AlignTokError as error:
            return ("", "", "cannot be taken: " + _reason(error))
        known = dict.fromkeys(level["reduction"] for level in encoder.backbone.feature_info)
        strides = ", ".join(f"**{each}**" if each == encoder.stride else str(each) for each in known)
        return strides, str(encoder.out_dim), _sizes(encoder, build)


def _sizes(encoder: LevelEncoder, build: Callable[..., LevelEncoder]) -> str:
    p, own = encoder.stride, "{} x {}".format(*encoder.own_size)
    if all(takes(encoder, (h * p, w * p)) for h, w in ((16, 16), (14, 20))):
        return f"multiples of {p}"
    try:
        other = build(pretrained=False, image_size=(16 * p, 16 * p))
    except (AlignTokError, TypeError):
        return own
    return f"{own}; others by `image_size`" if takes(other, (16 * p, 16 * p)) else own


def takes(encoder: LevelEncoder, pixels: tuple[int, int]) -> bool:
    """Return whether an encoder has features for an image that its backbone sees with so many pixels."""
    height, width = (side * encoder.downsample_factor // encoder.stride for side in pixels)
    try:
        encoder(torch.zeros(1, 3, height, width, device="meta"))
    except ConfigError:
        return False
    return True


def _reason(error: Exception) -> str:
    return " ".join(str(error).split(": ", 1)[-1].split()).replace("|", "/")


def page(timm_rows: Iterable[Row], open_clip_rows: Iterable[Row]) -> str:
    """Return the page."""
    text = HEAD.format(timm=timm.__version__, open_clip=open_clip.__version__, command=COMMAND)
    for title, rows in {"timm": timm_rows, "open_clip": open_clip_rows}.items():
        table = [f"## {title}\n", " | ".join(COLUMNS).join(("| ", " |")), "|---" * len(COLUMNS) + "|"]
        text += "\n".join(itertools.chain(table, (" | ".join(row).join(("| ", " |")) for row in rows))) + "\n\n"
    return text.rstrip() + "\n"


def main() -> int:
    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool() as pool:
        found = (pool.map(timm_row, timm.list_models(), 8), pool.map(open_clip_row, open_clip.list_models(), 4))
    with replacing(PAGE) as temporary:
        temporary.write_text(page(*found), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
