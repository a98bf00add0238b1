"""LDM's convolutional decoder: published outputs, its sizes and its last layer."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from aligntok.decoders.ldm_cnn import LDMDecoder
from aligntok.errors import ConfigError

TINY = {"latent_dim": 4, "ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (16,), "resolution": 32}


def test_the_papers_decoder_has_41_42_million_parameters():
    with torch.device("meta"):
        decoder = LDMDecoder()
    assert sum(p.numel() for p in decoder.parameters()) == 41_418_659


def test_names_and_shapes_are_the_published_ones(shared_dir):
    lines = (shared_dir / "reference/checkpoint_layouts/vavae_f16d32.tsv").read_text().splitlines()
    published = dict(line.split("\t") for line in lines)
    expected = {k.removeprefix("decoder."): v for k, v in published.items() if k.startswith(("decoder.", "post_quant"))}
    with torch.device("meta"):
        own = {key: str(tuple(value.shape)) for key, value in LDMDecoder().state_dict().items()}
    assert own == expected


def test_output_is_that_of_the_published_code(shared_dir):
    folder = shared_dir / "reference/parity"
    tensors = load_file(folder / "ldm_autoencoder_tiny.safetensors")
    config = json.loads((folder / "index.json").read_text())["ldm_autoencoder_tiny"]["config"]
    del config["in_channels"], config["double_z"]
    decoder = LDMDecoder(latent_dim=config.pop("z_channels"), **config)
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    decoder.load_state_dict(
        {k.removeprefix("decoder."): v for k, v in weights.items() if k.startswith(("decoder.", "post_quant_conv."))}
    )
    with torch.no_grad():
        images = decoder(tensors["moments"].chunk(2, dim=1)[0])
    torch.testing.assert_close(images, tensors["reconstruction_from_mean"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (1, 1)])
def test_any_latent_grid_decodes_to_its_size(grid):
    decoder = LDMDecoder(**TINY)
    assert decoder.upsample_factor == 2
    assert decoder(torch.randn(2, 4, *grid)).shape == (2, 3, 2 * grid[0], 2 * grid[1])


def test_attention_is_placed_by_level_not_by_image_size():
    decoder = LDMDecoder(4, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(32, 16), resolution=64)
    assert [len(level.attn) for level in decoder.up] == [0, 2, 2]


def test_last_layer_is_the_weight_before_the_image():
    decoder = LDMDecoder(**TINY)
    assert decoder.last_layer is decoder.conv_out.weight


def test_tanh_out_keeps_images_in_range():
    decoder = LDMDecoder(**TINY, tanh_out=True)
    with torch.no_grad():
        decoder.conv_out.weight.mul_(100)
    latents = torch.randn(1, 4, 4, 4)
    assert decoder(latents).abs().max() <= 1
    decoder.tanh_out = False
    assert decoder(latents).abs().max() > 1


def test_dropout_acts_in_training_only():
    decoder, latents = LDMDecoder(**TINY, dropout=0.5), torch.randn(1, 4, 4, 4)
    assert not torch.equal(decoder(latents), decoder(latents))
    decoder.eval()
    assert torch.equal(decoder(latents), decoder(latents))


def test_out_ch_sets_the_channels_of_the_image():
    assert LDMDecoder(**TINY, out_ch=1)(torch.randn(1, 4, 2, 2)).shape == (1, 1, 4, 4)


def test_checkpointing_gives_the_same_gradients_and_keeps_less():
    decoder, latents = LDMDecoder(**TINY), torch.randn(1, 4, 6, 5)
    gradients, kept = [], []
    for enable in (False, True):
        decoder.set_grad_checkpointing(enable)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = decoder(latents).square().mean()
        gradients.append(torch.autograd.grad(loss, list(decoder.parameters())))
        kept.append(sum(sizes))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-7)
    assert kept[1] < kept[0] / 2


def test_widths_that_have_no_32_groups_are_refused():
    with pytest.raises(ConfigError, match="norm_groups=32"):
        LDMDecoder(**{**TINY, "ch": 20})


@pytest.mark.parametrize("wrong", [{"ch_mult": ()}, {"ch_mult": (1, 0)}, {"num_res_blocks": 0}, {"latent_dim": 0}])
def test_options_that_describe_no_network_are_refused(wrong):
    with pytest.raises(ConfigError, match="LDMDecoder"):
        LDMDecoder(**{**TINY, **wrong})


def test_latents_of_another_width_are_refused():
    with pytest.raises(ConfigError, match=r"takes latents \(N, 4, h, w\), was given \(1, 5, 2, 2\)"):
        LDMDecoder(**TINY)(torch.zeros(1, 5, 2, 2))


def test_norm_groups_changes_every_norm_and_no_weight() -> None:
    plain, grouped = LDMDecoder(4, 32, (1, 2), 1, (), 32), LDMDecoder(4, 32, (1, 2), 1, (), 32, norm_groups=8)
    assert {m.num_groups for m in grouped.modules() if isinstance(m, torch.nn.GroupNorm)} == {8}
    grouped.load_state_dict(plain.state_dict())
    latents = torch.randn(1, 4, 4, 4)
    assert not torch.allclose(plain(latents), grouped(latents))


def test_norm_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="norm_groups=5"):
        LDMDecoder(4, 32, (1, 2), 1, (), 32, norm_groups=5)


def test_a_linear_path_adds_to_the_network_what_a_convolution_of_the_latent_gives() -> None:
    torch.manual_seed(0)
    plain = LDMDecoder(**TINY)
    torch.manual_seed(0)
    both = LDMDecoder(**TINY, linear_path=True)
    state = both.state_dict()
    assert {name for name in state if name not in plain.state_dict()} == {"linear_path.weight", "linear_path.bias"}
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    latents, weight = torch.randn(2, 4, 3, 5), state["linear_path.weight"]  # weight (3 * 2 * 2, 4, 3, 3)
    added = torch.zeros(2, 3, 6, 10)
    padded = torch.nn.functional.pad(latents, (1, 1, 1, 1))
    for colour, dy, dx in itertools.product(range(3), range(2), range(2)):
        row = colour * 4 + dy * 2 + dx
        for y, x in itertools.product(range(3), range(5)):
            window = (padded[:, :, y : y + 3, x : x + 3] * weight[row]).sum((1, 2, 3))
            added[:, colour, 2 * y + dy, 2 * x + dx] = window + state["linear_path.bias"][row]
    with torch.no_grad():
        torch.testing.assert_close(both(latents), plain(latents) + added, rtol=0, atol=1e-5)
        both.linear_path.weight.zero_()
        both.linear_path.bias.zero_()
        assert torch.equal(both(latents), plain(latents))


def test_images_stay_in_range_with_a_linear_path_too() -> None:
    decoder = LDMDecoder(**TINY, tanh_out=True, linear_path=True)
    assert decoder(100 * torch.randn(1, 4, 4, 4)).abs().max() <= 1
