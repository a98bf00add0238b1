"""What lets a shell complete verbs and options: tyro's own, of one command line that has every verb."""

from __future__ import annotations

import dataclasses
import inspect
import io
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any, Union

from aligntok.cli import VERBS, loaded
from aligntok.cli.arguments import form_of
from aligntok.cli.commands import Command


def script(shell: str) -> str:
    """Return the script for a shell, bash or zsh; a Tab then starts a bare python3, and nothing of AlignTok."""
    import tyro

    whole = _of_verbs({name: loaded(name) for name in VERBS})
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        tyro.cli(
            dataclasses.make_dataclass("aligntok", [("verb", whole)]),
            prog="aligntok",
            args=["--tyro-print-completion", shell],
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    # of tyro 1.0.17: where it knows nothing it offers an empty word, and bash no files
    found = printed.getvalue().replace('    matches+=("', '    [[ -n "$completion" ]] && matches+=("')
    return found.replace("complete -F", "complete -o default -F")


def _of_verbs(verbs: Mapping[str, Command]) -> Any:
    """Return the union of verbs, each by its name, as tyro has subcommands."""
    from tyro.conf import subcommand

    named = {
        name: subcommand(name=name, description=(inspect.getdoc(command) or "").split("\n")[0])
        for name, command in verbs.items()
    }
    made = {name: _form(name, command) for name, command in verbs.items()}
    if len(made) == 1:  # tyro takes a union of one for no choice
        made["--help"], named["--help"] = dataclasses.make_dataclass("help", []), subcommand(name="--help")
    return Union[tuple(Annotated[made[name], named[name]] for name in made)]  # noqa: UP007 (of a number that is known here)


def _form(name: str, command: Any) -> Any:
    """Return the dataclass of a verb's options, in which a field is for the verbs within."""
    inner, own = getattr(command, "verbs", None), getattr(command, "own", command)
    form = dataclasses.make_dataclass(name.replace("-", "_"), [], kw_only=True)
    if own is not None:
        form = form_of(own.settings, own.positional, own.switches, offers=True)
    if inner is None:
        return form
    return dataclasses.make_dataclass(name.replace("-", "_"), [("verb", _of_verbs(inner))], bases=(form,), kw_only=True)
