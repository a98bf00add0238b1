#!/usr/bin/env python3
"""Build wheels of AlignTok and its plugins, install them into an empty environment, and work with them, far from here.

    python tests/wheels/check.py WORK                                          # dependencies: of this interpreter
    python tests/wheels/check.py WORK --constraint constraints/xformers.txt    # its own, 8 GB; then tests, too
    python tests/wheels/check.py WORK --lowest                                 # the least that pyproject.toml allows
    python tests/wheels/check.py WORK --constraint constraints/torch-2.14.txt --extra mlflow    # an extra's tests alone

Without options nothing is fetched; with them, all is built, installed and tested from the source archive, unpacked in
WORK/sources. WORK/wheels has the wheels afterwards. Every file of a package is in its wheel, every component can be
imported, and eight images that are made on the spot go through a training of a tokenizer and a generator, a cache, a
reference, reconstructions, samples and a report. Exit status 3: wheels cannot be built here. See release.py for all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import site
import subprocess
import sys
import tarfile
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
    ("train", "copied/ablations/lora.py", "--dry-run", "--stage", "latent_alignment"),
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


def unpack(folder: Path) -> Path:
    """Build the source archive and return where it is unpacked: what a release is made and tested from."""
    asked = ("--sdist", "--no-isolation", "--outdir", str(folder))
    subprocess.check_call([sys.executable, "-m", "build", *asked, ROOT], stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("aligntok-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "sources", filter="data")
    (sources,) = (folder / "sources").iterdir()
    return sources


def build(wheels: Path, root: Path) -> None:
    """Build every wheel from a copy of the sources, without what earlier builds left; raise if a wheel lacks a file."""
    ignored = shutil.ignore_patterns("__pycache__", "build", "dist", "*.egg-info", ".*", "tests")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(root / name, folder)
        for name in ("aligntok", "configs", "plugins"):
            shutil.copytree(root / name, Path(folder, name), ignore=ignored)
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


TESTERS = ("pytest", "pytest-timeout", "hypothesis")


def install(environment: Path, wheels: Path, given: argparse.Namespace) -> Path:
    """Make an environment, install the wheels, and return its interpreter. An extra: AlignTok's alone, with it."""
    pip_there = given.constraint or given.lowest
    subprocess.check_call([sys.executable, "-m", "venv", *([] if pip_there else ["--without-pip"]), environment])
    python = environment / "bin" / "python"
    built = [str(path) for path in sorted(wheels.glob("*.whl"))]
    pip = [python, "-m", "pip", "install", "--quiet"]
    if given.lowest:
        subprocess.check_call([*pip, "uv"])
        uv = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--resolution", "lowest-direct"]
        subprocess.check_call([*uv, *built])
        subprocess.check_call([*pip, *TESTERS])
    elif given.constraint:
        ours = [f"{path}[dev]" if Path(path).name.startswith("aligntok-") else path for path in built]
        if given.extra:  # what else development needs may shut it out
            ours = [f"{path}[{given.extra}]" for path in built if Path(path).name.startswith("aligntok-")] + [*TESTERS]
        subprocess.check_call([*pip, "--constraint", given.constraint, "torch", "torchvision", *ours])
    else:
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        subprocess.check_call([*pip, "--no-index", "--no-deps", "--no-compile", *built])
        (home,) = environment.glob("lib/python*/site-packages")  # a folder in a .pth is searched, not its own .pth
        (home / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return python


def floors() -> None:
    """Raise where this environment has another version of a dependency than the least that AlignTok allows."""
    from importlib.metadata import requires, version

    from packaging.requirements import Requirement

    wanted = [each for each in map(Requirement, requires("aligntok") or []) if "extra" not in str(each.marker)]
    found = {each.name: version(each.name) for each in wanted}
    least = {each.name: min(s.version for s in each.specifier if s.operator in (">=", "==")) for each in wanted}
    others = [
        f"{name} {there}, not {least[name]}" for name, there in found.items() if not there.startswith(least[name])
    ]
    if others:
        raise SystemExit(f"this environment has other versions than the least: {', '.join(others)}")


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
    parser.add_argument("--lowest", action="store_true", help="install the dependencies, the least that are allowed")
    given = parser.parse_args()
    folder = given.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    root = unpack(folder) if given.constraint or given.lowest else ROOT
    build(folder / "wheels", root)
    python = install(folder / "environment", folder / "wheels", given)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    subprocess.check_call([python.with_name("aligntok"), "--version"], cwd=folder, env=clean)
    if given.extra:
        tests = [python.with_name("pytest"), "-q", "-o", "addopts=--import-mode=importlib", TESTS_OF[given.extra]]
        subprocess.check_call(tests, cwd=root, env=clean)
        return
    if given.lowest:
        subprocess.check_call([python, "-I", "-c", f"import runpy; runpy.run_path({__file__!r})['floors']()"])
    subprocess.check_call(
        [python, "-I", "-c", f"import runpy; runpy.run_path({__file__!r})['work']()"], cwd=folder, env=clean
    )
    if root is not ROOT:
        subprocess.check_call([python.with_name("pytest"), "-q", *TESTS], cwd=root, env=clean)


if __name__ == "__main__":
    main()
