"""What the README and the documentation tell a reader to type works, and what they link to is there.

Small commands are run; large recipes with --dry-run; those that would install things are only looked at. A command that
this file does not know is a failure: teach it, or leave the command out.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aligntok import cli
from aligntok.evaluation import comparison
from aligntok.evaluation.comparison import chosen, read_comparison
from aligntok.registry import ENCODERS, LOSSES

ROOT = Path(__file__).parents[1]
GENERATED = {"docs/components.md", "docs/configuration_keys.md"}
WRITTEN = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - GENERATED
PAGES = sorted({"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md", *WRITTEN})
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "python", "text", "bibtex", "{toctree}", "{literalinclude}", "{index}"}
LANGUAGES |= {"{code-block}", "{code-cell}"}  # run by tests/test_first_plugin.py, and where the site is built
#: Quick enough for a test, and still every stage, picture and table of the demo.
SHORTER = ["global_batch_size=2", "data.workers=0", "validation.perceptual=None", "log.every=1"]
PLANNED = set()  # by a command before, whose words come to the same once the reader's own data are left out


def blocks(page, language):
    return [text for found, text in FENCE.findall((ROOT / page).read_text()) if found == language]


def commands(page):
    return [line.strip() for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def config_docstrings():
    """Commands of the configs' docstrings, each in one line."""
    for path in sorted((ROOT / "configs").rglob("*.py")):
        text = path.read_text().split('"""')[1].replace("\\\n", " ")
        yield from (line.strip() for line in text.splitlines() if re.match(r" +(python|torchrun) ", line))


EVERY = sorted({*(c for page in PAGES for c in commands(page)), *config_docstrings()})


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder that looks like a clone, to run commands in; the demo's photographs and a short run are there."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (
        "aligntok",
        "benchmarks",
        "configs",
        "constraints",
        "docs",
        "plugins",
        "tests",
        "tools",
        "Makefile",
        "Dockerfile",
        "environment.yml",
        "pyproject.toml",
    ):
        (folder / name).symlink_to(ROOT / name)
    for kind, registry, name in (("encoder", ENCODERS, "efficientnet_lite0"), ("loss", LOSSES, "st_lpips")):
        if name not in registry:
            pytest.skip(f"no {kind} '{name}' here: the plugins under plugins/ are not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in blocks_of_the_demo():
            assert run(command) == 0, command
    shutil.copytree(folder / "work_dirs/demo/run", folder / "work_dirs/my_run")
    return folder


def blocks_of_the_demo():
    (block,) = (b for b in blocks("docs/quickstart.md", "sh") if "make_demo_data.py" in b)
    return block.splitlines()


def run(command):
    """Run one command line as far as a test can, and return its exit status."""
    words = shlex.split(command)
    while words and "=" in words[0]:
        words.pop(0)  # an environment variable: what it does is tested with the plugins
    tool = words[0] if words[0] != "python" else words[1]
    for known, runner in RUNNERS.items():
        if tool == known:
            return runner(words[words.index(known) + 1 :])
    raise AssertionError(f"no test knows how to run: {command}")


def run_train(arguments):
    extra = ["--dry-run"]
    arguments = [word.replace("=...", "=/the/reader's/images") for word in arguments]
    if "configs/demo/photographs_f8d16.py" in arguments and "--dry-run" not in arguments:
        stages = [f"stages.{i}.steps=3" for i in range(3)]
        stages += ["generation.steps=2", "generation.latent_cache.workers=0", "generation.log.pictures=2"]
        extra = ["--cfg-options", *arguments[arguments.index("--cfg-options") + 1 :], *SHORTER, *stages]
        extra += ["ema.snapshot_every=1", "checkpoint.every=3", "log.pictures=2", "validation.num_images=2"]
        arguments = arguments[: arguments.index("--cfg-options")]
    else:
        extra = [] if "--dry-run" in arguments else extra
        if "model.encoder.type=torchvision_resnet18" in arguments:
            return 0  # tests/test_first_plugin.py has the plugin, and runs it
        places = ("data_root=", "data.train.index=")  # what is given is looked at
        arguments = [word for word in arguments if not word.startswith(places)]
    words = (*arguments[:1], *extra, *arguments[1:])  # options before --cfg-options, which takes everything after it
    if words in PLANNED:
        return 0
    status = cli.train([*words])
    if "--dry-run" in words and status == 0:
        PLANNED.add(words)
    return status


def run_torchrun(words):
    (tool,) = (i for i, word in enumerate(words) if word.endswith(".py") and word.startswith("tools/"))
    known = r"--(nnodes|nproc.per.node|node-rank|master-addr|master-port|max-restarts|rdzv-\w+)=\S+"
    assert all(re.fullmatch(known, word) for word in words[:tool])
    assert "--num" not in words[tool:], "torchrun takes it for a beginning of its own --numa-binding"
    run_it = run_train if words[tool] == "tools/train.py" else look_at_options(words[tool])
    return run_it(words[tool + 1 :])


def run_launch_script(words):
    """Let a script of tools/launch say what it would have torchrun do, and do that."""
    stand_in = Path("bin/torchrun")
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{stand_in.parent.absolute()}:{os.environ['PATH']}"}
    asked = subprocess.run(["bash", *words], capture_output=True, text=True, timeout=60, env=environment, check=True)
    return run_torchrun(asked.stdout.splitlines())


def run_preparation(tool):
    """Let a tool write what a demo trains on."""

    def prepare(arguments):
        arguments = [{"6": "1"}.get(word, word) for word in arguments]  # a crop of each photograph is enough here
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [tool, *arguments])
            runpy.run_path(tool, run_name="__main__")
        return 0

    return prepare


def look_at_options(tool):
    """Check a long command's options, without what it would do with them."""

    def check(arguments):
        def stopping(parse):
            def parse_and_stop(*given, **options):
                parse(*given, **options)
                raise SystemExit(0)

            return parse_and_stop

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [tool, *arguments])
            patch.syspath_prepend(str(ROOT / tool.rpartition("/")[0]))  # as Python does for a script
            patch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
            patch.setattr(cli.arguments, "read", stopping(cli.arguments.read))
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(tool, run_name="__main__")
        return ended.value.code

    return check


def plan_comparison(arguments):
    """Read what a comparison compares, with the command's options, and go no further."""

    def read(asked):
        chosen(read_comparison(Path(asked.config), asked.cfg_options), asked.only)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "compare", read)
        return cli.compare(arguments)


def run_sample(arguments):
    """Draw two samples from the demo's generator; look at the options of other runs."""
    if arguments[0] != "work_dirs/demo/run":
        return look_at_options("tools/sample.py")(arguments)
    return cli.sample([*arguments, "--num-samples", "12", "--steps", "2"])


def run_measure_cost(arguments):
    """Count what needs no run; look at the options of what is measured."""
    if "--meta" not in arguments:
        return look_at_options("tools/measure_cost.py")(arguments)
    return cli.measure_cost([*arguments, "--resolutions", "256", "--out", "work_dirs/cost"])


def run_report(arguments):
    """Report on the runs that are there; only look at the options where one is the reader's own."""
    runs = arguments[: next((i for i, word in enumerate(arguments) if word.startswith("--")), len(arguments))]
    if not all(Path(run).is_dir() for run in runs):
        return look_at_options("tools/report.py")(arguments)
    return cli.report(arguments)


def run_evaluate(arguments):
    """Evaluate what the demo leaves; look at the options where data or runs are the reader's own."""
    paths = [word for word in arguments if "/" in word and not word.endswith("crops.safetensors")]
    if not all(path.startswith("work_dirs/demo/") for path in paths) or not paths:
        return look_at_options("tools/evaluate.py")(arguments)
    return cli.evaluate([*arguments, "--workers", "0"])


def run_analyze_latents(arguments):
    if not arguments[0].startswith("work_dirs/demo/"):
        return look_at_options("tools/analyze_latents.py")(arguments)
    return cli.analyze_latents(
        [*arguments, "--workers", "0", "--seeds", "0", "--num-images", "24", "--pca-images", "1"]
    )


def run_make(arguments):
    done = subprocess.run(["make", "-n", *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode


def run_aligntok(arguments):
    arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
    if arguments[0] == "train" and arguments[1].startswith("my_configs/"):  # which another command copies
        assert cli.main(["configs", "cp", arguments[1].removeprefix("my_configs/"), "my_configs"]) == 0
    of_the_readers = arguments[0] in ("index", "reconstruct", "app")
    if of_the_readers or "onnx" in arguments:  # its options are read; test_onnx.py gives the same command others
        read = cli.arguments.read
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli.arguments, "read", lambda *given, **options: sys.exit(read(*given, **options) is None))
            with pytest.raises(SystemExit) as ended:
                cli.main(arguments)
        return ended.value.code
    if arguments[:2] == ["data", "check"] and not Path(arguments[2]).exists():
        arguments = [*arguments[:2], "work_dirs/demo/photographs", *arguments[3:]]
    if arguments[0] == "export":
        shutil.rmtree(arguments[2], ignore_errors=True)
    try:
        return cli.main(arguments)
    except SystemExit as ended:  # of --help
        return ended.code or 0


def run_docker(words):
    """Let the command after the image's name run here; of a build, look whether there is something to build."""
    if words[0] == "build":
        return look_at_paths([f"{words[-1]}/Dockerfile"])
    arguments = words[words.index("aligntok") + 1 :]
    if "--entrypoint" in words:
        assert words[words.index("--entrypoint") + 1] == "torchrun"
        return run_torchrun(arguments)
    assert arguments[0] == "train"
    return run_train(arguments[1:])


def run_conda(words):
    """Look at the file that an environment is made of, and whether the one that is activated has its name."""
    if words[:2] == ["env", "create"]:
        return look_at_paths([f"./{words[-1]}"])
    return int(words != ["activate", yaml.safe_load(Path("environment.yml").read_text())["name"]])


def look_at_a_download(words):
    """Tell whether configs say that their tokenizer is of a repository of the hub, and look for it in that folder."""
    verb, repository, option, folder = words
    assert (verb, option) == ("download", "--local-dir")
    texts = [path.read_text() for path in Path("configs/generator").glob("*.py")]
    found = [text for text in texts if f"a file of {repository} on the Hugging Face hub" in text]
    return int(not found or not all(f'\ntokenizer = "{folder}/' in text for text in found))


def look_at_paths(words):
    """Do nothing but check that the paths which a command reads are there, or are folders that `make` makes."""
    paths = [word.split("[")[0] for word in words if "/" in word or word.startswith(".")]
    missing = [path for path in paths if not path.startswith((".venv", "../")) and not Path(path).exists()]
    assert not missing, missing
    return 0


BENCHMARKS = (
    *("adaptive_weights", "ratio_groups", "training_step", "step_against"),
    *("kill_and_resume", "generator_step", "latent_reading", "attention", "text_to_image_step", "text_image_share"),
    *("streaming", "pca_code", "feature_probe", "half_on_cpu", "start"),
)
RUNNERS = {
    "make": run_make,
    "tools/train.py": run_train,
    "torchrun": run_torchrun,
    "bash": run_launch_script,
    **{tool: run_preparation(tool) for tool in ("tools/make_demo_data.py", "tools/prepare_emoji.py")},
    "tools/cache_latents.py": look_at_options("tools/cache_latents.py"),
    "tools/sample.py": run_sample,
    "tools/evaluate.py": run_evaluate,
    "tools/analyze_latents.py": run_analyze_latents,
    "tools/measure_cost.py": run_measure_cost,
    "tools/report.py": run_report,
    "tools/compare.py": plan_comparison,
    "tools/export.py": lambda arguments: run_aligntok(["export", *arguments]),
    **{f"benchmarks/{name}.py": look_at_options(f"benchmarks/{name}.py") for name in BENCHMARKS},
    "aligntok": run_aligntok,
    "docker": run_docker,
    "conda": run_conda,
    "hf": look_at_a_download,
    "pip": look_at_paths,
    "cp": look_at_paths,
    "mkdir": look_at_paths,
    "source": look_at_paths,
    "pytest": look_at_paths,
    "tensorboard": look_at_paths,
    "pre-commit": lambda arguments: int(not (ROOT / ".pre-commit-config.yaml").is_file()),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", EVERY)
def test_a_documented_command_works(command, clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    monkeypatch.setenv("COLUMNS", "120")
    if command in blocks_of_the_demo():
        return  # run already, when the clone was made
    assert run(command) == 0, capsys.readouterr().err


def test_the_readme_leads_with_the_two_commands_and_the_papers_recipe():
    assert commands("README.md")[:2] == ["make demo", "make test"]
    paper = "torchrun --nproc_per_node=8 tools/train.py configs/aligntok_dinov2_f16d32.py --cfg-options data_root="
    assert any(command.startswith(paper) for command in commands("README.md"))


def test_a_command_that_nobody_tried_is_found_out():
    with pytest.raises(AssertionError, match="no test knows how to run: frobnicate now"):
        run("frobnicate now")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_of_a_kind_that_is_checked(page):
    found = {language for language, _ in FENCE.findall((ROOT / page).read_text())}
    assert found <= LANGUAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    text = FENCE.sub("", (ROOT / page).read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        if path and not target.startswith("https://") and f"docs/{path}" not in GENERATED:
            assert (ROOT / page).parent.joinpath(path).exists(), target


def test_the_readme_lists_every_config():
    listed = set(re.findall(r"\]\((configs/[^)]+)\)", (ROOT / "README.md").read_text()))
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py")}
    assert listed == {path for path in configs if "/_base_/" not in path}
