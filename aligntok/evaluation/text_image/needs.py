"""Which metrics there are, which weights each needs, and where these lie. Nothing here is slow to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from aligntok.errors import ConfigError, WeightsError, unknown
from aligntok.weights.names import CONFIG, PROCESSOR, VOCABULARIES, WEIGHTS

_MODEL = ((CONFIG,), WEIGHTS)
#: By the names that --weights has: what lies there, and of a folder the files, of each row one. None is ever fetched.
PLACES: dict[str, tuple[str, Sequence[Sequence[str]]]] = {
    "hpsv2": ("the file HPS_v2_compressed.pt", ()),
    "hpsv2.1": ("the file HPS_v2.1_compressed.pt", ()),
    "pickscore": ("the folder of PickScore_v1, with the tokenizer of CLIP-ViT-H-14", (*_MODEL, VOCABULARIES)),
    "imagereward": (
        "a folder with ImageReward.pt and the tokenizer of bert-base-uncased",
        (("ImageReward.pt",), VOCABULARIES),
    ),
    "aesthetic": ("the file sac+logos+ava1-l14-linearMSE.pth", ()),
    "clip": ("the folder of a CLIP model of transformers, such as clip-vit-large-patch14", (*_MODEL, VOCABULARIES)),
    "vqa": (
        "the folder of a model of transformers that answers questions about images, such as Qwen3-VL",
        (*_MODEL, VOCABULARIES, PROCESSOR[:2]),
    ),
    "detector": ("the folder of mask2former-swin-small-coco-instance or another Mask2Former", (*_MODEL, PROCESSOR[:2])),
}
#: The metrics, and the weights that each needs.
METRICS = {
    "hpsv2": ("hpsv2",),
    "hpsv2.1": ("hpsv2.1",),
    "pickscore": ("pickscore",),
    "imagereward": ("imagereward",),
    "aesthetic": ("aesthetic", "clip"),
    "clip": ("clip",),
    "vqascore": ("vqa",),
    "geneval": ("detector", "clip"),
    "geneval2": ("vqa",),
    "dpg": ("vqa",),
}
#: Metrics whose questions stand in a file of theirs, with what that is.
ASKING = {
    "geneval": "GenEval's evaluation_metadata.jsonl",
    "geneval2": "GenEval 2's geneval2_data.jsonl",
    "dpg": "DPG-Bench's dpg_bench.csv",
}


def check_weights(metrics: Sequence[str], given: Mapping[str, str]) -> None:
    """Raise ConfigError for weights that a metric needs and nobody gave, WeightsError for files that are not there."""
    for name in given:
        if name not in PLACES:
            raise ConfigError(f"--weights: {unknown('weights', name, PLACES)}")
    for metric, name in [(each, name) for each in metrics for name in METRICS[each]]:
        what, groups = PLACES[name]
        if name not in given:
            raise ConfigError(f"metric '{metric}' needs {what}; give --weights {name}=/path/to/it")
        path = Path(given[name]).expanduser()
        if not (path.is_dir() if groups else path.is_file()):
            raise WeightsError(
                f"metric '{metric}': there is no {'folder' if groups else 'file'} {path}; place {what} there, or say "
                f"where it is: --weights {name}=/path/to/it"
            )
        for names in groups:
            if not any((path / each).is_file() for each in names):
                raise WeightsError(f"metric '{metric}': {path} has no {' or '.join(names)}; it is to be {what}")
