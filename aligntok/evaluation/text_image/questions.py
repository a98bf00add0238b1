"""Metrics that ask a model about a picture: VQAScore, GenEval 2's Soft-TIFA, DPG-Bench."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from aligntok.device import DTYPES
from aligntok.errors import DataError, WeightsError, first_line
from aligntok.evaluation.text_image.scorers import Sample, Scorer, Source, untouched
from aligntok.weights.names import CONFIG, PROCESSOR
from aligntok.weights.transformers import build_model, load_processor, read_config, read_weights, tokenizer_files

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'  # Lin et al. 2024
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_LEAST = 1e-300  # of a probability in a geometric mean


class Answerer(nn.Module):
    """A model of transformers that sees a picture and reads a question: how likely its answer begins with some words.

    folder: of the model, its tokenizer, processor and chat template. One question at a time, so that no other question
    changes an answer. Raises WeightsError for files that make no such model.
    """

    def __init__(self, folder: Path, who: str, precision: Literal["fp32", "bf16"]) -> None:
        super().__init__()
        config, weights = read_config(folder, who), read_weights(folder, who)
        self.model = build_model(config, None, weights, DTYPES[precision], who, "MODEL_FOR_IMAGE_TEXT_TO_TEXT")
        held = tokenizer_files(folder, who, [CONFIG, *PROCESSOR])
        self.processor = load_processor(held, folder, who)
        if not getattr(self.processor, "chat_template", None) or not hasattr(self.processor, "image_processor"):
            raise WeightsError(
                f"{who}: {folder} has no chat template, or sees no images; copy {PROCESSOR[2]} there, too"
            )
        self.source = Source.of(folder, who)
        self.who, self.precision = who, precision
        self.eval().requires_grad_(False)

    def chances(self, image: Image.Image, question: str, *answers: Sequence[str]) -> list[float]:
        """Return how likely the answer begins as one of some words, summed over their first tokens; of several such."""
        found, encode = self.probabilities(image, question), self.processor.tokenizer.encode
        tokens = [{encode(word, add_special_tokens=False)[0] for word in words} for words in answers]
        return [float(found[sorted(each)].sum()) for each in tokens]

    def probabilities(self, image: Image.Image, question: str) -> Tensor:
        """Return how likely each token of the vocabulary is to begin the answer, (V,), float32 on the CPU."""
        said = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        where = next(self.model.parameters()).device
        try:
            inputs = self.processor.apply_chat_template(
                said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except Exception as error:  # whatever a template of the folder, or its processor, makes of it
            raise WeightsError(
                f"{self.who}: its processor or chat template fails ({first_line(error)}); copy its files again"
            ) from error
        given = {k: v.to(where, self.model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
        logits: Tensor = self.model(**given).logits[0, -1]
        return logits.float().softmax(-1).cpu()


def _forms(answer: str) -> list[str]:
    """Return an answer in small letters and with a capital, each with a space before it and without."""
    return [space + word for space in ("", " ") for word in (answer.lower(), answer.capitalize())]


class _Asking(Scorer):
    """Base of those that ask: one picture at a time, as it is."""

    def __init__(self, answerer: Answerer, *names: str) -> None:
        super().__init__()
        self.answerer, self.sources = answerer, (answerer.source,)
        low = "-bf16" if answerer.precision == "bf16" else ""
        self.columns = tuple(f"{name}-{answerer.source.name}{low}" for name in names)
        self.see, self.preprocessing = untouched, "the model's own processor"
        self.finish()

    def forward(self, seen: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        rows = [self.ask(Image.fromarray(x.cpu().numpy()), each) for x, each in zip(seen, samples, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)

    def ask(self, image: Image.Image, sample: Sample) -> Sequence[float]:
        """Return the numbers of one picture."""
        raise NotImplementedError


class VQAScore(_Asking):
    """P("Yes") when asked whether the picture shows the prompt."""

    def __init__(self, answerer: Answerer) -> None:
        super().__init__(answerer, "VQAScore")

    def ask(self, image: Image.Image, sample: Sample) -> Sequence[float]:
        return self.answerer.chances(image, QUESTION.format(sample.prompt), ["Yes"])


class SoftTIFA(_Asking):
    """GenEval 2 (Kamath et al. 2025): the arithmetic and geometric means of the probabilities of the right answers."""

    def __init__(self, answerer: Answerer) -> None:
        super().__init__(answerer, "GenEval2-AM", "GenEval2-GM")

    def check(self, sample: Sample) -> None:
        """Raise DataError unless the first line about a prompt has questions with answers."""
        if not all(isinstance(each, list) and len(each) == 2 and all(map(_is_text, each)) for each in _asked(sample)):
            raise DataError(f"{sample.where} has no vqa_list of [question, answer], one or more; give GenEval 2's file")

    def ask(self, image: Image.Image, sample: Sample) -> Sequence[float]:
        found = [self._right(image, question.strip(), answer.strip()) for question, answer in _asked(sample)]
        logs = [math.log(max(each, _LEAST)) for each in found]
        return sum(found) / len(found), math.exp(sum(logs) / len(logs))

    def _right(self, image: Image.Image, question: str, answer: str) -> float:
        answers = _forms(answer)
        if question.startswith("How many") and answer.lower() in _NUMBERS:
            digit = str(_NUMBERS.index(answer.lower()))
            answers += [digit, f" {digit}"]
        return self.answerer.chances(image, f"{question} Answer in one word.", answers)[0]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _asked(sample: Sample) -> Sequence[Any]:
    listed = sample.said[0].get("vqa_list")
    return listed if isinstance(listed, list) and listed else [None]


class DPGBench(_Asking):
    """DPG-Bench (Hu et al. 2024): the share of a prompt's questions to which yes is a likelier answer than no.

    A question counts as no where one that it depends on does, as the lines follow one another.
    """

    def __init__(self, answerer: Answerer) -> None:
        super().__init__(answerer, "DPG-Bench")

    def check(self, sample: Sample) -> None:
        """Raise DataError unless every line about a prompt has a question, with its number and what it depends on."""
        try:
            known = {int(said["proposition_id"]) for said in sample.said}
            sound = all(_is_text(said["question_natural_language"]) for said in sample.said)
            sound = sound and len(known) == len(sample.said) and all(parents(said) <= known for said in sample.said)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
            sound = False
        if not sound:
            raise DataError(
                f"{sample.where} has not the columns proposition_id, dependency, question_natural_language, with other "
                "numbers for each question of a prompt; give DPG-Bench's dpg_bench.csv"
            )

    def ask(self, image: Image.Image, sample: Sample) -> Sequence[float]:
        counts = {int(said["proposition_id"]): self._yes(image, said) for said in sample.said}
        for said in sample.said:
            counts[int(said["proposition_id"])] &= all(counts[parent] for parent in parents(said))
        return [sum(counts.values()) / len(counts)]

    def _yes(self, image: Image.Image, said: Mapping[str, Any]) -> bool:
        question = said["question_natural_language"].strip()
        yes, no = self.answerer.chances(image, f"{question} Please answer yes or no.", _forms("yes"), _forms("no"))
        return yes > no


def parents(said: Mapping[str, Any]) -> set[int]:
    """Return the numbers of the questions that one depends on; 0 is none."""
    return {int(each) for each in str(said["dependency"]).split(",") if int(each)}
