"""Rotary positions: what rotating keeps, and that products depend on distances alone."""

import torch

from aligntok.ops.embeddings import axial_rotations, rotate


def test_turning_keeps_lengths_and_starts_at_no_turn():
    x = torch.randn(2, 3, 15, 8)
    turned = rotate(x, axial_rotations(3, 5, 8))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_a_product_depends_on_the_offset_only():
    height, width = 4, 6
    q, k = torch.randn(8), torch.randn(8)
    everywhere = torch.ones(1, 1, height * width, 1)
    rotations = axial_rotations(height, width, 8)
    products = (rotate(q * everywhere, rotations) @ rotate(k * everywhere, rotations).mT)[0, 0]
    grid = products.view(height, width, height, width)  # [row, column] of q, then of k
    torch.testing.assert_close(grid[0, 0, 2, 3], grid[1, 2, 3, 5])
    assert (grid[0, 0, 2, 3] - grid[0, 0, 3, 2]).abs() > 1e-4  # rows and columns are not exchangeable


def test_a_smaller_grid_is_a_corner_of_a_larger_one():
    large = axial_rotations(4, 6, 8).view(2, 4, 6, 8)
    assert torch.equal(axial_rotations(2, 3, 8).view(2, 2, 3, 8), large[:, :2, :3])


def test_half_precision_is_turned_in_full():
    x, rotations = torch.randn(1, 1, 36, 8).bfloat16(), axial_rotations(6, 6, 8)
    assert torch.equal(rotate(x, rotations), rotate(x.float(), rotations).bfloat16())
