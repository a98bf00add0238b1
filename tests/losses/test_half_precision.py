"""Losses of tensors in half precision are those of the same numbers in float32: nothing is rounded on the way."""

from __future__ import annotations

import pytest
import torch

from aligntok.losses.adversarial import GANLoss
from aligntok.losses.reconstruction import KLLoss, L1Loss
from aligntok.losses.semantic import SemanticPreservationLoss, distance_matrix_loss, marginal_cosine_loss

LOSSES = {
    "l1": L1Loss(),
    "l2 to a teacher": SemanticPreservationLoss("l2"),
    "cosine to a teacher": SemanticPreservationLoss("cosine"),
    "distances": lambda a, b: distance_matrix_loss(a, b, 0.1),
    "cosine with a margin": lambda a, b: marginal_cosine_loss(a, b, 0.1),
    "kl": lambda a, b: KLLoss()(torch.cat([a, b], dim=1)),
    **{f"{kind}, fakes": lambda a, b, kind=kind: GANLoss(kind)(a) for kind in ("hinge", "non_saturating")},
    **{
        f"{kind}, both": lambda a, b, kind=kind: GANLoss(kind).discriminator_loss(a, b)
        for kind in ("hinge", "non_saturating")
    },
}


@pytest.mark.parametrize("halved", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_half_precision_is_that_of_the_same_numbers(name, halved):
    numbers = [torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(i)).bfloat16() for i in (0, 1)]
    if "kl" in name:  # whose two halves are one tensor
        halved = (True, True)
    found = LOSSES[name](*(x if half else x.float() for x, half in zip(numbers, halved, strict=True)))
    assert found.dtype == torch.float32
    assert torch.equal(found, LOSSES[name](*(x.float() for x in numbers)))
