"""LDM's convolutional encoder, trained from scratch: published outputs, sizes, weights from a file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from aligntok.encoders.ldm_cnn import LDMEncoder
from aligntok.errors import ConfigError, WeightsError

TINY = {"latent_dim": 4, "ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (16,), "resolution": 32}


@pytest.fixture
def reference(shared_dir):
    return load_file(shared_dir / "reference/parity/ldm_autoencoder_tiny.safetensors")


@pytest.fixture
def published(reference):
    return {k.removeprefix("weights."): v for k, v in reference.items() if k.startswith("weights.")}


def test_the_baselines_encoder_has_28_41_million_parameters():
    with torch.device("meta"):
        encoder = LDMEncoder()
    assert sum(p.numel() for p in encoder.parameters()) == 28_417_408


def test_names_and_shapes_are_the_published_ones(shared_dir):
    lines = (shared_dir / "reference/checkpoint_layouts/vavae_f16d32.tsv").read_text().splitlines()
    layout = dict(line.split("\t") for line in lines)
    expected = {k.removeprefix("encoder."): v for k, v in layout.items() if k.startswith(("encoder.", "quant_conv."))}
    with torch.device("meta"):
        own = {key: str(tuple(value.shape)) for key, value in LDMEncoder().state_dict().items()}
    assert own == expected


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_output_is_that_of_the_published_code(shared_dir, reference, published, tmp_path, suffix):
    index = json.loads((shared_dir / "reference/parity/index.json").read_text())
    config = index["ldm_autoencoder_tiny"]["config"]
    del config["in_channels"], config["out_ch"]
    file = tmp_path / f"autoencoder.{suffix}"
    if suffix == "safetensors":
        save_file(published, file)
    else:
        torch.save({"state_dict": {**published, "loss.logvar": torch.zeros(())}, "epoch": 3}, file)
    encoder = LDMEncoder(latent_dim=config.pop("z_channels"), **config, pretrained=file)
    with torch.no_grad():
        moments = encoder(reference["x"])
    torch.testing.assert_close(moments, reference["moments"], rtol=0, atol=1e-5)


def test_its_own_state_dict_is_a_pretrained_file_too(tmp_path):
    encoder = LDMEncoder(**TINY).eval()
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    again = LDMEncoder(**TINY, pretrained=str(tmp_path / "encoder.safetensors")).eval()
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(encoder(images), again(images))


@pytest.mark.parametrize(("double_z", "channels"), [(True, 8), (False, 4)])
def test_non_square_images_give_their_grid(double_z, channels):
    encoder = LDMEncoder(**TINY, double_z=double_z)
    assert (encoder.downsample_factor, encoder.stride, encoder.out_dim) == (2, 2, channels)
    assert encoder(torch.randn(2, 3, 12, 20)).shape == (2, channels, 6, 10)


def test_last_layer_is_conv_out():
    encoder = LDMEncoder(**TINY)
    assert encoder.last_layer is encoder.conv_out.weight


def test_attention_is_placed_by_level_not_by_image_size():
    encoder = LDMEncoder(4, ch=32, ch_mult=(1, 1, 1), num_res_blocks=2, attn_resolutions=(32, 16), resolution=64)
    assert [len(level.attn) for level in encoder.down] == [0, 2, 2]


def test_dropout_acts_in_training_only():
    encoder, images = LDMEncoder(**TINY, dropout=0.5), torch.randn(1, 3, 8, 8)
    assert not torch.equal(encoder(images), encoder(images))
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))


def test_checkpointing_gives_the_same_gradients():
    encoder, images = LDMEncoder(**TINY), torch.randn(1, 3, 12, 10)
    gradients = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        assert encoder.down[0].grad_checkpointing == encoder.mid.grad_checkpointing == enable
        loss = encoder(images).square().mean()
        gradients.append(torch.autograd.grad(loss, list(encoder.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-7)


def test_a_downsampling_factor_is_only_checked():
    assert LDMEncoder(**TINY, downsample_factor=2).downsample_factor == 2
    with pytest.raises(ConfigError, match="downsample_factor=16 does not fit"):
        LDMEncoder(**TINY, downsample_factor=16)


def test_images_off_the_grid_are_refused():
    with pytest.raises(ConfigError, match="multiples of f = 2"):
        LDMEncoder(**TINY)(torch.zeros(1, 3, 7, 8))


def test_there_are_no_weights_on_a_hub():
    with pytest.raises(WeightsError, match="pretrained=False"):
        LDMEncoder(**TINY, pretrained=True)


def test_a_missing_file_is_named():
    with pytest.raises(WeightsError, match=r"no weights at nowhere\.safetensors"):
        LDMEncoder(**TINY, pretrained="nowhere.safetensors")


def test_weights_of_another_shape_are_refused(published, tmp_path):
    save_file(published, tmp_path / "small.safetensors")
    with pytest.raises(WeightsError, match="does not fit"):
        LDMEncoder(**{**TINY, "ch": 64}, pretrained=tmp_path / "small.safetensors")


def test_a_linear_path_adds_to_the_network_what_a_convolution_of_patches_gives() -> None:
    torch.manual_seed(0)
    plain = LDMEncoder(**TINY)
    torch.manual_seed(0)
    both = LDMEncoder(**TINY, linear_path=True)
    state = both.state_dict()
    assert {name for name in state if name not in plain.state_dict()} == {"linear_path.weight", "linear_path.bias"}
    images = torch.randn(2, 3, 6, 8)
    patches = images.unflatten(3, (4, 2)).unflatten(2, (3, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3)  # (2, 3, 4, 12)
    added = patches @ state["linear_path.weight"].flatten(1).T + state["linear_path.bias"]
    with torch.no_grad():
        expected = plain(images) + added.permute(0, 3, 1, 2)
        torch.testing.assert_close(both(images), expected, rtol=0, atol=1e-5)


def test_beside_pretrained_weights_a_linear_path_starts_at_zero_unless_they_have_one(tmp_path) -> None:
    plain, both = LDMEncoder(**TINY), LDMEncoder(**TINY, linear_path=True)
    images, path = torch.randn(1, 3, 8, 8), tmp_path / "encoder.safetensors"
    save_file(plain.state_dict(), path)
    with torch.no_grad():
        assert torch.equal(LDMEncoder(**TINY, linear_path=True, pretrained=path)(images), plain(images))
        save_file({f"encoder.{name}": tensor for name, tensor in both.state_dict().items()}, path)
        assert torch.equal(LDMEncoder(**TINY, linear_path=True, pretrained=path)(images), both(images))
    with pytest.raises(WeightsError, match=r"linear_path\.bias"):
        LDMEncoder(**TINY, pretrained=path)
