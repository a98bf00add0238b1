"""Pictures with their prompts, and sets of prompts: files of strangers, read and matched."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from aligntok.data.transforms import MAX_ASPECT_RATIO, open_image
from aligntok.errors import DataError, ImageError, first_line, some_of
from aligntok.evaluation.images import in_rounds, read_description
from aligntok.evaluation.text_image.scorers import Sample
from aligntok.io.files import inside, read_bytes
from aligntok.sampling.folder import PROMPTS
from aligntok.sampling.prompt_files import PROPOSITION, PromptLine, read_prompt_file

logger = logging.getLogger("aligntok.evaluation")
_CATEGORIES = ("category", "tag", "style", "atom_count")  # under which a line of a prompt set has its category


class PromptSet:
    """What the lines of some files say, by prompt.

    A line's category is what it says under `category`, `tag`, `style` or `atom_count`; else, of several files, the
    file's name, as of HPSv2's four. Of a prompt that is there several times, whose lines disagree, the first counts.
    """

    def __init__(self, files: Sequence[str | Path]) -> None:
        self.lines: dict[str, list[tuple[Path, PromptLine]]] = {}
        for path in map(Path, files):
            for line in read_prompt_file(path):
                self.lines.setdefault(line.prompt, []).append((path, line))
        self.several = len({*map(str, files)}) > 1
        told = {prompt: [line.said for _, line in lines] for prompt, lines in self.lines.items()}
        often = [prompt for prompt, said in told.items() if len(said) > 1 and PROPOSITION not in said[0]]
        if often:
            logger.warning(
                "the prompt set has %d prompts more than once, whose first line says the category: %s",
                *(len(often), some_of([ascii(each[:40]) for each in often])),
            )

    def about(self, sample: Sample) -> Sample:
        """Return a sample with what is said of its prompt, the same if that is nothing."""
        if sample.prompt not in self.lines:
            return sample
        lines = self.lines[sample.prompt]
        path, line = lines[0]
        own = {name.lower(): value for name, value in line.said.items() if isinstance(value, str | int)}
        named = next((str(own[name]) for name in _CATEGORIES if name in own), path.stem if self.several else "")
        said = [each.said for _, each in lines]
        return sample._replace(category=named[:80], said=said, where=f"line {line.number} of {path}")


class Seen(NamedTuple):
    """Of N pictures: their places in the folder, and what each scorer sees of them."""

    places: list[int]
    seen: list[list[Tensor]]

    def __len__(self) -> int:
        return len(self.places)


class PromptedSamples(Dataset[Any]):
    """The pictures of a folder whose prompts.jsonl names each with its prompt, as ``aligntok sample`` writes it.

    sees: what each scorer sees of a picture. Iterating gives this process's batches, and is collective. Raises
    DataError for a folder without such a file, for lines that name no picture in it, or one twice, and for pictures
    that are not all drawn yet or cannot be read.
    """

    def __init__(self, folder: str | Path, prompts: PromptSet) -> None:
        self.path = Path(folder).expanduser()
        self.description = read_description(self.path)
        if not (self.path / PROMPTS).is_file():
            raise DataError(
                f"{self.path} has no {PROMPTS}; give a folder of `aligntok sample --prompts`, or write one with a line "
                'for each picture: {"file": "a.png", "prompt": "a red apple"}'
            )
        turns: Counter[str] = Counter()
        self.samples: list[Sample] = []
        for line in read_prompt_file(self.path / PROMPTS):
            file, prompt = line.said.get("file"), line.prompt
            cure = f"correct line {line.number} of {self.path / PROMPTS}"
            if not isinstance(file, str):
                raise DataError(f"line {line.number} of {self.path / PROMPTS} names no file; write one under 'file'")
            if not (path := inside(self.path, file, DataError, cure)).is_file():  # said before weights are loaded
                raise _lost(path, "no such file")
            self.samples.append(prompts.about(Sample(file, prompt, turns[prompt])))
            turns[prompt] += 1
        if twice := [file for file, times in Counter(each.file for each in self.samples).items() if times > 1]:
            raise DataError(f"{self.path / PROMPTS} names {some_of(twice)} more than once; name each picture once")
        self.sees: Sequence[Callable[[Image.Image], Tensor]] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> tuple[int, list[Tensor]]:
        path = inside(self.path, self.samples[place].file, DataError, "correct its prompts.jsonl")
        try:
            image = open_image(read_bytes(path), max_aspect_ratio=MAX_ASPECT_RATIO)
        except (ImageError, OSError) as error:
            raise _lost(path, first_line(error)) from error
        return place, [see(image) for see in self.sees]

    def collate(self, items: Sequence[tuple[int, list[Tensor]]]) -> Seen:
        """Return a batch of items."""
        return Seen(
            [place for place, _ in items], [list(each) for each in zip(*(seen for _, seen in items), strict=True)]
        )

    def batches(self, size: int, workers: int) -> Iterator[Seen]:
        """Yield this process's batches; collective."""
        return filter(None, in_rounds(self, range(len(self)), size, workers))


def _lost(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is missing or cannot be read ({why}); draw it again, or take its line out of {PROMPTS}: leaving it "
        "out changes the numbers"
    )


def matched(a: Sequence[Sample], b: Sequence[Sample]) -> tuple[list[tuple[int, int]], list[str]]:
    """Return the places of the pictures of a prompt and turn in both of two folders, and which are in one alone."""
    places = [{(each.prompt, each.turn): place for place, each in enumerate(samples)} for samples in (a, b)]
    both = [(place, places[1][key]) for key, place in places[0].items() if key in places[1]]
    alone = [key for key in {**places[0], **places[1]} if key not in places[0] or key not in places[1]]
    return both, [f"{prompt[:40]!a}, picture {turn + 1}" for prompt, turn in alone]
