"""GenEval's detector: what it finds is what transformers' own post-processing gives, and nothing is no error."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

from aligntok.errors import WeightsError
from aligntok.evaluation.text_image import detector as room
from aligntok.evaluation.text_image.detector import Detector
from aligntok.evaluation.text_image.geneval import COCO, GenEval
from aligntok.evaluation.text_image.scorers import Sample

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def mask2former(detector_folder):
    return Detector(detector_folder, "geneval")


def test_the_detector_finds_what_the_library_does(mask2former, detector_folder, monkeypatch):
    monkeypatch.setattr(room, "CONFIDENT", 0.0)  # it is sure of nothing
    image = Image.radial_gradient("L").resize((80, 64)).convert("RGB")
    with torch.inference_mode():
        ours = mask2former(image)
        model = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(detector_folder).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(detector_folder)
        made = model(**processor(images=[image], return_tensors="pt"))
    (theirs,) = processor.post_process_instance_segmentation(
        made, threshold=0.0, target_sizes=[(64, 80)], return_binary_maps=True
    )
    assert len(ours) == len(theirs["segments_info"]) > 0
    for each, info, mask in zip(ours, theirs["segments_info"], theirs["segmentation"], strict=True):
        assert each.name == COCO[info["label_id"]]
        assert each.score == pytest.approx(info["score"], abs=1e-5)
        assert torch.equal(each.mask, mask.bool())
        rows, columns = torch.where(mask.bool())
        assert each.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_detector_that_finds_nothing_gives_no_points_and_no_error(mask2former):
    scorer = GenEval(mask2former, lambda image, found: ["red"], mask2former.classes, [mask2former.source])
    task = {"tag": "colors", "include": [{"class": "apple", "count": 1, "color": "red"}]}
    with torch.inference_mode():
        found = scorer([scorer.see(Image.new("RGB", (100, 100), "white"))], [Sample("", "a", 0, "colors", [task], "")])
    assert found.tolist() == [[0.0]]
    assert scorer.columns[0].startswith("GenEval (HF)-tiny-mask2former-")


def test_a_folder_of_another_kind_of_model_is_refused(detector_folder, clip_folder, tmp_path):
    with pytest.raises(WeightsError, match="geneval: its config.json has model_type='clip'; it takes mask2former"):
        Detector(clip_folder, "geneval")
    copy = shutil.copytree(detector_folder, tmp_path / "copy")
    transformers.CLIPImageProcessor().save_pretrained(copy)
    with pytest.raises(
        WeightsError, match="geneval: the processor in .* is a CLIPImageProcessor.*, which finds no objects"
    ):
        Detector(copy, "geneval")
