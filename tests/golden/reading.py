"""What the golden run left, as losses, numbers and hashes; of tensors, pixels and values, never of files.

A row is a dict of name -> number. Names are there to be read; comparing.py does without them where they changed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import commands
import names
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

Row = dict[str, float]
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
SHORT = 16  # characters of a hash


def read_all(root: Path) -> dict[str, Any]:
    """Return the sections of the golden file: what -> kind (losses, numbers, hashes) -> entry."""
    aligned, vavae = root / "aligned", root / "vavae"
    return {
        "tokenizer and generator, one process": {
            "losses": losses(aligned),
            "hashes": {**pictures_of(aligned), "latents": tensors(aligned / names.LATENTS)},
        },
        "tokenizer and generator, two processes": {
            "losses": losses(root / "two"),
            "hashes": {**made(root / "two"), **pictures_of(root / "two")},
        },
        "VA-VAE": {"losses": losses(vavae), "hashes": {**pictures_of(vavae), **made(vavae)}},
        "exports": {
            "hashes": {
                **{name: tensors(root / "export" / name) for name in ("ema", "raw", "post_hoc")},
                **made(aligned),
            }
        },
        "caches": {
            "hashes": {name: tensors(root / "caches" / name) for name in ("drawn", "mean")},
            "numbers": {name: statistics(root / "caches" / name) for name in ("drawn", "mean")},
        },
        "samples": {"hashes": dict(samples(root))},
        "references": {"hashes": {name: tensors(root, f"{name}.safetensors") for name in ("reference", "pretrained")}},
        "evaluations": evaluations(root),
        "comparison": {"numbers": {"comparison": result(root / "comparison" / "out" / names.COMPARISON)}},
        "report": report(aligned / names.PAGE),
    }


def losses(run: Path) -> dict[str, list[Row]]:
    """Return what each training of a work folder logged, line by line, validation included."""
    found = {}
    logged = sorted(folder for folder in run.iterdir() if folder.is_dir() and list(folder.rglob("scalars.json")))
    for number, folder in enumerate(logged, 1):
        (file,) = folder.rglob("scalars.json")
        rows = [dict(kept(json.loads(line))) for line in file.read_text().splitlines()]
        found[f"training {number}, {folder.name}"] = rows
    return found


def kept(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in JSON's nested dicts and lists, and in texts that are nothing but numbers, by its path."""
    if re.search(names.LEFT_OUT, name):
        return
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from kept(value, f"{name}/{key}" if name else str(key))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from kept(value, f"{name}/{i}")
    elif isinstance(content, (int, float)) and not isinstance(content, bool):
        yield name, content
    elif isinstance(content, str) and re.fullmatch(rf"{NUMBER}( ± {NUMBER})?", content):
        for i, word in enumerate(re.findall(NUMBER, content)):
            yield f"{name}/{i}" if i else name, float(word.replace(",", ""))


def result(path: Path) -> Row:
    """Return the numbers that an evaluation found."""
    content = json.loads(path.read_text())
    return dict(kept({part: content[part] for part in names.FOUND}))


def statistics(cache: Path) -> Row:
    """Return all numbers that stand beside a cache's tensors and have decimals: its statistics."""
    numbers = (pair for file in sorted(cache.glob("*.json")) for pair in kept(json.loads(file.read_text())))
    return {name: value for name, value in numbers if isinstance(value, float)}


def evaluations(root: Path) -> dict[str, Any]:
    """Numbers and pictures of every evaluation, the table of a reconstruction's images, and a sweep."""
    numbers, hashes = {}, {}
    for name in ("reconstruction", "generation", "probe", "latent_space", "cost"):
        (file,) = (root / name).glob("*.json")
        numbers[name] = result(file)
        drawn = [path for path in sorted((root / name).glob("*.png")) if not path.stem.startswith(names.PLOTS)]
        hashes |= {f"{name}, {path.stem}": pixels(path) for path in drawn}
    (table,) = (root / "reconstruction").glob("*.csv")
    numbers["reconstruction, by image"] = table_of(table)
    numbers["guidance sweep"] = table_of(root / "sweep" / names.SWEEP_TABLE)
    hashes["guidance sweep"] = pixels(root / "sweep" / names.SWEEP_GRID)
    return {"numbers": numbers, "hashes": hashes}


def table_of(path: Path) -> Row:
    """Return the numbers of a CSV table."""
    with path.open() as file:
        return dict(kept(list(csv.DictReader(file))))


def tensors(folder: Path, pattern: str = "*.safetensors") -> str:
    """Return how many tensors a folder's files hold, and a hash of them all: of shapes, types and bytes, not names."""
    found = []
    for path in sorted(folder.glob(pattern)):
        for tensor in load_file(path).values():
            content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            found.append(_digest(f"{tensor.dtype}{tuple(tensor.shape)}", content))
    assert found, f"there are no tensors at {folder / pattern}"
    return f"{len(found)} tensors {_digest('', *(each.encode() for each in sorted(found)))}"


def made(run: Path) -> dict[str, str]:
    """Hashes of what a work folder's trainings made: the tokenizer and, if there is one, the generator."""
    folders = {name: run / name for name in (names.TOKENIZER, names.GENERATOR)}
    return {name: tensors(folder) for name, folder in folders.items() if folder.is_dir()}


def pixels(picture: Path | io.BytesIO) -> str:
    """Return a picture's size and a hash of its pixels."""
    with Image.open(picture) as opened:
        mode = f"{opened.mode} {opened.width}x{opened.height}"
        return f"{mode} {_digest(mode, opened.tobytes())}"


def pictures_of(run: Path) -> dict[str, str]:
    """Hashes of the pictures that trainings drew, in the order of their folders."""
    found = enumerate(sorted(run.glob("*/pictures/*.png")), 1)
    return {f"pictures {number}, {path.parents[1].name} {path.stem}": pixels(path) for number, path in found}


def samples(root: Path) -> Iterator[tuple[str, str]]:
    """Hashes of the samples of each sampler: their pictures, the array of them, and the sheets."""
    for number, name in enumerate(commands.SAMPLES):
        folder = root / "samples" / str(number)
        drawn = [pixels(path) for path in sorted((folder / "images").glob("*.png"))]
        yield name, f"{len(drawn)} pictures {_digest('', *(each.encode() for each in drawn))}"
        with np.load(folder / names.SAMPLES_ARRAY) as arrays:
            hashes = sorted(_digest(f"{arrays[key].dtype}{arrays[key].shape}", arrays[key].tobytes()) for key in arrays)
        yield f"{name}, array", _digest("", *(each.encode() for each in hashes))
        for sheet in sorted(folder.glob("*.png")):
            yield f"{name}, {sheet.stem}", pixels(sheet)


def report(path: Path) -> dict[str, Any]:
    """Return the numbers of a report's tables and tiles, and hashes of the pictures that it embeds."""
    page = _Page()
    page.feed(path.read_text())
    found = [pixels(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in page.pictures]
    return {"numbers": {"page": page.numbers}, "hashes": {f"picture {i}": each for i, each in enumerate(found, 1)}}


class _Page(HTMLParser):
    """Reads a report: numbers of its tables' cells by section, row and column, of its tiles, and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: Row = {}
        self.pictures: list[str] = []
        self.section = ""
        self.tag, self.text = "", ""
        self.head: list[str] = []
        self.row: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img" and (uri := dict(attrs).get("src") or "").startswith("data:image/png"):
            self.pictures.append(uri)
        if tag in ("h2", "th", "td", "strong"):
            self.tag, self.text = tag, ""
        if tag == "tr":
            self.row = []
        if tag == "thead":
            self.head = []

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_endtag(self, tag: str) -> None:
        text = " ".join(self.text.split())
        if tag == "thead":
            self.head = self.row
        elif tag in ("th", "td"):
            self.row.append(text)
            if tag == "td" and len(self.row) <= len(self.head) and self.section not in names.NOT_FOUND:
                self.keep(f"{self.section}/{self.row[0]}/{self.head[len(self.row) - 1]}", text)
        elif tag == "strong":
            self.keep("tile", text)
        elif tag == "h2":
            self.section = text

    def keep(self, name: str, text: str) -> None:
        """Keep the number that a cell is, with or without a unit."""
        if (found := re.fullmatch(rf"({NUMBER})( \S{{1,3}})?", text)) and not re.search(names.LEFT_OUT, name):
            while name in self.numbers:
                name += "'"
            self.numbers[name] = float(found[1].replace(",", ""))


def _digest(head: str, *content: bytes) -> str:
    whole = hashlib.sha256(head.encode())
    for part in content:
        whole.update(part)
    return whole.hexdigest()[:SHORT]
