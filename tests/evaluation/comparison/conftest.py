"""Photographs that comparisons are run on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A folder with train/ and val/ of two classes, 30 and 24 pictures."""
    root, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for split, number in (("train", 30), ("val", 24)):
        for i in range(number):
            folder = root / split / ("cat", "dog")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return root
