"""Reading weights and putting them into a module: what is checked, what is refused."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from aligntok.errors import WeightsError
from aligntok.weights.load import load_into, read_tensors, weights_hash


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in the file was run')",))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 1},
        lambda t: {"model": {"a": torch.zeros(2)}, "state_dict_ema": t},
        lambda t: {"model": {"a": torch.zeros(2)}, "ema": t, "opt": {"step": 1}},
        lambda t: {"teacher": {"model": {f"module._orig_mod.{key}": value for key, value in t.items()}}},
    ],
)
def test_tensors_are_read_from_torch_files_however_nested(tmp_path, wrap):
    torch.save(wrap({"a": torch.ones(2), "step": 3}), tmp_path / "w.pt")
    assert {k: v.tolist() for k, v in read_tensors(tmp_path / "w.pt", "X").items()} == {"a": [1.0, 1.0]}


def test_tensors_are_read_from_safetensors(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert list(read_tensors(tmp_path / "w.safetensors", "X")) == ["a"]


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=rf"Who: .*{name} cannot be read as weights"):
        read_tensors(tmp_path / name, "Who")


def test_no_file_runs_code(tmp_path):
    torch.save({"a": Hostile()}, tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name in ("new.pt", "old.pt"):
        with pytest.raises(WeightsError, match="cannot be read"):
            read_tensors(tmp_path / name, "X")


@pytest.mark.parametrize(("content", "said"), [([torch.ones(1)], "holds a list"), ({"epoch": 1}, "holds no tensors")])
def test_something_else_is_not_a_state_dict(tmp_path, content, said):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=said):
        read_tensors(tmp_path / "w.pt", "X")


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match=r"Who: no weights at .*absent\.pt; place the file there"):
        read_tensors(tmp_path / "absent.pt", "Who")


def test_what_does_not_fit_is_listed():
    given = {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"missing bias; unknown extra; weight is \(3, 2\), not \(2, 2\)"):
        load_into(nn.Linear(2, 2), given, "X", "w.pt")


@pytest.fixture
def filled():
    layers = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    for i, (_, tensor) in enumerate(sorted(layers.state_dict().items())):
        tensor.copy_((torch.arange(tensor.numel()) + i).view(tensor.shape) % 7)
    return layers


def test_a_hash_is_what_it_always_was(filled):
    """Caches and samples of earlier versions name it."""
    config = {"b": [1], "a": None}
    assert weights_hash(config, filled) == "de25d270d7af6371c3463ad48206c5c04bbc45563afe33d25ee3518efd7a4bf9"
    reordered = dict(reversed(config.items()))
    assert weights_hash(reordered, filled) == weights_hash(config, filled)


def test_a_hash_follows_from_config_names_and_every_number(filled):
    own = weights_hash({}, encoder=filled, adapter=nn.Identity())
    assert own == weights_hash({}, encoder=copy.deepcopy(filled))
    others = [weights_hash({"a": 1}, encoder=filled), weights_hash({}, adapter=filled), weights_hash({}, filled)]
    filled[0].weight.data[0, 0] += 1
    assert len({own, *others, weights_hash({}, encoder=filled)}) == 5


@pytest.mark.parametrize("kept", ["0.weight", "1.weight"])
def test_one_name_of_a_tied_weight_is_enough(kept):
    def tied():
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        module[1].weight = module[0].weight
        return module

    given, module = tied(), tied()
    state = {name: value for name, value in given.state_dict().items() if "weight" not in name or name == kept}
    load_into(module, state, "X", "w.pt")
    assert torch.equal(module[1].weight, given[0].weight)
    del state[kept]
    with pytest.raises(WeightsError, match=r"missing 0\.weight"):
        load_into(module, state, "X", "w.pt")
