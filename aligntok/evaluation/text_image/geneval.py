"""GenEval's rules (Ghosh et al. 2023): which objects a prompt asks for, and whether those that were found are they."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from aligntok.errors import DataError, some_of
from aligntok.evaluation.text_image.scorers import CLIP, Sample, Scorer, Source, covered, untouched

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
CONFIDENT, CONFIDENT_OF_COUNTS = 0.3, 0.9  # above which an object counts
MOST = 16  # objects of a class
APART = 0.1  # of the sum of two objects' sides by which they are no way apart
GREY = (153, 153, 153)  # beside an object whose colour is asked for
#: COCO's 80 classes in their order, as GenEval's prompts call them.
COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant"),
    *("bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard"),
    *("sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli"),
    *("carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    *("tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster"),
    *("sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
_Number = Annotated[int, Field(ge=1, le=1000)]
_Unwanted = TypedDict("_Unwanted", {"class": str, "count": _Number})
_Wanted = TypedDict(
    "_Wanted",
    {
        "class": str,
        "count": _Number,
        "color": NotRequired[Literal[COLOURS]],  # type: ignore[valid-type]
        "position": NotRequired[tuple[Literal["left of", "right of", "above", "below"], int]],
    },
)


class Task(TypedDict):
    """What a line of GenEval's file says of a prompt."""

    tag: Literal[TASKS]  # type: ignore[valid-type]
    include: list[_Wanted]
    exclude: NotRequired[list[_Unwanted]]


_TASK = TypeAdapter(Task)


class Found(NamedTuple):
    """An object: its class, how sure that is, its box (left, top, right, bottom) and its pixels, bool (H, W)."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: Tensor


def read_task(said: Mapping[str, Any]) -> Task:
    """Return what a line says. Raises ValueError for what is no task of GenEval."""
    try:
        task: Task = _TASK.validate_python(dict(said))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for place, wanted in enumerate(task["include"]):
        if "position" in wanted and not 0 <= wanted["position"][1] < place:
            raise ValueError(f"include.{place}.position: {wanted['position'][1]} is no object before it")
    return task


def counted(found: Sequence[Found], tag: str) -> dict[str, list[Found]]:
    """Return the objects that count by class, the surest first, at most MOST of a class."""
    least = CONFIDENT_OF_COUNTS if tag == "counting" else CONFIDENT
    kept: dict[str, list[Found]] = {}
    for each in sorted(found, key=lambda each: -each.score):
        if each.score > least and len(kept.setdefault(each.name, [])) < MOST:
            kept[each.name].append(each)
    return kept


def is_shown(
    task: Task, objects: Mapping[str, Sequence[Found]], colours: Callable[[Sequence[Found]], Sequence[str]]
) -> bool:
    """Tell whether objects by class, the surest first, are what a task asks for; `colours` tells those of some.

    Of each class that is wanted only the surest, as many as are wanted, are looked at.
    """
    groups: list[Sequence[Found] | None] = []
    for wanted in task["include"]:
        group = objects.get(wanted["class"], ())[: wanted["count"]]
        fits = len(group) == wanted["count"]
        if fits and "color" in wanted:
            fits = all(colour == wanted["color"] for colour in colours(group))
        if fits and "position" in wanted:
            relation, target = wanted["position"]
            others = groups[target]
            fits = others is not None and all(relation in relations(a, b) for a in group for b in others)
        groups.append(group if fits else None)
    unwanted = task.get("exclude", [])
    too_many = any(len(objects.get(each["class"], ())) >= each["count"] for each in unwanted)
    return None not in groups and not too_many


def relations(a: Found, b: Found) -> set[str]:
    """Return where an object is, seen from another: left of, right of, above, below it, or nothing of these.

    The offset of the centres, made smaller by a tenth of both sides, over the whole offset, is beyond half.
    """
    (ax, aw), (ay, ah) = _middle_and_side(a.box, 0), _middle_and_side(a.box, 1)
    (bx, bw), (by, bh) = _middle_and_side(b.box, 0), _middle_and_side(b.box, 1)
    across, down = ax - bx, ay - by
    left = math.copysign(max(abs(across) - APART * (aw + bw), 0), across)
    top = math.copysign(max(abs(down) - APART * (ah + bh), 0), down)
    if abs(left) < 1e-3 and abs(top) < 1e-3:
        return set()
    x, y = (each / math.hypot(across, down) for each in (left, top))
    is_so = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, so in is_so.items() if so}


def _middle_and_side(box: Sequence[float], axis: int) -> tuple[float, float]:
    return (box[axis] + box[axis + 2]) / 2, abs(box[axis + 2] - box[axis])


def cut_out(image: Image.Image, found: Found) -> Image.Image:
    """Return the box of an object, grey where it is not."""
    alone = Image.composite(image, Image.new("RGB", image.size, GREY), Image.fromarray(found.mask.numpy()))
    left, top, right, bottom = map(round, found.box)
    return alone.crop((left, top, right, bottom))


class Colours:
    """The colour of an object: which of ten a CLIP finds nearest, by three sentences about its class."""

    def __init__(self, clip: CLIP) -> None:
        self.clip = clip
        self._known: dict[str, Tensor] = {}

    def __call__(self, image: Image.Image, found: Sequence[Found]) -> list[str]:
        """Return the colour of each of some objects of one class in a picture."""
        name, where = found[0].name, self.clip.model.logit_scale.device
        if name not in self._known:
            texts = [each.format(colour, name) for colour in COLOURS for each in _TEMPLATES]
            means = self.clip.texts(texts).unflatten(0, (len(COLOURS), len(_TEMPLATES))).mean(1)
            self._known[name] = torch.nn.functional.normalize(means, dim=-1)  # (10, D)
        seen = torch.stack([covered(cut_out(image, each), self.clip.side) for each in found])
        nearest = (self.clip.images(seen.to(where)) @ self._known[name].T).argmax(1)
        return [COLOURS[place] for place in nearest.tolist()]


class GenEval(Scorer):
    """1 for a picture that shows what its prompt asks for, else 0; the score is the mean of the six tasks' means.

    detect: a picture to what is in it. sources: what that and the colours are on.
    """

    by_category = True

    def __init__(
        self,
        detect: Callable[[Image.Image], Sequence[Found]],
        colours: Callable[[Image.Image, Sequence[Found]], Sequence[str]],
        classes: Sequence[str],
        sources: Sequence[Source],
    ) -> None:
        super().__init__()
        self.detect, self.colours, self.classes, self.sources = detect, colours, set(classes), sources
        self.columns = (f"GenEval (HF)-{'+'.join(source.name for source in sources)}",)
        self.see, self.preprocessing = untouched, "the detector's own; colours of what is cut out, #999 around it"
        self.finish()

    def check(self, sample: Sample) -> None:
        """Raise DataError unless the first line about a prompt is a task, of classes that the detector knows."""
        try:
            task = read_task(sample.said[0])
        except ValueError as error:
            raise DataError(
                f"{sample.where} is no task of GenEval ({error}); give its evaluation_metadata.jsonl"
            ) from error
        names = {wanted["class"] for wanted in [*task["include"], *task.get("exclude", [])]}
        if strange := sorted(names - self.classes):
            raise DataError(
                f"{sample.where} asks for '{some_of(strange)}', a class that the detector does not know; it knows "
                f"{some_of(sorted(self.classes), 8)}"
            )

    def forward(self, seen: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        return torch.tensor([[float(self._shows(*pair))] for pair in zip(seen, samples, strict=True)])

    def _shows(self, pixels: Tensor, sample: Sample) -> bool:
        image, task = Image.fromarray(pixels.cpu().numpy()), read_task(sample.said[0])
        objects = counted(self.detect(image), task["tag"])
        return is_shown(task, objects, lambda found: self.colours(image, found))
