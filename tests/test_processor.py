"""Pictures become what a tokenizer encodes, as training sees its images, and come back level by level."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.nn import functional as F

from aligntok import ImageProcessor
from aligntok.data.transforms import cover_and_crop, covering, open_image, to_tensor
from aligntok.errors import ConfigError, ImageError
from aligntok.processor import as_floats, check_reach


def levels(mode="RGB"):
    """Every level of 8 bits once in each channel, 16 x 16."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return Image.fromarray(grey if mode == "L" else np.stack([grey, grey.T, grey[::-1]], axis=-1))


def picture(height=20, width=36, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image):
    return np.asarray(image, dtype=np.int64)


@pytest.fixture
def process():
    return ImageProcessor(multiple=4)


# What goes in


def test_all_levels_come_back_as_they_were(process):
    image = levels()
    x = process.preprocess(image)
    assert (x.shape, x.dtype) == ((1, 3, 16, 16), torch.float32)
    assert (float(x.min()), float(x.max())) == (-1, 1)
    (back,) = process.to_pil(x)
    assert np.array_equal(pixels(back), pixels(image))


def test_the_same_picture_in_every_guise_is_the_same_tensor(process, tmp_path):
    image = picture()
    array = np.array(image)
    image.save(tmp_path / "a.png")
    x = process.preprocess(image)
    assert torch.equal(x, torch.from_numpy(array).movedim(-1, 0)[None] / 127.5 - 1)
    tensor = torch.from_numpy(array).movedim(-1, 0)
    guises = [str(tmp_path / "a.png"), tmp_path / "a.png", Image.open(tmp_path / "a.png"), array, array[None], tensor]
    for guise in [*guises, tensor[None], [image], (array,), x, x[0], x.double()]:
        assert torch.equal(process.preprocess(guise), x), type(guise)
    both = process.preprocess([image, tmp_path / "a.png", array, tensor, x])
    assert torch.equal(both, x.expand(5, -1, -1, -1))
    assert torch.equal(process.preprocess(np.stack([array, array])), x.expand(2, -1, -1, -1))


def exif(image, orientation, path):
    """Save a picture that EXIF says is to be turned."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=tags)
    return path


@pytest.mark.parametrize("shape", [(4, 900), (901, 4), (3, 801)])
def test_of_a_strip_as_a_tensor_only_the_middle_is_resized(process, shape, monkeypatch):
    strip = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = covering(shape[::-1], (12, 12))[::-1]
    resized = F.interpolate(strip, whole, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = ((side - 12) // 2 for side in whole)
    asked, real = [], F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda images, size, **how: asked.append(size) or real(images, size, **how))
    found = process.preprocess(strip, size=12)
    torch.testing.assert_close(found, resized[..., top : top + 12, left : left + 12], atol=1e-4, rtol=0)
    assert max(asked[0]) < 60
    assert process.preprocess(torch.zeros(3, 1, 10_000), size=256).shape == (1, 3, 256, 256)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says_as_a_path_and_as_pillow_opens_it(process, tmp_path, orientation):
    image = picture()
    turns = [None, 0, 3, 1, 5, 4, 6, 2]  # Image.Transpose: what undoes the orientations 1 to 8
    upright = image if orientation == 1 else image.transpose(Image.Transpose(turns[orientation - 1]))
    path = exif(image, orientation, tmp_path / "a.png")
    opened = Image.open(path)
    for given in (path, opened, opened):  # the second time it is decoded already
        assert torch.equal(process.preprocess(given), to_tensor(upright)[None])
    assert opened.size == image.size
    assert opened.getexif()[ExifTags.Base.Orientation] == orientation  # the user's stays as it is


def test_transparency_is_laid_on_white(process):
    red = np.zeros((4, 4, 4), dtype=np.uint8)
    red[..., 0], red[:2, :, 3], red[2, :, 3] = 255, 255, 51  # rows: opaque, opaque, a fifth, none
    for image in (Image.fromarray(red), red):
        green = process.preprocess(image)[0, 1, :, 0]
        assert green.tolist() == pytest.approx([-1, -1, 204 / 127.5 - 1, 1])
    grey = np.stack([np.zeros((4, 4)), np.full((4, 4), 51)], axis=-1).astype(np.uint8)
    assert process.to_pil(process.preprocess(grey))[0].getpixel((0, 0)) == (204, 204, 204)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.info["transparency"] = 1
    assert (process.preprocess(palette) == 1).all()


def test_grey_palettes_one_bit_and_sixteen_are_rgb_of_8_bits(process, tmp_path):
    grey = levels("L")
    for image in (grey, np.array(grey), np.array(grey)[..., None]):
        (back,) = process.to_pil(process.preprocess(image))
        assert np.array_equal(pixels(back), pixels(grey)[..., None].repeat(3, axis=-1))
    coloured = picture(8, 8).convert("P")
    assert np.array_equal(pixels(process.to_pil(process.preprocess(coloured))[0]), pixels(coloured.convert("RGB")))
    assert process.preprocess(Image.new("1", (4, 4), 1)).min() == 1
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for name in ("a.png", "a.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        for given in (tmp_path / name, Image.open(tmp_path / name), Image.fromarray(deep)):
            (back,) = process.to_pil(process.preprocess(given))
            assert np.array_equal(pixels(back)[..., 1], pixels(grey)), (name, type(given))


def test_a_tiffs_numbers_are_told_by_its_tags_when_pillow_has_opened_it(process, tmp_path):
    """White is 0 there, which only the file's tags say."""
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(deep).save(tmp_path / "a.tif", tiffinfo={262: 0})
    opened = process.preprocess(Image.open(tmp_path / "a.tif"))
    assert torch.equal(opened, process.preprocess(tmp_path / "a.tif"))
    assert torch.equal(opened, to_tensor(open_image((tmp_path / "a.tif").read_bytes()))[None])


# Sizes


@pytest.mark.parametrize(("size", "cut"), [((20, 36), (20, 36)), ((21, 39), (20, 36)), ((7, 8), (4, 8))])
def test_sides_are_cut_from_the_middle_to_multiples(process, size, cut):
    image = picture(*size)
    top, left = round((size[0] - cut[0]) / 2), round((size[1] - cut[1]) / 2)
    wanted = pixels(image)[top : top + cut[0], left : left + cut[1]]
    for given in (image, torch.from_numpy(np.array(image)).movedim(-1, 0)):
        (made,) = process.to_pil(process.preprocess(given))
        assert np.array_equal(pixels(made), wanted)


def test_a_size_is_covered_and_cut_or_stretched(process):
    image = picture(30, 90)
    covered = cover_and_crop(image, (16, 24), (16, 24))
    assert torch.equal(process.preprocess(image, size=(16, 24)), to_tensor(covered)[None])
    assert process.preprocess(image, size=16).shape == (1, 3, 16, 16)
    stretched = image.resize((24, 16), Image.Resampling.BICUBIC)
    assert torch.equal(process.preprocess(image, (16, 24), "resize"), to_tensor(stretched)[None])
    assert process.preprocess([image, picture(64, 20)], size=32).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("size", [(16, 24), (48, 40)])
def test_tensors_come_out_at_a_size_as_pictures_do(process, fit, size):
    """Up to the rounding of Pillow, which rounds to 8 bits, and clips, after each direction."""
    image = picture(6, 18).resize((90, 30), Image.Resampling.BICUBIC)
    made = process.preprocess(image, size, fit)
    tensor = torch.from_numpy(np.array(image)).movedim(-1, 0)
    for given in (tensor, tensor / 127.5 - 1):
        torch.testing.assert_close(process.preprocess(given, size, fit), made, rtol=0, atol=2.5 / 127.5)


def test_pictures_of_several_sizes_are_told_apart(process):
    with pytest.raises(ConfigError, match=r"image 2 of the list comes out at 12 x 12, image 0 at 20 x 36; give size="):
        process.preprocess([picture(), picture(21, 37), picture(12, 12)])


# What comes out


def test_one_image_or_several_become_a_list_of_pictures(process):
    x = torch.stack([torch.full((3, 4, 8), value) for value in (-3.0, 0.2, 7.0)])
    made = process.to_pil(x)
    assert [(image.size, image.getpixel((0, 0))[0]) for image in made] == [((8, 4), 0), ((8, 4), 153), ((8, 4), 255)]
    assert process.to_pil(x[1])[0].tobytes() == made[1].tobytes()
    assert process.to_pil(x.requires_grad_().to(torch.bfloat16))[2].tobytes() == made[2].tobytes()
    assert process.to_pil(torch.full((3, 4, 8), 9, dtype=torch.uint8))[0].getpixel((0, 0)) == (9, 9, 9)


# What is no image


def spoilt(tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    whole = tmp_path / "whole.png"
    picture(64, 64).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:3000])
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.png", "nowhere.png cannot be opened as an image: No such file or directory"),
        (".", "cannot be opened as an image: it is no regular file"),
        ("notes.png", "notes.png cannot be opened as an image: neither JPEG nor PNG"),
        ("half.png", "half.png cannot be opened as an image: "),
    ],
)
def test_a_path_that_is_no_image_is_named(process, tmp_path, name, said):
    with pytest.raises(ImageError, match=re.escape(said)):
        process.preprocess(spoilt(tmp_path) / name)


def test_a_damaged_picture_that_pillow_has_opened_is_one_error(process, tmp_path):
    with (
        Image.open(spoilt(tmp_path) / "half.png") as opened,
        pytest.raises(ImageError, match="mode RGB cannot be taken: "),
    ):
        process.preprocess(opened)
    with pytest.raises(ImageError, match="a Pillow image of mode F cannot be taken: floating-point images have no"):
        process.preprocess(Image.new("F", (4, 4)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "NoneType is no image"),
        (b"GIF", "bytes is no image"),
        ([[1]], "list is no image"),
        ([], "an empty list of images"),
        (Image.new("RGB", (8, 3)), "an image of 3 x 8 pixels is smaller than f = 4; give size=, such as size=4"),
        (Image.new("RGB", (0, 8)), "an image of 8 x 0 pixels; no side may be 0"),
        (np.zeros((3, 8, 8), np.uint8), "an array of uint8 and shape (3, 8, 8); arrays are uint8 (H, W)"),
        (np.zeros((8, 8, 3)), "an array of float64"),
        (np.zeros((8, 8, 3), bool), "an array of bool"),
        (np.zeros((0, 8, 3), np.uint8), "an empty array of images, of shape (0, 8, 3)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "an empty array of images, of shape (0, 8, 8, 3)"),
        (torch.zeros(8, 8), "a tensor of shape (8, 8)"),
        (torch.zeros(1, 4, 8, 8), "a tensor of shape (1, 4, 8, 8); images are (N, 3, H, W)"),
        (torch.zeros(8, 8, 3), "channels stand before height and width: images.movedim(-1, -3)"),
        (torch.zeros(0, 3, 8, 8), "a tensor of shape (0, 3, 8, 8)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.bool), "a tensor of torch.bool"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "a tensor of torch.int64"),
        (torch.zeros(1, 3, 8, 8).to(torch.float8_e4m3fn), "a tensor of torch.float8_e4m3fn"),
        (torch.zeros(1, 3, 8, 8).to_sparse(), "a tensor of torch.sparse_coo"),
        (torch.full((3, 8, 8), float("nan")), "images hold NaN"),
        (torch.full((3, 8, 8), float("inf")), "images reach from inf to inf"),
        (torch.full((3, 8, 8), -1.6), "images reach from -1.6 to -1.6"),
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence(process, given, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        process.preprocess(given)


@pytest.mark.parametrize("given", [None, [torch.zeros(3, 8, 8)], np.zeros((3, 8, 8)), Image.new("RGB", (8, 8))])
def test_what_is_no_tensor_becomes_no_picture(process, given):
    with pytest.raises(ConfigError, match="is no tensor; give images"):
        process.to_pil(given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(size=30), r"size \(30, 30\); its sides must be multiples of f = 4"),
        (dict(size=(16, 0)), r"^size \(16, 0\) is neither"),
        (dict(size=16, fit="pad"), "no fit named 'pad'; known: crop, resize"),
        (dict(size=1.5), "^size 1.5 is neither"),
        (dict(size=10**7), "size 10000000 x 10000000 has more than 178,956,970 pixels; give a smaller one"),
    ],
)
def test_sizes_and_fits_that_cannot_be_are_refused(process, options, said):
    with pytest.raises(ConfigError, match=said):
        process.preprocess(picture(), **options)


def test_a_size_may_be_a_number_of_numpy(process):
    assert process.preprocess(picture(), size=np.int64(16)).shape[-2:] == (16, 16)
    assert process.preprocess(picture(), size=(np.int32(16), 8)).shape[-2:] == (16, 8)


def test_a_processor_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="ImageProcessor: multiple=0; it must be int of at least 1"):
        ImageProcessor(0)
    with pytest.raises(ConfigError, match="images hold NaN"):
        ImageProcessor(4).to_pil(torch.full((3, 4, 4), float("nan")))
    with pytest.raises(ConfigError, match="a tensor of shape"):
        ImageProcessor(4).to_pil(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("value", [1.5, -1.5, 1.0, 0.0])
def test_what_overshoots_a_little_is_taken(value):
    images = torch.full((1, 3, 4, 4), value)
    check_reach(images)
    assert torch.equal(as_floats(images[0]), images)
    check_reach(torch.empty(1, 3, 4, 4, device="meta"))
