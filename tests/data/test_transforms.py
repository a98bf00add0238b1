"""Decoding and cropping: upright RGB whatever the file, the same pixels as torchvision, bounds kept."""

import io
import os
import resource
import struct
import subprocess
import time
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from aligntok.data import transforms
from aligntok.errors import ConfigError, ImageError
from aligntok.io import pictures


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("L", (6, 4), 255).convert("RGB").convert(mode)
    image.paste(0, (0, 0, 3, 4)) if mode in ("L", "1") else None
    decoded = transforms.open_image(encode(image, "TIFF"))
    assert (decoded.mode, decoded.size) == ("RGB", (6, 4))
    assert np.asarray(decoded)[1, 5].tolist() == [255, 255, 255]
    assert np.asarray(decoded)[1, 0].tolist() == ([0, 0, 0] if mode in ("L", "1") else [255, 255, 255])


@pytest.mark.parametrize(("pixels", "file_format"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF")])
def test_sixteen_bit_grey_keeps_its_high_byte(pixels, file_format):
    image = Image.fromarray(np.full((4, 6), 200 * 256 + 7, pixels))
    decoded = transforms.open_image(encode(image, file_format))
    assert decoded.mode == "RGB"
    assert set(np.asarray(decoded).flat) == {200}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_on_white(mode):
    if mode in ("P", "RGB"):
        data = encode(Image.new("RGB", (5, 5)).convert(mode), transparency=0 if mode == "P" else (0, 0, 0))
    else:
        data = encode(Image.new("RGBA", (5, 5), (0, 0, 0, 0)).convert(mode))
    assert np.asarray(transforms.open_image(data)).min() == 255


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits, colour, rows, transparent=b"", behind=()):
    """A PNG put together by hand: rows of packed pixels, a tRNS chunk, and chunks behind the pixels."""
    width = len(rows[0]) * 8 // (bits * (3 if colour == 2 else 1))
    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", head), *([(b"tRNS", transparent)] if transparent else []), (b"IDAT", pixels), *behind]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in [*chunks, (b"IEND", b"")])


@pytest.mark.parametrize(
    ("bits", "colour", "row", "transparent", "shown"),
    [
        (1, 0, [0b01000000], 0, [255, 255, 255]),
        (1, 0, [0b01000000], 1, [0, 255, 0]),
        (2, 0, [0b00011011], 1, [0, 255, 170]),
        (4, 0, [0x07, 0x70], 7, [0, 255, 255]),
        (8, 0, [9, 10, 11], 10, [9, 255, 11]),
        (16, 0, [9, 1, 9, 2, 9, 3], 9 * 256 + 2, [9, 255, 9]),
        (16, 2, [9, 1] * 3 + [8, 2] * 3, (9 * 256 + 1,) * 3, [255, 8]),
    ],
)
def test_the_transparent_colour_of_a_png_of_any_depth_is_white(bits, colour, row, transparent, shown):
    colours = transparent if isinstance(transparent, tuple) else (transparent,)
    decoded = transforms.open_image(png(bits, colour, [bytes(row)], struct.pack(f">{len(colours)}H", *colours)))
    assert np.asarray(decoded)[0, : len(shown), 0].tolist() == shown


@pytest.mark.parametrize(("pixels", "sample_format"), [(np.int32, 2), (np.uint16, 2)])  # 2: signed
def test_a_tiff_of_larger_numbers_that_are_eight_bit_keeps_them(pixels, sample_format):
    image = Image.fromarray(np.array([[0, 3, 100, 255]], pixels))
    decoded = transforms.open_image(encode(image, "TIFF", tiffinfo={339: sample_format}))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 3, 100, 255]


@pytest.mark.parametrize("numbers", [(0, 65_536), (-1, 200)])
def test_numbers_of_no_known_range_are_refused(numbers):
    image = Image.fromarray(np.array([numbers], np.int32))
    with pytest.raises(ImageError, match=f"its numbers reach from {numbers[0]} to {numbers[1]}"):
        transforms.open_image(encode(image, "TIFF"))


def test_sixteen_bit_grey_of_a_tiff_whose_lowest_is_white_is_inverted():
    image = Image.fromarray(np.array([[0, 100 << 8, 65535]], np.uint16))
    decoded = transforms.open_image(encode(image, "TIFF", tiffinfo={262: 0}))
    assert np.asarray(decoded)[0, :, 0].tolist() == [255, 155, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "PNG behind pixels", "profile behind pixels"])
def test_the_size_of_the_header_is_that_of_the_decoded_image(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind.endswith("behind pixels"):
        raw = exif.tobytes()
        profile = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode())
        behind = (b"eXIf", raw.removeprefix(b"Exif\0\0")) if kind.startswith("PNG") else (b"zTXt", profile)
        data = png(8, 2, [bytes(30 * 3)] * 20, behind=[(b"tEXt", b"Title\0" + bytes(99)), behind])
    else:
        data = encode(Image.new("RGB", (30, 20)), kind, exif=exif)
    decoded = transforms.open_image(data)
    assert transforms.upright_size(io.BytesIO(data)) == (decoded.height, decoded.width)
    assert decoded.size == ((30, 20) if orientation < 5 else (20, 30))


def test_exif_orientation_is_undone():
    image, exif = Image.new("RGB", (40, 20)), Image.Exif()
    image.paste("white", (0, 0, 20, 20))
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    decoded = transforms.open_image(encode(image, "JPEG", exif=exif, quality=95))
    assert decoded.size == (20, 40)
    assert np.asarray(decoded)[2, 10].min() > 240
    assert np.asarray(decoded)[37, 10].max() < 15


def test_floating_point_images_are_refused():
    with pytest.raises(ImageError, match="range"):
        transforms.open_image(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF"])
def test_known_formats_are_opened_by_their_content(file_format):
    assert transforms.open_image(encode(noise(20, 30), file_format)).size == (20, 30)


@pytest.mark.parametrize("file_format", ["EPS", "PCX", "TGA", "ICO", "SGI"])
def test_other_formats_are_refused_though_pillow_has_them(file_format):
    with pytest.raises(ImageError, match=r"neither JPEG nor .* nor AVIF, or damaged in its first bytes"):
        transforms.open_image(encode(noise(20, 30), file_format))


@pytest.mark.parametrize("damaged", [b"", b"no image", encode(noise(99, 99))[:3000], encode(noise(9, 9), "TIFF")[:60]])
def test_damaged_data_is_one_kind_of_error_with_a_short_reason(damaged):
    with pytest.raises(ImageError) as caught:
        transforms.open_image(damaged)
    assert 0 < len(str(caught.value)) <= 200
    assert "0x" not in str(caught.value)


def test_pixels_are_bounded(monkeypatch):
    data = encode(noise(20, 30))
    assert transforms.open_image(data, limit=600).size == (20, 30)
    for read in (transforms.open_image, lambda data, limit: transforms.upright_size(io.BytesIO(data), limit)):
        with pytest.raises(ImageError, match="its 20 x 30 pixels are more than the 599 allowed"):
            read(data, limit=599)
    for bound in (200, 400):  # an error of Pillow's, and a warning that may be one
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", bound)
        with pytest.raises(ImageError, match="exceeds limit"):
            transforms.open_image(data)


def test_a_draft_is_smaller_but_never_below_its_side():
    data = encode(noise(1024, 800), "JPEG")
    assert transforms.open_image(data, draft_side=200).size == (256, 200)
    assert transforms.open_image(data, draft_side=201).size == (512, 400)
    assert transforms.open_image(data).size == (1024, 800)


@pytest.mark.parametrize(
    "size",
    [
        (500, 375),
        (375, 500),
        (64, 64),
        (47, 300),
        (333, 77),
        (64, 67),
        (67, 64),
        (64, 69),
        (69, 64),
        (65, 66),
        (66, 65),
    ],
)
def test_evaluation_crop_has_torchvisions_pixels(size):
    image = noise(*size)
    reference = v2.Compose([v2.Resize(64, v2.InterpolationMode.BICUBIC), v2.CenterCrop(64)])(image)
    ours = transforms.center_crop(transforms.resize_to_cover(image, (64, 64)), (64, 64))
    assert np.array_equal(np.asarray(ours), np.asarray(reference))


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (48, 48)])
@pytest.mark.parametrize("shape", [(100, 30), (30, 100), (8, 8), (200, 201), (1, 90)])
def test_resizing_covers_the_target_and_touches_it(shape, size):
    resized = transforms.resize_to_cover(noise(*shape), size)
    assert resized.height >= size[0]
    assert resized.width >= size[1]
    assert resized.height == size[0] or resized.width == size[1]


def test_random_crops_reach_every_place_and_stay_inside():
    image = Image.fromarray(np.arange(3 * 4, dtype=np.uint8).reshape(3, 4))
    corners = {
        int(np.asarray(transforms.random_crop(image, (2, 2), np.random.default_rng(seed)))[0, 0]) for seed in range(99)
    }
    assert corners == {0, 1, 2, 4, 5, 6}


def test_flips_come_up_half_of_the_time():
    image = Image.fromarray(np.array([[0, 255]], np.uint8))
    rng = np.random.default_rng(0)
    flipped = [int(np.asarray(transforms.random_hflip(image, rng))[0, 0] == 255) for _ in range(400)]
    assert 150 < sum(flipped) < 250


def test_tensor_spans_minus_one_to_one():
    tensor = transforms.to_tensor(Image.fromarray(np.array([[[0, 127, 255]]], np.uint8)))
    assert tensor.shape == (3, 1, 1)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor.flatten(), torch.tensor([-1.0, 127 / 127.5 - 1, 1.0]))


def test_eight_bits_are_clamped_and_rounded_and_come_back():
    images = torch.tensor([-9.0, -1.0, -0.999, 0.0, 0.5, 1.0, 9.0])
    assert pictures.to_uint8(images).tolist() == [0, 0, 0, 128, 191, 255, 255]
    assert pictures.round_to_8bit(torch.tensor([float("nan")])).isnan().all()
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pictures.to_uint8(pictures.from_uint8(every)), every)


def test_a_picture_has_the_pixels_of_the_image():
    pixels = np.asarray(pictures.to_picture(torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 2, 5)))
    assert pixels.shape == (2, 5, 3)
    assert pixels[0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("wrong", [0, (0, 64), (64,), (64, -8), (64, 32, 3), (64.5, 64)])
def test_a_wrong_image_size_is_refused(wrong):
    with pytest.raises(ConfigError, match="image_size"):
        transforms.parse_image_size(wrong)
    assert transforms.parse_image_size([32, 64]) == (32, 64)
    assert transforms.parse_image_size(1) == (1, 1)


# Sizes that are believed by nobody


def slow_plain_way(image, cover, size, rng):
    """What a training sees: all of the image resized, then cropped."""
    whole = transforms.resize_to_cover(image, cover)
    return transforms.center_crop(whole, size) if rng is None else transforms.random_crop(whole, size, rng)


def test_images_are_cropped_as_they_were_bit_for_bit():
    draw = np.random.default_rng(5)
    for case in range(150):
        height, width = (int(side) for side in draw.integers(1, 200, size=2))
        image = noise(width, height, seed=case)
        size = tuple(int(side) for side in draw.integers(1, 70, size=2))
        cover = size if case % 3 else (max(size) + case,) * 2
        seed = None if case % 2 else case
        ours, plain = (
            way(image, cover, size, None if seed is None else np.random.default_rng(seed))
            for way in (transforms.cover_and_crop, slow_plain_way)
        )
        assert ours.size == plain.size == size[::-1]
        beyond = (width / height) / (cover[1] / cover[0])  # a strip, beside the shape that it covers
        if max(beyond, 1 / beyond) < 49:
            assert ours.tobytes() == plain.tobytes(), (image.size, cover, size)


@pytest.mark.parametrize("shape", [(1800, 20), (20, 1800), (700, 7), (600, 1)])
@pytest.mark.parametrize("size", [(16, 16), (24, 16), (120, 130)])
def test_of_a_strip_only_the_crop_is_made(shape, size, monkeypatch):
    image, made = noise(*shape), []
    resize = Image.Image.resize
    for seed in (None, 0, 1, 2):
        plain = slow_plain_way(image, size, size, seed if seed is None else np.random.default_rng(seed))
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "resize", lambda *given: made.append(given[1]) or resize(*given))
            ours = transforms.cover_and_crop(image, size, size, seed if seed is None else np.random.default_rng(seed))
        assert np.abs(np.asarray(ours, int) - np.asarray(plain, int)).max() <= 3
    assert made == [size[::-1]] * 4


def test_60000_pixels_in_a_row_cost_what_the_crop_costs():
    data = encode(noise(60_000, 1), "PNG")
    transforms.cover_and_crop(transforms.open_image(data), (256, 256), (256, 256))
    tracemalloc.start()
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = transforms.open_image(data)
    for rng in (None, np.random.default_rng(0)):
        assert transforms.cover_and_crop(image, (256, 256), (256, 256), rng).size == (256, 256)
    assert time.perf_counter() - began < 0.2  # of two crops
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB; Pillow's memory is not traced


def test_a_strip_of_a_data_set_is_unreadable_beyond_its_limit():
    data = encode(noise(102, 2), "PNG")
    assert transforms.open_image(data).size == (102, 2)
    said = "its 102 x 2 pixels are a strip, beyond the max_aspect_ratio of 50"
    for read in (transforms.open_image, lambda data, **given: transforms.upright_size(io.BytesIO(data), **given)):
        with pytest.raises(ImageError, match=said):
            read(data, max_aspect_ratio=50)
        read(data, max_aspect_ratio=51)


def test_images_of_a_data_set_are_no_strips_beyond_50_unless_it_says_so():
    at, beyond = (SimpleNamespace(read=lambda i, d=d: d, open=lambda i, d=d: io.BytesIO(d)) for d in STRIPS)
    assert transforms.read_image(at, 0).size == (100, 2)
    assert transforms.read_upright_size(at, 0) == (2, 100)
    for read in (transforms.read_image, transforms.read_upright_size):
        with pytest.raises(ImageError, match="beyond the max_aspect_ratio of 50"):
            read(beyond, 0)
        read(beyond, 0, max_aspect_ratio=51)
    assert transforms.upright_size(io.BytesIO(STRIPS[1])) == (2, 102)  # of a single image, any


STRIPS = [encode(noise(width, 2)) for width in (100, 102)]


def unreadable():
    raise PermissionError("not yours")


def test_what_begins_like_an_image_is_one():
    data = encode(noise(30, 20), "JPEG")
    assert transforms.holds_image(lambda: io.BytesIO(data[:-100]))
    assert not transforms.holds_image(lambda: io.BytesIO(b"<svg"))
    assert not transforms.holds_image(unreadable)


def test_a_bound_of_pillow_that_is_none_bounds_nothing(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert transforms.open_image(encode(noise(20, 30))).size == (20, 30)


@pytest.mark.parametrize(("largest", "shown"), [(255, [0, 255]), (256, [0, 1])])
def test_a_tiff_of_larger_numbers_is_eight_bit_where_none_is_above_255(largest, shown):
    data = encode(Image.fromarray(np.array([[0, largest]], np.int32)), "TIFF")
    assert np.asarray(transforms.open_image(data))[0, :, 0].tolist() == shown


def test_what_is_turned_behind_many_chunks_of_pixels_is_seen_and_the_file_left_where_it_was():
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes().removeprefix(b"Exif\0\0")
    behind = [(b"IDAT", b"")] * 200 + [(b"tIME", bytes(7)), (b"eXIf", raw)]
    file = io.BytesIO(png(8, 2, [bytes(30 * 3)] * 20, behind=behind))
    assert transforms._turned_behind_pixels(file)
    assert file.tell() == 0
    assert transforms.upright_size(file) == (30, 20)
    file.seek(5)
    assert not transforms._turned_behind_pixels(io.BytesIO(png(8, 2, [bytes(9)])))
    assert transforms._turned_behind_pixels(file)
    assert file.tell() == 5
    before = png(8, 2, [bytes(30 * 3)] * 20)
    file = io.BytesIO(before[:33] + chunk(b"eXIf", raw) + before[33:])  # where Pillow sees it without decoding
    assert not transforms._turned_behind_pixels(file)
    assert transforms.upright_size(file) == (30, 20)


def test_only_a_jpeg_in_one_scan_is_decoded_in_rows():
    data = encode(noise(40, 32), "JPEG")
    found = transforms._jpeg_in_rows(io.BytesIO(data))
    assert found.size == (40, 32)
    assert found.convert("RGB").tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    scan = data.index(b"\xff\xda")
    assert data[scan + 4] == 3
    several = data[: scan + 4] + b"\x01" + data[scan + 5 :]  # its first scan is of one colour
    for other in (several, encode(noise(40, 32), "JPEG", progressive=True), encode(noise(40, 32))):
        assert transforms._jpeg_in_rows(io.BytesIO(other)) is None
    grey = encode(noise(40, 32).convert("L"), "JPEG")
    assert transforms._jpeg_in_rows(io.BytesIO(grey)).mode == "L"


def declared(data, width, height):
    """A JPEG of which the header says another size."""
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_counts_at_the_size_that_it_is_decoded_at(progressive, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    data = encode(noise(400, 320), "JPEG", progressive=progressive)
    with pytest.raises(
        ImageError, match="128000 pixels. exceeds" if progressive else "400 x 320 pixels are more than the 20000 "
    ):
        transforms.open_image(data)
    with pytest.raises(ImageError, match="allowed|exceeds"):
        transforms.open_image(declared(data, 20_000, 16_000), draft_side=200)
    if progressive:  # held at its full size, whatever it is decoded at
        with pytest.raises(ImageError):
            transforms.open_image(data, draft_side=100)
        return
    small = transforms.open_image(data, draft_side=60)
    assert small.size == (100, 80)
    assert transforms.upright_size(io.BytesIO(data)) == (320, 400)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10**9)
        assert transforms.open_image(data, draft_side=60).tobytes() == small.tobytes()


@pytest.mark.nightly
def test_182_megapixels_are_read_at_an_eighth():
    data = encode(Image.new("RGB", (14_000, 13_000), (10, 200, 30)), "JPEG")
    assert transforms.open_image(data, draft_side=512).size == (1750, 1625)
    assert transforms.upright_size(io.BytesIO(data)) == (13_000, 14_000)


# No other program


def test_no_image_starts_another_program(monkeypatch):
    def stop(*arguments, **_):
        raise AssertionError(f"started: {arguments}")

    for module, name in [(subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "fork"), (os, "execv")]:
        monkeypatch.setattr(module, name, stop)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    pdf, ps = b"%PDF-1.4\n%%EOF\n", b"%!PS\nshowpage\n"
    wmf = b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\x01\x00\t\x00" + bytes(30)
    dos_eps = b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + len(eps).to_bytes(4, "little") + bytes(18) + eps
    for data in (eps, dos_eps, pdf, ps, wmf, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"#!/bin/sh\ntouch x\n"):
        for read in (transforms.open_image, lambda data: transforms.upright_size(io.BytesIO(data))):
            with pytest.raises(ImageError):
                read(data)


def test_plugins_of_pillow_are_asked_once_and_only_for_what_is_not_there(monkeypatch):
    asked, registered, begun = [], [], []
    known = dict.fromkeys(("JPEG", "PNG", "AVIF"))
    monkeypatch.setattr(Image, "OPEN", known)
    monkeypatch.setattr(Image, "init", lambda: begun.append(1))
    monkeypatch.setattr(transforms, "find_spec", lambda name: asked.append(name) or name)
    heif = SimpleNamespace(register_heif_opener=lambda: registered.append("HEIF") or known.update(HEIF=None))
    monkeypatch.setattr(transforms, "import_module", {"pillow_heif": heif, "pillow_jxl": SimpleNamespace()}.__getitem__)
    load = transforms._load_plugins
    load.cache_clear()
    try:
        for _ in range(2):
            assert transforms._formats() == ["JPEG", "PNG", "AVIF", "HEIF"]
        assert (asked, registered, begun) == (["pillow_heif", "pillow_jxl"], ["HEIF"], [1])
        suffixes = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".avif", ".heic", ".heif", ".hif")
        assert transforms.image_suffixes() == suffixes
        load.cache_clear()
        known["JXL"] = None
        assert transforms._formats() == ["JPEG", "PNG", "AVIF", "HEIF", "JXL"]
        assert asked == ["pillow_heif", "pillow_jxl"]
        load.cache_clear()
        del known["HEIF"]
        monkeypatch.setattr(transforms, "find_spec", lambda name: None)  # not installed
        assert transforms._formats() == ["JPEG", "PNG", "AVIF", "JXL"]
    finally:
        load.cache_clear()
