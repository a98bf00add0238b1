"""Any timm or open_clip model: right at its own size, or refused in a sentence; the page of all of them says which."""

from __future__ import annotations

import sys
from pathlib import Path

import open_clip
import pytest
import timm
import torch

from aligntok.encoders.timm import TimmEncoder
from aligntok.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import encoder_models  # noqa: E402

#: Stride and channels at the default f16, as published; the side that it was made for; sides that it refuses.
TAKEN = {
    "vit_small_patch16_dinov3": (16, 384, 256, ()),
    "vit_base_patch16_siglip_256": (16, 768, 256, ()),
    "naflexvit_base_patch16_siglip": (16, 768, 384, ()),
    "vit_pe_spatial_tiny_patch16_512": (16, 192, 512, ()),
    "aimv2_large_patch14_224": (14, 1024, 224, ()),
    "eva02_tiny_patch14_224": (14, 192, 224, ()),
    "swin_tiny_patch4_window7_224": (16, 384, 224, ()),
    "convnext_tiny": (16, 384, 224, ()),
    "hiera_tiny_224": (16, 384, 224, (256,)),
    "samvit_base_patch16": (16, 256, 1024, ()),
    "crossvit_9_240": (12, 128, 240, (192,)),
    "coatnet_0_rw_224": (16, 384, 224, (256,)),
    "levit_128s": (16, 128, 224, (256,)),
    "haloregnetz_b": (16, 192, 224, (208,)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_model_is_right_at_its_own_size_and_refuses_others_in_a_sentence(name):
    stride, channels, own, refused = TAKEN[name]
    with torch.device("meta"):
        encoder = TimmEncoder(name, pretrained=False)
        assert (encoder.stride, encoder.out_dim) == (stride, channels)
        grid = own // stride
        assert encoder(torch.empty(1, 3, 16 * grid, 16 * grid)).shape == (1, channels, grid, grid)
        for side in refused:
            with pytest.raises(ConfigError, match=rf"'{name}'.* {side} x {side} pixels"):
                encoder(torch.empty(1, 3, side * 16 // stride, side * 16 // stride))


@pytest.mark.parametrize("name", ["hiera_tiny_224", "samvit_base_patch16"])
def test_real_features_are_as_the_blank_ones_promised(name):
    encoder = TimmEncoder(name, pretrained=False, out_index=1)
    side = encoder.own_size[0] * 16 // encoder.stride if name.startswith("hiera") else 64
    features = encoder(torch.rand(1, 3, side, side) * 2 - 1)
    assert features.shape[1:2] == (encoder.out_dim,)
    assert features.isfinite().all()
    assert features.std() > 0


def test_a_model_whose_features_are_off_their_grid_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match=r"'inception_v3': its features of 304 x 304 pixels are \(768, 17, 17\), not"):
        TimmEncoder("inception_v3", pretrained=False)


def test_another_fault_than_the_sizes_is_not_blamed_on_the_size():
    encoder = TimmEncoder("vit_tiny_patch16_224", pretrained=False, out_index=0)

    def out_of_memory(module, args):
        if not args[0].is_meta:
            raise torch.OutOfMemoryError("no room")

    encoder.backbone.patch_embed.register_forward_pre_hook(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        encoder(torch.zeros(1, 3, 32, 32))


def test_looking_at_a_model_changes_neither_random_numbers_nor_batch_norm():
    torch.manual_seed(0)
    encoder = TimmEncoder("resnet18", pretrained=False)
    drawn = torch.rand(4)
    torch.manual_seed(0)
    timm.create_model("resnet18", num_classes=0)
    assert torch.equal(torch.rand(4), drawn)
    assert all((mean == 0).all() for name, mean in encoder.named_buffers() if name.endswith("running_mean"))


def rows() -> dict[tuple[str, str], tuple[str, ...]]:
    """What the page says: the cells of each model's row by (library, model)."""
    found, library = {}, ""
    for line in (DOCS / "encoder_models.md").read_text().splitlines():
        if line.startswith("## "):
            library = line[3:]
        elif line.startswith("| `"):
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            found[library, cells[0].strip("`")] = cells
    return found


def test_the_page_has_the_models_of_the_libraries_it_names():
    text = (DOCS / "encoder_models.md").read_text()
    if f"timm {timm.__version__} and of open_clip {open_clip.__version__}" not in text:
        pytest.skip("the page is of other versions of the two libraries")
    known = {("timm", name) for name in timm.list_models()} | {("open_clip", name) for name in open_clip.list_models()}
    assert rows().keys() == known
    of = {library: [row for (where, _), row in rows().items() if where == library] for library in ("timm", "open_clip")}
    assert encoder_models.page(of["timm"], of["open_clip"]) == text


@pytest.mark.parametrize(
    "name", ["samvit_base_patch16", "hiera_tiny_224", "inception_v3", "resnet18", "beit_base_patch16_224"]
)
def test_the_page_is_what_its_program_finds(name):
    if f"timm {timm.__version__} " not in (DOCS / "encoder_models.md").read_text():
        pytest.skip("the page is of another version of timm")
    assert encoder_models.timm_row(name) == rows()["timm", name]


def test_the_page_is_what_its_program_finds_in_open_clip():
    assert encoder_models.open_clip_row("ViT-B-32") == rows()["open_clip", "ViT-B-32"]


FAMILIES = sorted({name.split("_")[0] for name in timm.list_models()})


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_of_timm_is_taken_or_refused_as_the_page_says(family):
    for name in timm.list_models(f"{family}*"):
        if name.split("_")[0] == family:
            assert encoder_models.timm_row(name) == rows()["timm", name]


@pytest.mark.nightly
@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_model_of_open_clip_is_taken_or_refused_as_the_page_says(name):
    assert encoder_models.open_clip_row(name) == rows()["open_clip", name]
