"""Arrays of strangers: whatever a bit of their header says, the file or an error is what comes out."""

from __future__ import annotations

import numpy as np
import pytest

from aligntok.errors import DataError
from aligntok.io.arrays import map_column, read_npz
from aligntok.io.files import reading


def anything(name, dtype, shape):
    """Object to nothing."""


def through(read, path):
    """Return what is read, or the reason why not."""
    try:
        with reading(path, DataError, "make it anew"):
            return read()
    except DataError as error:
        return error


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_any_bit_of_a_header_is_read_or_one_clear_error(tmp_path, suffix):
    path, array = tmp_path / f"column{suffix}", np.arange(40)
    (np.save if suffix == ".npy" else np.savez)(path, **{"arr" if suffix == ".npy" else "arr_0": array})
    content = path.read_bytes()
    begin = content.index(b"\x93NUMPY")
    refused = 0
    for at in range(begin, begin + 128):
        for bit in range(8):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            if suffix == ".npy":
                found = through(lambda: map_column(path, "i8", 40), path)
            else:
                found = through(lambda: read_npz(path, ["arr_0"], anything, mapped=["arr_0"])["arr_0"], path)
            refused += isinstance(found, DataError)
            assert isinstance(found, DataError | np.ndarray)
    assert refused > 900


@pytest.mark.parametrize(
    "header", ["{'descr': (), 'fortran_order': False, 'shape': (4,), }", "{[]: 1}", "-" * 9000, "{'descr': '(2,3'"]
)
def test_a_header_that_was_made_up_is_one_clear_error(tmp_path, header):
    path = tmp_path / "column.npy"
    body = header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + bytes(32))
    assert isinstance(through(lambda: map_column(path, "i8", 4), path), DataError)
