"""Kill a run again and again at random moments, start it again, and compare its end, bit by bit, with one never killed.

    python benchmarks/kill_and_resume.py configs/demo/tiny_imagenet_f8d16.py --runs 20 --kills 3 --cfg-options \
        data_root=tiny_imagenet.zip stages.0.steps=8 stages.1.steps=8 stages.2.steps=8 checkpoint.every=3 \
        stages.0.losses.gan.start_step=4 validation.num_images=50

Each kill is a SIGKILL some milliseconds after a random step of a random stage that is not finished yet. Compared are
every stage's newest checkpoint (weights, both optimisers, averages, schedules, guard), its measurements and the
exported tokenizer. Exit status 1 if any run ends otherwise. `log.every` is set to 1, which shows when a step is done.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntok.cli import parse_options
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint, same_content
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.stages import Stage

TRAIN_TOOL = Path(__file__).parents[1] / "tools" / "train.py"


def launch(config: str, work_dir: Path, options: list[str]) -> subprocess.Popen[str]:
    """Start the training tool."""
    command = [sys.executable, str(TRAIN_TOOL), config, "--work-dir", str(work_dir), "--cfg-options", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Let a run go to its end."""
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run failed with exit status {process.returncode}:\n{printed}")


def kill_after(process: subprocess.Popen[str], stage: Stage, step: int, delay: float) -> bool:
    """Kill the run `delay` seconds after it says that a step is done; False if it ended before."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"{stage.name}: step {step}/"):
            time.sleep(delay)
            process.kill()
            process.communicate()
            return True
    process.communicate()
    return False


def end_of(work_dir: Path, stages: Sequence[Stage]) -> dict[str, Any]:
    """Everything that a run leaves which must not depend on interruptions."""
    end: dict[str, Any] = {"tokenizer": (work_dir / "tokenizer" / "model.safetensors").read_bytes()}
    for stage in stages:
        folder = work_dir / stage.folder.name
        content = read_checkpoint(list_checkpoints(folder)[-1][1])
        del content["seconds"]
        measured = folder / "result.json"
        end[stage.name] = {"checkpoint": content}
        if measured.is_file():
            end[stage.name]["measured"] = json.loads(measured.read_text())["metrics"]
    return end


def interrupted_run(given: argparse.Namespace, stages: Sequence[Stage], folder: Path, rng: random.Random) -> list[str]:
    """Run to the end through random kills, in order of stage and step; return where they were."""
    moments = sorted(
        {(i, rng.randint(1, s.settings.steps - 1)) for i, s in rng.choices([*enumerate(stages)], k=given.kills)}
    )
    killed: list[str] = []
    for i, step in moments:
        process = launch(given.config, folder, given.options)
        if kill_after(process, stages[i], step, rng.uniform(0, given.delay)):
            killed.append(f"{stages[i].name} {step}")
    finish(launch(given.config, folder, given.options))
    return killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="of each run")
    parser.add_argument("--delay", type=float, default=0.3, help="longest time between the step and the kill, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/kill_and_resume"))
    parser.add_argument("--cfg-options", nargs="+", default=[], dest="options", metavar="KEY=VALUE")
    given = parser.parse_args()
    given.options.append("log.every=1")
    stages = expand_stages(load_config(given.config, parse_options(given.options)))
    shutil.rmtree(given.folder, ignore_errors=True)
    finish(launch(given.config, given.folder / "whole", given.options))
    whole, identical, rng = end_of(given.folder / "whole", stages), 0, random.Random(given.seed)
    for number in range(1, given.runs + 1):
        killed = interrupted_run(given, stages, given.folder / "killed", rng)
        equal = same_content(end_of(given.folder / "killed", stages), whole)
        identical += equal
        print(
            f"run {number:2d}: killed after {', '.join(killed)}: {'bit-identical' if equal else 'DIFFERENT'}",
            flush=True,
        )
        shutil.rmtree(given.folder / "killed")
    print(f"{identical} of {given.runs} runs ended bit-identical to the one that was never killed")
    return 0 if identical == given.runs else 1


if __name__ == "__main__":
    raise SystemExit(main())
