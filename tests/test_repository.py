"""What stands beside the code: a source archive that is whole, a citation, an image, an environment, templates."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

import aligntok

ROOT = Path(__file__).parents[1]
IGNORED = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]


def ignored(folder, names):
    """Those of a folder's names that .gitignore leaves out: by name or, where a line has a slash, by path from ROOT."""
    place = Path(folder).relative_to(ROOT)
    lines = {line: "/" in line for line in IGNORED} | {".git": False}
    return {
        name
        for name in names
        if any(fnmatchcase((place / name).as_posix() if whole else name, line) for line, whole in lines.items())
    }


def built(source, kind, out):
    """The one file that a build of `source` leaves in `out`, by the backend that pyproject.toml names."""
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(out)!r})"
    out.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


def test_the_source_archive_has_every_file_and_makes_the_same_wheel(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="archives are built by setuptools from 77 on")
    shutil.copytree(ROOT, tmp_path / "sources", ignore=ignored)
    there = {
        str(path.relative_to(tmp_path / "sources")) for path in (tmp_path / "sources").rglob("*") if path.is_file()
    }
    for leftover in ("build/lib/a.py", "dist/a.tar.gz", "aligntok_template.egg-info/PKG-INFO"):
        (path := tmp_path / "sources/plugins/aligntok-template" / leftover).parent.mkdir(parents=True)
        path.write_text("of an earlier build")
    (tmp_path / "sources/tests/.hypothesis").mkdir()
    (tmp_path / "sources/tests/.hypothesis/a").write_text("of a test")
    archive = built(tmp_path / "sources", "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        names = {each.name.partition("/")[2] for each in tar if each.isfile()}
        assert there - names == set()
        made = {name for name in names - there if not name.startswith("aligntok.egg-info/")}
        assert made == {"PKG-INFO", "setup.cfg"}
        tar.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    assert (folder / "tools/demo.sh").stat().st_mode & 0o111  # the demo runs from it
    contents = []
    for source, out in ((tmp_path / "sources", "one"), (folder, "other")):
        with zipfile.ZipFile(built(source, "wheel", tmp_path / out)) as wheel:
            contents.append({i.filename: i.CRC for i in wheel.infolist() if not i.filename.endswith("RECORD")})
    assert contents[0] == contents[1]


def test_what_git_ignores_is_told_by_name_or_by_path():
    assert ignored(ROOT / "docs/api", ["generated", "index.md"]) == {"generated"}
    assert ignored(ROOT / "tests/api", ["generated", "__pycache__"]) == {"__pycache__"}
    assert ignored(ROOT, ["docs", "a.egg-info", ".git", ".github", ".gitignore"]) == {"a.egg-info", ".git"}


def test_the_version_is_the_same_wherever_it_is_cited():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == aligntok.__version__
    page = (ROOT / "docs/citing.md").read_text()
    assert re.findall(r"version = \{(.+)\}", page) == [aligntok.__version__]
    paper = cited["preferred-citation"]
    assert paper["title"] in re.sub(r"[{}]", "", page)
    for author in paper["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in page
    assert cited["license"] == re.search(r'^license = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def extras(text):
    return set(re.search(r"\.\[([a-z,]+)\]", text)[1].split(","))


def test_the_image_and_the_environment_install_what_there_is():
    known = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    image, conda = (ROOT / "Dockerfile").read_text(), (ROOT / "environment.yml").read_text()
    for text in (image, conda):
        assert extras(text) <= known
        for path in re.findall(r"--constraint (\S+)", text):
            assert (ROOT / path).is_file(), path
    assert extras(image) == extras(conda)
    assert "demo" in extras(image)  # what its plugins, and the pages that one begins with, need
    plugins = re.findall(r"--editable (plugins/\S+)", conda)
    assert {Path(plugin).name for plugin in plugins} == {"aligntok-efficientnet-lite", "aligntok-st-lpips"}
    assert all((ROOT / plugin / "pyproject.toml").is_file() for plugin in plugins)
    python = re.search(r"python=([\d.]+)", conda)[1].split(".")
    assert tuple(map(int, python)) >= (3, 10)
    assert yaml.safe_load(conda)["dependencies"][-1]["pip"]


def test_the_image_runs_as_a_user_and_keeps_files_of_the_hub_outside():
    steps = [line.split(maxsplit=1) for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1].isalpha()]
    words = [word for word, _ in steps]
    assert words.index("USER") < max(i for i, (word, said) in enumerate(steps) if word == "RUN" and "pip" in said)
    assert [said for word, said in steps if word == "USER"] == ["aligntok"]
    assert [said for word, said in steps if word == "VOLUME"] == ["/hub"]
    (kept,) = (said.split() for word, said in steps if word == "ENV")
    assert {"HF_HOME=/hub", "TORCH_HOME=/hub/torch", "TORCHINDUCTOR_CACHE_DIR=/hub/compiled"} <= {*kept}
    assert [said for word, said in steps if word == "ENTRYPOINT"] == ['["aligntok"]']
    (place,) = (said for word, said in steps if word == "WORKDIR")
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    made, owned = (re.search(rf"{command} ([\w/ ]+)", text)[1].split() for command in ("mkdir -p", "chown -R aligntok"))
    assert f"{place}/work_dirs" in made  # a volume over it is the user's then
    assert place in owned
    assert f"-v aligntok-runs:{place}/work_dirs " in (ROOT / "docs/quickstart.md").read_text()
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert ".git" in left_out
    for name in ("aligntok", "configs", "plugins", "constraints", "pyproject.toml", "README.md", "LICENSE"):
        assert name not in left_out


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.stem)
def test_templates_are_forms_that_ask_for_what_is_needed(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert form == {"blank_issues_enabled": False}
        return
    assert {"name", "description", "labels", "body"} == form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") for field in fields)
    for name in re.findall(r"\b(?:docs/)?[\w/]+\.md\b", path.read_text()):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("name", ["RELEASING.md", "CODE_OF_CONDUCT.md", ".github/PULL_REQUEST_TEMPLATE.md"])
def test_what_a_page_names_is_there(name):
    text = (ROOT / name).read_text()
    targets = re.findall(r"^\w[\w-]*(?=:)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"\bmake ([\w-]+)", text):
        assert target in targets, target
    for path in re.findall(r"\]\(([\w./]+)\)|`([\w/]+\.(?:md|py|cff))`", text):
        assert (ROOT / "".join(path)).exists(), path


def test_an_environment_that_clones_share_is_installed_for_the_one_that_uses_it(tmp_path):
    stamps = set()
    for name in ("one", "other"):
        for part in ("Makefile", "pyproject.toml", "plugins", "constraints"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / part).symlink_to(ROOT / part)
        asked = ["make", "--dry-run", "install", f"VENV={tmp_path}/venv"]
        said = subprocess.run(asked, cwd=tmp_path / name, capture_output=True, text=True, check=True).stdout
        stamps.add(re.search(r"touch (\S+)", said)[1])
    assert len(stamps) == 2
