"""A condition says which samples pass, never more than it says, and whatever is no condition is one sentence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from aligntok.data.filters import PRESETS, BlockedDomains, Filter
from aligntok.data.index import domain_of
from aligntok.errors import ConfigError

NAN = float("nan")
COLUMNS = {
    "a": np.array([1, 2, NAN, 4, 0.8], dtype="f4"),
    "b": np.array([5, NAN, NAN, -2, 0], dtype="f4"),
    "width": np.array([0, 10, 20, 30, 65535], dtype="u2"),
    "AESTHETIC_SCORE": np.array([4.9, 5, 6, NAN, 7], dtype="f4"),
    "pwatermark": np.array([0.1, 0.1, 0.8, 0.1, 0.79], dtype="f4"),
    "punsafe": np.array([0.1, 0.49, 0.1, 0.1, 0.5], dtype="f4"),
}
T, F = True, False


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("a > 1", [F, T, F, T, F]),
        ("a >= 0.8", [T, T, F, T, T]),  # as the column has the number, in float32
        ("a < 0.8", [F, F, F, F, F]),
        ("1 <= a", [T, T, F, T, F]),
        ("a == 4", [F, F, F, T, F]),
        ("a != 4", [T, T, F, F, T]),  # a missing value is not known to differ
        ("not a == 4", [T, T, F, F, T]),
        ("not not a != 4", [T, T, F, F, T]),
        ("a in (1, 4)", [T, F, F, T, F]),
        ("a not in [1, 4]", [F, T, F, F, T]),
        ("not (a in (1, 4))", [F, T, F, F, T]),
        ("width in (10, 30)", [F, T, F, T, F]),
        ("width >= 30 and width < 65535", [F, F, F, T, F]),
        ("width > -1", [T, T, T, T, T]),
        ("width < 9000000000", [T, T, T, T, T]),
        ("width >= a", [F, T, F, T, T]),
        ("a > 1 or b > 1", [T, T, F, T, F]),  # who passes one needs no other
        ("a > 1 and b < 1", [F, F, F, T, F]),
        ("not (a > 1 or b > 1)", [F, F, F, F, T]),
        ("not (a > 1 and b < 1)", [T, F, F, F, T]),
        ("a > 1 or b > 1 and width > 5", [F, T, F, T, F]),
        ("(a > 1 or b > 1)\n   and width > 5", [F, T, F, T, F]),
        ("laion", [F, T, F, F, F]),
    ],
)
def test_what_passes_is_worked_out_by_hand(where, expected):
    assert Filter(where).passes(COLUMNS).tolist() == expected


def test_a_missing_value_passes_neither_a_comparison_nor_its_negation():
    for sign, number in itertools.product(("<", "<=", ">", ">=", "==", "!="), (-1, 0, 5)):
        passed = Filter(f"a {sign} {number}").passes(COLUMNS)
        negated = Filter(f"not a {sign} {number}").passes(COLUMNS)
        known = ~np.isnan(COLUMNS["a"])
        assert (passed ^ negated).tolist() == known.tolist()
        assert not (passed & negated).any()


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a", "character 1, 'a': a column alone is no condition"),
        ("laio", "did you mean 'laion'"),
        ("a / 2 > 1", "character 1, 'a / 2': a column or a number belongs here"),
        ("width > 5 and a + 1 > 2", "character 15, 'a \\+ 1'"),
        ("ä > 1 and a * 2 > 1", "character 11, 'a \\* 2'"),
        ("min(a) > 1", "'min\\(a\\)'"),
        ("a.real > 1", "'a.real'"),
        ("a > 'x'", "''x'': a column or a number"),
        ("a > True", "'True'"),
        ("a > 1e999", "'1e999'"),
        ("1 < a < 3", "one comparison at a time"),
        ("1 < 2", "and no column"),
        ("a >", "invalid syntax at character"),
        ("a > 1 # and b > 2", "no '#'"),
        ("a = 1", "at character"),
        ("a := 1", "at character"),
        ("a > 1and 2", "at character"),
        ("a in 3", "'in' is followed by numbers"),
        ("a in ()", "'in' is followed by numbers"),
        ("a in (1, 'x')", "between a column and numbers"),
        ("1 in (1, 2)", "between a column and numbers"),
        ("a is 1", "a condition is made of"),
        ("a if a > 1 else b", "a condition is made of"),
        ("[a for a in b]", "a condition is made of"),
        ("lambda: 1", "a condition is made of"),
        ("__import__('os').system('true') > 1", "a column or a number belongs here"),
        ("a > 1 and (b)", "a column alone"),
        ("-a > 1", "'-a'"),
        ("(" * 300 + "a > 1" + ")" * 300, "parentheses"),
        ("not " * 40 + "a > 1", "more than 32 levels"),
        ("a > " + "-" * 3000 + "1", "where="),
        ("a > 1 or " * 1000 + "a > 1", "at most 4096 characters"),
        ("a > \0", "where="),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(where, told):
    with pytest.raises(ConfigError, match=told):
        Filter(where)


def test_a_misspelt_column_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="character 13, 'pwatermrak': no column named.*did you mean 'pwatermark'"):
        Filter("a < 100 and pwatermrak < 2").check(COLUMNS)


def test_one_condition_has_one_spelling():
    several = ["a>1 and not(b<=-2 or width in [1,2.5])", "((a > 1)) and   not (b <= -2 or (width in (1, 2.5)))"]
    assert {Filter(where).text for where in several} == {"a > 1 and not (b <= -2 or width in (1, 2.5))"}
    assert Filter("a > 1 or (b > 1 and width > 1)").text == Filter("a > 1 or b > 1 and width > 1").text
    for where in (*several, *PRESETS, "(a > 1 or b > 1) and width > 1"):
        again = Filter(Filter(where).text)
        assert again.text == Filter(where).text
        assert again.columns == Filter(where).columns


def test_the_parts_of_a_condition_are_told_one_by_one():
    parts = Filter("laion").parts()
    assert [text for text, _ in parts] == ["AESTHETIC_SCORE >= 5", "pwatermark < 0.8", "punsafe < 0.5"]
    together = np.logical_and.reduce([passes(COLUMNS) for _, passes in parts])
    assert together.tolist() == Filter("laion").passes(COLUMNS).tolist()


def test_hosts_are_blocked_by_their_whole_name(tmp_path):
    (tmp_path / "hosts").write_text("# of a list\nExample.com\nwww.other.org.  # and why\n\n")
    blocked = BlockedDomains(tmp_path / "hosts")
    hosts = ["example.com", "img.example.com", "other.org", "", "third.net"]  # as an index has them, without www.
    passes = blocked.passes(np.array([domain_of(host) for host in hosts], dtype=np.uint64))
    assert passes.tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("line", ["http://example.com", "two words", "a@b", "*.example.com", "x" * 254, "\udcff"])
def test_a_line_that_is_no_host_is_refused(tmp_path, line):
    (tmp_path / "hosts").write_bytes(line.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="one host a line"):
        BlockedDomains(tmp_path / "hosts")


def test_a_list_of_hosts_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="one host a line"):
        BlockedDomains(tmp_path / "nothing")


def test_a_mark_of_the_order_of_bytes_is_no_part_of_the_first_host(tmp_path):
    (tmp_path / "hosts.txt").write_text("bad.org\nworse.org\n", encoding="utf-8-sig")
    hashes = np.array([domain_of("bad.org"), domain_of("worse.org")], dtype=np.uint64)
    assert not BlockedDomains(tmp_path / "hosts.txt").passes(hashes).any()
