"""Figures inside the page: pictures as data URIs, and plots as inline SVG that follow its light or dark style."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from PIL import Image

from aligntok.data.transforms import open_image, to_tensor
from aligntok.distributed.job import batched
from aligntok.errors import AlignTokError, DataError
from aligntok.evaluation.report.blocks import TIMES, Block, Figure, Gallery, not_found
from aligntok.evaluation.report.collect import Curve
from aligntok.io.files import inside, read_bytes
from aligntok.io.pictures import image_grid, to_picture

LARGEST_BYTES, LARGEST_SIDE = 1_500_000, 2000  # of a file that is taken as it is; pixels of one that is not
STRIP_BYTES, STRIP_SIDE = 250_000, 520  # of pictures in a strip
SMALL_WIDTH = 700  # pixels: narrower pictures are enlarged, without blur, by whole factors
SHEET = 36  # pictures of a set that are laid out
#: What browsers show as it is, by how such files begin.
_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"RIFF": "image/webp", b"GIF8": "image/gif"}

#: Colours that matplotlib is given, here and in plots.mplstyle; the page's variables stand in for them.
_INK, _GRID, _LINE = "#010203", "#040506", "#0a0b0"  # the last with a digit behind it
LARGEST = 1e300  # value in a plot: what is beyond leaves matplotlib no room for its axes
LINES = 6  # colours of lines in the page's style; more lines begin again, dashed
_plots = count()  # so that the ids in each are unique in a page


def pictures(shown: Sequence[tuple[Path, str, str]], title: str = "", layout: str = "gallery") -> list[Block]:
    """Return pictures, each of a folder, a name in it and words, and notes on those that are missing or damaged.

    A name that leads out of its folder, also by way of a link, is not followed: a folder that came from elsewhere must
    not bring files of this machine into a page. In a "strip" they are reduced, under what stands before the colon of
    their words.
    """
    figures: list[Figure] = []
    missing: list[Block] = []
    for folder, name, words in shown:
        try:
            content = read_bytes(inside(folder, name, DataError, "it is not shown"))
            caption = words.partition(": ")[0] if layout == "strip" else words
            figures.append(embed(open_image(content), words, caption, content, is_small=layout == "strip"))
        except (OSError, AlignTokError) as error:
            missing.append(not_found(f"{folder / str(name)} ({type(error).__name__}), {words}"))
    return [*([Gallery(figures, title, layout)] if figures else []), *missing]


def embed(image: Image.Image, alt: str, caption: str, content: bytes = b"", is_small: bool = False) -> Figure:
    """Return a picture as a figure: its file's content, or, of one too large or no browser's, reduced as WebP."""
    limit, side = (STRIP_BYTES, STRIP_SIDE) if is_small else (LARGEST_BYTES, LARGEST_SIDE)
    kind, note = next((kind for beginning, kind in _TYPES.items() if content.startswith(beginning)), None), ""
    if kind is None or len(content) > limit:
        smaller = image.copy()
        written = io.BytesIO()
        smaller.thumbnail((side, side))
        smaller.save(written, format="WEBP", quality=88)
        if content and not is_small:
            note = "shown at {0} {2} {1} pixels; the file has {3} {2} {4}".format(*smaller.size, TIMES, *image.size)
        image, content, kind = smaller, written.getvalue(), "image/webp"
    times = max(1, min(4, SMALL_WIDTH // max(image.width, 1)))
    element = Markup('<img src="data:{};base64,{}" width="{}" height="{}"{} alt="{}">').format(
        kind, base64.b64encode(content).decode(), *image.size, Markup(' class="enlarged"') * (times > 1), alt
    )
    return Figure(element, caption, note, image.width * times)


def contact_sheet(folder: Path, caption: str) -> Block:
    """Lay out the first pictures of a folder, of one size, in about a square; a note where one is damaged."""
    paths = sorted(folder.glob("*.png"))[:SHEET]
    if not paths:
        return not_found(f"{folder}, the samples themselves")
    try:
        tiles = [open_image(read_bytes(inside(folder, path.name, DataError, "it is not shown"))) for path in paths]
    except (OSError, AlignTokError) as error:
        return not_found(f"a picture among the first of {folder} ({type(error).__name__})")
    if len({tile.size for tile in tiles}) > 1:
        return not_found(f"pictures of one size among the first of {folder}")
    sheet = to_picture(image_grid([to_tensor(tile) for tile in tiles]))
    return Gallery([embed(sheet, caption, f"{caption}; the first {len(paths)}")])


class Line(NamedTuple):
    """A line of a plot: values by place, and the number of its colour; faint ones lie under a smoothed one.

    dots: a dot at each value, where they are few.
    """

    points: Mapping[Any, float]
    colour: int = 0
    faint: bool = False
    dots: bool = False


def smooth(values: Sequence[float]) -> list[float]:
    """Return the centred running mean over about a tenth of the values, of those that are finite."""
    half = len(values) // 20
    if not half:
        return list(values)
    smoothed = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)  # shorter at both ends, so that the line does not lag there
        near = [value for value in values[i - reach : i + reach + 1] if math.isfinite(value)]
        smoothed.append(sum(near) / len(near) if near else math.nan)
    return smoothed


def thin(curve: Curve, points: int = 400) -> Curve:
    """Return at most about `points` points that look the same: the least and largest of each short stretch."""
    if len(curve) <= points:
        return curve
    kept: list[int] = []
    for steps in batched([*curve], math.ceil(2 * len(curve) / points)):
        finite = [step for step in steps if math.isfinite(curve[step])] or steps
        kept += sorted({min(finite, key=curve.__getitem__), max(finite, key=curve.__getitem__)})
    return {step: curve[step] for step in kept}


def plot(
    title: str,
    about: str,
    lines: Sequence[Line],
    x_label: str = "",
    last: str = "",
    marks: Sequence[tuple[float, str]] = (),
    until: float | None = None,
    height: float = 2.0,
) -> Figure:
    """Draw lines under a title; `about` is said, before their numbers, to those who cannot see them.

    last: the last value in words. marks: places on the x axis with a word each. until: where the x axis, from 0, ends.
    height: inches, at a width of 3.7.
    """
    from matplotlib import style as styles
    from matplotlib.figure import Figure as Drawing  # not pyplot: no window, and no state that others share
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with styles.context(Path(__file__).with_name("plots.mplstyle")):
        drawing = Drawing(figsize=(3.7, height), layout="constrained")
        axes = drawing.subplots()
        for line in lines:
            style: dict[str, Any] = dict(linewidth=0.7, alpha=0.28) if line.faint else dict(markersize=3)
            style["linestyle"] = (0, (4, 2)) if line.colour >= LINES else "solid"
            style["marker"] = "o" if line.dots and len(line.points) <= 40 else ""
            heights = [y if abs(y) < LARGEST else math.nan for y in line.points.values()]
            axes.plot([*line.points], heights, color=f"{_LINE}{line.colour % LINES}", **style)
        _set_limits(axes, lines)
        if until:
            axes.set_xlim(-0.02 * until, 1.02 * until)
        for place, word in marks:
            axes.axvline(place, color=_INK, linestyle=(0, (2, 3)), linewidth=0.6, alpha=0.55)
            note: dict[str, Any] = dict(textcoords="offset points", va="top", fontsize=6.5, alpha=0.75)
            axes.annotate(word, (place, 1), (2, 0), xycoords=("data", "axes fraction"), **note)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        whole = all(float(x).is_integer() for line in lines for x in line.points)
        axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
        if axes.get_yscale() == "linear":
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(short_number))
        axes.set_xlabel(x_label)
        written = io.StringIO()
        drawing.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    strong = [[*line.points.values()] for line in lines if not line.faint and line.points][:6]
    words = "; ".join(f"from {short_number(y[0])} to {short_number(y[-1])}" for y in strong)
    return Figure(_inline(written.getvalue(), f"{about}: {words}"), title, last)


def _set_limits(axes: Any, lines: Sequence[Line]) -> None:
    """Show what most values span: one spike at the start must not press all else flat; many decades, as powers."""
    values = sorted(y for line in lines for y in line.points.values() if abs(y) < LARGEST)
    if not values:
        return
    low, high = values[0], values[-1]
    if len(values) >= 40:
        low, high = values[len(values) // 100], values[-1 - len(values) // 100]
    if low > 0 and high / low > 300:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        return
    room = 0.07 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_ylim(low - room, high + room)


def short_number(value: float, _: object = None) -> str:
    """Return a number of an axis: 120000 as 120k, without needless zeros."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}") if abs(value) >= 1e-9 else "0"


def _inline(svg: str, alt: str) -> Markup:
    """Turn an SVG file into an element of a page: no header, ids of its own, the page's colours and font, a label."""
    name = f"plot-{next(_plots)}"
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="((?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|PathCollection)_?\d*)"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace(_INK, "var(--plot-ink)").replace(_GRID, "var(--plot-grid)")
    svg = re.sub(rf"{_LINE}(\d)", r"var(--line-\1)", svg)
    head = re.search(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', svg)
    if not head:
        raise ValueError("matplotlib's SVG has no viewBox")
    label = Markup('<svg {} role="img" aria-label="{}">').format(Markup(head[1]), alt)
    return label + Markup(re.sub(r"\n\s*", "\n", svg[head.end() :]).strip())
