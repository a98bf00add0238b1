"""What every verb does alike: where it prints what, which switches it has, and that its examples can be typed."""

from __future__ import annotations

import ast
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aligntok import cli
from aligntok.cli.arguments import described, parse_with
from aligntok.cli.commands import Outcome, verb
from aligntok.cli.completion import script
from aligntok.errors import DataError
from aligntok.io.console import is_quiet, print_line, say
from aligntok.settings import settings

ROOT = Path(__file__).parents[2]


def leaves(verbs, *before):
    """Yield every command that takes options, with the words that lead to it."""
    for name, command in verbs.items():
        words = (*before, name)
        yield from leaves(getattr(command, "verbs", {}), *words)
        own = getattr(command, "own", command)
        if own is not None:
            yield words, own


LEAVES = dict(leaves({name: cli.loaded(name) for name in cli.VERBS}))
each_verb = pytest.mark.parametrize("words", LEAVES, ids=" ".join)


@each_verb
def test_help_goes_to_stdout_names_the_verb_and_ends_with_examples_that_can_be_typed(words, capsys):
    command = LEAVES[words]
    with pytest.raises(SystemExit) as ended:
        command(["--help"])
    assert not ended.value.code
    printed, told = capsys.readouterr()
    assert told == ""
    assert printed.startswith(f"usage: aligntok {' '.join(words)} ")
    examples = described(command.settings)[1]
    assert 2 <= len(examples) <= 4
    assert printed.split("examples:\n")[1] == "".join(f"  {example}\n" for example in examples)
    for example in examples:
        begin, rest = ("aligntok", *words), shlex.split(example.partition(" > ")[0])
        assert tuple(rest[: len(begin)]) == begin
        given = rest[len(begin) :]
        assert parse_with(command.settings, given, example, command.positional, command.switches)
        named = [word for word in given if word.startswith("configs/")]
        assert all((ROOT / name).is_file() for name in named)


@each_verb
def test_a_usage_error_is_on_stderr_alone(words, capsys):
    with pytest.raises(SystemExit) as ended:
        LEAVES[words](["--no-such-flag"])
    assert ended.value.code == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert "--no-such-flag" in told


@each_verb
def test_what_gives_a_result_has_json_and_what_takes_time_can_be_quiet(words, capsys):
    with pytest.raises(SystemExit):
        LEAVES[words](["--help"])
    printed = capsys.readouterr().out
    assert ("--json" in printed) == (words not in NOTHING)
    assert ("-q, --quiet" in printed) == ("-v, --verbose" in printed) == (words not in NOTHING | AT_ONCE)


NOTHING = {("completion",), ("app",)}
#: Verbs that are done before anybody asks how far they are.
AT_ONCE = {
    *(("export",), ("report",), ("env",), ("configs", "ls"), ("configs", "cp"), ("plugins", "list")),
    ("plugins", "check"),
}


@settings
class Asked:
    """What the verb of these tests is asked for."""

    status: int = 0
    """Its exit status."""


@verb("measure")
def measure(asked: Asked) -> Outcome:
    """Measure nothing."""
    say("beginning")
    logging.getLogger("aligntok.test").info("a detail")
    logging.getLogger("aligntok.test").warning("a warning")
    print_line("result 3")
    print("result 4")
    if asked.status > 2:
        raise DataError("no data")
    return Outcome({"found": [3, 4], "where": Path("x")}, asked.status)


def test_results_are_on_stdout_and_talk_on_stderr(capsys):
    assert measure([]) == 0
    assert capsys.readouterr() == ("result 3\nresult 4\n", "beginning\n")


def test_quiet_leaves_the_result(capsys):
    assert measure(["-q", "--status", "1"]) == 1
    assert capsys.readouterr() == ("result 3\nresult 4\n", "")
    assert not is_quiet()


def test_verbose_tells_what_is_asked_what_is_logged_and_how_long_it_took(capsys):
    assert measure(["-v"]) == 0
    printed, told = capsys.readouterr()
    assert printed == "result 3\nresult 4\n"
    first, *middle, last = told.splitlines()
    assert (first, middle) == ("aligntok measure: status=0", ["beginning", "a detail", "a warning"])
    assert last == "aligntok measure: 0.0 s"
    assert not logging.getLogger("aligntok").handlers


@pytest.mark.parametrize(("switch", "told"), [((), "beginning\nresult 3\nresult 4\n"), (("--quiet",), "")])
def test_json_is_all_that_is_on_stdout(switch, told, capsys):
    assert measure(["--json", "--status", "1", *switch]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"found": [3, 4], "where": "x"}
    assert printed.err == told


def test_json_of_several_processes_is_printed_by_the_first(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert measure(["--json"]) == 0
    assert capsys.readouterr().out == ""


def test_an_error_is_on_stderr_with_json_too(capsys):
    assert measure(["--json", "-q", "--status", "3"]) == 2
    assert capsys.readouterr() == ("", "DataError: no data\n")


#: Where something is printed to stdout outside of cli/: results.
RESULTS = {
    "caching/cache.py",
    "check.py",
    "evaluation/comparison/summary.py",
    "evaluation/results.py",
    "sampling/guidance_sweep.py",
    "sampling/samples.py",
    "training/alignment/__init__.py",
    "training/generation/__init__.py",
}


def test_only_results_are_printed_to_stdout(trees):
    found = set()
    for file, tree in trees.items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        prints = [call for call in calls if getattr(call.func, "id", "") == "print"]
        if not all(any(each.arg == "file" for each in call.keywords) for call in prints):
            found.add(file)
    assert {file for file in found if not file.startswith("cli/")} == RESULTS


@pytest.mark.parametrize("words", [["sample", "--help"], ["sample", "--no-such-flag"]])
def test_no_color_is_honoured_on_a_terminal(words):
    program = "import pty, sys; pty.spawn([sys.executable, '-m', 'aligntok.cli', *sys.argv[1:]])"
    shown = {}
    for name, value in (("plain", {"NO_COLOR": "1"}), ("coloured", {})):
        environment = {key: held for key, held in os.environ.items() if key != "NO_COLOR"}
        environment |= {"TERM": "xterm-256color", "COLUMNS": "100", **value}
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=60)
        shown[name] = done.stdout
    assert b"sample" in shown["plain"]
    assert b"\x1b[" not in shown["plain"]
    assert b"\x1b[" in shown["coloured"]


COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_tyro_aligntok
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "aligntok"
    path.write_text(script("bash"))
    return path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sa", ["sample"]),
        ("sample --num-s", ["--num-samples"]),
        ("evaluate rec", ["reconstruction"]),
        ("evaluate reconstruction --num-i", ["--num-images"]),
        ("index se", ["select"]),
        ("index --par", ["--part"]),
        ("data ch", ["check"]),
        ("train --js", ["--json"]),
        ("train conf", [""]),  # and bash offers files
        ("export --format d", ["diffusers"]),
        ("export run out --format o", ["onnx"]),
        ("export --weights ", ["raw", "ema"]),
        ("cache-latents --dtype b", ["bf16"]),
        ("cache-latents a b c --layout ", ["aligntok", "lightningdit"]),
        ("evaluate text-image --metrics cl", ["clip"]),
    ],
)
def test_tab_completes_verbs_and_their_options_in_bash(bash, typed, offered):
    words = ["bash", "-c", COMPLETE, "bash", str(bash), "aligntok", *typed.split(" ")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == offered, done.stderr


def test_where_no_option_fits_bash_offers_files(bash):
    asked = ["bash", "-c", f'source "{bash}"; complete -p aligntok']
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert done.stdout == "complete -o default -F _tyro_aligntok aligntok\n"


def test_completion_for_zsh_is_printed(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef aligntok\n")
    assert cli.main(["completion", "fish"]) == 2
    assert "bash" in capsys.readouterr().err
