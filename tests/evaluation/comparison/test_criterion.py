"""A criterion is met where every number says so; else the verdict says which kind fails, and where curves cross."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aligntok.evaluation.comparison.criterion import Found, crossing, distance_names, judge, statement
from aligntok.evaluation.comparison.records import Made, Record
from aligntok.evaluation.comparison.settings import ComparisonSettings, Criterion

FD, OWN = "unguided/FD-A", "reconstructions/FD-A"
CRITERION = Criterion(
    arm="ours", metrics=[FD], spreads=2.0, reconstruction=dict(against="vae", metrics=[OWN], times=1.5)
)
SETTINGS = ComparisonSettings(
    tokenizers=dict(ours="a.py", vae="b.py", vavae="c.py"),
    generator="g.py",
    extractors=["unread"],
    reference_encoder="unread",
    seeds=[0, 1],
    criterion=CRITERION,
)


def found(real=10.0, **curves):
    """Each tokenizer's curves of two seeds at steps 1 and 2, and its own reconstructions' distances."""
    records = [
        Record(name, Made({}), {OWN: reconstructions[seed]}, seed, {FD: {1: first, 2: last}})
        for name, (reconstructions, *seeds) in curves.items()
        for seed, (first, last) in enumerate(seeds)
    ]
    return Found(records, Record("real", Made({}), {OWN: real}))


def test_it_is_met_where_every_seed_is_below_by_more_than_the_larger_spread_asks_for():
    # spreads of 2 and 3 over seeds: the lead must be more than 2 x 3; it is 7 and 8. 25 - 10 <= 1.5 x (20 - 10)
    ours, vae = ((25, 25), (99, 50), (99, 52)), ((20, 20), (99, 57), (99, 60))
    vavae = ((20, 20), (99, 90), (99, 90))
    judged = judge(SETTINGS, CRITERION, found(ours=ours, vae=vae, vavae=vavae))
    assert judged.verdict == "met"
    assert [row["wanted"] for row in judged.rows] == ["> 6", "> 6", "> 4", "> 4", "<= 1.5 x", "<= 1.5 x"]
    assert [row["below by"] for row in judged.rows[:4]] == ["7", "8", "40", "38"]
    assert [row["above by"] for row in judged.rows[4:]] == ["1.5 x", "1.5 x"]


@pytest.mark.parametrize(("last", "fails"), [(57, 0), (54, 1), (51, 2)])
def test_one_seed_that_is_not_below_by_enough_is_enough_to_fail(last, fails):
    # 7 below 57 in the first seed; asked for is twice what lies between 57 and the other seed's: 0, 6, 12
    vae = ((20, 20), (99, 57), (99, last))
    ours = ((25, 25), (99, 50), (99, 50))
    judged = judge(SETTINGS, CRITERION, found(ours=ours, vae=vae, vavae=((20, 20), (99, 99), (99, 99))))
    assert [row["met"] for row in judged.rows if row["other"] == "vae" and row["metric"] == FD].count("no") == fails
    told = f"not met: {fails} of 4 comparisons of samples fail, and 0 of 2 of reconstructions"
    assert judged.verdict == ("met" if not fails else told)


def test_a_lead_of_exactly_what_is_asked_is_not_enough():
    ours, vae = ((25, 25), (99, 50), (99, 52)), ((20, 20), (99, 54), (99, 58))  # a spread of 4: 8 are asked for
    judged = judge(SETTINGS, CRITERION, found(ours=ours, vae=vae, vavae=((20, 20), (99, 99), (99, 99))))
    assert judged.verdict.startswith("not met: 2 of 4")


def test_reconstructions_alone_that_are_too_far_end_worse():
    ours, vae = ((25, 25.1), (99, 50), (99, 50)), ((20, 20), (99, 57), (99, 57))
    judged = judge(SETTINGS, CRITERION, found(ours=ours, vae=vae, vavae=((20, 20), (99, 90), (99, 90))))
    assert judged.verdict == "learns faster, ends worse; not crossed by the last mark"
    assert [row["met"] for row in judged.rows[4:]] == ["yes", "no"]


def test_where_the_others_curve_passes_under_is_told_and_nothing_is_met_then():
    ours, vae = ((11, 11), (60, 50), (60, 50)), ((11, 11), (90, 40), (90, 40))
    judged = judge(SETTINGS, CRITERION, found(ours=ours, vae=vae, vavae=((11, 11), (99, 90), (99, 90))))
    assert judged.verdict.startswith("not met: 2 of 4")
    assert [row.get("crossed at step") for row in judged.rows[:3:2]] == ["2", "not by the last mark"]


@pytest.mark.parametrize(
    ("own", "other", "step"),
    [
        ({100: 50, 200: 40, 300: 35}, {100: 80, 200: 45, 300: 30}, 250.0),  # 5 above, then 5 below
        ({100: 50, 200: 40}, {100: 60, 200: 41}, None),
        ({100: 50, 200: 40}, {100: 49, 200: 39}, 100.0),  # under it from the first mark on
        ({0: 10, 10: 10, 20: 10, 30: 10}, {0: 9, 10: 11, 20: 14, 30: 9}, 28.0),  # the last time: 4 above, 1 below
        ({100: 50, 200: 40}, {100: 60, 200: 40}, None),  # a tie is not under it
        ({100: 50, 200: 40, 300: 1}, {100: 60, 200: 30}, 150.0),  # marks of both alone
    ],
)
def test_curves_cross_where_the_line_between_marks_says(own, other, step):
    assert crossing(own, other) == step


def test_a_statement_says_all_of_it():
    assert statement(SETTINGS, CRITERION) == (
        "after the last step, ours is below vae, vavae on unguided/FD-A, in every seed, by more than 2 x the larger "
        "spread over seeds of the two; and on reconstructions/FD-A ours is above real images by at most 1.5 x as "
        "much as vae"
    )


@pytest.mark.parametrize(
    ("top1", "own", "verdict"),
    [
        ((0.26, 0.30), (69, 70), "met"),  # 2 x 0.13 and 2 x 0.15; 59 and 60 above real images at 10
        ((0.26, 0.29), (69, 70), "not met: 1 of 2 comparisons of tokenizers fail, and 0 of 2 of reconstructions"),
        ((0.26, 0.30), (69, 70.5), "not met: 0 of 2 comparisons of tokenizers fail, and 1 of 2 of reconstructions"),
    ],
)
def test_tokenizers_alone_are_judged_by_multiples_and_by_what_lies_above_real_images(top1, own, verdict):
    criterion = Criterion(
        arm="ours",
        at_least=[dict(metric="top1", against="vae", times=2.0)],
        reconstruction=dict(metrics=[OWN], at_most=60),
    )
    records = [
        Record(name, Made({}), {"top1": tops[seed], OWN: distances[seed]}, seed)
        for name, tops, distances in (("ours", top1, own), ("vae", (0.13, 0.15), (11, 12)))
        for seed in (0, 1)
    ]
    judged = judge(SETTINGS, criterion, Found(records, Record("real", Made({}), {OWN: 10.0})))
    assert judged.verdict == verdict
    assert [row["wanted"] for row in judged.rows] == [">= 2 x", ">= 2 x", "<= 60", "<= 60"]
    assert statement(SETTINGS, criterion) == (
        "ours has at least 2 x the top1 of vae; and on reconstructions/FD-A ours is above real images by at most 60"
    )


def test_metrics_are_named_as_they_will_be_with_the_weights_that_are_not_read_yet():
    given = [dict(type="efficientnet_lite2", size=96), dict(type="efficientnet_lite0", pretrained=False)]
    settings = replace(SETTINGS, extractors=given)
    assert distance_names(settings)[::2] == ["FD-EfficientNetLite2-96px", "FD-EfficientNetLite0-random"]


def test_where_curves_have_one_mark_in_common_none_can_cross():
    own = Record("ours", Made({}), {OWN: 1.0}, 0, {FD: {10: 5.0}})
    found = Found([own, replace(own, name="vae", curves={FD: {5: 9.0, 10: 4.0}})], Record("real", Made({}), {OWN: 0.5}))
    criterion = replace(CRITERION, below=["vae"], reconstruction=None)
    (row,) = judge(replace(SETTINGS, seeds=[0]), criterion, found).rows
    assert row["crossed at step"] == "one mark only"
