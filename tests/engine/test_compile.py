"""Which blocks are compiled."""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from aligntok.engine.compile import FOLDER, blocks_of, compile_blocks, compiled_folder, keep_compiled
from aligntok.errors import ConfigError
from aligntok.generators.lightning_dit import LightningDiT
from aligntok.ops.attention import kernels_taken
from aligntok.tokenizer import Tokenizer


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)


def test_blocks_are_elements_of_lists_and_parts_without_lists_but_no_single_layers():
    outer = nn.Module()
    outer.first = nn.Linear(2, 2)
    outer.branch = Branch()
    outer.blocks = nn.Sequential(Branch(), nn.Linear(2, 2), nn.Sequential(Branch(), Branch()))
    outer.deeper = nn.Module()
    outer.deeper.levels = nn.ModuleList([Branch()])
    outer.last = nn.Conv2d(1, 1, 1)
    assert blocks_of(outer) == [outer.branch, outer.blocks[0], outer.blocks[2], outer.deeper.levels[0]]


def test_the_last_layers_where_ratios_are_found_stay_small():
    """A ratio walks what is compiled together with its last layer, so that must not be a whole network."""
    encoder = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False, model_args=dict(depth=3))
    decoder = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, resolution=32)
    tokenizer = Tokenizer(encoder=encoder, decoder=decoder, latent_dim=4, downsample_factor=2)
    blocks = blocks_of(tokenizer)
    for part in (tokenizer.encoder, tokenizer.decoder):
        holding = [b for b in blocks if any(p is part.last_layer for p in b.parameters())]
        assert sum(p.numel() for b in holding for p in b.parameters()) < 0.4 * sum(p.numel() for p in part.parameters())
    names = list(tokenizer.state_dict())
    compile_blocks([tokenizer, None], {"backend": "eager"})
    assert list(tokenizer.state_dict()) == names
    assert all(block._compiled_call_impl is not None for block in blocks)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, on its way
def test_alike_blocks_are_compiled_once():
    encoder = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False, model_args=dict(depth=8))
    decoder = dict(type="vit_cnn", width=64, depth=8, num_heads=2, ch=32, ch_mult=(1,) * 5, num_res_blocks=1)
    tokenizer = Tokenizer(encoder=encoder, decoder=decoder, latent_dim=4)
    compiled = []
    compile_blocks([tokenizer], {"backend": lambda graph, _: compiled.append(graph) or graph.forward})
    features = tokenizer.encoder(torch.randn(2, 3, 32, 32))
    assert len(compiled) <= 3  # a block, and what embeds patches
    before = len(compiled)
    tokenizer.decoder(tokenizer.adapter(features)).sum().backward()
    assert len(compiled) - before <= 7  # the transformer's, and of the convolutional part the middle and five sizes


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    os.environ.pop(FOLDER, None)  # what was set inside


def test_compiled_code_is_kept_in_the_users_cache_by_version(cache):
    folder = keep_compiled()
    assert folder == cache / "aligntok" / "compiled" / f"torch-{torch.__version__}"
    assert folder.is_dir()
    assert os.environ[FOLDER] == str(folder)


def test_what_torch_writes_into_the_environment_names_nothing(cache):
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == os.environ[FOLDER]
    assert compiled_folder() == cache / "aligntok" / "compiled" / f"torch-{torch.__version__}"
    assert keep_compiled() == compiled_folder()


def test_a_folder_that_is_named_is_taken_or_refused(cache, monkeypatch):
    monkeypatch.setenv(FOLDER, str(cache / "named" / "here"))
    assert keep_compiled() == cache / "named" / "here"
    (cache / "file").touch()
    monkeypatch.setenv(FOLDER, str(cache / "file" / "here"))
    with pytest.raises(ConfigError, match=f"cannot be written .Not a directory.; correct {FOLDER}, or leave it out"):
        keep_compiled()


def test_without_a_cache_of_the_users_compiling_goes_on(cache, monkeypatch, caplog):
    (cache / "aligntok").touch()
    with caplog.at_level("WARNING"):
        assert keep_compiled() is None
    assert "every start compiles anew" in caplog.text
    assert FOLDER not in os.environ


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        (dict(mode="reduce-overhead"), True),
        (dict(mode="max-autotune"), True),
        (dict(options={"triton.cudagraphs": True}), True),
        (dict(options={"triton.cudagraphs": False}), False),
        (dict(mode="max-autotune-no-cudagraphs"), False),
        (dict(mode="default"), False),
        ({}, False),
    ],
)
def test_cuda_graphs_are_refused_whose_outputs_the_next_block_would_overwrite(cache, options, graphs):
    with pytest.raises(ConfigError, match="records CUDA graphs") if graphs else nullcontext():
        compile_blocks([nn.Linear(2, 2)], options)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at it
def test_equal_blocks_are_compiled_once_and_for_another_batch_once_more():
    """Twelve blocks of a transformer; what the log asks for after the first step changes nothing."""
    torch.compiler.reset()
    compiled = []

    def backend(graph, _):
        compiled.append(str(graph.code).count("scaled_dot_product_attention"))
        return graph.forward

    model = LightningDiT(depth=12, hidden_size=48, num_heads=3, in_channels=6, input_size=4, num_classes=7)
    compile_blocks([model], {"backend": backend})
    for count in (3, 3, 6, 9):
        model(torch.randn(count, 6, 4, 4), torch.rand(count), torch.arange(count) % 7).sum().backward()
        kernels_taken()
        assert sum(compiled) == (1 if count == 3 else 2)
