"""Kill a run again and again at random moments, start it again, and compare its end, bit by bit, with one never killed.

    python benchmarks/kill_and_resume.py --runs 20 --processes 2 --parallel shard
    python benchmarks/kill_and_resume.py --config configs/demo/tiny_imagenet_f8d16.py --kills 3 --cfg-options \
        data_root=tiny_imagenet.zip stages.0.steps=8 stages.1.steps=8 stages.2.steps=8 checkpoint.every=3 \
        stages.0.losses.gan.start_step=4 validation.num_images=50

Each kill is a SIGKILL some milliseconds after a random step of a random stage that is not finished yet, or, every other
one, some after a checkpoint began to be written. Of two processes, which torchrun's agent starts, the kill is of one,
the other having to end by itself, or of all with the agent, in turn. Before the kill they are stopped and looked at: a
save is under way while there is a folder in which one is made. Compared are every stage's newest checkpoint (weights,
both optimisers, averages, schedules, guard), its measurements and the exported tokenizer, with those of a run of as
many processes. Exit status 1 if any run ends otherwise. Without a config, two stages of some thousand weights are
trained on pictures of noise. `log.every` is set to 1, which shows when a step is done. Processes are forked from one
that has imported everything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.tensorboard  # for the processes
from PIL import Image
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from aligntok.cli import train
from aligntok.cli.arguments import parse_options
from aligntok.distributed import dcp  # noqa: F401  (for the processes)
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint, same_content
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.stages import Stage

SECONDS = 300.0  # that a run may take
TINY = """
model = dict(
    encoder=dict(
        type="timm",
        model_name="vit_tiny_patch16_224",
        pretrained=False,
        model_args=dict(depth=2, embed_dim=48, num_heads=3),
    ),
    adapter=dict(type="mlp"),
    decoder=dict(type="ldm_cnn", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32),
    latent_dim=4,
    downsample_factor=8,
)
discriminator = dict(type="patchgan", base_channels=16, num_layers=2)
losses = dict(l1=dict(type="l1"), gan=dict(type="gan", weight=0.5, adaptive_weight=dict(at="decoder")))
data = dict(train=dict(split="train", image_size=32), val=dict(split="val", image_size=32), workers=0)
global_batch_size = 4
ema = dict(sigma_rel=[0.05, 0.10], inference=0.05)
checkpoint = dict(every=1)
log = dict(pictures=0)
validation = dict(perceptual=None, batch_size=4)
stages = [
    dict(name="latent_alignment", trainable=["adapter", "decoder"], steps=8),
    dict(
        name="perceptual_alignment",
        init_from=dict(stage="latent_alignment", weights="raw"),
        teacher="start",
        losses=dict(semantic=dict(type="semantic_preservation", adaptive_weight=dict(at="encoder"))),
        steps=8,
    ),
]
"""


def make_tiny(folder: Path) -> Path:
    """Write a config of a quick run, and the pictures that it trains on."""
    rng = np.random.default_rng(0)
    for name in [f"train/{i}.png" for i in range(16)] + [f"val/{i}.png" for i in range(4)]:
        (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / "pictures" / name)
    (folder / "tiny.py").write_text(f'"""A quick run."""\ndata_root = {str(folder / "pictures")!r}\n{TINY}')
    return folder / "tiny.py"


def _work(arguments: list[str]) -> None:
    if status := train(arguments):
        os._exit(status)


class Run:
    """A training in processes of their own, forked from this one; with several, by torchrun's agent."""

    def __init__(self, given: argparse.Namespace, work_dir: Path) -> None:
        self.work_dir = work_dir
        self._printed = given.folder / "printed.txt"
        self._printed.unlink(missing_ok=True)
        arguments = [str(given.config), "--work-dir", str(work_dir), "--cfg-options", *given.options]
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for stream in (1, 2):
                os.dup2(os.open(self._printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            try:
                if given.processes > 1:
                    place = dict(rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=str(os.getpid()))
                    count = dict(min_nodes=1, max_nodes=1, nproc_per_node=given.processes, max_restarts=0)
                    elastic_launch(LaunchConfig(**place, **count, start_method="fork"), _work)(arguments)
                else:
                    _work(arguments)
            except BaseException as error:
                print(error, flush=True)
                os._exit(1)
            os._exit(0)

    @property
    def printed(self) -> str:
        """What the run has printed."""
        return self._printed.read_text(errors="replace") if self._printed.exists() else ""

    @property
    def workers(self) -> list[int]:
        """Its training processes."""
        found = [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return found or [self.pid]

    def end(self) -> int:
        """Wait for its end, and return its exit status."""
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.killpg(self.pid, signal.SIGKILL)
        raise SystemExit(f"the run did not end:\n{self.printed}")

    def finish(self) -> None:
        """Let it go to its end."""
        if status := self.end():
            raise SystemExit(f"the run failed with exit status {status}:\n{self.printed}")

    def is_over(self) -> bool:
        """Tell whether it has ended; it is still to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def saves(self, stage: Stage) -> list[int]:
        """Return the steps of those checkpoints of a stage that are being written."""
        made = (stage.folder / "checkpoints").glob(".step_*.tmp")
        return [int(path.name.split(".")[1].removeprefix("step_")) for path in made]


class Kill(NamedTuple):
    """A kill that is to come: in which stage, how long after which step or after a save of it began, of what."""

    stage: int
    step: int
    delay: float
    inside: bool
    alone: bool


def kill(run: Run, stages: Sequence[Stage], asked: Kill, rng: random.Random) -> tuple[str, bool] | None:
    """Kill a run as asked; return what was done, and whether a save was under way. None: it ended before."""
    stage = stages[asked.stage]

    def reached() -> bool:
        if asked.inside:
            return any(step >= asked.step for step in run.saves(stage))
        return f"{stage.name}: step {asked.step}/" in run.printed

    while not reached():
        if run.is_over():
            run.finish()
            return None
        time.sleep(0.0005)
    time.sleep(asked.delay)
    workers = run.workers
    if asked.alone and len(workers) > 1:
        victim = rng.choice(workers)
        os.kill(victim, signal.SIGSTOP)
        under_way = any(run.saves(each) for each in stages)
        os.kill(victim, signal.SIGKILL)
        status = run.end()
        if status == 0:
            raise SystemExit(f"a process was killed, and the run says nothing of it:\n{run.printed}")
        whom = f"process {workers.index(victim)}"
    else:
        os.killpg(run.pid, signal.SIGSTOP)
        under_way = any(run.saves(each) for each in stages)
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.end()
        whom = "all"
    return f"{whom} after {stage.name} {asked.step}" + " in a save" * under_way, under_way


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


def interrupted_run(
    given: argparse.Namespace, stages: Sequence[Stage], folder: Path, rng: random.Random
) -> list[tuple[str, bool]]:
    """Run to the end through random kills, in order of stage and step; return what they were."""
    moments = sorted(
        {(i, rng.randint(1, s.settings.steps - 1)) for i, s in rng.choices([*enumerate(stages)], k=given.kills)}
    )
    killed: list[tuple[str, bool]] = []
    for i, step in moments:
        given.number += 1
        inside = given.number % 2 == 1
        delay = rng.uniform(0, given.delay_of_saves if inside else given.delay)
        asked = Kill(i, step, delay, inside, alone=given.number % 4 > 1)
        if done := kill(Run(given, folder), stages, asked, rng):
            killed.append(done)
    Run(given, folder).finish()
    return killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=1, help="of each run")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--parallel", choices=["replicate", "shard"], default="replicate")
    parser.add_argument("--delay", type=float, default=0.3, help="longest time between the step and the kill, seconds")
    parser.add_argument(
        "--delay-of-saves", type=float, default=0.02, help="longest time between the begin of a save and the kill"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/kill_and_resume"))
    parser.add_argument("--cfg-options", nargs="+", default=[], dest="options", metavar="KEY=VALUE")
    given = parser.parse_args()
    torch.set_num_threads(1)  # what is forked has one thread
    os.environ["OMP_NUM_THREADS"] = "1"
    given.options += ["log.every=1", f"parallel={given.parallel}"]
    given.number = 0
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    given.config = given.config or make_tiny(given.folder)
    folder = given.folder / "killed"
    stages = expand_stages(load_config(given.config, parse_options([*given.options, f"work_dir={folder}"])))
    Run(given, given.folder / "whole").finish()
    whole, identical, rng = end_of(given.folder / "whole", stages), 0, random.Random(given.seed)
    kills: list[tuple[str, bool]] = []
    for number in range(1, given.runs + 1):
        done = interrupted_run(given, stages, folder, rng)
        kills += done
        equal = same_content(end_of(folder, stages), whole)
        identical += equal
        said = ", ".join(what for what, _ in done) or "nothing"
        print(f"run {number:2d}: killed {said}: {'bit-identical' if equal else 'DIFFERENT'}", flush=True)
        shutil.rmtree(folder)
    print(f"{len(kills)} kills, {sum(inside for _, inside in kills)} of them with a save under way")
    print(f"{identical} of {given.runs} runs ended bit-identical to the one that was never killed")
    return 0 if identical == given.runs else 1


if __name__ == "__main__":
    raise SystemExit(main())
