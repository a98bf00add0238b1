"""Captions, packed: what comes out is what went in, in little memory; which one a sample takes is (seed, number)'s."""

from __future__ import annotations

import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from aligntok.data.captions import CaptionList, Captions

GIVEN = [["a red ant"], ["", "ein Käfer", "甲虫"], [], ["\U0001f993 zebra", "zebra"]]


def packed(given):
    captions = CaptionList(len(given))
    for image in reversed(range(len(given))):  # in any order
        captions.add(image, given[image])
    return captions.packed()


def test_every_caption_of_every_image_comes_back():
    captions = packed(GIVEN)
    assert [list(each) for each in captions] == GIVEN
    assert list(captions[-1]) == GIVEN[-1]
    assert captions.counts.tolist() == [1, 3, 0, 2]
    assert [list(each) for each in pickle.loads(pickle.dumps(captions))] == GIVEN
    with pytest.raises(IndexError):
        captions[4]


def test_some_of_them_and_several_sets_of_them():
    captions = packed(GIVEN)
    some = captions.of(np.array([3, 1, 3, 2]))
    assert [list(each) for each in some] == [GIVEN[3], GIVEN[1], GIVEN[3], []]
    joined = Captions.joined([some, captions, packed([])])
    assert [list(each) for each in joined] == [GIVEN[3], GIVEN[1], GIVEN[3], [], *GIVEN]


def test_a_caption_that_came_in_two_parts_counts_as_two():
    captions = CaptionList(2)
    for image, given in [(1, " b "), (0, "a"), (1, ["c", None, "d\n"]), (0, None), (0, [None])]:
        captions.add(image, given)
    assert [*captions.packed()] == [("a",), ("b", "c", "d")]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (1, "it is int"),
        ([["x"]], "it is list"),
        ({"en": "x"}, "it is dict"),
        ("x" * 65_537, "65,537 bytes"),
        ("é" * 32_769, "65,538 bytes"),
        ("\ud800", "surrogates"),
        (["x"] * 1001, "1,001 for 1 images"),
        (["x" * 65_000] * 17, "17 for 1 images"),  # over a MiB
    ],
)
def test_what_is_no_caption_is_refused(given, why):
    with pytest.raises(ValueError, match=why):
        CaptionList(1).add(0, given)
    CaptionList(1).add(0, ["x" * 65_536] * 16)


def test_hashes_tell_captions_apart():
    assert packed([["ab", "c"], ["a", "bc"], ["ab", "c"]]).hashes().tolist() != [0, 0, 0]
    assert packed(GIVEN).hashes().dtype == np.int64
    one, two, three = packed([["ab", "c"], ["a", "bc"], ["ab", "c"]]).hashes().tolist()
    assert one == three != two


def test_which_caption_a_sample_takes_follows_from_seed_and_number():
    captions = packed([["a", "b", "c"], ["only"]])
    for seed, number in [(0, 0), (0, 4095), (0, 4096), (7, 123_456_789)]:
        drawn = np.random.default_rng((4, seed, number // 4096)).random(4096)[number % 4096]
        assert captions.pick(0, seed, number) == "abc"[int(np.floor(3 * drawn))]
        assert captions.pick(1, seed, number) == "only"
    assert captions.pick(0, 5) == "a"
    taken = Counter(captions.pick(0, 0, number) for number in range(3000))
    assert {*taken} == {*"abc"}
    assert all(900 < count < 1100 for count in taken.values())
    epochs = [[captions.pick(0, 0, epoch * 50 + n) for n in range(50)] for epoch in range(2)]
    assert epochs[0] != epochs[1]


def test_they_are_kept_in_little_memory():
    captions = CaptionList(50_000)
    for image in range(50_000):
        captions.add(image, f"caption number {image:06d}")  # 21 bytes
    tracemalloc.start()
    kept = captions.packed()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 50_000 * (21 + 3 * 8) * 1.1, "strings of Python would be 70 bytes each, and counted references"
    assert kept[49_999] == ("caption number 049999",)


def test_what_a_file_keeps_gives_them_back():
    captions = packed([GIVEN[1], GIVEN[0], GIVEN[3]])
    arrays = captions.arrays()
    assert [array.dtype for array in arrays.values()] == [np.uint8, np.int64, np.int64]
    assert [list(each) for each in Captions.of_arrays(arrays)] == [GIVEN[1], GIVEN[0], GIVEN[3]]
    assert [*Captions.of_arrays(packed([]).arrays())] == []


@pytest.mark.parametrize(
    ("name", "place", "value", "why"),
    [
        ("caption_ends", 0, -1, "end in order"),
        ("caption_ends", 0, 9, "end in order"),
        ("caption_ends", 2, 7, "end in order"),
        ("caption_ends", 2, 2**62, "end in order"),
        ("caption_counts", 0, 2, "are not those of 2 images"),
        ("caption_counts", 0, 0, "are not those of 2 images"),
        ("caption_counts", 1, -1, "are not those of 2 images"),
        ("captions", 0, 0xFF, "invalid start byte"),
        ("caption_ends", 1, 5, "within a character"),
    ],
)
def test_what_cannot_have_been_kept_is_refused(name, place, value, why):
    arrays = {key: array.copy() for key, array in packed([["abc"], ["é", "xyz"]]).arrays().items()}
    if why == "within a character":
        arrays["caption_ends"][1] = 4  # é is bytes 3 and 4
    else:
        arrays[name][place] = value
    with pytest.raises(ValueError, match=why):
        Captions.of_arrays(arrays)
