"""Every file of the package is written by way of `replacing`: whole or absent, and an error with its cure when not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "aligntok"
# Whole or absent; the claim to a folder; what is fetched again when it is lost, so that no disk is waited for; a model
# beside whose file a second may lie that it names: made in a folder that is not seen, and moved from there.
HOMES = tuple(PACKAGE / name for name in ("io/files.py", "io/folders.py", "data/stream/cache.py", "onnx.py"))
#: Calls that write one of their arguments, and methods of a path that write it.
WRITERS = {
    *("save", "savez", "savez_compressed", "save_file", "save_model", "savefig", "dump", "write_table", "tofile"),
    *("imsave", "to_csv", "copy", "copyfile", "copytree", "move", "rename", "replace"),
}
PATH_WRITERS = {"write_text", "write_bytes", "touch", "symlink_to", "hardlink_to"}


def called(call):
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def mode(call):
    """The mode that a call of `open`, or of what opens an archive, names."""
    given = [*(keyword.value for keyword in call.keywords if keyword.arg == "mode"), *call.args]
    words = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return "".join(word for word in words if re.fullmatch("[rwax][bt+]*", word))


def writes(call):
    """What a call writes into, as an expression; None for one that writes nothing."""
    name, receiver = called(call), getattr(call.func, "value", None)
    if name in ("open", "ZipFile", "fdopen", "TarFile") and set(mode(call)) & set("wax+"):
        return receiver if name == "open" and receiver is not None else call.args[0]
    if name in PATH_WRITERS:
        return receiver
    if name not in WRITERS or not call.args or (name == "write_table" and getattr(receiver, "id", "") != "pq"):
        return None
    if name in ("copy", "move", "rename", "replace", "copyfile", "copytree"):
        return call.args[-1] if getattr(receiver, "id", "") in ("os", "shutil") else None
    if name in ("dump", "save_file", "save_model", "write_table") or getattr(receiver, "id", "") == "torch":
        return call.args[1]
    return call.args[0]


def names(expression):
    return {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}


def allowed(function):
    """The names in a function that stand for a temporary path of `replacing`, what is opened in it, or memory."""
    found = set()
    for _ in range(3):  # a name may come from another
        for node in ast.walk(function):
            if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
                made = node.context_expr
                if isinstance(made, ast.Call) and (called(made) == "replacing" or names(made) & found):
                    found.add(node.optional_vars.id)
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Call)
                and called(node.value) in ("BytesIO", "StringIO")
            ):
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def strays(tree):
    """(line, call) of every write that `replacing` does not see."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        known = allowed(function)
        for call in ast.walk(function):
            target = writes(call) if isinstance(call, ast.Call) else None
            if target is not None and not names(target) & known:
                yield f"{call.lineno}: {ast.unparse(call)}"


def test_every_file_is_written_under_replacing(trees):
    found = [f"{file}:{stray}" for file, tree in trees.items() if PACKAGE / file not in HOMES for stray in strays(tree)]
    assert not found, "written without aligntok.io.files.replacing\n" + "\n".join(found)


def test_nothing_says_again_what_replacing_says():
    for path in sorted(PACKAGE.rglob("*.py")):
        assert path in HOMES or "could not be written" not in path.read_text(), path


@pytest.mark.parametrize(
    "line",
    [
        'path.write_text("x")',
        'open(path, "w")',
        'open(path, mode="ab")',
        'path.open("r+")',
        "torch.save(state, path)",
        "np.save(path, rows)",
        "save_file(tensors, path)",
        'picture.save(path, format="PNG")',
        "figure.savefig(path)",
        "json.dump(content, path)",
        'zipfile.ZipFile(path, "w")',
        "shutil.copy(a, path)",
        "os.replace(a, path)",
    ],
)
def test_a_new_place_that_writes_by_itself_is_found(line):
    inside = f"def f():\n    with replacing(place) as path:\n        {line}\n"
    assert [*strays(ast.parse(f"def f():\n    {line}\n"))]
    assert not [*strays(ast.parse(inside))]


@pytest.mark.parametrize(
    "line", ['open(path, "rb")', 'archive.open("a.npy")', "path.open()", "path.read_text()", "text.replace(a, b)"]
)
def test_reading_is_no_writing(line):
    assert not [*strays(ast.parse(f"def f():\n    {line}\n"))]
