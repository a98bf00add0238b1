"""What a look at a data set, and an index of one, are told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from aligntok.settings import AboveZero, Count, ImageSize, NotNegative, Positive, Share, Width, Workers, settings

#: Of images whose sides are as many times as long as each other; no format has more pixels in a row.
AspectRatio = Annotated[float, Field(ge=1, le=1e6)]
#: How many times longer than wide, or wider than long, an image of a data set may be; a strip is counted as unreadable.
MAX_ASPECT_RATIO = 50.0
#: The same of an index, which has no sides of longer ones.
IndexedRatio = Annotated[float, Field(ge=1, le=MAX_ASPECT_RATIO)]


@settings
class RemoteSettings:
    """How files far away are asked for."""

    attempts: Annotated[int, Field(ge=1, le=20)] = 8
    """So often a range of a shard is asked for before the shard counts as away."""
    timeout: AboveZero = 60.0
    """Seconds that an attempt may take."""
    pause: NotNegative = 0.5
    """Seconds before the second attempt; each further pause is twice as long, 30 seconds at most."""
    in_flight: Positive = 16
    """Requests at once, of one process."""


@settings
class DataCheck:
    """Look at images before a training is paid for: what cannot be read or is passed over, sides, classes, captions,
    copies. The exit status is 1 when an image cannot be read.

        aligntok data check /data/imagenet
        aligntok data check /data/photographs --image-size 512 --json
    """

    data: str | Path
    """Images: a folder, a zip, shards, parquet files, hf://owner/name, or an index of shards, of which columns are read
    whole, and as many samples as are decoded.
    """
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
    remote: RemoteSettings = RemoteSettings()
    """How shards of an index that are far away are asked for."""


@settings
class IndexRequest:
    """Make an index of tar or parquet shards. The same command started again goes on where it stopped. Further verbs
    are `aligntok index check`, `merge` and `select`, each with --help.

        aligntok index '/data/laion/{00000..00127}.tar' --out laion_index
        aligntok index /data/laion --out laion_index --part 3/64
    """

    shards: tuple[str, ...]
    """Files, folders, patterns such as '/data/{00000..00127}.tar', or their addresses (https://, s3://, gs://, hf://)."""
    out: str | Path
    """The folder to write."""
    columns: tuple[str, ...] = ()
    """Numbers of each sample to keep, such as AESTHETIC_SCORE pwatermark: of the parquet file beside a tar, of the
    .json in it, or of the parquet shards.
    """
    caption: str | None = "auto"
    """Where captions are, of several places: txt, a key of the .json, a column; None: keep none."""
    workers: Workers = 4
    """Processes that read shards."""
    part: Annotated[str, Field(pattern=r"^[0-9]{1,6}/[0-9]{1,6}$")] | None = None
    """Index a share of the shards alone, such as 3/64, to be merged with the others."""
    max_broken: Count = 0
    """So many shards that are damaged or gone are left out; more are an error, once all others were read."""
    remote: RemoteSettings = RemoteSettings()
    """How files far away are asked for."""


@settings
class MergeRequest:
    """Merge indexes of different shards into one.

    aligntok index merge parts/0 parts/1 --out laion_index
    aligntok index merge parts/0 parts/1 --out laion_index --json
    """

    parts: tuple[str, ...]
    """Folders of indexes with the same columns."""
    out: str | Path
    """The folder to write."""


@settings
class IndexCheck:
    """Check an index: its files, that its shards are as they were, that images and captions lie where it says.

    aligntok index check laion_index
    aligntok index check laion_index --blocks 1000
    """

    index: str | Path
    """The folder of the index."""
    blocks: Count = 64
    """Places, evenly spread, at which samples are read."""
    remote: RemoteSettings = RemoteSettings()
    """How files far away are asked for."""


#: A side, a pair, several pairs, or keywords of :class:`aligntok.data.buckets.EqualArea`.
Shapes = ImageSize | tuple[tuple[Width, Width], ...] | dict[str, Any]


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
    max_aspect_ratio: IndexedRatio = MAX_ASPECT_RATIO
    """Leave out images that are more times as long as wide, or as wide as long; an index has no longer ones."""
    captioned: bool = False
    """Leave out images without a caption."""
    fraction: Share | None = None
    """Hold out that share of the samples, by their numbers."""
    held_out: bool = False
    """Take those that `fraction` holds out, in place of the others."""


@settings
class SelectRequest(Wanted):
    """Find the samples of an index that a training takes, before it starts.

    aligntok index select laion_index --where 'AESTHETIC_SCORE >= 5'
    aligntok index select laion_index --where laion --captioned
    """

    index: str | Path
    """The folder of the index."""
