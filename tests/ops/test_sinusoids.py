"""Sines and cosines of positions and times."""

import math

import torch

from aligntok.ops.embeddings import embed_grid, embed_times


def test_a_time_is_cosines_then_sines_from_fast_to_slow():
    t = torch.tensor([0.0, 0.5, 1.0])
    embedded = embed_times(t, 8)
    for i in range(4):
        frequency = 10000 ** (-i / 4)
        torch.testing.assert_close(embedded[:, i], torch.cos(t * frequency))
        torch.testing.assert_close(embedded[:, 4 + i], torch.sin(t * frequency))


def test_times_are_embedded_in_full_precision_whatever_they_come_in():
    assert embed_times(torch.ones(2, dtype=torch.bfloat16), 8).dtype == torch.float32


def test_a_place_is_its_column_then_its_row():
    table = embed_grid(2, 3, 8).view(2, 3, 2, 2, 2)  # row, column; column or row; sine or cosine; frequency
    for row in range(2):
        for column in range(3):
            for half, place in enumerate((column, row)):
                for i, frequency in enumerate((1, 1 / 100)):
                    sine, cosine = table[row, column, half, :, i].tolist()
                    assert math.isclose(sine, math.sin(place * frequency), abs_tol=1e-6)
                    assert math.isclose(cosine, math.cos(place * frequency), abs_tol=1e-6)
    assert embed_grid(2, 3, 8, device=torch.device("meta")).is_meta
