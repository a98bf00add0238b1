"""GenEval's rules on drawn scenes whose answers are known, with a detector that looks at drawn shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from aligntok.errors import DataError
from aligntok.evaluation.text_image.geneval import (
    COCO,
    COLOURS,
    GREY,
    MOST,
    Colours,
    Found,
    GenEval,
    counted,
    cut_out,
    is_shown,
    read_task,
    relations,
)
from aligntok.evaluation.text_image.scorers import MEAN, STD, Sample, Source

PAINT = {
    **dict(red=(220, 20, 20), green=(20, 160, 40), blue=(30, 60, 220), yellow=(240, 220, 30), black=(5, 5, 5)),
    **dict(orange=(250, 140, 10), purple=(130, 30, 160), pink=(250, 150, 190), brown=(110, 70, 30)),
}
PAPER = (255, 255, 255)
SHAPES = {"book": ImageDraw.ImageDraw.rectangle, "apple": ImageDraw.ImageDraw.ellipse}


def draw(objects):
    """A picture of 100 x 100 of (class, colour, box), in that order, on white."""
    image = Image.new("RGB", (100, 100), PAPER)
    for name, colour, box, *_ in objects:
        SHAPES[name](ImageDraw.Draw(image), box, fill=PAINT[colour])
    return image


def detector(sure=()):
    """Finds what is not white, from the left to the right; what fills its box is a book."""

    def detect(image):
        pieces, number = ndimage.label((np.asarray(image) != 255).any(-1))
        found = []
        for place in range(1, number + 1):
            mask = pieces == place
            rows, columns = np.where(mask)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            filled = mask.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
            found.append(
                Found("book" if filled > 0.95 else "apple", 0.95, tuple(map(float, box)), torch.from_numpy(mask))
            )
        found.sort(key=lambda each: each.box)
        return [each._replace(score=score) for each, score in zip(found, [*sure, *[0.95] * 99], strict=False)]

    return detect


def tell_colours(image, found):
    """The nearest paint to the mean of what is cut out, without the grey around it."""
    told = []
    for each in found:
        pixels = np.asarray(cut_out(image, each)).reshape(-1, 3).astype(float)
        mean = pixels[(pixels != GREY).any(1)].mean(0)
        told.append(min(PAINT, key=lambda name: np.abs(mean - PAINT[name]).sum()))
    return told


def want(*include, exclude=(), tag="single_object"):
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def one(name, count=1, **more):
    return {"class": name, "count": count, **more}


LEFT, RIGHT, TOP, LOW = (5, 40, 25, 60), (70, 40, 90, 60), (40, 5, 60, 25), (40, 70, 60, 90)
RED, GREEN = ("apple", "red"), ("apple", "green")
BOOK = ("book", "blue")
three = [(*RED, (5, 40, 25, 60)), (*RED, (40, 40, 60, 60)), (*RED, (75, 40, 95, 60))]
counting = dict(exclude=[one("apple", 4)], tag="counting")
beside = {place: one("book", position=[place, 0]) for place in ("left of", "right of", "above", "below")}
#: What is drawn, what is asked for, whether it is shown, how sure the detector is from the left to the right.
SCENES = {
    "one object": ([(*RED, LEFT)], want(one("apple")), True),
    "another object": ([(*BOOK, LEFT)], want(one("apple")), False),
    "nothing": ([], want(one("apple")), False),
    "two of one that is asked for": ([(*RED, LEFT), (*RED, RIGHT)], want(one("apple")), True),
    "one that is not sure enough": ([(*RED, LEFT)], want(one("apple")), False, [0.3]),
    "one that is just sure enough": ([(*RED, LEFT)], want(one("apple")), True, [0.31]),
    "two objects": ([(*RED, LEFT), (*BOOK, RIGHT)], want(one("apple"), one("book"), tag="two_object"), True),
    "one of two objects": ([(*RED, LEFT)], want(one("apple"), one("book"), tag="two_object"), False),
    "three to count": (three, want(one("apple", 3), **counting), True),
    "two to count": (three[:2], want(one("apple", 3), **counting), False),
    "four to count": ([*three, (*RED, TOP)], want(one("apple", 3), **counting), False),
    "three and another": ([*three, (*BOOK, TOP)], want(one("apple", 3), **counting), True),
    "three, one unsure": (three, want(one("apple", 3), **counting), False, [0.95, 0.9, 0.95]),
    "three, sure enough": (three, want(one("apple", 3), **counting), True, [0.91, 0.91, 0.91]),
    "four, one unsure": ([*three, (*RED, TOP)], want(one("apple", 3), **counting), True, [0.95, 0.89, 0.95, 0.95]),
    "unsure where nothing is counted": (three, want(one("apple", 3)), True, [0.4, 0.5, 0.6]),
    "the colour": ([(*RED, LEFT)], want(one("apple", color="red"), tag="colors"), True),
    "another colour": ([(*GREEN, LEFT)], want(one("apple", color="red"), tag="colors"), False),
    "the colour of the surest": (
        [(*RED, LEFT), (*GREEN, RIGHT)],
        want(one("apple", color="red"), tag="colors"),
        True,
        [0.9, 0.5],
    ),
    "the colour of a less sure one": (
        [(*RED, LEFT), (*GREEN, RIGHT)],
        want(one("apple", color="red"), tag="colors"),
        False,
        [0.5, 0.9],
    ),
    "two of a colour": (
        [(*RED, LEFT), (*RED, RIGHT)],
        want(one("apple", 2, color="red"), tag="colors"),
        True,
    ),
    "one of two in the colour": (
        [(*RED, LEFT), (*GREEN, RIGHT)],
        want(one("apple", 2, color="red"), tag="colors"),
        False,
    ),
    "two colours": (
        [(*RED, LEFT), (*BOOK, RIGHT)],
        want(one("apple", color="red"), one("book", color="blue"), tag="color_attr"),
        True,
    ),
    "two colours changed": (
        [("apple", "blue", LEFT), ("book", "red", RIGHT)],
        want(one("apple", color="red"), one("book", color="blue"), tag="color_attr"),
        False,
    ),
    "left": ([(*RED, RIGHT), (*BOOK, LEFT)], want(one("apple"), beside["left of"], tag="position"), True),
    "not left": ([(*RED, LEFT), (*BOOK, RIGHT)], want(one("apple"), beside["left of"], tag="position"), False),
    "right": ([(*RED, LEFT), (*BOOK, RIGHT)], want(one("apple"), beside["right of"], tag="position"), True),
    "above": ([(*RED, LOW), (*BOOK, TOP)], want(one("apple"), beside["above"], tag="position"), True),
    "below": ([(*RED, TOP), (*BOOK, LOW)], want(one("apple"), beside["below"], tag="position"), True),
    "not below": ([(*RED, LOW), (*BOOK, TOP)], want(one("apple"), beside["below"], tag="position"), False),
    "both right and below": (
        [(*RED, (5, 5, 25, 25)), (*BOOK, (70, 70, 90, 90))],
        want(one("apple"), beside["right of"], tag="position"),
        True,
    ),
    "below in nearly one line": (
        [(*RED, (35, 5, 55, 25)), (*BOOK, (45, 70, 65, 90))],
        want(one("apple"), beside["right of"], tag="position"),
        False,
    ),
    "beside nothing": ([(*BOOK, LEFT)], want(one("apple"), beside["left of"], tag="position"), False),
    "beside one of another colour": (
        [(*GREEN, RIGHT), (*BOOK, LEFT)],
        want(one("apple", color="red"), beside["left of"], tag="position"),
        False,
    ),
    "a position of several": (
        [(*RED, (40, 5, 60, 25)), (*BOOK, (5, 40, 25, 60)), (*BOOK, (70, 40, 95, 60))],
        want(one("apple"), one("book", 2, position=["left of", 0]), tag="position"),
        False,
    ),
    "what is not wanted": ([(*RED, LEFT), (*BOOK, RIGHT)], want(one("apple"), exclude=[one("book")]), False),
    "what would be too many": ([(*RED, LEFT), (*BOOK, RIGHT)], want(one("apple"), exclude=[one("book", 2)]), True),
}


def metric(sure=()):
    return GenEval(detector(sure), tell_colours, COCO, [Source("drawn-1", {}), Source("paint-2", {})])


def score(objects, task, sure=()):
    scorer = metric(sure)
    sample = Sample("", "a prompt", 0, task["tag"], [task], "line 1")
    scorer.check(sample)
    return scorer([scorer.see(draw(objects))], [sample]).tolist()


@pytest.mark.parametrize("scene", SCENES)
def test_a_drawn_scene_is_judged_as_it_looks(scene):
    objects, task, shown, *sure = SCENES[scene]
    assert score(objects, task, *sure) == [[float(shown)]]


def test_there_are_scenes_of_every_task_and_answer():
    assert len(SCENES) >= 30
    told = {(task["tag"], shown) for _, task, shown, *_ in SCENES.values()}
    assert len(told) == 12


def found(name, score, box=(0, 0, 10, 10)):
    return Found(name, score, box, torch.ones(1, 1))


def test_of_a_class_the_sixteen_surest_count():
    many = [found("cat", 0.4 + 0.01 * i) for i in range(20)] + [found("dog", 0.95)]
    kept = counted(many, "single_object")
    assert [round(each.score, 2) for each in kept["cat"]] == [round(0.59 - 0.01 * i, 2) for i in range(MOST)]
    assert len(kept["dog"]) == 1
    assert set(counted(many, "counting")) == {"dog"}
    assert not is_shown(read_task(want(one("cat", 17))), kept, lambda _: [])


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        # centres 10 apart, sides 10 and 10: 10 - 0.1 * 20 = 8 of 10
        ((0, 0, 10, 10), (10, 0, 20, 10), {"left of"}),
        # centres 3 apart: 3 - 2 = 1 of 3, less than half
        ((0, 0, 10, 10), (3, 0, 13, 10), set()),
        # 4 - 2 = 2 of 4 is half, and not beyond it
        ((0, 0, 10, 10), (4, 0, 14, 10), set()),
        ((0, 0, 10, 10), (4.1, 0, 14.1, 10), {"left of"}),
        # 20 and 20 of 28.3, less 2 each: 0.64 each
        ((20, 20, 30, 30), (0, 0, 10, 10), {"right of", "below"}),
        # 20 down and 8 across of 21.5: (8 - 2) / 21.5 and (20 - 2) / 21.5
        ((8, 0, 18, 10), (0, 20, 10, 30), {"above"}),
        ((0, 0, 10, 10), (0, 0, 10, 10), set()),
    ],
)
def test_where_an_object_is_seen_from_another(a, b, told):
    assert relations(found("a", 1, a), found("b", 1, b)) == told


def test_of_an_object_only_its_own_pixels_are_looked_at():
    image = draw([(*BOOK, (10, 10, 60, 60)), (*RED, (30, 30, 50, 50))])
    red = np.asarray(image)[..., 0] > 200
    mask = torch.from_numpy(red & (np.asarray(image)[..., 1] < 100))
    cut = np.asarray(cut_out(image, found("apple", 1, (30, 30, 51, 51))._replace(mask=mask)))
    assert cut.shape == (21, 21, 3)
    assert {tuple(map(int, pixel)) for pixel in cut.reshape(-1, 3)} == {GREY, PAINT["red"]}


class ByEye:
    """Stands for a CLIP: a colour's name, and a picture's mean colour, are embedded as one of ten directions."""

    side = 8

    def __init__(self):
        self.read = []
        self.model = torch.nn.Module()
        self.model.logit_scale = torch.zeros(1)

    def texts(self, texts):
        self.read += texts
        return torch.stack(
            [
                torch.eye(10)[[colour in text.replace("-", " ").split() for colour in COLOURS].index(True)]
                for text in texts
            ]
        )

    def images(self, pixels):
        middle = pixels[:, :, 3:5, 3:5].mean((2, 3))
        paints = torch.tensor([PAINT.get(colour, PAPER) for colour in COLOURS]) / 255
        far = ((middle * torch.tensor(STD) + torch.tensor(MEAN))[:, None] - paints).abs().sum(2)
        return torch.eye(10)[far.argmin(1)]


def test_a_colour_is_the_nearest_of_ten_by_three_sentences_each():
    clip = ByEye()
    image = draw([(*BOOK, (10, 10, 30, 30)), ("apple", "yellow", (60, 60, 80, 80))])
    objects = detector()(image)
    tell = Colours(clip)
    assert [tell(image, [each]) for each in objects] == [["blue"], ["yellow"]]
    assert tell(image, objects[:1]) == ["blue"]
    assert len(clip.read) == 60  # once for a class
    assert clip.read[:3] == ["a photo of a red book", "a photo of a red-colored book", "a photo of a red object"]


def test_the_three_sentences_about_a_colour_count_alike():
    clip, unit = ByEye(), torch.eye(4)
    rows = {"red": [0, 1, 1], "blue": [2, 0, 0]}  # of one sentence about red and two about blue the picture is
    clip.texts = lambda texts: torch.cat([unit[rows.get(colour, [3, 3, 3])] for colour in COLOURS])
    clip.images = lambda pixels: unit[:1]
    assert Colours(clip)(draw([]), [found("book", 1)._replace(mask=torch.ones(100, 100, dtype=torch.bool))]) == ["blue"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"tag": "colour", "include": [one("cat")]}, "tag: Input should be 'single_object'"),
        ({}, "tag: Field required"),
        ({"tag": "colors", "include": [{"class": "cat"}]}, "include.0.count: Field required"),
        ({"tag": "colors", "include": [one("cat", 0)]}, "include.0.count: Input should be greater than"),
        ({"tag": "colors", "include": [one("cat", 10**30)]}, "include.0.count"),
        ({"tag": "colors", "include": [one("cat", color="mauve")]}, "include.0.color: Input should be 'red'"),
        (
            {"tag": "position", "include": [one("cat", position=["left of", 0])]},
            "include.0.position: 0 is no object before",
        ),
        ({"tag": "position", "include": [one("cat", position=["near", 0])]}, "include.0.position.0: Input should be"),
        ({"tag": "colors", "include": "cat"}, "include: Input should be a valid list"),
        (want(one("unicorn")), "asks for 'unicorn', a class that the detector does not know"),
    ],
)
def test_a_line_that_is_no_task_is_refused_with_its_number(said, told):
    with pytest.raises(DataError, match=rf"line 7 of x.jsonl .*{told}"):
        metric().check(Sample("", "a", 0, "", [said], "line 7 of x.jsonl"))


def test_the_classes_are_cocos():
    assert len(set(COCO)) == 80
    assert (COCO[0], COCO[62], COCO[64], COCO[65], COCO[66], COCO[79]) == (
        *("person", "tv", "computer mouse", "tv remote", "computer keyboard", "toothbrush"),
    )
