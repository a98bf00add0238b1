"""docs/first_plugin.md, retraced: its files in an empty folder, its commands, what it says that they print.

Run with a folder, this file does that in a process of its own, where nothing has looked for plugins yet.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/first_plugin.md").read_text()
FILE = re.compile(r'^```\{code-block\} \w+\n:caption: "`(\S+)`"\n(.*?)^```', re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
CHANGE = re.compile(r"^\| `([^|]+)` \| `([^|]+)` \| `([^|]+)` \|$", re.MULTILINE)


def files():
    return dict(FILE.findall(PAGE))


def commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files where it wants them, and what `pip install -e` adds so that Python finds them."""
    folder = tmp_path_factory.mktemp("empty") / "aligntok-torchvision"
    for name, text in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    project = (folder / "pyproject.toml").read_text()
    name, version = (re.search(rf'^{key} = "(.+)"', project, re.MULTILINE)[1] for key in ("name", "version"))
    (entry,) = re.findall(r'entry-points.aligntok\]\n(\w+) = "(\w+)"', project)
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[aligntok]\n{entry[0]} = {entry[1]}\n")
    return folder


@pytest.mark.slow
def test_the_page_is_true_to_the_letter(folder, warm, monkeypatch):
    monkeypatch.chdir(ROOT)
    process = warm.start(__file__, folder)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    for shown in SHOWN.findall(PAGE):
        assert " ".join(re.sub("[│┃]", "", shown).split()) in " ".join(re.sub("[│┃]", "", printed).split())
    assert f"{files()['tests/test_it.py'].count('def test_')} passed" in printed
    assert "pytest says `2 passed`" in PAGE


def test_the_page_has_four_files_and_the_commands_name_their_folder():
    assert list(files()) == [
        "pyproject.toml",
        "aligntok_torchvision/__init__.py",
        "aligntok_torchvision/encoder.py",
        "tests/test_it.py",
    ]
    asked = [" ".join(words) for words in commands()]
    assert asked[0].startswith("mkdir")
    assert asked[1] == "pip install -e ../aligntok-torchvision"
    assert len(CHANGE.findall(PAGE)) == 7


def retrace(folder):
    """Run the page's commands on the folder; pip and mkdir were seen to before."""
    from aligntok import cli

    sys.path[:0] = [str(folder), *(str(path) for path in (ROOT / "plugins").glob("aligntok-*"))]
    for words in commands()[2:]:
        match words:
            case ["aligntok", *arguments]:
                assert cli.main(arguments) == 0
            case ["pytest", tests]:
                assert pytest.main(["-q", "-p", "no:cacheprovider", tests.replace("..", str(folder.parent))]) == 0
            case ["python", "tools/train.py", *arguments]:
                assert cli.train(arguments) == 0
            case _:
                raise AssertionError(words)


def break_it(folder):
    """Make each change of the page's table, and see that the kit says what the table says."""
    from aligntok.errors import ConfigError
    from aligntok.plugins.testing import check_encoder
    from aligntok.registry import ENCODERS

    source = (folder / "aligntok_torchvision/encoder.py").read_text()
    for number, (line, other, told) in enumerate(CHANGE.findall(PAGE)):
        assert source.count(line) == 1, line
        changed: dict[str, object] = {}
        exec(source.replace(line, other), changed)
        ENCODERS.add(f"changed_{number}", changed["ResNet18Encoder"])
        with pytest.raises((AssertionError, ConfigError), match=re.escape(told)):
            check_encoder(f"changed_{number}", image_size=(64, 96), pretrained=False)


if __name__ == "__main__":
    retrace(Path(sys.argv[1]))
    break_it(Path(sys.argv[1]))
