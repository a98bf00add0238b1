"""Tables on the terminal: numbers to the right, words to the left, nothing cut off."""

from __future__ import annotations

import io

from rich.console import Console

from aligntok.io.console import print_line, print_table


def printed(width, *arguments, **options):
    stream = io.StringIO()
    print_table(*arguments, **options, console=Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_numbers_stand_to_the_right_and_words_to_the_left():
    lines = printed(60, "What", ["name", "value"], [["a", "1"], None, ["bcdef", "1,000"]], left=["name"])
    assert lines[0].strip() == "What"
    assert lines[4:7] == ["│ a     │     1 │", "├───────┼───────┤", "│ bcdef │ 1,000 │"]


def test_what_is_too_wide_is_folded_not_cut_off():
    text = "".join(printed(24, None, ["", "x"], [["a_name_of_thirty_letters_or_so", "1"]]))
    assert "…" not in text
    assert "".join(c for c in text if c.isalpha() or c == "_").replace("x", "", 1) == "a_name_of_thirty_letters_or_so"


def test_words_stay_whole_where_they_fit_beside_one_another():
    stages = ["latent_alignment", "perceptual_alignment", "decoder_refinement"]
    rows = [["disk a checkpoint", *["8 = 1 process x 1 micro x 8"] * 3], None, ["discriminator", "-", "3 M", "3 M"]]
    lines = printed(80, "Plan", ["", *stages], rows)
    assert {len(line) for line in lines[1:]} == {80}
    for word in (*stages, "discriminator", "checkpoint", "process"):
        assert any(word in line for line in lines), word
    narrower = printed(79, "Plan", ["", *stages], rows)  # by one, in which some word has to be broken
    assert max(map(len, narrower)) <= 79
    wide = printed(140, "Plan", ["", *stages], rows)
    assert any("8 = 1 process x 1 micro x 8 │ 8 = 1" in line for line in wide)


def test_nothing_in_a_text_is_markup():
    name = "[bold]data:train:[/bold]"
    lines = printed(80, name, ["", name], [[name, name]], left=[name])
    assert "".join(lines).count(name) == 4
    stream = io.StringIO()
    print_line(f"{name} {'x' * 100}", Console(file=stream, width=40))
    assert stream.getvalue() == f"{name} {'x' * 100}\n"
