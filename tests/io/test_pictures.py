"""Pictures of reconstructions."""

from __future__ import annotations

import torch

from aligntok.io.pictures import reconstruction_grid


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
