"""The adversarial loss, both sides."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from aligntok.errors import ConfigError, unknown
from aligntok.losses import Loss

KINDS = ("hinge", "non_saturating")


class GANLoss(Loss):
    """Makes reconstructions look real to a discriminator (paper, Eq. 1, L_GAN); hinge as in the paper's code base.

    kind: "hinge" (Lim & Ye 2017) or "non_saturating" (Goodfellow et al. 2014). Logits are (N, 1, h', w'), high for
    real. ``forward`` is the tokenizer's side; `discriminator_loss` is the other.
    """

    at = "reconstruction"
    inputs = ("fake_logits",)

    def __init__(self, kind: str = "hinge") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"GANLoss: {unknown('kind', kind, KINDS)}")
        self.kind = kind

    def forward(self, fake_logits: Tensor) -> Tensor:
        """Return the tokenizer's loss, a float32 scalar: low when the discriminator takes fakes for real."""
        fake = fake_logits.float()
        if self.kind == "hinge":
            return -fake.mean()  # -E[D(x_hat)]
        return F.softplus(-fake).mean()  # -E[log sigmoid(D(x_hat))]

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Return the discriminator's loss, a float32 scalar: half the sum of its two sides."""
        real, fake = real_logits.float(), fake_logits.float()
        if self.kind == "hinge":
            return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
