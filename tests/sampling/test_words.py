"""Which word each sample of a set has, and prompts out of files."""

from __future__ import annotations

import json

import pytest

from aligntok.errors import ConfigError, DataError
from aligntok.sampling.prompt_files import read_prompt_file, read_prompts
from aligntok.sampling.words import LabelRule, PromptRule


class Seeds:
    """A condition that gives what it was asked for."""

    def seed(self, seed, place, image):
        return (seed, place, image)


def test_each_prompt_comes_once_then_each_again_and_its_seed_is_of_place_and_turn():
    rule = PromptRule(Seeds(), ["a", "b", "c"], seed=7)
    assert rule.num == 3
    assert [rule.word(i) for i in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]
    assert [rule.seed(i) for i in range(4)] == [(7, 0, 0), (7, 1, 0), (7, 2, 0), (7, 0, 1)]
    longer = PromptRule(
        Seeds(), ["a", "b", "c", "d"], seed=7
    )  # more prompts at the end change no picture of the others
    assert [longer.seed(i) for i in (0, 1, 2, 4)] == [rule.seed(i) for i in (0, 1, 2, 3)]
    assert rule.labels(3) is None
    assert rule.records(4)[3] == dict(prompt="a", place=0, image=1, seed=(7, 0, 1))


def test_a_set_of_prompts_is_known_by_all_of_them_in_order():
    told = {json.dumps(PromptRule(Seeds(), words).describe()) for words in (["a", "b"], ["b", "a"], ["a"], ["a b"])}
    assert len(told) == 4
    assert len({*(name for words in (["a"], ["b"]) for name in PromptRule(Seeds(), words).name())}) == 2


def test_no_prompts_are_refused():
    with pytest.raises(ConfigError, match="this generator takes prompts, and none was given; give --prompt"):
        PromptRule(Seeds(), [])


def test_labels_of_a_set_are_those_of_its_samples():
    rule = LabelRule("listed", 5, (3, 1))
    assert rule.labels(5) == [3, 1, 3, 1, 3]
    assert rule.describe() == dict(labels=[3, 1])
    assert LabelRule("none", 1).labels(4) is None
    assert LabelRule("balanced", 3, first_seed=5).seed(2) == 7


FORMS = {
    "a.txt": "a red apple\n  two cats \n",
    "a.jsonl": '"a red apple"\n{"caption": "two cats", "id": 3}\n',
    "b.jsonl": '{"prompt": "a red apple", "text": "x"}\r\n{"text": "two cats"}\r\n',
    "a.csv": 'id,prompt\n1,a red apple\n2,"two cats"\n',
    "b.csv": "\ufefffile,caption\nx.png,a red apple\ny.png,two cats\n",
    "a.json": '["a red apple", {"Caption": "two cats"}]',
    "a.tsv": "Prompt\tCategory\na red apple\tFood & Beverage\ntwo cats\tAnimals\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_prompts_are_read_in_every_form(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name].encode())
    assert read_prompts(tmp_path / name) == ["a red apple", "two cats"]


def test_a_line_says_its_number_its_prompt_and_all_else(tmp_path):
    (tmp_path / "a.tsv").write_text("Prompt\tCategory\na red apple \tFood\n\ntwo cats\tAnimals\n")
    first, second = read_prompt_file(tmp_path / "a.tsv")
    assert first == (2, "a red apple", {"Prompt": "a red apple ", "Category": "Food"})
    assert (second.number, second.said["Category"]) == (4, "Animals")
    (tmp_path / "c.tsv").write_text('prompt\tnote\n"OPEN" on a door\t"\n')
    assert read_prompts(tmp_path / "c.tsv") == ['"OPEN" on a door']
    (tmp_path / "b.jsonl").write_text('"a"\n{"tag": "colors", "prompt": "b"}\n')
    assert [line.said for line in read_prompt_file(tmp_path / "b.jsonl")] == [{}, {"tag": "colors", "prompt": "b"}]


def test_a_prompt_with_a_question_a_line_is_drawn_once(tmp_path):
    lines = ["item_id,text,proposition_id", "a,red apple,1", "a,red apple,2", "b,two cats,1", "a,red apple,3"]
    (tmp_path / "dpg.csv").write_text("\n".join(lines))
    assert read_prompts(tmp_path / "dpg.csv") == ["red apple", "two cats"]
    (tmp_path / "plain.csv").write_text("text,id\nred apple,1\nred apple,2\n")
    assert read_prompts(tmp_path / "plain.csv") == ["red apple"] * 2


def test_a_caption_of_several_lines_in_a_table_is_one_prompt(tmp_path):
    (tmp_path / "a.csv").write_text('prompt\n"two\ncats"\ndog\n')
    assert read_prompts(tmp_path / "a.csv") == ["two\ncats", "dog"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"", "a.txt has no prompts; write one in each line"),
        ("a.txt", b"a\n\nb\n", "line 2 of .*a.txt is empty; write a prompt there, or remove the line"),
        ("a.txt", b"a\nb\xff\n", "line 2 of .*a.txt is not UTF-8"),
        ("a.jsonl", b'"a"\n{"prompt": \n', "line 2 of .*a.jsonl is no JSON"),
        (
            "a.jsonl",
            b'"a"\n{"words": "b"}\n',
            "line 2 of .*a.jsonl has no prompt; write a text, or an object with one of",
        ),
        ("a.jsonl", b'"a"\n{"prompt": 3}\n', "line 2 of .*a.jsonl has no prompt"),
        ("a.csv", b"name,words\nx,y\n", "a.csv has no column prompt, caption, text, only name, words; name one so"),
        ("a.csv", b"prompt,x\na,1\n,2\n", "line 3 of .*a.csv is empty"),
        ("a.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "line 1 of .*a.jsonl is no JSON .a key is there twice"),
        ("a.jsonl", b'"a"\n"\\ud800"\n', "line 2 of .*a.jsonl is no JSON .*surrogates not allowed"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .*a.jsonl is no JSON .maximum recursion depth"),
        ("a.csv", b"prompt\na red apple, on a table\n", "line 2 of .*a.csv has 2 fields, and the first line 1; put a"),
        ("a.csv", b'prompt\n"a red\nb\n', "line 3 of .*a.csv is no CSV .unexpected end of data"),
        ("a.csv", b"prompt\n" + b"a" * 200_000, "line 2 of .*a.csv is no CSV .field larger than field limit"),
        ("a.json", b'{"prompt": "a"}', "a.json holds a dict; a .json is to be a list"),
        ("a.json", b'["a", 3]', "line 2 of .*a.json has no prompt"),
        ("a.json", b"[]", "a.json has no prompts"),
        ("a.json", b'["a"', "line 1 of .*a.json is no JSON"),
        ("a.tsv", b"Prompt\tCategory\na red apple\n", "line 2 of .*a.tsv has 1 fields, and the first line 2; take out"),
        ("a.csv", b"prompt,prompt\na,b\n", "a.csv has no column prompt, caption, text, only prompt, prompt"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_line(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path):
    for path in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(DataError, match=f"prompts: {path} cannot be read"):
            read_prompts(path)
