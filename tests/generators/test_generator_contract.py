"""What the base class asks of every generator, and does for it; its errors name the generator at hand."""

import pytest
import torch

from aligntok.errors import ConfigError, WeightsError
from aligntok.generators import Generator


class Still(Generator):
    def forward(self, x, t, y):
        self.check_inputs(x, t, y)
        return torch.zeros_like(x)


def test_a_generator_needs_little():
    still = Still(in_channels=2, num_classes=3, class_dropout_prob=0.1)
    assert still.null_class == 3
    assert Still(in_channels=2, num_classes=3).null_class is None
    assert still(torch.ones(2, 2, 1, 4), torch.rand(2), torch.tensor([0, 3], dtype=torch.int32)).shape == (2, 2, 1, 4)


def test_what_is_left_out_is_asked_for_by_name():
    bare = Generator(in_channels=2, num_classes=3)
    with pytest.raises(NotImplementedError, match="Generator must define forward"):
        bare(None, None, None)
    with pytest.raises(NotImplementedError, match="Generator must define set_grad_checkpointing"):
        bare.set_grad_checkpointing()


def test_weights_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(WeightsError, match="Still: no weights at"):
        Still(in_channels=2, num_classes=3).load_weights(tmp_path / "none.pt")


def test_an_error_names_the_generator_at_hand():
    with pytest.raises(ConfigError, match="Still takes latents"):
        Still(in_channels=2, num_classes=3)(torch.zeros(1, 1, 1, 1), torch.zeros(1), torch.zeros(1))
