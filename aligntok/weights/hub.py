"""Where a file of weights is: on disk, placed by hand, in a cache, on Hugging Face's hub or at a plain address."""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from aligntok.errors import WeightsError, first_line
from aligntok.io.checksums import sha256 as sha256_of

#: How long the hub may take to answer before it counts as unreachable, in seconds.
PROBE_SECONDS = 3.0
#: What is said of a repository beside its name.
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
#: Of a repository with a model of ours, the files that a model is loaded from.
_OF_A_MODEL = ("*.json", "*.safetensors", "*.txt", "*.model")
#: How names of files of weights end.
FILES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
#: What a repository's only file of weights is called: placed by hand, it goes by the repository's name alone.
_USUAL = ("model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model", "diffusion_pytorch_model")


def fetch(
    source: str | os.PathLike[str],
    who: str,
    files: Sequence[str] = (),
    sha256: str | None = None,
    published: bool = False,
) -> Path:
    """Return the local path of a file of weights, fetching it if need be.

    source: a local file; or an address (``https://...``), whose file stays in torch hub's checkpoint folder; or, with
    `files`, a Hugging Face repository (``owner/name@revision``), of which the first file is taken that there is. What
    is placed by hand (:func:`placed_file`, :func:`placed_url`) and what is in a cache comes first. sha256: what an
    address's file has to begin with, wherever it is from. published: a library names the address, so that its file
    goes by its own name, as one with a SHA-256 does. `who` is the component that wants it, in errors. Raises
    WeightsError when it cannot be had, naming what to fetch and where to put it, within some seconds when a host can't
    be reached, and for a file of another SHA-256.
    """
    if files:
        return _from_hub(os.fspath(source), files, who)
    if os.fspath(source).startswith(("https://", "http://")):
        return _from_address(os.fspath(source), who, sha256, published)
    file = Path(source).expanduser()
    if not file.is_file():
        raise _nothing_at(file, who)
    return file


def check_named(source: Any, who: str) -> None:
    """Raise WeightsError where `source` is surely a path, by its beginning or its end, and there is nothing.

    Whatever else could be an address, a hub's repository or the tag of a set of weights, which is not looked for.
    """
    if isinstance(source, str | os.PathLike) and "://" not in os.fspath(source):
        path = Path(source).expanduser()
        if (path.suffix in FILES or path.is_absolute() or os.fspath(source).startswith(".")) and not path.exists():
            raise _nothing_at(path, who)


def _nothing_at(file: Path, who: str) -> WeightsError:
    return WeightsError(f"{who}: no weights at {file}; place the file there, a .safetensors, .bin or .pth")


def placed_url(url: str, by_name: bool = True) -> Path:
    """Where a file of a plain address is kept, and may be put by hand: torch.hub's checkpoints folder.

    by_name: its name says what it is; else a part of the address's SHA-256 goes with it, as many end alike.
    """
    stem, suffix = os.path.splitext(os.path.basename(urlsplit(url).path))
    mark = "" if by_name else f"-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    return _placed(f"{stem}{mark}{suffix}")


def placed_file(repo: str, filename: str) -> Path:
    """Where a file of a hub repository may be put by hand: torch.hub's checkpoints folder, named after the repo.

    So are the revision, where `repo` has one (``owner/name@revision``), and the file, if its name is an unusual one.
    """
    stem, suffix = os.path.splitext(filename)
    return _placed("--".join([repo] if stem in _USUAL else [repo, stem]).replace("/", "--") + suffix)


def _placed(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def unreachable(url: str) -> str:
    """Return why `url` does not answer within PROBE_SECONDS, or an empty string when it does."""
    outcome = [f"no answer from {url} within {PROBE_SECONDS:g} s"]

    def probe() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS).close()
            outcome[0] = ""
        except urllib.error.HTTPError as error:  # a refusal is an answer too, unless it is a gateway's
            outcome[0] = f"{url} answers {error.code}" if error.code >= 500 else ""
            error.close()
        except OSError as error:
            outcome[0] = f"{url}: {first_line(getattr(error, 'reason', error))}"

    # In a thread of its own, because looking up a host name knows no timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return outcome[0]


def _from_hub(repo: str, filenames: Sequence[str], who: str) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    repo_id, _, revision = repo.partition("@")
    for filename in filenames:
        cached = try_to_load_from_cache(repo_id, filename, revision=revision or None)
        for candidate in (placed_file(repo, filename), Path(cached) if isinstance(cached, str) else None):
            if candidate and candidate.is_file():
                return candidate
    source = f"{constants.ENDPOINT}/{repo_id}/resolve/{revision or 'main'}/{filenames[0]}"
    place = placed_file(repo, filenames[0])
    if reason := _offline(constants.HF_HUB_OFFLINE) or unreachable(constants.ENDPOINT):
        raise _not_fetched(who, source, place, reason)
    try:
        for filename in filenames:
            with _passing_absent():
                return Path(hf_hub_download(repo_id, filename, revision=revision or None))
    except Exception as error:  # gated or absent repositories, and a connection lost on the way
        raise _not_fetched(who, source, place, f"{type(error).__name__}: {first_line(error)}") from error
    raise _not_fetched(who, source, place, f"the repository has none of {', '.join(filenames)}")


@contextmanager
def _passing_absent() -> Iterator[None]:
    """Pass over a file that a repository does not have; one that could not be asked for is another matter."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError:  # a kind of the other: the hub was busy, or the connection lost
        raise
    except EntryNotFoundError:
        pass


def fetch_folder(repo: str, what: str, **options: Any) -> Path:
    """Return the local folder of a hub's repository that has `what`, such as "a tokenizer", fetching it if need be.

    options: HUB_OPTIONS, of which None is as not given. Raises WeightsError when it can't be had, and says why.
    """
    from huggingface_hub import snapshot_download

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Path(snapshot_download(repo, allow_patterns=list(_OF_A_MODEL), **given))
    except Exception as error:  # no such repository or revision, no right to it, no network: the library has many words
        raise WeightsError(
            f"cannot load {what} from '{repo}': {_why_not_there(error, given)}\n"
            "  give a folder written by save_pretrained, or the id of a hub repository that you can reach"
        ) from error


def _why_not_there(error: Exception, options: Mapping[str, Any]) -> str:
    """Say why a repository of the hub cannot be had, by what huggingface_hub raised."""
    from huggingface_hub import constants, errors

    there = f"at {constants.ENDPOINT}"
    if isinstance(error, errors.GatedRepoError):
        return f"access to it is granted on its page {there}; ask for it there, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such folder here and no such repository {there}, or a private one (`hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision '{options.get('revision')}'"
    if isinstance(error, errors.HFValidationError):
        return "there is no such folder, and it is no name of a repository, which is owner/name"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        asked = "local_files_only=True" if options.get("local_files_only") else ""
        reason = asked or _offline(constants.HF_HUB_OFFLINE) or unreachable(constants.ENDPOINT)
        return f"there is no such folder, nor a whole copy in the hub's cache ({reason or first_line(error)})"
    return f"{type(error).__name__}: {first_line(error)}"


class Repository:
    """A repository of the hub of which several files are wanted, each from the cache or fetched if need be.

    name: ``owner/name[@revision][/subfolder]``. who: the component that wants them, in errors.
    """

    def __init__(self, name: str, who: str) -> None:
        parts = name.split("/")
        self.repo, _, revision = "/".join(parts[:2]).partition("@")
        self.name, self.folder, self.who, self.revision = name, "/".join(parts[2:]), who, revision or None
        self._unreachable: str | None = None
        self._reason = ""

    def find(self, *names: str) -> Path | None:
        """Return the local path of the first of these files that it has; None where none can be had.

        Raises WeightsError where a hub that answered does not any more: whether it has one is unknown.
        """
        from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache

        wanted = [f"{self.folder}/{name}".lstrip("/") for name in names]
        try:
            known = [try_to_load_from_cache(self.repo, name, revision=self.revision) for name in wanted]
            if cached := next((place for place in known if isinstance(place, str)), None):
                return Path(cached)
            if self._unreachable is None:  # asked once for all files
                self._unreachable = _offline(constants.HF_HUB_OFFLINE) or unreachable(constants.ENDPOINT)
            self._reason = self._unreachable or "it has none"  # of which the cache may know
            unknown = [name for name, place in zip(wanted, known, strict=True) if place is None]
            for name in unknown if not self._unreachable else ():
                with _passing_absent():
                    return Path(hf_hub_download(self.repo, name, revision=self.revision))
        except errors.LocalEntryNotFoundError as error:
            self._reason = f"{type(error).__name__}: {first_line(error)}"
            raise self._not_had(names) from error
        except Exception as error:  # a name that none can have; gated or absent repositories; a lost connection
            self._reason = f"{type(error).__name__}: {first_line(error)}"
        return None

    def file(self, *names: str) -> Path:
        """Return what :meth:`find` does. Raises WeightsError, naming files, places and the reason, where it is None."""
        if found := self.find(*names):
            return found
        raise self._not_had(names)

    def _not_had(self, names: Sequence[str]) -> WeightsError:
        from huggingface_hub import constants

        return WeightsError(
            f"{self.who}: there is no folder {self.name}, and {' or '.join(names)} of the hub's repository of that "
            f"name cannot be had: {self._reason}\n"
            f"  looked for in {constants.HF_HUB_CACHE} and at {constants.ENDPOINT}/{self.repo}; fetch it where there "
            f'is a network (hf download {self.repo}), and give path="/that/folder"'
        )


def _from_address(url: str, who: str, sha256: str | None, published: bool) -> Path:
    place = placed_url(url, by_name=published or sha256 is not None)
    if place.is_file():
        if sha256 and not sha256_of(place).startswith(sha256):
            raise WeightsError(
                f"{who}: {place} is not the file of {url}, whose SHA-256 begins with {sha256}; remove it, so that it "
                "is fetched again, or place the right one there"
            )
        return place
    if reason := _offline() or unreachable(url):
        raise _not_fetched(who, url, place, reason)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(place), sha256, progress=False)
    except Exception as error:  # whatever goes wrong in a download is said the same way
        raise _not_fetched(who, url, place, f"{type(error).__name__}: {first_line(error)}") from error
    return place


def _offline(declared: bool = False) -> str:
    """Return why nothing is to be asked for, or ''; people set the hub's switch for a machine, not for one host."""
    declared = declared or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return "HF_HUB_OFFLINE is set" if declared else ""


def _not_fetched(who: str, source: str, place: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{who}: pretrained weights cannot be fetched: {reason}\n"
        f"  needed: {source}\n"
        f'  place it at {place}, or give pretrained="/path/{os.path.basename(source)}"; '
        "pretrained=False starts from random weights"
    )
