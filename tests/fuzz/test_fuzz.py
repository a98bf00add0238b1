"""Nonsense in a config is refused in a sentence before the first step; `tools/fuzz_config.py` has the long run."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from aligntok.caching.settings import CacheRequest
from aligntok.cli.arguments import parse
from aligntok.errors import ConfigError
from aligntok.evaluation import settings as evaluations
from aligntok.evaluation.cost_settings import CostRequest
from aligntok.sampling.settings import SampleRequest
from aligntok.settings import fields_of
from aligntok.training.request import ExportRequest, TrainRequest

sys.path.insert(0, str(Path(__file__).parent))  # the tool's own modules
import judging
from judging import OUTCOMES, fuzz, in_child

#: What every command is told, and what it cannot do without.
REQUESTS = {
    TrainRequest: ("config",),
    ExportRequest: ("source", "out"),
    CacheRequest: ("tokenizer", "data", "out"),
    SampleRequest: ("run",),
    evaluations.ReconstructionSettings: ("tokenizer", "data"),
    evaluations.GenerationSettings: ("samples",),
    evaluations.ProbeSettings: ("tokenizer", "data"),
    evaluations.ReferenceSettings: ("data", "out"),
    evaluations.ComparisonRequest: ("config",),
    evaluations.LatentAnalysis: ("tokenizers", "data"),
    CostRequest: ("configs",),
    evaluations.ReportSettings: ("runs",),
}
WORDS = ["-1", "0", "1", "nan", "inf", "1e11", "99999999999", "True", "None", "", "x", "ü☃", "1,2", "[]", "x=1", "="]
#: Numbers that nobody means.
NONSENSE = ("-1", "nan", "inf", "1e11", "99999999999")


def test_a_few_mutations_end_in_no_traceback_and_no_hang_and_what_a_dry_run_takes_trains(tmp_path):
    found = fuzz(48, 0, tmp_path, run_every=8, seconds=120)
    assert sum(map(len, found.values())) == 48
    assert {kind: found[kind] for kind in OUTCOMES[2:]} == {kind: [] for kind in OUTCOMES[2:]}
    assert len(found["refused"]) > 20


def test_the_judge_knows_what_it_looks_for(tmp_path, monkeypatch):
    def become(text, seconds=5.0):
        (tmp_path / "boom.py").write_text(text)
        return in_child(["train", str(tmp_path / "boom.py"), "--dry-run"], tmp_path, seconds, gigabytes=2.0).kind

    assert become("import time\ntime.sleep(60)", seconds=1.0) == "hang"
    assert become("raise SystemExit(7)") == "unclear"
    assert become("stages = 3") == "refused"
    monkeypatch.setattr(judging.cli, "main", lambda words: 1 / 0)
    assert become("") == "traceback"


@pytest.mark.parametrize("cls", REQUESTS, ids=lambda cls: cls.__name__)
def test_what_a_command_is_told_is_taken_or_refused_in_a_sentence(cls, capsys):
    rng, needed = random.Random(0), [*REQUESTS[cls]]
    options = [option for option in fields_of(cls) if "." not in option.name and option.name not in needed]
    more = ["--reference", "r"] if cls is evaluations.GenerationSettings else []
    for option in rng.sample(options, min(6, len(options))):
        for word in rng.sample(WORDS, 5):
            flag = "--" + option.name.replace("_", "-")
            said, told = become(cls, [*needed, *more, flag, *([word] * (word != ""))], needed)
            assert "\n" not in said
            number = isinstance(getattr(told, option.name, None), int | float)
            assert not (number and word in NONSENSE), (flag, word)
    capsys.readouterr()


def become(cls, words, needed):
    """What a command's words become: why they are refused, or the settings."""
    try:
        return "", parse(cls, words, "it", needed)
    except ConfigError as error:
        return str(error), None
    except SystemExit as stop:  # tyro's: a flag without its word, or a switch with one
        return "" if stop.code == 2 else f"\nstatus {stop.code}", None
