"""Every evaluation gives in two processes what it gives in one: the same program, started either way."""

from __future__ import annotations

import os
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from aligntok.evaluation.results import read_result

PROGRAM = """
import sys
import torch
from aligntok.cli import evaluate
from aligntok.evaluation.latent_analysis import analyze_latents
from aligntok.evaluation.linear_probe import linear_probe
from aligntok.evaluation.settings import LatentAnalysis, ProbeSettings

tokenizer, photographs, labelled, real, samples, extractor, out = sys.argv[1:]
few = ["--image-size", "32", "--workers", "0", "--extractor", extractor, "--batch-size"]
words = ["reconstruction", tokenizer, photographs, "--split", "train", "--perceptual", "l1", *few, "3"]
assert evaluate([*words, "--out", out + "/reconstruction"]) == 0

reference = out + "/real.safetensors"
assert evaluate(["make-reference", real, reference, *few, "4"]) == 0
words = ["generation", samples, "--reference", reference, *few[2:], "7"]
assert evaluate([*words, "--out", out + "/generation"]) == 0

options = dict(data=labelled, image_size=32, workers=0)
for name, memory_gb in (("kept", 16), ("anew", 0)):
    more = dict(encode_batch_size=7, batch_size=16, epochs=2, lr=3e-3, memory_gb=memory_gb, out=out + "/" + name)
    linear_probe(ProbeSettings(tokenizer=tokenizer, **more, **options))

torch.manual_seed(0)  # for the reference encoder's weights
few = dict(depth=1, embed_dim=24, num_heads=2)
encoder = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False, model_args=few)
more = dict(split="val", topk=4, tsne_points=20, seeds=(0, 1), pca_images=3, batch_size=5, out=out + "/latents")
analyze_latents(LatentAnalysis(tokenizers=[tokenizer], encoder=encoder, **more, **options))
"""
RESULTS = {
    "reconstruction": "reconstruction",
    "generation": "generation",
    "kept": "linear_probe",
    "anew": "linear_probe",
    "latents": "latent_space",
}


@pytest.fixture(scope="module")
def folders(tiny_tokenizer, photographs, labelled, pictures, tiny_extractor, extractors, warm, tmp_path_factory):
    """What the program wrote in one process, which read samples as pictures, and in two, which read an array."""
    root = tmp_path_factory.mktemp("processes")
    (root / "program.py").write_text(PROGRAM)
    paths = sorted((pictures / "drawn").glob("*.png"))
    np.savez(root / "samples.npz", np.stack([np.array(Image.open(path)) for path in paths]))
    given = [str(each) for each in (tiny_tokenizer, photographs, labelled, pictures / "real")]
    one = ["program.py", *given, str(pictures / "drawn"), tiny_extractor, str(root / "one")]
    two = ["program.py", *given, str(root / "samples.npz"), tiny_extractor, str(root / "two")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", one)
        runpy.run_path(str(root / "program.py"))
    path = os.pathsep.join([str(extractors), *filter(None, [os.environ.get("PYTHONPATH")])])
    printed = warm.together(2, root / "program.py", *two[1:], env={"PYTHONPATH": path})
    (root / "printed").write_text("".join(printed))
    return root


def results(folders, name):
    return [read_result(folders / each / name / f"{RESULTS[name]}.json") for each in ("one", "two")]


@pytest.mark.parametrize("name", RESULTS)
def test_two_processes_give_the_numbers_of_one(folders, name):
    """Only a probe's differ in rounding: its sums of gradients are rounded otherwise, and so its losses."""
    one, two = results(folders, name)
    assert two.metrics == pytest.approx(one.metrics, rel=1e-6)
    if name != "generation":  # of pictures and of an array
        assert two.settings == one.settings


def test_the_table_of_images_is_the_same(folders):
    one, two = ((folders / each / "reconstruction" / "per_image.csv").read_text() for each in ("one", "two"))
    assert len(one.splitlines()) == 21
    assert two == one


@pytest.mark.parametrize("name", ["kept", "anew"])
def test_a_probe_is_trained_alike(folders, name):
    one, two = ([list(row.values()) for row in each.tables["Epochs"]] for each in results(folders, name))
    for row, expected in zip(two, one, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_the_first_process_alone_prints(folders):
    assert (folders / "printed").read_text().count("Epoch 2/2") == 2  # of two probes


def test_latents_their_maps_and_pictures_are_the_same(folders):
    """The same batches, so the same latents to the last bit, and the same t-SNE."""
    one, two = results(folders, "latents")
    assert two.tables["Density on each t-SNE"] == one.tables["Density on each t-SNE"]
    assert len(one.pictures) == 3
    for name in one.pictures.values():
        images = [(folders / each / "latents" / name).read_bytes() for each in ("one", "two")]
        assert images[0] == images[1], name
