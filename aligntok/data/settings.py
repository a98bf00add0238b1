"""What a look at a data set is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from aligntok.settings import ImageSize, Positive, Width, settings

#: Of images whose sides are as many times as long as each other; no format has more pixels in a row.
AspectRatio = Annotated[float, Field(ge=1, le=1e6)]
#: How many times longer than wide, or wider than long, an image of a data set may be; a strip is counted as unreadable.
MAX_ASPECT_RATIO = 50.0


@settings
class DataCheck:
    """Look at images before a training is paid for: what cannot be read or is passed over, sides, classes, captions,
    copies. The exit status is 1 when an image cannot be read.
    """

    data: str | Path
    """Images: a folder, a zip, shards, parquet files, or hf://owner/name."""
    splits: tuple[str, ...] = ()
    """Of the data, compared with one another; none: all that there are."""
    image_size: ImageSize | tuple[tuple[Width, Width], ...] = 256
    """Pixels that a training would crop to: a side, height and width, or several HxW."""
    equal_area: Width | None = None
    """Or several shapes, of about the area of a square of this side: image_size=dict(side=...)."""
    num_images: Positive | None = None
    """Images whose headers are read, evenly spread over each split; None: all."""
    decoded: Positive | None = 1000
    """Images that are decoded, evenly spread; None: all."""
    label: str | None = None
    """Where the labels are, of several places: a column of a table, `cls` or a key of the JSON of shards."""
    caption: str = "auto"
    """Where the captions are, of several places: a table, txt, a key, a column."""
    max_aspect_ratio: AspectRatio = MAX_ASPECT_RATIO
    """How many times as long as wide an image may be; strips are counted as unreadable."""
    json: bool = False
    """For programs."""
