"""Every message of a run is in its log; the terminal has the first of a kind and their number."""

from __future__ import annotations

import ast
import itertools
import logging
import re

import pytest
from mmengine.logging import MMLogger

from aligntok.engine.log import log_to, logging_the_end
from aligntok.io.console import speaking

NUMBERS = itertools.count()


def said(trees):
    """(logger, level, template) of everything that the package tells its logs."""
    for tree in trees.values():
        loggers = {
            node.targets[0].id: node.value.args[0].value
            for node in tree.body
            if isinstance(node, ast.Assign) and "getLogger" in ast.unparse(node.value)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("warning", "warn", "info"):
                yield loggers.get(ast.unparse(call.func.value)), call.func.attr, ast.literal_eval(call.args[0])


@pytest.fixture(scope="module")
def warnings(trees):
    """The logger of each template of a warning."""
    return {text: name for name, level, text in said(trees) if level == "warning"}


@pytest.fixture
def log(tmp_path):
    """mmengine's logger as a stage has it, and its file."""
    name = f"of_a_test_{next(NUMBERS)}"
    made = MMLogger.get_instance(name, logger_name=name, log_file=str(tmp_path / "run.log"))
    yield made, tmp_path / "run.log"
    logging.getLogger("aligntok").handlers.clear()
    for handler in made.handlers:
        handler.close()


def test_the_package_warns_by_its_own_loggers_alone(trees):
    names = [name for name, level, _ in said(trees) if level == "warning"]
    assert len(names) > 6
    assert all(name and name.startswith("aligntok.") for name in names)


def arguments(template, number):
    return tuple(number if kind in "di" else f"<{number}>" for kind in re.findall(r"%\.?\d*([sdifg])", template))


def test_every_warning_is_in_the_file_and_counted_on_the_terminal(log, warnings, capsys):
    log_to(log[0])
    for number in range(1, 13):
        for template, name in warnings.items():
            logging.getLogger(name).warning(template, *arguments(template, number))
    written = log[1].read_text()
    assert all(template % arguments(template, number) in written for template in warnings for number in range(1, 13))
    shown = capsys.readouterr().err
    assert shown.count("WARNING") == 2 * len(warnings)
    assert shown.count("(10 like this so far, each in the log)") == len(warnings)
    with logging_the_end():
        pass
    assert capsys.readouterr().err == f"{12 * len(warnings)} warnings, each in {log[1]}\n"
    assert not logging.getLogger("aligntok").handlers


def test_the_error_that_ends_a_run_is_in_the_file_alone(log, capsys):
    log_to(log[0])
    with pytest.raises(ValueError, match="no such thing"), logging_the_end():
        raise ValueError("no such thing")
    assert "ValueError: no such thing" in log[1].read_text()
    assert capsys.readouterr() == ("", "")


def test_a_command_that_is_to_tell_all_shows_every_message_and_color_on_a_terminal_alone(log, capsys):
    with speaking(verbose=True):
        log_to(log[0])
        for number in range(3):
            logging.getLogger("aligntok.data").info("message %d", number)
    shown = capsys.readouterr().err
    assert [line.split(" - ")[-1] for line in shown.splitlines()] == ["message 0", "message 1", "message 2"]
    assert "\x1b[" not in shown


def test_what_is_no_text_is_in_the_file_by_its_code(log):
    log_to(log[0])
    logging.getLogger("aligntok.data").warning("cannot read %s", "a\udcff.png")
    assert r"cannot read a\udcff.png" in log[1].read_text()


def test_a_log_whose_disk_is_full_says_so_once(log, capsys):
    log_to(log[0])
    (file,) = (each for each in log[0].handlers if isinstance(each, logging.FileHandler))
    file.setStream(open("/dev/full", "w")).close()  # noqa: SIM115
    for number in range(3):
        logging.getLogger("aligntok.data").info("message %d", number)
    printed = capsys.readouterr()
    assert printed.err == f"the log {log[1]} cannot be written; what it misses is not kept\n"
    assert printed.out == ""
    with pytest.raises(OSError, match="No space"):
        file.stream.close()
    file.stream = None
