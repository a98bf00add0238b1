"""Every place that opens an image, goes to 8 bits or back, or writes a PNG calls the one function for it.

The places are found in the source, so that a new one that does it in its own way fails here.
"""

from __future__ import annotations

import ast

import pytest

IMAGE_READERS = {"open_image", "read_image", "upright_size", "read_upright_size", "read_header"}


def called(node):
    """The name that a call is of: `save` of `picture.save(...)`; empty for what is no call."""
    return getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""


@pytest.fixture
def places(trees):
    """A function that tells where another holds of a node: (file, innermost function or class)."""

    def walk(wanted, file, node, inside):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inside = node.name
        if wanted(node):
            yield file, inside
        for child in ast.iter_child_nodes(node):
            yield from walk(wanted, file, child, inside)

    return lambda wanted: [place for file, tree in trees.items() for place in walk(wanted, file, tree, "")]


def opens_an_image(node):
    """Whether an image is decoded: by Pillow's open, however it was imported, or by another library's reader."""
    if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("PIL"):
        return "open" in {name.name for name in node.names}
    if isinstance(node, ast.Attribute) and node.attr == "open":
        return ast.unparse(node.value) in ("Image", "PIL.Image", "ImageFile")
    return called(node).endswith("ImageFile") or called(node) in {
        "imread",
        "imdecode",
        "decode_image",
        "decode_jpeg",
        "decode_png",
        "VideoReader",
    }


def starts_a_program(node):
    """Whether a module or function that starts other programs is named."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {name.name for name in node.names} | {getattr(node, "module", None) or ""}
        return not names.isdisjoint({"subprocess", "pty", "commands", "asyncio.subprocess"})
    return (
        isinstance(node, ast.Attribute)
        and (
            node.attr in ("system", "popen", "fork", "forkpty", "startfile", "Popen", "check_output")
            or node.attr.startswith(("exec", "spawn", "posix_spawn"))
        )
        and ast.unparse(node.value) in ("os", "subprocess", "posix", "asyncio")
    )


def test_nothing_starts_another_program(places):
    assert places(starts_a_program) == []


def reading_attempts(trees):
    """(file, function, caught): for every `try` around a reader of images, what its handlers catch."""
    found = []
    for file, tree in trees.items():
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                body = ast.Module(node.body, []) if isinstance(node, ast.Try) else None
                if body and any(called(each) in IMAGE_READERS for each in ast.walk(body)):
                    caught = [ast.unparse(handler.type) if handler.type else "" for handler in node.handlers]
                    found.append((file, function.name, caught))
    return found


def test_an_image_is_opened_in_one_place_and_fails_in_one_way(places, trees):
    assert places(opens_an_image) == [
        ("data/transforms.py", "_opened"),
        ("data/transforms.py", "_jpeg_in_rows"),  # for the same, of a size that Pillow's open refuses
    ]
    assert reading_attempts(trees) == [
        ("caching/encoder.py", "__getitem__", ["ImageError"]),
        ("data/check.py", "_look", ["ImageError"]),
        ("data/check.py", "_decode", ["ImageError"]),
        ("data/check.py", "decode", ["ImageError"]),
        ("data/images.py", "assign_buckets", ["ImageError"]),
        ("data/images.py", "assign", ["ImageError"]),  # the same one
        ("data/images.py", "_read_or_next", ["ImageError"]),
        ("data/index/parts.py", "sides", ["ImageError"]),  # counted by the index
        ("data/transforms.py", "holds_image", ["ImageError"]),  # to see whether there is one
        ("evaluation/comparison/kept.py", "read_grid", ["ImageError"]),
        ("evaluation/images.py", "_read", ["ImageError"]),
        ("evaluation/report/figures.py", "pictures", ["(OSError, AlignTokError)"]),  # of paths, as the last but one
        ("evaluation/report/figures.py", "contact_sheet", ["(OSError, AlignTokError)"]),
        ("evaluation/text_image/samples.py", "__getitem__", ["(ImageError, OSError)"]),  # of a path, as the next
        ("processor.py", "_opened", ["(ImageError, OSError, ValueError)"]),  # of a path that a user gives
        ("sampling/folder.py", "read", ["(ImageError, OSError)"]),  # of a path, not of a data set
        ("sampling/samples.py", "_real", ["ImageError"]),
    ]
    callers = {file for file, _ in places(lambda node: called(node) in IMAGE_READERS)}
    from_afar = "data/stream/dataset.py"  # its bytes are there: what fails is caught around it, with what they fail of
    assert callers == {file for file, *_ in reading_attempts(trees)} | {"data/transforms.py", from_afar}


def converts_to_or_from_8_bits(node):
    """Whether [-1, 1] and 0 to 255 meet: half of 255, or a conversion to uint8 (not a view of bytes, nor new zeros)."""
    if isinstance(node, ast.Constant) and node.value == 127.5:
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        return any(isinstance(side, ast.Constant) and side.value in (255, 256, 127) for side in (node.left, node.right))
    given = [ast.unparse(each) for each in [*node.args, *node.keywords]] if isinstance(node, ast.Call) else []
    return called(node) in ("byte", "uint8") or (
        called(node) in ("to", "type", "astype") and "uint8" in " ".join(given)
    )


def test_8_bits_come_about_and_go_in_one_place(places):
    assert sorted(set(places(converts_to_or_from_8_bits))) == [
        ("data/images.py", "place_unreadable"),  # numbers of buckets
        ("data/stream/selection.py", "decide"),  # how many are of each bucket
        ("data/transforms.py", "_to_eight_bits"),  # the high bits of deeper grey
        ("evaluation/metrics/image_quality.py", "ssim"),  # the constants of its definition
        ("extractors/__init__.py", "resized"),  # to [0, 1], as feature extractors take images
        ("io/pictures.py", "from_uint8"),
        ("io/pictures.py", "round_to_8bit"),
        ("io/pictures.py", "to_uint8"),
    ]


def writes_a_picture(node):
    """Whether a picture is encoded or letters are drawn: `save` but torch's and numpy's, and other libraries' ways."""
    if called(node) == "save":
        return ast.unparse(node.func) not in ("torch.save", "np.save", "dcp.save", "program.save")
    if isinstance(node, ast.Attribute) and node.attr in ("Draw", "truetype"):
        return True
    return called(node) in {"savefig", "save_image", "imsave", "imwrite", "write_png", "encode_png"}


def test_a_png_is_written_and_labelled_in_one_place(places):
    assert sorted(set(places(writes_a_picture))) == [
        ("evaluation/report/figures.py", "embed"),  # into memory, for a page
        ("evaluation/report/figures.py", "plot"),  # the same, as SVG
        ("io/pictures.py", "_font"),
        ("io/pictures.py", "captioned"),
        ("io/pictures.py", "save_picture"),
        ("io/pictures.py", "sheet"),
    ]
    callers = [file for file, _ in places(lambda node: called(node) == "save_picture")]
    assert len(callers) >= 11, callers
    assert len(places(lambda node: called(node) == "sheet")) == 3
