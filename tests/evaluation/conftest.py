"""An extractor of a few numbers, importable by name in this process and in those that tests start."""

from __future__ import annotations

import subprocess
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


@pytest.fixture
def launch(extractors, monkeypatch):
    """Start a command in `processes` processes, and return what it printed."""
    import os

    def start(*arguments, processes=1, status=0):
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
        path = os.pathsep.join([str(extractors), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        command = [sys.executable, *torchrun, *map(str, arguments)]
        done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    return start


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
