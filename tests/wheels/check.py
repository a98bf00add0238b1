#!/usr/bin/env python3
"""Build wheels of AlignTok and its plugins, install them into an empty environment, and work with them, far from here.

    python tests/wheels/check.py WORK                                          # dependencies: of this interpreter
    python tests/wheels/check.py WORK --constraint constraints/xformers.txt    # its own, 8 GB; then tests, too
    python tests/wheels/check.py WORK --constraint constraints/torch-2.14.txt --extra mlflow    # an extra's tests alone

Without --constraint nothing is fetched. WORK/wheels has the wheels afterwards. Every file of a package is in its wheel,
every component can be imported, and eight images that are made on the spot go through a training of a tokenizer and a
generator, a cache, a reference, reconstructions, samples and a report. Exit status 3: wheels cannot be built here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import site
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.name for path in (ROOT / "plugins").glob("aligntok-*"))
TESTS = ("tests/ops", "tests/generators", "tests/test_tokenizer.py")
CONFIG = '''"""Two steps a stage, and two of a generator."""
data_root = "images"
work_dir = "run"
global_batch_size = 4
model = dict(encoder=dict(type="efficientnet_lite0", stride=8), adapter=dict(type="mlp", hidden_dim=16), latent_dim=4,
             decoder=dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1), downsample_factor=8)
losses = dict(l1=dict(type="l1"), perceptual=dict(type="st_lpips"))
data = dict(train=dict(image_size=32), workers=0)
optimizer = dict(lr=1e-3)
stages = [dict(name="only", steps=2, trainable=("adapter", "decoder"))]
generation = dict(
    generator=dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, input_size=4, in_channels=4),
    latent_cache=dict(image_size=32, workers=0), steps=2, global_batch_size=4, optimizer=dict(lr=1e-3))
'''
SAME = ("--image-size", "32", "--workers", "0")
COMMANDS = [
    ("env",),
    ("plugins", "check"),
    ("configs", "cp", "ablations/lora", "copied"),
    ("train", "copied/ablations/lora.py", "--dry-run"),
    ("train", "tiny.py"),
    ("cache-latents", "run/tokenizer", "images", "cache", *SAME),
    ("evaluate", "make-reference", "images", "reference.safetensors", *SAME, "--extractor", "efficientnet_lite0"),
    (
        "evaluate",
        "reconstruction",
        "run",
        "images",
        *SAME,
        "--extractor",
        "efficientnet_lite0",
        "--perceptual",
        "st_lpips",
    ),
    ("sample", "run", "--num-samples", "4", "--steps", "2", "--out", "samples"),
    ("report", "run"),
]


def build(wheels: Path) -> None:
    """Build every wheel from a copy of the sources, without what earlier builds left; raise if a wheel lacks a file."""
    ignored = shutil.ignore_patterns("__pycache__", "build", "dist", "*.egg-info", ".*", "tests")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        for name in ("aligntok", "configs", "plugins"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=ignored)
        sources = [folder, *(f"{folder}/plugins/{name}" for name in PLUGINS)]
        offline = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
        if subprocess.call([sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", wheels, *sources]):
            print('wheels cannot be built here: pip install "setuptools>=77"', file=sys.stderr)
            raise SystemExit(3)
        for source, name in zip(sources, ["aligntok", *PLUGINS], strict=True):
            package = Path(source, name.replace("-", "_"))
            files = {str(path.relative_to(source)) for path in package.rglob("*") if path.is_file()}
            if name == "aligntok":
                shipped = (path.relative_to(source) for path in Path(source, "configs").rglob("*.py"))
                files |= {f"aligntok/_{path}" for path in shipped}
            (wheel,) = wheels.glob(f"{package.name}-*.whl")
            if lacking := files - {*zipfile.ZipFile(wheel).namelist()}:
                raise SystemExit(f"{wheel.name} lacks {', '.join(sorted(lacking))}: see package-data in pyproject.toml")


#: Tests of extras that want an environment of their own.
TESTS_OF = {"mlflow": "tests/engine/test_trackers.py", "app": "tests/app"}


def install(environment: Path, wheels: Path, constraint: Path | None, extra: str | None = None) -> Path:
    """Make an environment, install the wheels, and return its interpreter. An extra: AlignTok's alone, with it."""
    subprocess.check_call([sys.executable, "-m", "venv", *([] if constraint else ["--without-pip"]), environment])
    python = environment / "bin" / "python"
    built = [str(path) for path in sorted(wheels.glob("*.whl"))]
    if constraint:
        ours = [f"{path}[dev]" if Path(path).name.startswith("aligntok-") else path for path in built]
        if extra:  # what else development needs may shut it out
            ours = [f"{path}[{extra}]" for path in built if Path(path).name.startswith("aligntok-")]
            ours += ["pytest", "pytest-timeout", "hypothesis"]
        pip = [python, "-m", "pip", "install", "--quiet", "--constraint", constraint]
        subprocess.check_call([*pip, "torch", "torchvision", *ours])
        return python
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.check_call([*pip, "--no-index", "--no-deps", "--no-compile", *built])
    (home,) = environment.glob("lib/python*/site-packages")  # a folder in a .pth is searched, its own .pth are not read
    (home / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return python


def work() -> None:
    """Run the commands in this folder, with the interpreter that the wheels are installed for."""
    import numpy as np
    from PIL import Image

    import aligntok.cli

    assert Path(aligntok.__file__).is_relative_to(sys.prefix), aligntok.__file__
    pixels = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    for number, each in enumerate(pixels):
        path = Path("images", f"class_{number % 2}", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(path)
    Path("tiny.py").write_text(CONFIG)
    for words in COMMANDS:
        if status := aligntok.cli.main(words):
            raise SystemExit(f"aligntok {' '.join(words)} ended with status {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="an empty or new folder, outside of a checkout")
    parser.add_argument("--constraint", type=Path, help="install the dependencies, these versions of them")
    parser.add_argument("--extra", choices=[*TESTS_OF], help="install this extra, and run its tests alone")
    given = parser.parse_args()
    folder = given.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    build(folder / "wheels")
    python = install(folder / "environment", folder / "wheels", given.constraint, given.extra)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    subprocess.check_call([python.with_name("aligntok"), "--version"], cwd=folder, env=clean)
    if given.extra:
        tests = [python.with_name("pytest"), "-q", "-o", "addopts=--import-mode=importlib", TESTS_OF[given.extra]]
        subprocess.check_call(tests, cwd=ROOT, env=clean)
        return
    subprocess.check_call(
        [python, "-I", "-c", f"import runpy; runpy.run_path({__file__!r})['work']()"], cwd=folder, env=clean
    )
    if given.constraint:
        subprocess.check_call([python.with_name("pytest"), "-q", *TESTS], cwd=ROOT, env=clean)


if __name__ == "__main__":
    main()
