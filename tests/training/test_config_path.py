"""How far a config travels: the files of aligntok that it, a part of it, or what is made of it is handed to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import aligntok
from aligntok.cli import train
from aligntok.training.stages import Stage

PACKAGE = f"{Path(aligntok.__file__).parent}/"
KEYS = {"sigma_rel", "every", "pictures", "perceptual", "workers", "losses", "stages", "global_batch_size", "steps"}


def is_of_a_config(value) -> bool:
    """Whether a value is a config, a dict of one (a component's has a type), settings, or a stage."""
    is_dict = isinstance(value, Mapping) and bool({"type"} & {*value} or KEYS & {*map(str, value)})
    return is_dict or isinstance(value, Stage) or hasattr(type(value), "__declared__")


def test_a_config_passes_few_files_on_its_way_from_the_command_to_the_trained_stages(write_config, tmp_path):
    files: set[str] = set()

    def watch(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_filename not in files:
            given = (frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
            if any(is_of_a_config(value) for value in given):
                files.add(code.co_filename)

    config = write_config(steps=1)
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        assert train([config, "--work-dir", str(tmp_path / "run")]) == 0
    finally:
        sys.setprofile(before)
    passed = sorted(name.removeprefix(PACKAGE) for name in files)
    assert {"training/config.py", "training/builder.py", "training/alignment/objective.py"} <= {*passed}
    assert len(passed) <= 25, "\n".join(passed)
