"""The decoder of a transformer and convolutions: grids of any shape, positions, its size."""

import pytest
import torch

from aligntok.decoders.vit_cnn import ViTCNNDecoder
from aligntok.errors import ConfigError

TINY = {
    "latent_dim": 4,
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "ch": 32,
    "ch_mult": (1, 1),
    "num_res_blocks": 1,
    "resolution": 32,
}


def test_the_ablations_decoder_has_351_million_parameters():
    with torch.device("meta"):
        decoder = ViTCNNDecoder(latent_dim=32)
        assert decoder(torch.randn(1, 32, 16, 16)).shape == (1, 3, 256, 256)
    assert sum(p.numel() for p in decoder.parameters()) / 1e6 == pytest.approx(351, abs=0.5)


@pytest.mark.parametrize("grid", [(4, 4), (3, 7)])
def test_any_latent_grid_decodes_to_its_size(grid):
    decoder = ViTCNNDecoder(**TINY)
    assert decoder.upsample_factor == 2
    assert decoder(torch.randn(2, 4, *grid)).shape == (2, 3, 2 * grid[0], 2 * grid[1])


def test_tokens_know_where_they_are_in_both_directions():
    decoder = ViTCNNDecoder(**TINY).eval()
    decoder.cnn = torch.nn.Identity()
    decoder.proj = torch.nn.Identity()
    with torch.no_grad():
        for block in decoder.blocks:
            torch.nn.init.normal_(block.qkv.weight)
        latents = torch.randn(1, 4, 3, 4)
        tokens = decoder(latents)
        for dim in (2, 3):  # without positions, attention would only permute its output
            assert not torch.allclose(decoder(latents.flip(dim)).flip(dim), tokens, atol=1e-3)


def test_every_token_reaches_every_other():
    decoder = ViTCNNDecoder(**TINY)
    decoder.cnn = torch.nn.Identity()
    latents = torch.randn(1, 4, 3, 9, requires_grad=True)
    decoder(latents)[0, :, 0, 0].sum().backward()
    assert latents.grad[0, :, 2, 8].abs().min() > 0


def test_options_shape_the_vit_and_the_cnn():
    decoder = ViTCNNDecoder(**{**TINY, "depth": 3}, token_dim=24, mlp_ratio=2.0, out_ch=1, tanh_out=True)
    assert len(decoder.blocks) == 3
    assert decoder.blocks[0].fc1.out_features == 64
    assert decoder.cnn.latent_dim == 24
    image = decoder(100 * torch.randn(1, 4, 2, 2))
    assert image.shape[1] == 1
    assert image.abs().max() <= 1


def test_dropout_acts_in_the_vit_in_training_only():
    decoder, latents = ViTCNNDecoder(**TINY, dropout=0.5), torch.randn(1, 4, 4, 4)
    decoder.cnn = torch.nn.Identity()
    assert not torch.equal(decoder(latents), decoder(latents))
    decoder.eval()
    assert torch.equal(decoder(latents), decoder(latents))


def test_last_layer_is_the_weight_before_the_image():
    decoder = ViTCNNDecoder(**TINY)
    assert decoder.last_layer is decoder.cnn.conv_out.weight


def test_checkpointing_gives_the_same_gradients():
    decoder, latents = ViTCNNDecoder(**TINY), torch.randn(1, 4, 3, 2)
    gradients = []
    for enable in (False, True):
        decoder.set_grad_checkpointing(enable)
        assert decoder.grad_checkpointing == decoder.cnn.mid.grad_checkpointing == enable
        loss = decoder(latents).square().mean()
        gradients.append(torch.autograd.grad(loss, list(decoder.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-7)


def test_heads_that_cannot_turn_are_refused():
    with pytest.raises(ConfigError, match=r"multiple of 4 \* num_heads = 20"):
        ViTCNNDecoder(**{**TINY, "num_heads": 5})


def test_latents_of_another_width_are_refused():
    with pytest.raises(ConfigError, match="takes latents"):
        ViTCNNDecoder(**TINY)(torch.zeros(1, 5, 2, 2))
