"""Adapters: a latent a position, their parameters, features that they refuse."""

import pytest
import torch

from aligntok.adapters import IdentityAdapter, LinearAdapter, MLPAdapter
from aligntok.errors import ConfigError


def test_the_papers_mlp_has_67680_parameters():
    with torch.device("meta"):
        adapter = MLPAdapter(in_dim=1024, latent_dim=32)
    assert sum(p.numel() for p in adapter.parameters()) == 67_680


@pytest.mark.parametrize(
    "adapter", [MLPAdapter(24, 8), MLPAdapter(24, 8, hidden_dim=5), LinearAdapter(24, 8), IdentityAdapter(8, 8)]
)
def test_adapters_keep_the_grid_and_give_the_latent_width(adapter):
    assert adapter(torch.randn(2, adapter.in_dim, 4, 6)).shape == (2, 8, 4, 6)


@pytest.mark.parametrize("adapter", [MLPAdapter(24, 8), LinearAdapter(24, 8)])
def test_a_position_never_sees_another(adapter):
    features = torch.randn(1, 24, 3, 5)
    changed = features.clone()
    changed[..., 1, 2] += 1
    difference = (adapter(features) - adapter(changed)).abs().sum(dim=1)[0]
    assert difference[1, 2] > 0
    assert difference.sum() == difference[1, 2]


def test_hidden_dim_sets_the_width_between():
    assert MLPAdapter(24, 8, hidden_dim=5).fc1.out_channels == 5


def test_the_mlp_is_not_linear():
    adapter, x = MLPAdapter(4, 4), torch.randn(1, 4, 1, 1)
    zero = adapter(torch.zeros_like(x))
    assert not torch.allclose(adapter(2 * x) - zero, 2 * (adapter(x) - zero))


def test_identity_returns_its_input_uncopied():
    features = torch.randn(1, 8, 2, 2)
    assert IdentityAdapter(8, 8)(features) is features


def test_identity_refuses_two_widths():
    with pytest.raises(ConfigError, match="cannot turn 9 channels into a latent of 8"):
        IdentityAdapter(9, 8)


@pytest.mark.parametrize("options", [{"in_dim": 0, "latent_dim": 8}, {"in_dim": 8, "latent_dim": 8, "hidden_dim": 0}])
def test_empty_widths_are_refused(options):
    with pytest.raises(ConfigError, match="is 0; it must be 1 or more"):
        MLPAdapter(**options)


@pytest.mark.parametrize("shape", [(2, 9, 4, 4), (2, 24, 4)])
def test_features_of_another_encoder_are_refused(shape):
    with pytest.raises(ConfigError, match="must be the encoder's out_dim"):
        MLPAdapter(24, 8)(torch.zeros(shape))
