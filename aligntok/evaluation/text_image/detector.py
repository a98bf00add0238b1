"""A Mask2Former of transformers as GenEval's detector; its weights are not those that GenEval was published with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch import nn

from aligntok.errors import WeightsError
from aligntok.evaluation.text_image.geneval import COCO, CONFIDENT, Found
from aligntok.evaluation.text_image.scorers import Source
from aligntok.weights.names import CONFIG, PROCESSOR
from aligntok.weights.transformers import build_model, load_processor, read_config, read_weights, tokenizer_files

_LOGITS = ("class_queries_logits", "masks_queries_logits")


class Detector(nn.Module):
    """What is in a picture: instances with a confidence of 0.3 or more, a class and a mask each.

    folder: of the model and its image processor. Of 80 classes the names are COCO's, in their order, whatever the
    config calls them; else the config's. Raises WeightsError for files of another kind of model.
    """

    def __init__(self, folder: Path, who: str) -> None:
        super().__init__()
        config = read_config(folder, who)
        classes = {"mask2former": "Mask2FormerForUniversalSegmentation"}
        weights = read_weights(folder, who)
        self.model = build_model(config, classes, weights, torch.float32, who, given="pixel_values")
        names = self.model.config.id2label
        self.classes = COCO if len(names) == len(COCO) else tuple(names[place] for place in sorted(names))
        held = tokenizer_files(folder, who, [CONFIG, *PROCESSOR[:2]])
        self.processor = load_processor(held, folder, who, "AutoImageProcessor")
        if not hasattr(self.processor, "post_process_instance_segmentation"):
            raise WeightsError(
                f"{who}: the processor in {folder} is a {type(self.processor).__name__}, which finds no objects; copy "
                f"{PROCESSOR[0]} there from where the model is from"
            )
        self.source = Source.of(folder, who)
        self.eval().requires_grad_(False)

    def forward(self, image: Image.Image) -> Sequence[Found]:
        """Return the instances in a picture, of any confidence from 0.3 on."""
        where = next(self.model.parameters()).device
        inputs = self.processor(images=[image], return_tensors="pt")
        given = {name: inputs[name].to(where) for name in ("pixel_values", "pixel_mask") if name in inputs}
        found = {name: each.cpu() for name, each in self.model(**given).items() if name in _LOGITS}
        (made,) = self.processor.post_process_instance_segmentation(  # it makes its own tensors on the CPU
            SimpleNamespace(**found),
            threshold=CONFIDENT,
            target_sizes=[(image.height, image.width)],
            return_binary_maps=True,
        )
        kept = made["segments_info"]  # where it is empty, the maps are something else
        masks = [made["segmentation"][place].bool().cpu() for place in range(len(kept))]
        return [
            Found(self.classes[each["label_id"]], float(each["score"]), box_of(mask), mask)
            for each, mask in zip(kept, masks, strict=True)
        ]


def box_of(mask: torch.Tensor) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) around the pixels of a mask (H, W), of which there is one or more."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
