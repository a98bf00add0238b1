"""What a stream is asked for: which samples of an index, and the shapes they are cropped to."""

from __future__ import annotations

from typing import Any

from aligntok.data.settings import MAX_ASPECT_RATIO, AspectRatio
from aligntok.settings import ImageSize, Share, Width, settings

#: A side, a pair, several pairs, or keywords of :class:`aligntok.data.buckets.EqualArea`.
Shapes = ImageSize | list[tuple[Width, Width]] | dict[str, Any]


@settings
class Wanted:
    """Which samples of an index are taken, and the shapes that they are cropped to."""

    where: str | None = None
    """Condition on the index's columns, such as "AESTHETIC_SCORE >= 5 and pwatermark < 0.8"; "laion" for a usual one;
    None: all."""
    blocked_domains: str | None = None
    """File of hosts, one a line, whose images are left out."""
    image_size: Shapes = 256
    """A side, HEIGHTxWIDTH, several of these, or side=256 for shapes of that area."""
    max_aspect_ratio: AspectRatio = MAX_ASPECT_RATIO
    """Leave out images that are more times as long as wide, or as wide as long."""
    captioned: bool = False
    """Leave out images without a caption."""
    fraction: Share | None = None
    """Hold out that share of the samples, by their numbers."""
    held_out: bool = False
    """Take those that `fraction` holds out, in place of the others."""


@settings
class SelectRequest(Wanted):
    """Find the samples of an index that a training takes, before it starts."""

    index: str
    """Folder of the index."""
