"""Metrics that ask a model: against the library's own generation, and their formulas with a model of known answers."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from PIL import Image

from aligntok.errors import DataError, WeightsError
from aligntok.evaluation.text_image.questions import Answerer, DPGBench, SoftTIFA, VQAScore
from aligntok.evaluation.text_image.scorers import Sample, Source

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def answerer(vqa_folder):
    return Answerer(vqa_folder, "weights 'vqa'", "fp32")


PICTURE = Image.radial_gradient("L").resize((60, 40)).convert("RGB")


def test_the_first_token_is_as_likely_as_the_library_generates_it(answerer, vqa_folder):
    model = transformers.AutoModelForImageTextToText.from_pretrained(vqa_folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(vqa_folder)
    asked = 'Does this figure show "a red apple"? Please answer yes or no.'
    said = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": asked}]}]
    options = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    inputs = processor.apply_chat_template(said, **options)
    more = dict(max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True)
    theirs = model.generate(**inputs, **more).scores[0][0].softmax(-1)
    with torch.inference_mode():
        torch.testing.assert_close(answerer.probabilities(PICTURE, asked), theirs, atol=1e-6, rtol=1e-4)
        scorer = VQAScore(answerer)
        found = scorer([scorer.see(PICTURE)], [Sample("", "a red apple", 0)])
    yes = processor.tokenizer.encode("Yes", add_special_tokens=False)[0]
    assert found.tolist() == [[pytest.approx(float(theirs[yes]), rel=1e-4)]]
    assert scorer.columns == (f"VQAScore-{answerer.source.name}",)
    with torch.inference_mode():
        assert not torch.allclose(answerer.probabilities(PICTURE.rotate(90), asked), theirs, atol=1e-6)


def test_a_lower_precision_is_said_in_the_name(vqa_folder):
    low = Answerer(vqa_folder, "weights 'vqa'", "bf16")
    assert VQAScore(low).columns[0].endswith("-bf16")
    with torch.inference_mode():
        assert float(low.probabilities(PICTURE, "Is it?").sum()) == pytest.approx(1, abs=1e-5)


class Knowing(torch.nn.Module):
    """Answers a question with words of given probabilities; a token is a word, with or without a space before it."""

    source, precision = Source("knowing", {}), "fp32"

    def __init__(self, answers):
        super().__init__()
        self.answers, self.asked = answers, []

    def chances(self, image, question, *answers):
        self.asked.append(question)
        known = next(value for key, value in self.answers.items() if question.startswith(key))
        return [sum(known.get(word, 0) for word in {*words}) for words in answers]


def ask(scorer, *said):
    sample = Sample("", "a prompt", 0, "", said, "line 2")
    scorer.check(sample)
    return scorer([scorer.see(PICTURE)], [sample])[0].tolist()


def test_soft_tifa_is_the_mean_of_the_chances_of_right_answers():
    answers = {
        "How many cows": {"three": 0.2, "Three": 0.1, " 3": 0.05, "3": 0.15, "four": 0.5},  # 0.5 in all
        "Are the cows": {"Yes": 0.5, "yes": 0.25, " yes": 0.05, "no": 0.2},  # 0.8
    }
    knowing = Knowing(answers)
    said = {"vqa_list": [["How many cows are in the image?", "three"], ["Are the cows plastic?", "Yes"]]}
    assert ask(SoftTIFA(knowing), said) == pytest.approx([0.65, math.sqrt(0.4)])
    assert knowing.asked[1] == "Are the cows plastic? Answer in one word."
    impossible = Knowing({"How": {"four": 1.0}, "Are": {"yes": 1.0}})
    assert ask(SoftTIFA(impossible), said) == pytest.approx([0.5, 1e-150], rel=1e-6, abs=0)
    assert SoftTIFA(knowing).columns == ("GenEval2-AM-knowing", "GenEval2-GM-knowing")


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"vqa_list": []},
        {"vqa_list": [["a?"]]},
        {"vqa_list": [["a?", 3]]},
        {"vqa_list": "ab"},
        {"vqa_list": [["", "b"]]},
    ],
)
def test_a_line_without_questions_is_refused(said):
    with pytest.raises(DataError, match="line 2 has no vqa_list"):
        ask(SoftTIFA(Knowing({})), said)


def question(number, words, on="0"):
    return {"proposition_id": str(number), "dependency": on, "question_natural_language": words}


def test_dpg_bench_is_the_share_of_yes_and_none_without_what_it_depends_on():
    yes, no = {"Yes": 0.6, "no": 0.3}, {"yes": 0.1, "No": 0.5}
    lines = [question(1, "a"), question(2, "b", "1"), question(3, "c", "2"), question(4, "d", "1,3")]
    assert ask(DPGBench(Knowing(dict(a=yes, b=yes, c=yes, d=yes))), *lines) == [1]
    assert ask(DPGBench(Knowing(dict(a=yes, b=no, c=yes, d=yes))), *lines) == [0.25]  # c goes with b, and d with c
    assert ask(DPGBench(Knowing(dict(a=no, b=yes, c=yes, d=yes))), *lines) == [0]  # all go with a
    assert ask(DPGBench(Knowing(dict(a={"Yes": 0.5, "no": 0.5}))), question(1, "a")) == [0]


@pytest.mark.parametrize(
    "lines",
    [
        [{}],
        [question(1, "")],
        [question("x", "a")],
        [{**question(1, "a"), "proposition_id": float("inf")}],
        [question(1, "a", "2")],
        [question(1, "a"), question(1, "b")],
        [question(1, "a", None)],
    ],
)
def test_lines_without_dpg_benchs_columns_are_refused(lines):
    with pytest.raises(DataError, match="line 2 has not the columns proposition_id"):
        ask(DPGBench(Knowing({})), *lines)


@pytest.fixture
def copied(vqa_folder, tmp_path):
    return shutil.copytree(vqa_folder, tmp_path / "copy")


def test_a_model_that_reads_no_images_or_has_no_template_is_refused(text_model, copied):
    with pytest.raises(WeightsError, match="model_type='qwen3'; it takes those of transformers' AutoModelForImageText"):
        Answerer(text_model("qwen3"), "weights 'vqa'", "fp32")
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(WeightsError, match="has no chat template, or sees no images"):
        Answerer(copied, "weights 'vqa'", "fp32")


def test_code_that_a_folder_names_is_not_run(copied, tmp_path):
    for name in ("processor_config.json", "tokenizer_config.json", "config.json"):
        said = json.loads((copied / name).read_text())
        said["auto_map"] = {
            "AutoProcessor": "evil.Evil",
            "AutoModel": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", None],
        }
        (copied / name).write_text(json.dumps(said))
    (copied / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n\n\nclass Evil:\n    pass\n")
    Answerer(copied, "weights 'vqa'", "fp32")
    assert not (tmp_path / "ran").exists()


def test_a_template_that_fails_is_told(copied):
    (copied / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    broken = Answerer(copied, "weights 'vqa'", "fp32")
    with pytest.raises(WeightsError, match="weights 'vqa': its processor or chat template fails .no.; copy its files"):
        broken.probabilities(PICTURE, "Is it?")
