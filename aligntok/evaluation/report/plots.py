"""Plots as inline SVG: small panels whose colours are the page's own, so that they follow its light or dark style."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from aligntok.distributed.job import batched
from aligntok.evaluation.report.collect import Curve

#: Colours that matplotlib is given, and the page's variables that stand in for them.
_INK, _GRID, _LINE = "#010203", "#040506", "#0a0b0"  # the last with a digit behind it
LINES = 6  # colours of lines in the page's style; more lines begin again, dashed
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: the page's font, and it can be searched
    "font.size": 7.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.4,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.3,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Line:
    """A line: values at places, the number of its colour, its name; faint ones lie under a smoothed one.

    dots: a dot at each value, where they are few.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    label: str = ""
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
    if len(curve.steps) <= points:
        return curve
    width = math.ceil(2 * len(curve.steps) / points)
    kept = []
    for places in batched(range(len(curve.steps)), width):
        finite = [i for i in places if math.isfinite(curve.values[i])] or list(places)
        kept += sorted({min(finite, key=curve.values.__getitem__), max(finite, key=curve.values.__getitem__)})
    return Curve([curve.steps[i] for i in kept], [curve.values[i] for i in kept])


def panel(
    lines: Sequence[Line],
    alt: str,
    name: str,
    x_label: str = "",
    marks: Sequence[tuple[float, str]] = (),
    size: tuple[float, float] = (3.7, 2.0),
    until: float | None = None,
) -> Markup:
    """Draw lines as one SVG element. marks: places on the x axis with a word each. `name` is unique in
    the page. until: where the x axis, from 0, ends."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no window, and no state that others share
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line)
        _set_limits(axes, lines)
        if until:
            axes.set_xlim(-0.02 * until, 1.02 * until)
        for place, word in marks:
            axes.axvline(place, color=_INK, linestyle=(0, (2, 3)), linewidth=0.6, alpha=0.55)
            note: dict[str, Any] = dict(textcoords="offset points", va="top", fontsize=6.5, alpha=0.75)
            axes.annotate(word, (place, 1), (2, 0), xycoords=("data", "axes fraction"), **note)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        axes.xaxis.set_major_locator(
            MaxNLocator(5, integer=all(float(x).is_integer() for line in lines for x in line.x))
        )
        if axes.get_yscale() == "linear":
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(short_number))
        axes.set_xlabel(x_label)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return to_inline(written.getvalue(), alt, name)


def _draw(axes: Any, line: Line) -> None:
    dashed = (0, (4, 2)) if line.colour >= LINES else "solid"
    style: dict[str, Any] = dict(color=f"{_LINE}{line.colour % LINES}", linestyle=dashed)
    if line.faint:
        axes.plot(line.x, line.y, **style, linewidth=0.7, alpha=0.28)
    else:
        dots = line.dots and len(line.x) <= 40
        axes.plot(line.x, line.y, **style, marker="o" if dots else "", markersize=3)


def _set_limits(axes: Any, lines: Sequence[Line]) -> None:
    """Show what most values span: one spike at the start must not press all else flat; many decades, as powers."""
    values = sorted(y for line in lines for y in line.y if math.isfinite(y))
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


def to_inline(svg: str, alt: str, name: str) -> Markup:
    """Turn an SVG file into an element of a page: no header, ids of its own, the page's colours and font, a label."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="((?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|PathCollection)_?\d*)"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace(_INK, "var(--plot-ink)").replace(_GRID, "var(--plot-grid)")
    svg = re.sub(rf"{_LINE}(\d)", r"var(--line-\1)", svg)
    head = re.search(r"<svg[^>]*>", svg)
    box = re.search(r'viewBox="[^"]*"', head[0]) if head else None
    if not head or not box:
        raise ValueError("matplotlib's SVG has no viewBox")
    label = Markup('<svg {} role="img" aria-label="{}">').format(Markup(box[0]), alt)
    return label + Markup(re.sub(r"\n\s*", "\n", svg[head.end() :]).strip())
