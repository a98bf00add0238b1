"""Verbs about what is installed and shipped."""

from __future__ import annotations

from typing import Any, Literal

from aligntok.cli.commands import Outcome, group, verb
from aligntok.configs import CopyRequest
from aligntok.settings import settings


@settings
class _Environment:
    """Versions, plugins, devices, kernels: what to send along when you report that something is wrong.

    aligntok env
    aligntok env --json
    """


@verb("env", works=False)
def env(asked: _Environment) -> Any:
    """Say what is installed here, which devices there are, and which kernels attend."""
    from aligntok.environment import as_text, describe

    found = describe()
    print(as_text(found))
    return found


@settings
class _Listing:
    """Plugins, their versions and components; failed ones with the reason.

    aligntok plugins list
    aligntok plugins list --json
    """


@settings
class _PluginCheck:
    """Import every component; exit status 1 if anything is broken.

    aligntok plugins check
    aligntok plugins check --json
    """


@verb("plugins list", works=False)
def _list(asked: _Listing) -> Any:
    from aligntok.plugins import list_plugins

    found = list_plugins()
    print("\n".join(each.as_text() for each in found))
    return found


@verb("plugins check", works=False)
def _check(asked: _PluginCheck) -> Outcome:
    from aligntok.plugins import check_components

    problems = check_components()
    print("\n".join(problems) or "every plugin loads and every component can be imported")
    return Outcome({"problems": problems}, 1 if problems else 0)


plugins = group("plugins", {"list": _list, "check": _check})


@settings
class _ConfigListing:
    """The configs that come with AlignTok, each with a line of what it is.

    aligntok configs ls
    aligntok configs ls --json
    """


@verb("configs ls", works=False)
def _list_configs(asked: _ConfigListing) -> Any:
    from aligntok.configs import listed
    from aligntok.io.console import print_line

    found = listed()
    for name, about in found.items():
        print_line(f"{name:{max(map(len, found))}}  {about}")
    return found


@verb("configs cp", "name", "out", works=False)
def _copy_config(asked: CopyRequest) -> Any:
    from aligntok.configs import copy

    path, *others = copy(asked)
    print(f"Config: {path}   (aligntok train {path} --dry-run)")
    return {"config": path, "bases": others}


configs = group("configs", {"ls": _list_configs, "cp": _copy_config})


@settings
class _Shell:
    """Print what lets a shell complete verbs and options.

    aligntok completion bash > ~/.local/share/bash-completion/completions/aligntok
    aligntok completion zsh > ~/.zfunc/_aligntok
    """

    shell: Literal["bash", "zsh"]
    """Which shell it is for."""


@verb("completion", "shell", works=False, gives=False)
def completion(asked: _Shell) -> None:
    """Print what lets bash or zsh complete verbs and options."""
    from aligntok.cli.completion import script

    print(script(asked.shell))
