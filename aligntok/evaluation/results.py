"""What an evaluation found, as a file that reports and people read: numbers, what fixes them, tables and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

import aligntok
from aligntok.device import multiplying
from aligntok.distributed import barrier, is_first
from aligntok.distributed.job import job
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.settings import ReportSettings
from aligntok.io.console import print_line, print_table
from aligntok.io.files import read_json, write_json, writing
from aligntok.io.folders import check_writable
from aligntok.io.places import hide_host, with_places, without_places
from aligntok.settings import Precision

if TYPE_CHECKING:  # a report is written without mmengine
    from aligntok.tokenizer import Tokenizer

FORMAT = 1
MOST = 2**53  # steps, images or seconds: whole numbers up to it are floats, too
KINDS = ("comparison", "reconstruction", "generation", "text_image", "linear_probe", "latent_space", "cost")


@dataclass(frozen=True)
class Result:
    """One evaluation of one subject.

    kind: one of KINDS. subject: what was evaluated, as the user named it. metrics: numbers by name; a name says which
    features a number was taken on. settings: what fixes the numbers, as JSON types. tables: rows by title, each row a
    value by column. pictures: file names beside the result, by caption. step: of training, where the subject has one.
    """

    kind: str
    subject: str
    metrics: Mapping[str, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    step: int | None = None

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``<kind>.json`` and TensorBoard's line of the metrics into `folder`; return the former's path.

        The JSON is replaced whole. Raises WriteError when the disk takes neither.
        """
        from torch.utils.tensorboard import SummaryWriter

        path = Path(folder) / f"{self.kind}.json"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            hide_host()
            # TensorBoard takes no folder whose name is no text
            with suppress(UnicodeEncodeError), SummaryWriter(str(path.parent)) as writer:
                for name, value in self.metrics.items():
                    writer.add_scalar(f"{self.kind}/{name}", value, self.step or 0)
        content = {**without_places(asdict(self), path.parent), "pictures": dict(self.pictures)}  # names beside it
        write_json(path, {"format": FORMAT, "aligntok_version": aligntok.__version__, **content})
        return path


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read what :meth:`Result.write` wrote, places made absolute again. Raises DataError for all else."""

    def parse(content: dict[str, Any]) -> Result:
        if content.pop("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        content.pop("aligntok_version")
        whole = {**with_places(content, Path(path).parent), "pictures": content.get("pictures", {})}
        try:
            found = TypeAdapter(Result).validate_python(whole)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if found.kind not in KINDS:
            raise ValueError(f"it is of the kind '{found.kind}', which is none of {', '.join(KINDS)}")
        if not 0 <= (found.step or 0) <= MOST:
            raise ValueError("it is of a step that there is not")
        return found

    cure = "so it is no result of an evaluation: run the evaluation again, or leave that file out"
    return read_json(path, DataError, cure, parse)


def identity(tokenizer: Tokenizer) -> str | None:
    """Return which tokenizer it is; None for one with parts that no config describes."""
    try:
        return tokenizer.identity
    except ConfigError:
        return None


def result_folder(
    out: str | os.PathLike[str] | None, source: str | os.PathLike[str], what: str, inside: bool = True
) -> Path:
    """Return where the result of evaluating `source` goes: `out`, or where no folder is named one for it.

    Inside the source's own folder (``SOURCE/evaluation/<what>``) where it is one; else, for a file, a hub id, or a
    folder that is not to be written in (`inside` False), in the current folder (``evaluation/<its name>/<what>``).
    """
    path = Path(source).expanduser()
    if out is not None:
        return Path(out).expanduser()
    if path.is_dir() and inside:
        return path / "evaluation" / what
    if path.is_dir():
        name = path.resolve().name
    else:
        name = path.stem if path.is_file() else str(source).strip("/").replace("/", "_")
    return Path("evaluation", name, what)


def check_out(folder: Path) -> None:
    """Raise ConfigError, in the first process, unless it can write in `folder`: before the work, not after it."""
    if is_first():
        check_writable(folder)


@contextmanager
def evaluating(folder: Path, precision: Precision) -> Iterator[None]:
    """Run what is inside as a collective command (see :func:`job`), whose result is to be written in `folder`.

    What it computes beside the tokenizer, such as distances or a probe, is multiplied in the tokenizer's precision too.
    Raises what :func:`check_out` does.
    """
    with job(), multiplying(precision):
        check_out(folder)
        yield


def publish(result: Result, folder: Path, write: Callable[[Path], object] | None = None) -> Result:
    """Write ``<kind>.json``, TensorBoard's line and ``report.html`` into `folder`, and print the metrics.

    Returns the result. `write` writes the tables and pictures that it names into the folder. Collective: the first
    process does all of it, and the others wait.
    """
    if is_first():
        from aligntok.evaluation.report import write_report  # matplotlib and jinja2 load when there is something to do

        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if write is not None:
            write(folder)
        path = result.write(folder)
        print_line(f"{result.kind.replace('_', ' ').capitalize()} of {result.subject}")
        rows = [
            [name, f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.5g}"]
            for name, value in result.metrics.items()
        ]  # printed first: a report that cannot be written is no reason not to see the numbers
        print_table(None, ["metric", "value"], rows, left=["metric"])
        report = write_report(ReportSettings(runs=(folder,)))
        print(f"Result: {path}\nReport: {report}")
    barrier()
    return result
