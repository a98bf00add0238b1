"""Rotary positions: what rotating keeps, and that products depend on distances alone."""

import math

import pytest
import torch

from aligntok.ops.embeddings import axial_rotations, grid_rotations, rotate, split_rotated


def test_turning_keeps_lengths_and_starts_at_no_turn():
    x = torch.randn(2, 3, 15, 8)
    turned = rotate(x, axial_rotations(3, 5, 8))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_a_grids_rotations_are_of_no_turn_then_the_row_then_the_column():
    """Of axes of 2, 4 and 2 channels at base 100: row and column once, and the row at a tenth."""
    cos, sin = grid_rotations(3, 5, (2, 4, 2), theta=100.0).view(2, 3, 5, 8)
    angles = torch.tensor([0.0, 2.0, 0.2, 3.0]).repeat_interleave(2)
    torch.testing.assert_close(cos[2, 3], angles.cos())
    torch.testing.assert_close(sin[2, 3], angles.sin())


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


def test_a_pair_turns_by_its_place_times_its_frequency():
    """Of the last of 2 x 3 places, row 1, column 2; frequencies of 8 channels are 1 and a hundredth for both."""
    x = torch.tensor([3.0, 4.0]).repeat(4).expand(1, 1, 6, 8)
    expected = []
    for angle in (1, 0.01, 2, 0.02):
        expected += [3 * math.cos(angle) - 4 * math.sin(angle), 3 * math.sin(angle) + 4 * math.cos(angle)]
    assert rotate(x, axial_rotations(2, 3, 8))[0, 0, -1].tolist() == pytest.approx(expected, rel=1e-6)


def test_what_is_compiled_turns_as_what_is_not(monkeypatch):
    x, rotations = torch.randn(2, 3, 15, 8), axial_rotations(3, 5, 8)
    turned = rotate(x, rotations)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, rotations), turned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_queries_and_keys_turn_where_they_are_and_so_do_their_gradients(dtype):
    qkv, rotations = torch.randn(2, 15, 3, 4, 8, dtype=dtype, requires_grad=True), axial_rotations(3, 5, 8)
    weights = torch.randn(3, 2, 4, 15, 8, dtype=dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    expected = torch.stack([rotate(q, rotations), rotate(k, rotations), v])
    copy = qkv.clone()
    found = torch.stack(split_rotated(copy, rotations))
    torch.testing.assert_close(found, expected)
    assert torch.equal(copy.permute(2, 0, 3, 1, 4), found)  # no second tensor is kept
    gradients = [torch.autograd.grad((turned * weights).sum(), qkv)[0] for turned in (found, expected)]
    torch.testing.assert_close(*gradients)
