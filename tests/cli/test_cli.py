"""Commands: quick to start, thin, and plain about a user's mistake."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aligntok
from aligntok import cli
from aligntok.errors import AlignTokError, ConfigError, DataError

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
# Runs a file or module as the interpreter would, then says whether torch was loaded.
RUN = """
import runpy, sys
target, sys.argv = sys.argv[1], sys.argv[1:]
try:
    start = runpy.run_path if target.endswith(".py") else runpy.run_module
    start(target, run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print("LOADED", sorted({"torch", "mmengine", "timm"} & set(sys.modules)))
"""


def run(*arguments):
    began = time.process_time(), os.times().children_user
    done = subprocess.run([sys.executable, "-W", "error", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, os.times().children_user - began[1]


@pytest.mark.parametrize("arguments", [("aligntok.cli", "--help"), ("aligntok.cli", "--version")], ids=" ".join)
def test_the_command_answers_without_torch(arguments):
    printed, seconds = run("-c", RUN, *arguments)
    assert printed.splitlines()[-1] == "LOADED []"
    assert seconds < 2


@pytest.mark.parametrize("tool", TOOLS)
def test_help_of_every_tool_comes_at_once_and_without_torch(tool):
    printed, seconds = run("-c", RUN, str(ROOT / "tools" / tool), "--help")
    assert printed.startswith("usage: ")
    assert printed.splitlines()[-1] == "LOADED []"
    assert seconds < 2


def test_importing_the_package_is_cheap():
    program = "import aligntok, sys; print(aligntok.__version__, sorted({'torch', 'mmengine'} & set(sys.modules)))"
    printed, seconds = run("-c", program)
    assert printed.split() == [aligntok.__version__, "[]"]
    assert seconds < 2


def test_the_public_face_is_what_it_says():
    assert all(hasattr(aligntok, name) for name in aligntok.__all__)
    classes, commands = {"ImageProcessor", "LatentDiffusion", "Tokenizer"}, {"evaluate", "sample", "train"}
    loading = {"list_components", "load_latent_diffusion", "load_tokenizer"}
    assert set(aligntok.__all__) == {"__version__", "hookimpl", *classes, *commands, *loading}


def test_every_verb_is_listed_and_has_help(capsys):
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    for verb, command in cli.VERBS.items():
        assert f"  {verb} " in listed
        with suppress(SystemExit):  # tyro's, whose status test_help_of_every_tool looks at
            assert command(["--help"]) == 0
        assert "usage: " in capsys.readouterr().out


def test_a_verb_of_an_earlier_version_is_answered_with_its_name(capsys):
    assert cli.main(["cache_latents", "--help"]) == 2
    assert capsys.readouterr().err == "ConfigError: aligntok: cache_latents is called cache-latents now\n"


def test_an_unknown_verb_shows_what_there_is_and_fails(capsys):
    assert cli.main(["trian"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ConfigError: aligntok: no verb named 'trian'; did you mean 'train'? known: train, ")


@pytest.mark.parametrize("error", [ConfigError, DataError, AlignTokError])
def test_a_users_mistake_is_one_message_and_two(capsys, error):
    @cli.reporting_errors
    def command(arguments=None):
        raise error("no such thing\n  do this instead")

    assert command([]) == 2
    assert capsys.readouterr().err == f"{error.__name__}: no such thing\n  do this instead\n"


def test_a_defect_of_ours_keeps_its_traceback():
    @cli.reporting_errors
    def command(arguments=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command([])


def test_a_dict_is_written_as_in_configs_and_nothing_is_called():
    words = [
        *("parallel=dict(shard=8)", "a=[dict(type='x', inner=dict(b=(1, None)))]", "empty=dict()"),
        *("call=dict(a=open('x'))", "other=list(a=1)", "pairs=dict([(1, 2)])", "spread=dict(**{'a': 1})"),
    ]
    assert cli.arguments.parse_options(words) == {
        "parallel": {"shard": 8},
        "a": [{"type": "x", "inner": {"b": (1, None)}}],
        "empty": {},
        "call": "dict(a=open('x'))",
        "other": "list(a=1)",
        "pairs": "dict([(1, 2)])",
        "spread": "dict(**{'a': 1})",
    }


def test_options_are_literals_where_they_can_be():
    words = [
        "seed=3",
        "optimizer.lr=1e-4",
        "trainable=['decoder']",
        "data_root=/a/b=c",
        "ema=None",
        "name=x",
        "set={[]: 1}",
        "empty=",
    ]
    assert cli.arguments.parse_options(words) == {
        "seed": 3,
        "optimizer.lr": 1e-4,
        "trainable": ["decoder"],
        "data_root": "/a/b=c",
        "ema": None,
        "name": "x",
        "set": "{[]: 1}",
        "empty": "",
    }


def test_names_that_a_shell_has_taken_the_quotes_of_are_text():
    words = ["log.backends=[wandb,tensorboard]", "a=dict(type=mlp,dims=(x,1))", "b={k: v}", "dict=dict", "c=[a+b]"]
    assert cli.arguments.parse_options(words) == {
        "log.backends": ["wandb", "tensorboard"],
        "a": {"type": "mlp", "dims": ("x", 1)},
        "b": {"k": "v"},
        "dict": "dict",
        "c": "[a+b]",
    }


@pytest.mark.parametrize("word", ["seed", "=3", ""])
def test_an_option_without_a_key_or_value_is_an_error(word):
    with pytest.raises(ConfigError, match="takes key=value"):
        cli.arguments.parse_options([word])


values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.integers(), max_size=3)
)


@settings(max_examples=100, deadline=None)
@given(key=st.from_regex(r"[a-z][a-z_.0-9]*", fullmatch=True), value=values)
def test_what_python_prints_is_what_an_option_gives(key, value):
    assert cli.arguments.parse_options([f"{key}={value!r}"]) == {key: value}


@settings(max_examples=200, deadline=None)
@given(value=st.text(max_size=30))
def test_no_value_breaks_the_options(value):
    cli.arguments.parse_options([f"key={value}"])


def test_exporting_what_is_not_there_is_one_message(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path / "none.pt"), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("WeightsError: no such file or folder")
    assert not (tmp_path / "out").exists()


def test_exporting_a_saved_tokenizer_copies_it(tmp_path, capsys):
    from aligntok.tokenizer import Tokenizer

    part = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8)
    Tokenizer({**part, "pretrained": False}, None, part, 4, 2).save_pretrained(tmp_path / "a")
    assert cli.main(["export", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert f"Tokenizer: {tmp_path / 'b'}" in capsys.readouterr().out
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
