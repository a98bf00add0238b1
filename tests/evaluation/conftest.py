"""An extractor of a few numbers, importable by name in this process and in those that tests start."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

TINY = '''
import torch
from aligntok.extractors import Extractor, Features


class TinyExtractor(Extractor):
    """Colours of a 4 x 4 grid, mixed by fixed random weights; as logits, some of them."""

    title, resize = "Tiny", "area to 4 x 4"

    def __init__(self, pretrained=False, width=6):
        super().__init__()
        mixed = torch.randn(48, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("mixed", mixed)

    def forward(self, pixels):
        small = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 4).flatten(1)
        return Features(small @ self.mixed, small[:, :5], 10 * small[:, :4])


class OtherExtractor(TinyExtractor):
    title = "Other"
'''


CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
IMAGES_OF_A_CLASS = dict(train=10, val=4)


@pytest.fixture(scope="session")
def extractors(tmp_path_factory):
    """The folder of the module `tiny_extractor`, which can be imported here too."""
    folder = tmp_path_factory.mktemp("extractors")
    (folder / "tiny_extractor.py").write_text(TINY)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def tiny_extractor(extractors):
    """Its name, as a command takes it."""
    return "tiny_extractor.TinyExtractor"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two folders of 32 x 32 pictures: `real`, 40 of them, and `drawn`, 30 others."""
    root = tmp_path_factory.mktemp("pictures")
    for name, number, seed in (("real", 40, 0), ("drawn", 30, 1)):
        rng = np.random.default_rng(seed)
        (root / name).mkdir()
        for i in range(number):
            coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """Six classes of noisy pictures, of a colour each."""
    root = tmp_path_factory.mktemp("labelled")
    for split, count in IMAGES_OF_A_CLASS.items():
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng((len(split), number, i))
                colour = 128 + 90 * np.array([np.sin(number + k) for k in (0, 2, 4)])
                pixels = colour + rng.normal(0, 45, (8, 8, 3)) + rng.normal(0, 15, 3)
                picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                picture.resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{i}.png")
    return root
