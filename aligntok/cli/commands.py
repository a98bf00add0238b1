"""What every command does alike: errors told plainly, results on stdout, talk on stderr, the same few switches."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import Any, NamedTuple, get_type_hints

from aligntok.cli.arguments import parse_with
from aligntok.ends import INTERRUPTED, Terminated, end_children, heeding_sigterm, keeping_on_without_terminal
from aligntok.errors import AlignTokError, ConfigError, Preempted, WriteError, unknown
from aligntok.imports import import_failure
from aligntok.io.console import is_quiet, say, speaking
from aligntok.settings import settings

Command = Callable[[Sequence[str] | None], int]


def reporting_errors(command: Command) -> Command:
    """Turn a user's mistake into one message on stderr and its exit status; a defect of ours keeps its traceback.

    Whatever ends the command, what it started ends with it, and losing the terminal does not end it.
    """

    @wraps(command)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        with keeping_on_without_terminal() as faults, heeding_sigterm():
            status = _status(command, arguments)
        if faults and not status:
            print(f"WriteError: what was printed is not whole ({faults[0].strerror}); make room", file=sys.stderr)
            return WriteError.exit_status
        return status

    return wrapped


def _status(command: Command, arguments: Sequence[str] | None) -> int:
    try:
        try:
            return command(arguments)
        except BaseException:
            end_children()  # before the error is gone, and with it the loaders, which would wait for theirs
            raise
    except AlignTokError as error:
        told: AlignTokError = error
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "aligntok":
            raise
        told = ConfigError(f"what this needs is not installed: {import_failure(error)}")
    except Terminated:
        told = Preempted(
            "stopped by SIGTERM at once; what is written stays, and the same command goes on or begins anew"
        )
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; what is written stays, and the same command goes on or begins anew", file=sys.stderr)
        return INTERRUPTED
    print(f"{type(told).__name__}: {told}", file=sys.stderr)
    return told.exit_status


@settings
class _Result:
    """Of a command that finds or makes something."""

    json: bool = False
    """Print what came of it as JSON on stdout; everything else goes to stderr."""


@settings
class _Work(_Result):
    """Of a command that takes its time."""

    quiet: bool = False
    """Tell nothing but the result, warnings and errors: no progress."""
    verbose: bool = False
    """Tell what is asked for, every message that is logged, and how long it took."""


class Outcome(NamedTuple):
    """What a command found, as JSON has it, and its exit status."""

    found: Any
    status: int = 0


def verb(prog: str, *positional: str, works: bool = True, gives: bool = True) -> Callable[[Callable[[Any], Any]], Any]:
    """Make a command of a function that takes settings, which its annotation names; see :func:`parse_with`.

    What the function returns is what it found or made, for ``--json``, or that with an exit status, an Outcome; for
    people it has printed it. works: whether it takes its time, and has ``--quiet`` and ``--verbose``; gives: whether
    it finds or makes anything. The first line of its docstring, or of the settings', says what the command does.
    """
    switches = _Work if works else _Result if gives else None

    def made(work: Callable[[Any], Any]) -> Any:
        cls = next(iter(get_type_hints(work).values()))

        @reporting_errors
        @wraps(work)
        def command(arguments: Sequence[str] | None = None) -> int:
            asked, given = parse_with(cls, arguments, f"aligntok {prog}", positional, switches)
            how = {name: given.pop(name, False) for name in ("quiet", "verbose")}
            told = ", ".join(f"{name}={value!r}" for name, value in vars(asked).items())
            with speaking(**how), _telling_all(how["verbose"], f"aligntok {prog}", told):
                outcome = _found(lambda: work(asked), **given)
            return outcome.status

        command.__doc__ = work.__doc__ or cls.__doc__
        vars(command).update(settings=cls, positional=positional, switches=switches)
        return command

    return made


def _found(work: Callable[[], Any], json: bool = False) -> Outcome:
    """Return what a function finds; as JSON it is printed here, by the first process, and its own words go aside."""
    if not json:
        found = work()
        return found if isinstance(found, Outcome) else Outcome(found)
    with redirect_stdout(io.StringIO() if is_quiet() else sys.stderr):
        found = work()
    outcome = found if isinstance(found, Outcome) else Outcome(found)
    if os.environ.get("RANK", "0") == "0":
        print(_as_json(outcome.found))
    return outcome


def _as_json(found: Any) -> str:
    def plain(value: Any) -> Any:
        of_fields = dataclasses.is_dataclass(value) and not isinstance(value, type)
        return dataclasses.asdict(value) if of_fields else str(value)

    # NaN and infinity, which JSON has no words for, are null; letters that stdout may not have go by their codes.
    told = json.loads(json.dumps(found, default=plain), parse_constant=lambda _: None)
    in_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "").replace("_", "") == "utf8"
    return json.dumps(told, indent=2, ensure_ascii=not in_utf8)


@contextmanager
def _telling_all(verbose: bool, what: str, asked: str) -> Iterator[None]:
    """Where all is wanted, tell what is asked for, every message until a training's own log takes over, and seconds."""
    if not verbose:
        yield
        return
    log, began = logging.getLogger("aligntok"), time.monotonic()
    before = log.level, log.handlers[:]
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    say(f"{what}: {asked}")
    try:
        yield
        say(f"{what}: {time.monotonic() - began:.1f} s")
    finally:
        log.setLevel(before[0])
        log.handlers[:] = before[1]


def group(prog: str, verbs: Mapping[str, Command], own: Command | None = None) -> Command:
    """Make a command of several: its first word says which; where it is none of them, `own` takes all the words."""

    @reporting_errors
    def command(arguments: Sequence[str] | None = None) -> int:
        words = list(sys.argv[1:] if arguments is None else arguments)
        if own is None or (words and words[0] in verbs):
            return dispatch(f"aligntok {prog}", verbs, words)
        if words in ([], ["--help"], ["-h"]):
            _print_verbs(f"aligntok {prog}", {f"{vars(own)['positional'][0].upper()} ...": own, **verbs})
        return own(words) if words else 0

    vars(command).update(verbs=verbs, own=own)
    return command


def dispatch(prog: str, verbs: Mapping[str, Command], words: Sequence[str]) -> int:
    """Run the verb that words begin with, or list the verbs; return the exit status. Raises ConfigError for no verb.

    A verb's name of an earlier version, with underscores, is answered with its present one.
    """
    if words and words[0] in verbs:
        return verbs[words[0]](words[1:])
    if list(words) in (["--help"], ["-h"], []):
        _print_verbs(prog, verbs)
        return 0
    if words[0].replace("_", "-") in verbs:
        raise ConfigError(f"{prog}: {words[0]} is called {words[0].replace('_', '-')} now")
    raise ConfigError(f"{prog}: {unknown('verb', words[0], verbs)}; see {prog} --help")


def _print_verbs(prog: str, verbs: Mapping[str, Command]) -> None:
    lines = [f"  {name:15s} {(inspect.getdoc(verb) or '').splitlines()[0]}" for name, verb in verbs.items()]
    print(f"usage: {prog} VERB ... (each has --help)\n\n" + "\n".join(lines))
