"""The weights of timm's models: from files of any kind, and from files that do not fit."""

from __future__ import annotations

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from aligntok.encoders.timm import SigLIP2Encoder, TimmEncoder, build_backbone
from aligntok.errors import WeightsError
from aligntok.ops.embeddings import resample_position_grid
from aligntok.weights.libraries import create_timm

TINY = "vit_tiny_patch16_224"
SHORT = {"depth": 2}


def saved(path, model_name=TINY, wrap=None, **options):
    """Save random weights of a timm model at `path` and return them."""
    tensors = timm.create_model(model_name, **{**SHORT, **options}).state_dict()
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({wrap: tensors, "epoch": 3} if wrap else tensors, path)
    return tensors


def test_a_build_on_the_meta_device_asks_for_no_values_and_one_elsewhere_is_timms():
    class Asked(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    names: list = []
    with torch.device("meta"), Asked():
        made = create_timm(TINY, None, "", **SHORT)
    assert not {"erfinv_", "clamp_"} & {*names}
    with Asked():
        torch.manual_seed(0)
        ours = create_timm(TINY, None, "", **SHORT).state_dict()
    assert {"erfinv_", "clamp_"} <= {*names}
    torch.manual_seed(0)
    theirs = timm.create_model(TINY, **SHORT).state_dict()
    assert {key: each.shape for key, each in made.state_dict().items()} == {k: v.shape for k, v in theirs.items()}
    assert all(torch.equal(each, theirs[key]) for key, each in ours.items())


@pytest.mark.parametrize(
    ("file", "wrap", "classes"),
    [("a.safetensors", None, 0), ("a.bin", None, 10), ("a.pth", "state_dict", 0), ("a.pth", "model", 1000)],
)
def test_a_local_file_is_loaded_whatever_its_format_and_head(tmp_path, file, wrap, classes):
    given = saved(tmp_path / file, wrap=wrap, num_classes=classes)
    own = TimmEncoder(TINY, pretrained=str(tmp_path / file), model_args=SHORT).backbone.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in own.items())


def test_a_cnns_local_file_is_loaded_with_its_batch_norm_statistics(tmp_path):
    model = timm.create_model("resnet18")
    model.bn1.running_mean += 3
    save_file(model.state_dict(), tmp_path / "r.safetensors")
    encoder = TimmEncoder("resnet18", pretrained=tmp_path / "r.safetensors")
    assert torch.equal(encoder.backbone.bn1.running_mean, model.bn1.running_mean)


def test_position_tables_are_resampled_to_the_models_grid(tmp_path):
    given = saved(tmp_path / "a.safetensors", num_classes=0)
    encoder = TimmEncoder(TINY, pretrained=str(tmp_path / "a.safetensors"), image_size=64, model_args=SHORT)
    table = encoder.backbone.pos_embed
    assert table.shape == (1, 1 + 4 * 4, 192)
    assert torch.equal(table[:, 0], given["pos_embed"][:, 0])
    expected = resample_position_grid(given["pos_embed"][0], (4, 4))
    torch.testing.assert_close(table[0], expected, rtol=1e-4, atol=1e-5)


def test_the_weights_are_not_kept_twice(tmp_path):
    saved(tmp_path / "a.safetensors", num_classes=0)
    encoder = TimmEncoder(TINY, pretrained=str(tmp_path / "a.safetensors"), model_args=SHORT)
    assert "state_dict" not in encoder.backbone.pretrained_cfg


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_256", "vit_base_patch16_siglip_gap_256"])
def test_siglip2_loads_files_with_and_without_the_attention_pooling(tmp_path, name):
    given = saved(tmp_path / "s.safetensors", name, num_classes=0, depth=1)
    encoder = SigLIP2Encoder("base", pretrained=str(tmp_path / "s.safetensors"), model_args={"depth": 1})
    assert all(torch.equal(value, given[key]) for key, value in encoder.backbone.state_dict().items())


@pytest.mark.parametrize("name", [TINY, "vit_base_patch16_siglip_gap_256", "resnet18"])
def test_a_file_of_something_else_never_loads(tmp_path, name):
    save_file({"foo.weight": torch.zeros(3)}, tmp_path / "f.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit \(missing .*; unknown foo\.weight\); check"):
        TimmEncoder(name, pretrained=str(tmp_path / "f.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 96}, r"pos_embed is \(1, 197, 96\), not \(1, 197, 192\)"),
        ({"depth": 3}, r"unknown blocks\.2\."),
        ({"depth": 1}, r"missing blocks\.1\."),
    ],
)
def test_a_file_of_another_size_is_refused_with_both_sides(tmp_path, options, message):
    saved(tmp_path / "a.safetensors", **options)
    with pytest.raises(WeightsError, match=f"a.safetensors does not fit .*{message}"):
        TimmEncoder(TINY, pretrained=str(tmp_path / "a.safetensors"), model_args=SHORT)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights at .*nothing\.pth"):
        TimmEncoder(TINY, pretrained=str(tmp_path / "nothing.pth"))
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(WeightsError, match=f"{name} cannot be read as weights"):
            TimmEncoder(TINY, pretrained=str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        TimmEncoder(TINY, pretrained=str(tmp_path / "list.pth"))


class Hostile:
    """Unpickling it calls what it names."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_a_file_that_would_run_code_is_refused_unrun(tmp_path, save):
    save({"x": torch.zeros(1), "y": Hostile(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        TimmEncoder(TINY, pretrained=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_a_model_without_published_weights_says_so():
    with pytest.raises(WeightsError, match="no weights are published"):
        TimmEncoder("vit_base_patch16_gap_224")


def test_an_original_checkpoint_is_converted_by_timms_own_rules():
    tensors = timm.create_model(TINY, depth=1, num_classes=0).state_dict()
    original = {f"visual.trunk.{key}": value for key, value in tensors.items()}
    own = build_backbone(TINY, original, "file", model_args={"depth": 1}).state_dict()
    assert all(torch.equal(value, tensors[key]) for key, value in own.items())
