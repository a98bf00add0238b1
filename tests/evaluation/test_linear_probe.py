"""The linear probe: the paper's protocol, the same result however its features are had and by how many processes."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import aligntok
from aligntok.cli import evaluate
from aligntok.data.images import ImageDataset
from aligntok.errors import ConfigError, DataError
from aligntok.evaluation.linear_probe import linear_probe, match_classes
from aligntok.evaluation.results import read_result, result_folder
from aligntok.evaluation.settings import ProbeSettings

COUNTS = dict(train=10, val=4)  # images of a class
OPTIONS = dict(image_size=32, workers=0, encode_batch_size=7, batch_size=16, epochs=2, lr=3e-3)


@pytest.fixture(scope="module")
def found(tiny_tokenizer, labelled, tmp_path_factory):
    """The folder of a probe whose features are kept in memory, and its result."""
    folder = tmp_path_factory.mktemp("probe") / "out"
    return folder, linear_probe(ProbeSettings(tokenizer=tiny_tokenizer, data=labelled, out=folder, **OPTIONS))


def numbers(result):
    return [list(row.values()) for row in result.tables["Epochs"]]


def by_hand(tokenizer, root, change=lambda train, val: (train, val), epochs=2, batch_size=16, lr=3e-3):
    """The same probe, written down plainly: returns a row an epoch."""
    tokenizer = aligntok.load_tokenizer(tokenizer)
    sets = [ImageDataset(root, 32, train=False, split=split) for split in ("train", "val")]
    labels = [torch.arange(6).repeat_interleave(count) for count in COUNTS.values()]
    with torch.no_grad():
        latents = [torch.cat([tokenizer.encode(item["images"][None]) for item in images]) for images in sets]
    train, val = change(*latents)
    torch.manual_seed(0)
    linear = torch.nn.Linear(train[0].numel(), 6)
    optimizer, generator, rows = torch.optim.Adam(linear.parameters(), lr=lr), torch.Generator().manual_seed(0), []
    for epoch in range(epochs):
        losses, right = 0.0, 0
        for batch in torch.randperm(len(train), generator=generator).split(batch_size):
            logits = linear(train[batch].flatten(1))
            loss = F.cross_entropy(logits, labels[0][batch])
            losses += float(loss.detach()) * len(batch)
            right += int((logits.argmax(1) == labels[0][batch]).sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        best = linear(val.flatten(1)).topk(5).indices == labels[1][:, None]
        top1, top5 = float(best[:, 0].float().mean()), float(best.any(1).float().mean())
        rows.append([epoch + 1, losses / len(train), right / len(train), top1, top5])
    return rows


def test_a_probe_is_one_linear_layer_on_the_whole_frozen_latent(found, tiny_tokenizer, labelled):
    for row, expected in zip(numbers(found[1]), by_hand(tiny_tokenizer, labelled), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    assert found[1].settings["features_dim"] == 4 * 4 * 4
    assert found[1].metrics == dict(zip(("top1", "top5"), numbers(found[1])[-1][3:], strict=True))
    assert found[1].metrics["top5"] > found[1].metrics["top1"] > 0.3  # chance is 1 in 6


def test_means_over_positions_are_the_other_input(tiny_tokenizer, labelled, tmp_path):
    result = linear_probe(ProbeSettings(tokenizer=tiny_tokenizer, data=labelled, out=tmp_path, pool=True, **OPTIONS))
    expected = by_hand(tiny_tokenizer, labelled, lambda *latents: [x.mean(dim=(2, 3)) for x in latents])
    for row, values in zip(numbers(result), expected, strict=True):
        assert row == pytest.approx(values, rel=1e-4)
    assert result.settings["features_dim"] == 4


@pytest.mark.parametrize("memory_gb", [16.0, 0.0])
def test_standardized_features_have_the_training_images_mean_and_deviation(
    tiny_tokenizer, labelled, tmp_path, memory_gb
):
    def change(train, val):
        mean, deviation = train.mean(0), train.std(0, correction=0)
        return (train - mean) / deviation, (val - mean) / deviation

    result = linear_probe(
        ProbeSettings(
            tokenizer=tiny_tokenizer, data=labelled, out=tmp_path, standardize=True, memory_gb=memory_gb, **OPTIONS
        )
    )
    for row, values in zip(numbers(result), by_hand(tiny_tokenizer, labelled, change), strict=True):
        assert row == pytest.approx(values, rel=1e-3)


def test_features_encoded_anew_give_the_same_result(found, tiny_tokenizer, labelled, tmp_path, capsys):
    result = linear_probe(
        ProbeSettings(tokenizer=tiny_tokenizer, data=labelled, out=tmp_path, memory_gb=0.0, **OPTIONS)
    )
    assert "encoded anew each epoch" in capsys.readouterr().err
    for row, expected in zip(numbers(result), numbers(found[1]), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_a_result_says_what_it_is_of_and_has_a_report(found):
    settings = found[1].settings
    assert (settings["images"], settings["train_images"], settings["classes"]) == (24, 60, 6)
    assert (settings["optimizer"], settings["augmentation"]) == ("Adam", None)
    assert read_result(found[0] / "linear_probe.json") == found[1]
    assert (found[0] / "report.html").is_file()
    assert list(found[0].glob("events.out.tfevents.*"))


def test_seeds_differ_and_repeat(found, tiny_tokenizer, labelled, tmp_path):
    again = linear_probe(ProbeSettings(tokenizer=tiny_tokenizer, data=labelled, out=tmp_path / "a", **OPTIONS))
    other = linear_probe(ProbeSettings(tokenizer=tiny_tokenizer, data=labelled, out=tmp_path / "b", seed=1, **OPTIONS))
    assert numbers(again) == numbers(found[1])
    assert numbers(other)[0][1] != numbers(found[1])[0][1]


def test_the_commands_defaults_are_the_papers_protocol():
    given = ProbeSettings(tokenizer="tokenizer", data="data")
    assert (given.epochs, given.lr, given.batch_size, given.pool, given.standardize) == (3, 1e-3, 256, False, False)


def test_the_command_hands_its_options_on(tiny_tokenizer, labelled, tmp_path, capsys):
    words = [str(tiny_tokenizer), str(labelled), "--out", str(tmp_path), "--image-size", "32", "--num-train", "30"]
    assert evaluate(["linear-probe", *words, "--num-val", "12", "--workers", "0", "--epochs", "1"]) == 0
    settings = read_result(tmp_path / "linear_probe.json").settings
    assert (settings["train_images"], settings["images"], settings["epochs"]) == (30, 12, 1)
    assert "Epoch 1/1: training loss " in capsys.readouterr().err


# What cannot be probed


@pytest.mark.parametrize("memory_gb", [16.0, 0.0])
def test_an_unreadable_image_is_left_out_and_more_are_an_error(tiny_tokenizer, labelled, tmp_path, memory_gb):
    shutil.copytree(labelled, tmp_path / "data")
    (tmp_path / "data/train/bee/3.png").write_bytes(b"")
    result = linear_probe(
        ProbeSettings(
            tokenizer=tiny_tokenizer, data=tmp_path / "data", out=tmp_path / "out", memory_gb=memory_gb, **OPTIONS
        )
    )
    assert 0 < numbers(result)[0][1] < 10
    assert [result.settings[name] for name in ("train_images", "train_unreadable", "unreadable")] == [59, 1, 0]
    (tmp_path / "data/train/bee/4.png").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read .named above., more than 1 %"):
        linear_probe(
            ProbeSettings(
                tokenizer=tiny_tokenizer, data=tmp_path / "data", out=tmp_path / "out", memory_gb=memory_gb, **OPTIONS
            )
        )


@pytest.mark.parametrize("memory_gb", [16.0, 0.0])
@pytest.mark.parametrize("num_val", [24, 1])
def test_images_are_those_that_were_read_and_of_none_there_is_no_number(
    tiny_tokenizer, labelled, tmp_path, memory_gb, num_val
):
    shutil.copytree(labelled, tmp_path / "data")
    (tmp_path / "data/val/ant/0.png").write_bytes(b"")
    how = dict(tokenizer=tiny_tokenizer, data=tmp_path / "data", out=tmp_path / "out", memory_gb=memory_gb)
    asked = ProbeSettings(**how, **{**OPTIONS, "num_val": num_val})
    if num_val == 1:
        with pytest.raises(DataError, match="cannot be read"):
            linear_probe(asked)
        return
    assert [linear_probe(asked).settings[name] for name in ("images", "unreadable", "train_images")] == [23, 1, 60]


def test_an_unreadable_image_changes_the_result_alike_either_way(tiny_tokenizer, labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "data")
    (tmp_path / "data/train/bee/3.png").write_bytes(b"")
    kept, anew = (
        linear_probe(
            ProbeSettings(
                tokenizer=tiny_tokenizer, data=tmp_path / "data", out=tmp_path / "out", memory_gb=memory, **OPTIONS
            )
        )
        for memory in (16.0, 0.0)
    )
    for row, expected in zip(numbers(anew), numbers(kept), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_classes_that_one_split_alone_has_are_an_error(tiny_tokenizer, labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "data")
    (tmp_path / "data/val/fox").rename(tmp_path / "data/val/gnu")
    with pytest.raises(DataError, match="2 classes are in one split alone, such as 'fox' in .*train and not in .*val"):
        linear_probe(ProbeSettings(tokenizer=tiny_tokenizer, data=tmp_path / "data", out=tmp_path / "out", **OPTIONS))


def test_images_without_classes_are_an_error(tiny_tokenizer, photographs, tmp_path):
    with pytest.raises(DataError, match="20 images have no class; a linear probe needs one for each"):
        linear_probe(ProbeSettings(tokenizer=tiny_tokenizer, data=photographs, out=tmp_path, **OPTIONS))


def source(labels, names=()):
    return SimpleNamespace(where="data", labels=np.array(labels, dtype=np.int32), class_names=tuple(names))


def test_classes_are_matched_by_name_and_numbers_where_there_are_none():
    names, train, val = match_classes(source([0, 1], ("b", "a")), source([0, 1], ("a", "b")))
    assert (names, train.tolist(), val.tolist()) == (["a", "b"], [1, 0], [0, 1])
    names, train, val = match_classes(source([0, 4]), source([2, 1]))
    assert (names, train.tolist(), val.tolist()) == (list("01234"), [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(val_split="train"), "train_split and val_split are both 'train'"),
        (dict(lr=0.0), "ProbeSettings: lr=0.0; it must be int or float above 0"),
        (dict(memory_gb=-1.0), "ProbeSettings: memory_gb=-1.0; it must be int or float of at least 0"),
        (dict(epochs=0), "ProbeSettings: epochs=0; it must be int of at least 1"),
        (dict(precision="int8"), "precision='int8'; it must be 'fp32', 'tf32'"),
        (dict(image_size=33), "must be multiples of f = 8"),
    ],
)
def test_options_that_cannot_be_are_told_at_once(tiny_tokenizer, labelled, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        linear_probe(
            ProbeSettings(tokenizer=tiny_tokenizer, data=labelled, out=tmp_path / "out", **{**OPTIONS, **change})
        )
    assert not (tmp_path / "out").exists()


def test_latents_that_are_not_finite_are_an_error(tiny_tokenizer, labelled, tmp_path):
    tokenizer = aligntok.load_tokenizer(tiny_tokenizer)
    with torch.no_grad():
        next(iter(tokenizer.adapter.parameters())).fill_(torch.nan)
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(DataError, match="the latents are not finite in fp32"):
        linear_probe(ProbeSettings(tokenizer=tmp_path / "broken", data=labelled, out=tmp_path / "out", **OPTIONS))


# Where results go


def test_a_result_goes_into_the_tokenizers_folder_or_the_current_one(tmp_path):
    (tmp_path / "vavae.pt").touch()
    assert result_folder(None, tmp_path, "linear_probe") == tmp_path / "evaluation" / "linear_probe"
    assert str(result_folder(None, tmp_path / "vavae.pt", "linear_probe")) == "evaluation/vavae/linear_probe"
    assert str(result_folder(None, "owner/name", "cost")) == "evaluation/owner_name/cost"
    assert result_folder(tmp_path / "out", "owner/name", "cost") == tmp_path / "out"
