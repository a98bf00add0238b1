"""The adversarial loss, of both sides."""

import pytest
import torch

from aligntok.errors import ConfigError
from aligntok.losses.adversarial import GANLoss

REAL = torch.tensor([2.0, 0.5, -1.0]).view(3, 1, 1, 1)
FAKE = torch.tensor([-2.0, 0.0, 1.0]).view(3, 1, 1, 1)


def test_hinge_is_that_of_ldm():
    loss = GANLoss("hinge")
    assert loss(FAKE).item() == pytest.approx(1 / 3)
    # relu(1 - real) = 0, 0.5, 2; relu(1 + fake) = 0, 1, 2
    assert loss.discriminator_loss(REAL, FAKE).item() == pytest.approx(0.5 * (2.5 / 3 + 3 / 3))


def test_non_saturating_is_cross_entropy():
    loss = GANLoss("non_saturating")
    assert loss(FAKE).item() == pytest.approx(-FAKE.sigmoid().log().mean().item())
    expected = -0.5 * (REAL.sigmoid().log().mean() + (1 - FAKE.sigmoid()).log().mean())
    assert loss.discriminator_loss(REAL, FAKE).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_the_two_sides_pull_against_each_other(kind):
    loss, fake = GANLoss(kind), torch.zeros(2, 1, 3, 4, requires_grad=True)
    (tokenizer,) = torch.autograd.grad(loss(fake), fake)
    (discriminator,) = torch.autograd.grad(loss.discriminator_loss(torch.zeros(2, 1, 3, 4), fake), fake)
    assert (tokenizer < 0).all()
    assert (discriminator > 0).all()


def test_its_gradient_enters_at_the_reconstruction():
    loss = GANLoss()
    assert (loss.at, loss.inputs) == ("reconstruction", ("fake_logits",))
    assert loss(torch.ones(1, 1, 2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="no kind named 'wasserstein'; known: hinge, non_saturating"):
        GANLoss("wasserstein")
