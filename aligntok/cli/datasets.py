"""Verbs that look at data and files, and that make indexes."""

from __future__ import annotations

from typing import Any

from aligntok.check import CheckRequest
from aligntok.cli.commands import Outcome, group, verb
from aligntok.data.settings import DataCheck, IndexCheck, IndexRequest, MergeRequest, SelectRequest


@verb("index", "shards")
def _index(asked: IndexRequest) -> Any:
    from aligntok.data.index.build import build_index

    return _told_of(build_index(asked))


@verb("index merge", "parts")
def _merge(asked: MergeRequest) -> Any:
    """Merge indexes of different shards into one."""
    from aligntok.data.index.build import merge_indexes

    return _told_of(merge_indexes(asked))


def _told_of(index: Any) -> dict[str, Any]:
    """Print what an index has, and return it."""
    told = f"captions in {index.caption}" if index.caption else "no captions"
    unreadable = int((index.column("height") == 0).sum())
    told += f"; {unreadable:,} images cannot be read" if unreadable else ""
    print(f"Index: {index.folder} ({len(index):,} samples of {len(index.shards):,} shards; {told})")
    counts = {"samples": len(index), "shards": len(index.shards), "unreadable": unreadable}
    return {"index": index.folder, **counts, "captions": index.caption}


@verb("index check", "index")
def _check_index(asked: IndexCheck) -> Outcome:
    """Check that shards are as they were indexed."""
    from aligntok.data.index.check import check_index

    problems, told = check_index(asked)
    print("\n".join([*problems, f"{asked.index}: {f'{len(problems)} problems, ' if problems else ''}{told}"]))
    return Outcome({"problems": problems, "looked_at": told}, 2 if problems else 0)


@verb("index select", "index")
def _select(asked: SelectRequest) -> Any:
    """Find the samples that a training takes, before it starts; one that asks for the same opens what is found."""
    from aligntok.data.index import Index
    from aligntok.data.stream.selection import print_selection, select

    found = select(Index.open(asked.index), asked)
    print_selection(found)
    return {"selection": found.folder, "samples": len(found), "passed": found.passed}


index = group("index", {"check": _check_index, "merge": _merge, "select": _select}, _index)


@verb("check", "folder")
def check(asked: CheckRequest) -> Outcome:
    """Check that the files of a folder are as they were written, and that none is missing."""
    from aligntok.check import check_folder

    problems = check_folder(asked)
    return Outcome({"problems": [each._asdict() for each in problems]}, 2 if problems else 0)


@verb("data check", "data")
def _data_check(asked: DataCheck) -> Outcome:
    """Look at images before a training is paid for."""
    from aligntok.data.check import check_data

    found = check_data(asked)
    return Outcome(found, int(any(split["unreadable"]["images"] for split in found["data"].values())))


data = group("data", {"check": _data_check})
