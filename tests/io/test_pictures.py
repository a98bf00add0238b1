"""Pictures of reconstructions, sheets under titles, and how they are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from aligntok.io.pictures import reconstruction_grid, save_picture, sheet


def test_a_row_is_input_reconstruction_and_error():
    image, reconstruction = torch.full((3, 8, 6), 0.5), torch.full((3, 8, 6), 0.25)
    grid = reconstruction_grid([image], [reconstruction], gap=2)
    assert grid.shape == (3, 8, 3 * 6 + 2 * 2)
    assert torch.equal(grid[:, :, :6], image)
    assert torch.equal(grid[:, :, 8:14], reconstruction)
    assert (grid[:, :, 16:] == 2 * 0.25 - 1).all()
    assert (grid[:, :, 6:8] == 1).all()


def test_a_perfect_reconstruction_has_a_black_error_and_overshoot_is_clamped():
    image = torch.ones(3, 4, 4)
    grid = reconstruction_grid([image], [3 * image], gap=0)
    assert (grid[:, :, 4:8] == 1).all()
    assert (grid[:, :, 8:] == -1).all()


def test_many_rows_stand_side_by_side_and_sizes_may_differ():
    images = [torch.zeros(3, 8, 8)] * 6 + [torch.zeros(3, 4, 12)]
    grid = reconstruction_grid(images, images, gap=1)
    width = 3 * 12 + 2  # of the widest row
    assert grid.shape == (3, 4 * 8 + 3, 2 * width + 3)
    assert float(grid.abs().max()) <= 1


@pytest.mark.parametrize("labels", [(), ("first", "second")])
def test_a_sheet_has_its_pictures_in_rows_under_their_titles(labels):
    rows = [[Image.new("RGB", (40, 30), (20 * i + j, 0, 0)) for j in range(3)] for i in range(2)]
    pixels = np.asarray(sheet(rows, ["a", "b", "a title that is too wide"], labels, letters=12, gap=5))
    top, left = 12 + 2 * 5, pixels.shape[1] - 3 * 45
    assert pixels.shape[0] == top + 2 * 35
    for i in range(2):
        for j in range(3):
            tile = pixels[top + 35 * i : top + 35 * i + 30, left + 45 * j : left + 45 * j + 40]
            assert (tile == (20 * i + j, 0, 0)).all()
    assert (pixels[:top] < 128).any()
    assert (left > 5) == (pixels[top:, :left] < 128).any() == bool(labels)


def test_a_picture_is_written_whole_with_its_folder(tmp_path):
    save_picture(tmp_path / "new" / "a.png", Image.new("RGB", (3, 2), (1, 2, 3)))
    save_picture(tmp_path / "new" / "b.png", Figure(figsize=(2, 1), dpi=50))
    with Image.open(tmp_path / "new" / "a.png") as a, Image.open(tmp_path / "new" / "b.png") as b:
        assert (a.format, a.size, a.getpixel((0, 0))) == ("PNG", (3, 2), (1, 2, 3))
        assert (b.format, b.size) == ("PNG", (100, 50))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]
