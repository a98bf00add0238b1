"""The losses to a teacher: semantic preservation and VA-VAE's, by formula and published outputs."""

import pytest
import torch
from safetensors.torch import load_file

from aligntok.errors import ConfigError
from aligntok.losses.semantic import (
    SemanticPreservationLoss,
    VisionFoundationLoss,
    distance_matrix_loss,
    marginal_cosine_loss,
)


@pytest.fixture
def reference(shared_dir):
    return load_file(shared_dir / "reference/parity/vf_loss.safetensors")


@pytest.mark.parametrize("on", ["latents", "features"])
def test_it_compares_with_the_teachers_at_the_same_place(on):
    loss = SemanticPreservationLoss(on=on)
    assert (loss.at, loss.inputs) == (on, (on, f"teacher_{on}"))


def test_l2_is_the_mean_squared_difference():
    student, teacher = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(SemanticPreservationLoss()(student, teacher), ((student - teacher) ** 2).sum() / 120)


def test_cosine_is_averaged_over_positions_and_blind_to_length():
    loss = SemanticPreservationLoss("cosine")
    student = torch.tensor([[1.0, 0.0], [2.0, 3.0]]).T.view(1, 2, 1, 2)  # two positions
    teacher = torch.tensor([[0.0, 4.0], [4.0, 6.0]]).T.view(1, 2, 1, 2)  # one at a right angle, one parallel
    assert loss(student, teacher).item() == pytest.approx(0.5)
    torch.testing.assert_close(loss(3 * student, teacher), loss(student, teacher))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_half_precision_is_compared_in_float32(distance):
    x = torch.ones(1, 4, 2, 3, dtype=torch.bfloat16)
    assert SemanticPreservationLoss(distance)(x, x).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"), [({"distance": "l3"}, "l2, cosine"), ({"on": "moments"}, "latents, features")]
)
def test_unknown_choices_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"known: {message}"):
        SemanticPreservationLoss(**options)


def test_tensors_of_unlike_shape_are_not_broadcast():
    with pytest.raises(ConfigError, match="shapes must agree"):
        SemanticPreservationLoss()(torch.zeros(2, 4, 3, 3), torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_distance_matrix_loss_is_va_vaes(reference, margin):
    loss = distance_matrix_loss(reference["z"], reference["feature"], margin)
    torch.testing.assert_close(loss, reference[f"distmat_{margin}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_marginal_cosine_loss_is_va_vaes(reference, margin):
    loss = marginal_cosine_loss(reference["z"], reference["feature"], margin)
    torch.testing.assert_close(loss, reference[f"cos_{margin}"], rtol=0, atol=1e-6)


def test_the_vision_foundation_loss_is_both_terms_of_the_projected_latent(reference):
    loss = VisionFoundationLoss(8, 8, distance_weight=2.0, cosine_weight=3.0)
    with torch.no_grad():
        loss.linear_proj.weight.copy_(torch.eye(8)[..., None, None])
    expected = 2 * reference["distmat_0.25"] + 3 * reference["cos_0.5"]
    torch.testing.assert_close(loss(reference["z"], reference["feature"]), expected)
    loss.distance_margin = loss.cosine_margin = 0.0
    expected = 2 * reference["distmat_0.0"] + 3 * reference["cos_0.0"]
    torch.testing.assert_close(loss(reference["z"], reference["feature"]), expected)


def test_the_projection_has_no_bias_and_learns():
    loss = VisionFoundationLoss(latent_dim=4, feature_dim=6, distance_margin=0.0, cosine_margin=0.0)
    assert {k: tuple(v.shape) for k, v in loss.state_dict().items()} == {"linear_proj.weight": (6, 4, 1, 1)}
    latents = torch.randn(2, 4, 3, 5, requires_grad=True)
    loss(latents, torch.randn(2, 6, 3, 5)).backward()
    assert loss.linear_proj.weight.grad.abs().sum() > 0
    assert latents.grad.abs().sum() > 0
    assert (loss.at, loss.inputs) == ("latents", ("latents", "teacher_features"))


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 7, 3, 5)])
def test_another_grid_or_width_is_refused(shape):
    with pytest.raises(ConfigError, match="projected_latents"):
        VisionFoundationLoss(4, 6)(torch.randn(2, 4, 3, 5), torch.randn(shape))


def test_a_latent_without_length_has_a_finite_gradient():
    latents = torch.zeros(1, 4, 2, 2, requires_grad=True)
    VisionFoundationLoss(4, 6)(latents, torch.randn(1, 6, 2, 2)).backward()
    assert latents.grad.isfinite().all()
