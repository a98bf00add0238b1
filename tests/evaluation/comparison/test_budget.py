"""What a comparison takes is told of the config as it is now, each training under its own name."""

from __future__ import annotations

import pytest

from aligntok.evaluation.comparison import budget
from aligntok.evaluation.comparison.budget import state_budget
from aligntok.evaluation.comparison.plan import read_comparison
from aligntok.evaluation.cost import names_of
from aligntok.evaluation.results import Result
from aligntok.training.alignment import expand_stages
from aligntok.training.config import load_config
from aligntok.training.generation import expand_generation


@pytest.fixture
def timed(monkeypatch):
    """The configs that were timed, call by call; a tokenizer's step takes an hour, a generator's ten."""
    calls = []

    def measure_cost(request):
        calls.append(request.configs)
        rows = []
        for name, config in zip(names_of(request.configs), request.configs, strict=True):
            loaded = load_config(config, {})
            generator = expand_generation(loaded)
            stages = expand_stages(loaded) if generator is None else [generator]
            hours = 1.0 if generator is None else 10.0
            rows += [{"config": name, "device_hours": stage.settings.steps * hours} for stage in stages]
        Result("cost", "all", {}, {}, {"Training steps": rows}).write(request.out)

    monkeypatch.setattr(budget, "measure_cost", measure_cost)
    monkeypatch.setenv("COLUMNS", "200")
    return calls


def test_hours_are_of_the_config_as_it_is_and_of_the_training_that_is_named(
    config_source, generation_source, extractors, timed, capsys, tmp_path
):
    """Two tokenizers of one file's name, one of them called as the generator is told."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vae.py").write_text(config_source(stages=[dict(name="all", steps=3)]))
    (tmp_path / "generator.py").write_text(generation_source(steps=2))
    lines = dict(tokenizers=dict(generator="one/vae.py", other="two/vae.py"), generator="generator.py")
    lines |= dict(
        extractors=["tiny_extractor.TinyExtractor"], reference_encoder="ldm_cnn", work_dir=str(tmp_path / "w")
    )
    (tmp_path / "comparison.py").write_text("".join(f"{key} = {value!r}\n" for key, value in lines.items()))

    def told():
        state_budget(read_comparison(tmp_path / "comparison.py"))
        printed = capsys.readouterr().out
        rows = [line.split() for line in printed.splitlines() if line.count("│") > 3]
        return [row[-2] for row in rows if "images" not in row], printed

    hours, printed = told()
    assert hours == ["3.00", "3.00", "20.00"]
    assert "about 46.0 hours here" in printed
    assert told()[0] == hours
    assert len(timed) == 1
    for name in ("one", "two"):
        (tmp_path / name / "vae.py").write_text(config_source(stages=[dict(name="all", steps=5)]))
    assert told()[0] == ["5.00", "5.00", "20.00"]
    assert len(timed) == 2
