"""The sentences that many say have one home, aligntok.errors; whoever says them asks it."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from aligntok.errors import ConfigError, at_least, multiples_of, unknown

#: Beginnings, or what stands before the value that is filled in, of the sentences that are said in one place alone.
SENTENCES = {
    r"([Kk]nown|[Aa]llowed|it has|[Tt]ags)( here| keys here)?: …": {
        "errors.py": "unknown says it",
        "registry.py": "a config without a type has no name at all",
        "training/alignment/objective.py": "the same, of a loss",
        "encoders/timm.py": "strides and indices are numbers, without a nearest name",
        "loading.py": "the files of a folder",
    },
    r"(it )?must be (at least|… or more)": {
        "errors.py": "at_least says it",
        "generators/__init__.py": "a probability, which has an upper end",
        "generators/lightning_dit.py": "three widths that make no transformer together",
    },
    r"multiples? of (…|f|p)": {
        "errors.py": "multiples_of says it",
        "extractors/__init__.py": "no error, but how images are resized",
        "generators/lightning_dit.py": "its own size, with the patch size beside it",
        "plugins/testing.py": "of the test kit's own argument",
    },
    r"labels from … to …": {"generators/__init__.py": "check_label_range says it"},
    r"null class": {
        "condition/classes.py": "its check_guidance says it",
        "generators/__init__.py": "names what is allowed",
    },
    r"did you mean": {"errors.py": "suggestion says it"},
}


@cache
def spoken(tree):
    """The texts with something filled in, `…` for it, of a module: its messages."""
    messages = [node.values for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    return ["".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in each) for each in messages]


def says(tree, sentence):
    return [text for text in spoken(tree) if re.search(sentence, text)]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_shared_sentence_is_said_in_one_place(sentence, trees):
    places = {file: says(tree, sentence) for file, tree in trees.items()}
    found = {place: texts for place, texts in places.items() if texts}
    assert set(found) == set(SENTENCES[sentence]), found


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("""f"unknown colour '{c}'; allowed: {', '.join(COLOURS)}" """, 0),
        ("""f"{name}={value}; it must be at least {least}" """, 1),
        ("""f"size {size}: both sides must be multiples of {f}" """, 2),
        ("""f"the data has labels from {low} to {high}" """, 3),
        ("""f"cfg_scale={scale} needs a null class" """, 4),
    ],
)
def test_a_new_place_is_found_out(code, sentence):
    assert says(ast.parse(code), list(SENTENCES)[sentence])


def test_an_unknown_name_is_answered_with_the_nearest_and_those_known():
    assert unknown("dtype", "fp31", ("fp32", "bf16")) == "no dtype named 'fp31'; did you mean 'fp32'? known: fp32, bf16"
    assert unknown("split", "x", []) == "no split named 'x'; known: none"
    assert unknown("class", 7, "abcd", shown=2) == "no class named '7'; known: a, b and 2 more"


def test_at_least_passes_over_none_and_says_where():
    at_least(1, a=1, b=None)
    with pytest.raises(ConfigError, match=r"^stage 'a': log\.every is 0; it must be 1 or more$"):
        at_least(1, "stage 'a'", **{"log.every": 0})


@pytest.mark.parametrize(
    ("size", "near"), [((70, 96), r"\(64, 96\)"), ((3, 16), r"\(16, 16\)"), ((0, 32), r"\(16, 32\)")]
)
def test_sides_are_multiples_or_a_size_that_works_is_named(size, near):
    multiples_of(16, "x", (16, 32))
    with pytest.raises(ConfigError, match=rf"^image_size .*; its sides must be multiples of f = 16, such as {near}$"):
        multiples_of(16, "image_size", size)
