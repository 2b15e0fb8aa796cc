import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vggkit.data import images
from vggkit.data.images import RandomCrop, decoded, fitted, pixels_of
from vggkit.data.preprocessing import Preprocessing
from vggkit.errors import DataError

KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]


def read_image(content, channels, name="it"):
    """All pixels of an image: uint8 (channels, height, width)."""
    return torch.from_numpy(pixels_of(decoded(content, channels, name)))


def random_crop(content, channels, image_size, shorter_side, generator, name="it"):
    return RandomCrop(0, channels, image_size, shorter_side).crop(content, generator, name)


def encoded(image, format_, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_file(width, height, bits, colour, data, *chunks):
    """A PNG file that says of itself what is asked for."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    crcs = (struct.pack(">I", zlib.crc32(kind + content)) for kind, content in parts)
    pieces = (struct.pack(">I", len(part)) + kind + part + crc for (kind, part), crc in zip(parts, crcs, strict=True))
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def tiff_file(tags, data):
    """A TIFF file of one directory, whose entries are tag, type, count and value, and the data behind it."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def smooth_picture(height, width, seed=0):
    """A colour picture with detail at all scales but the finest."""
    rng = np.random.default_rng(seed)
    sizes = [(4, 3), (16, 12), (width // 8 + 1, height // 8 + 1), (width // 3 + 1, height // 3 + 1)]
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC),
            dtype=np.float32,
        )
        for w, h in sizes
    ]  # fmt: skip
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_are_read_as_the_same_grey_picture(tmp_path, mode, channels):
    rng = np.random.default_rng(0)
    grey = (rng.random((37, 51)) > 0.5).astype(np.uint8) * 255
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB" if mode in ("P", "CMYK") else "L").convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path, **({"quality": 100, "subsampling": 0} if mode == "CMYK" else {}))
    read = read_image(path, channels)
    assert read.shape == (channels, 37, 51)
    assert read.dtype == torch.uint8
    assert np.abs(read.numpy().astype(int) - grey).max() <= (3 if mode == "CMYK" else 0)
    assert torch.equal(read_image(path.read_bytes(), channels), read)


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "BMP", "TIFF", "JPEG"])
def test_colours_are_kept_in_every_format(format_):
    colours = np.zeros((16, 48, 3), np.uint8)
    colours[:, :16], colours[:, 16:32], colours[:, 32:] = (250, 10, 10), (20, 200, 90), (0, 0, 255)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format_, {})
    read = read_image(encoded(Image.fromarray(colours), format_, **options), 3)
    assert np.abs(read.permute(1, 2, 0).numpy().astype(int) - colours).max() <= (3 if format_ == "JPEG" else 0)


def test_cmyk_is_read_with_and_without_adobes_inversion():
    """Cyan is ink: white paper is 0 in a TIFF, and 255 in the JPEGs that Adobe's programs write, as Pillow does."""
    paper_and_red = Image.new("CMYK", (32, 16), (0, 0, 0, 0))
    paper_and_red.paste((0, 255, 255, 0), (16, 0, 32, 16))
    for content in (encoded(paper_and_red, "TIFF"), encoded(paper_and_red, "JPEG", quality=100)):
        read = read_image(content, 3).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(read[:, :14] - 255).max() <= 3
        assert np.abs(read[:, 18:] - (255, 0, 0)).max() <= 3


def test_16_bits_of_both_byte_orders_keep_their_upper_8():
    values = np.random.default_rng(0).integers(0, 65536, (9, 7)).astype(np.uint16)
    big_endian = Image.frombytes("I;16B", (7, 9), values.astype(">u2").tobytes())
    contents = [encoded(Image.fromarray(values), kind) for kind in ("PNG", "TIFF")] + [encoded(big_endian, "TIFF")]
    assert [content[:2] for content in contents] == [b"\x89P", b"II", b"MM"]
    for content in contents:
        assert np.array_equal(read_image(content, 1)[0].numpy(), values // 256)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bits_are_refused(mode):
    content = encoded(Image.new(mode, (4, 4)), "TIFF")
    with pytest.raises(DataError, match=r"^scan: expected 8 or 16 bits for a channel, got 32, try to convert it to 8$"):
        read_image(content, 1, "scan")


@pytest.mark.parametrize(("mode", "format_"), [("RGBA", "PNG"), ("LA", "TIFF"), ("PA", "TIFF"), ("RGBA", "WEBP")])
def test_transparent_is_black(mode, format_):
    clear = Image.new("RGBA", (4, 2), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 1, 1))
    if mode == "PA":
        image = Image.new("PA", (4, 2))
        image.putpalette([255] * 768)
        image.putalpha(clear.getchannel("A"))
    else:
        image = clear.convert(mode)
    options = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
    content = encoded(image, format_, **options)
    assert Image.open(io.BytesIO(content)).mode == mode
    for channels in (1, 3):
        read = read_image(content, channels)
        assert read[:, 0, 0].tolist() == [255] * channels
        assert read.sum() == 255 * channels


def test_a_transparent_colour_is_black():
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 255, 255, 250, 250, 250])
    palette.putpixel((2, 0), 1)
    for content in (encoded(palette, "PNG", transparency=0), encoded(palette, "GIF", transparency=0)):
        assert read_image(content, 1).flatten().tolist() == [0, 0, 250]
    assert read_image(encoded(Image.new("1", (2, 2), 1), "PNG", transparency=1), 1).sum() == 0


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns(format_, orientation):
    """The stored picture is what the EXIF standard's figure says: its row 0 and column 0 are the upright's sides."""
    upright = np.kron(np.array([[0, 80, 160], [240, 40, 120]], np.uint8), np.ones((16, 16), np.uint8))
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1],
    }[orientation]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(format_, {})
    content = encoded(image, format_, exif=exif, **options)
    read = read_image(content, 1)[0].numpy().astype(int)
    assert read.shape == upright.shape
    assert np.abs(read - upright).max() <= 2
    cropped = random_crop(content, 1, 32, (32,), np.random.default_rng(0))[0].astype(int)
    assert min(np.abs(cropped - upright[:, left : left + 32]).max() for left in range(17)) <= 2


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(format_):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {"lossless": True} if format_ == "WEBP" else {}
    content = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert read_image(content, 3)[:, 4, 4].tolist() == [200, 0, 0]


def test_a_second_picture_behind_a_jpeg_is_left_there():
    frames = [Image.new("L", (16, 16), value) for value in (100, 200)]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert (read_image(content, 1) == 100).all()
    assert (random_crop(content, 1, 8, (8,), np.random.default_rng(0)) == 100).all()


def test_what_is_no_image_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("not an image")
    Image.new("L", (50, 50), 7).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    Image.new("L", (5, 5)).save(tmp_path / "image.ppm")
    (tmp_path / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(tmp_path / "fifo.png")
    for name, message in [
        ("missing.png", "expected an image file, got nothing there"),
        ("fifo.png", "expected an image file, got no regular file"),
        *((name, f"expected a {KINDS} image, got something else") for name in ("text.png", "image.ppm", "script.jpg")),
        ("cut.png", f"expected a whole {KINDS} image"),
        (".", "expected an image file, got a folder"),
    ]:
        for read in (
            lambda path: read_image(path, 1, str(path)),
            lambda path: random_crop(path, 1, 8, (8,), np.random.default_rng(0), str(path)),
        ):
            with pytest.raises(DataError, match=message) as caught:
                read(tmp_path / name)
            assert str(caught.value).startswith(str(tmp_path / name))
            assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="^cat 7: expected a PNG"):
        read_image(b"", 1, "cat 7")
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="at most 100 pixels and 30,000 along a side, got 50 x 50"):
        read_image(tmp_path / "whole.png", 1)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_cut_file_is_refused(format_):
    content = encoded(smooth_picture(60, 80), format_)
    read_image(content, 3)
    with pytest.raises(DataError, match="^half: expected a "):
        read_image(content[: len(content) // 2], 3, "half")


def test_pixel_bombs_are_refused_before_they_are_unpacked():
    with pytest.raises(DataError, match="^bomb: .*(could be decompression bomb|at most 16,000,000 pixels)"):
        read_image(png_file(29_999, 29_999, 8, 0, bytes(1000)), 1, "bomb")
    message = "at most 16,000,000 pixels and 30,000 along a side in a file of its size, got 30001 x 1$"
    with pytest.raises(DataError, match=message):
        read_image(encoded(Image.new("1", (30_001, 1)), "PNG"), 1)
    # 64 x 64 pixels in a tile of 20000 x 20000, which libtiff unpacks whole: 0.4 MB become 400 MB.
    side, content = 20_000, zlib.compress(bytes(1000))
    values = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 134, 325: len(content)}
    tiff = tiff_file([(tag, 4, 1, value) for tag, value in values.items()], content)
    with pytest.raises(DataError, match="^tile: expected at most 16,000,000 pixels .* got 20000 x 20000$"):
        read_image(tiff, 1, "tile")


def test_little_files_that_are_huge_work_are_refused_before_it():
    """Shared strips: 3 kB that say 64 million pixels. A JPEG with thousands of scans. Blank pictures are no attack."""
    white = Image.new("RGB", (8_000, 8_000), (255, 255, 255))
    blank = encoded(white, "PNG")
    assert (fitted(blank, preprocessing(8)) == 255).all()
    strip = zlib.compress(bytes(8_000 * 100 * 3), 9)
    count, start = 80, 8 + 2 + 12 * 9 + 4
    tags = [
        (256, 4, 1, 8_000), (257, 4, 1, 8_000), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 2),
        (273, 4, count, start), (277, 3, 1, 3), (278, 4, 1, 100), (279, 4, count, start + 4 * count),
    ]  # fmt: skip
    places = struct.pack(f"<{count}I{count}I", *[start + 8 * count] * count, *[len(strip)] * count)
    tiff = tiff_file(tags, places + strip)
    with pytest.raises(DataError, match="at most 16,000,000 pixels .* in a file of its size, got 8000 x 8000"):
        read_image(tiff, 3, "strips")
    jpeg = encoded(smooth_picture(400, 500), "JPEG", progressive=True)
    assert 2 <= jpeg.count(b"\xff\xda") <= 20
    last = jpeg.rindex(b"\xff\xda")
    with pytest.raises(
        DataError, match="^scans: expected at most 1,000,000,000 pixels in all scans .* of 500 x 400, try"
    ):
        read_image(jpeg[:-2] + jpeg[last:-2] * 5_000 + jpeg[-2:], 3, "scans")


def test_a_transparent_value_of_16_bits_is_black():
    def read(colour, pixels, *transparent):
        data, transparency = (
            struct.pack(f">{len(pixels)}H", *pixels),
            struct.pack(f">{len(transparent)}H", *transparent),
        )
        return read_image(png_file(3, 1, 16, colour, b"\0" + data, (b"tRNS", transparency)), 1 if colour == 0 else 3)

    assert read(0, [0x1234, 0xFF00, 0x12FF], 0x1234).flatten().tolist() == [0, 0xFF, 0x12]
    assert read(2, [0x1234] * 3 + [0xFF00] * 3 + [0x22FF] * 3, *[0x1234] * 3)[0].flatten().tolist() == [0, 0xFF, 0x22]


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_image_is_read_or_refused_and_nothing_else(tmp_path_factory, data):
    format_ = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    content = bytearray(encoded(image, format_, **({"compression": "tiff_lzw"} if format_ == "TIFF" else {})))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    for read in (
        lambda: read_image(content, 1, "it"),
        lambda: random_crop(content, 3, 8, (8, 12), np.random.default_rng(0), "it"),
    ):
        try:
            assert read().dtype in (np.uint8, torch.uint8)
        except DataError as error:
            assert str(error).startswith("it: expected ")
            assert "\n" not in str(error)


def preprocessing(size, channels=3, **options):
    return Preprocessing(size, channels, (0.0,) * channels, (1.0,) * channels, **options)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (60, 333), (20, 31), (56, 56)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_fitting_is_pillows_resize(shape, channels, interpolation):
    image = smooth_picture(*shape).convert("L" if channels == 1 else "RGB")
    filter_ = Image.Resampling[interpolation.upper()]

    stretched = fitted(image, preprocessing(56, channels, interpolation=interpolation))
    theirs = np.asarray(image.resize((56, 56), filter_)).reshape(56, 56, channels)
    assert np.array_equal(stretched.transpose(1, 2, 0), theirs)

    crop = preprocessing(56, channels, resize="crop", crop_fraction=0.875, interpolation=interpolation)
    width, height = (64 * side // min(image.size) for side in image.size)
    left, top = round((width - 56) / 2), round((height - 56) / 2)
    theirs = np.asarray(image.resize((width, height), filter_).crop((left, top, left + 56, top + 56)))
    difference = np.abs(fitted(image, crop).transpose(1, 2, 0).astype(int) - theirs.reshape(56, 56, channels))
    assert difference.max() <= 2  # Pillow holds a box in float32 and rounds in each direction
    assert difference.mean() < 0.1


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_fitted_and_scaled_is_the_preprocessing_within_two_levels(resize, interpolation):
    """Rounded twice, once for each direction, and cut out by a box in float32."""
    how = Preprocessing(
        48, 3, (0.1, 0.2, 0.3), (1.0,) * 3, order="bgr", resize=resize, crop_fraction=0.75, interpolation=interpolation
    )
    picture = smooth_picture(130, 170)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    batch = torch.from_numpy(fitted(picture, how)).unsqueeze(0)
    assert batch.shape == (1, 3, 48, 48)
    assert batch.dtype == torch.uint8
    scaled = how.scaled(batch)
    difference = (scaled - how(image.unsqueeze(0))).abs()
    assert difference.max() <= 2.1 / 255
    assert difference.mean() <= 0.5 / 255
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(how.scaled(batch), scaled), "the images were written to"
    expected = (batch.flip(1).double() / 255) - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(scaled.double(), expected, rtol=1e-5, atol=1e-6)


def test_only_fitted_images_are_scaled():
    how = preprocessing(8, 1)
    for wrong in (
        torch.zeros(2, 1, 8, 9, dtype=torch.uint8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8),
    ):
        with pytest.raises(ValueError, match=r"expected images as uint8 of \(1, 8, 8\), got torch.* try calling"):
            how.scaled(wrong)


def places(content, image_size, shorter_side, seed, reduced=1):
    """Where a crop must lie, from the same three draws: S, left and top, and the size of the whole resized image."""
    generator = np.random.default_rng(seed)
    image = Image.open(io.BytesIO(content))
    shorter = int(generator.integers(shorter_side[0], shorter_side[-1] + 1))
    size = tuple(-(-side // reduced) for side in image.size)
    width, height = (shorter * side // min(size) for side in size)
    left, top = (int(generator.integers(0, side - image_size + 1)) for side in (width, height))
    return image.resize((width, height), Image.Resampling.BILINEAR), left, top


@pytest.mark.parametrize("shape", [(90, 130), (131, 77), (64, 64), (30, 41)])
@pytest.mark.parametrize("shorter_side", [(40,), (40, 70)])
def test_a_random_crop_is_a_crop_of_the_whole_resized_image(shape, shorter_side):
    content = encoded(smooth_picture(*shape), "PNG")
    for seed in range(10):
        crop = random_crop(content, 3, 40, shorter_side, np.random.default_rng(seed))
        whole, left, top = places(content, 40, shorter_side, seed)
        theirs = np.asarray(whole.crop((left, top, left + 40, top + 40))).astype(int)
        assert crop.shape == (3, 40, 40)
        difference = np.abs(crop.transpose(1, 2, 0) - theirs)
        assert difference.max() <= 2  # Pillow holds a box in float32 and rounds in each direction
        assert difference.mean() < 0.4


@pytest.mark.parametrize("shape", [(900, 1300), (901, 1303)])
def test_a_crop_of_a_jpeg_decoded_at_a_reduced_size_is_nearly_the_same(shape):
    content = encoded(smooth_picture(*shape), "JPEG", quality=95, subsampling=0)
    for channels in (1, 3):
        for seed in range(5):
            crop = random_crop(content, channels, 48, (56,), np.random.default_rng(seed))
            whole, left, top = places(content, 48, (56,), seed, reduced=8)
            picture = np.asarray(whole.convert("L" if channels == 1 else "RGB")).reshape(*whole.size[::-1], channels)
            ours = crop.transpose(1, 2, 0).astype(int)
            difference, shifted = (
                np.abs(ours - picture[top : top + 48, left + shift : left + shift + 48]).mean()
                for shift in (0, 1 if left < 20 else -1)
            )
            assert difference < 3
            assert difference < shifted / 2


def test_a_jpeg_is_decoded_at_the_least_size_that_is_enough(monkeypatch):
    """1300 x 900 at an eighth is 163 x 113: 2 S fit into it for S up to 56."""
    sizes = []
    real = images._to_8_bits
    monkeypatch.setattr(images, "_to_8_bits", lambda image, name: sizes.append(image.size) or real(image, name))
    content = encoded(smooth_picture(900, 1300), "JPEG")
    for shorter in (56, 57, 112, 113, 225, 226):
        random_crop(content, 3, 32, (shorter,), np.random.default_rng(0))
    assert sizes == [(163, 113), (325, 225), (325, 225), (650, 450), (650, 450), (1300, 900)]
    read_image(content, 3)
    assert sizes[-1] == (1300, 900)


def test_sizes_are_drawn_from_the_least_to_the_most():
    """Of a picture 4 times as wide as high, a square of S out of S is as high as the picture, whatever S is."""
    ramp = np.repeat((np.arange(64) * 4).astype(np.uint8)[:, None], 256, axis=1)
    content = encoded(Image.fromarray(ramp), "PNG")
    crops = [random_crop(content, 1, 32, (32, 40), np.random.default_rng(seed)) for seed in range(60)]
    heights = {round(float(crop[0, -1, 0]) - float(crop[0, 0, 0])) for crop in crops}
    assert max(heights) >= 245  # 32 of 32 rows
    assert 190 <= min(heights) <= 202  # 32 of 40
    assert len(heights) >= 8


def test_crops_are_drawn_uniformly():
    """A ramp shows where a crop lies: all 25 places of 28 in 32 x 32."""
    rows, columns = np.mgrid[:32, :32]
    content = encoded(Image.fromarray(np.stack([rows * 8, columns * 8, rows * 0], -1).astype(np.uint8)), "PNG")
    generator = np.random.default_rng(1)
    seen = [tuple((random_crop(content, 3, 28, (32,), generator)[:2, 0, 0] // 8).tolist()) for _ in range(2000)]
    counts = np.array([seen.count((top, left)) for top in range(5) for left in range(5)])
    assert counts.sum() == 2000
    assert ((counts - 80) ** 2 / 80).sum() < 52  # chi-squared, 24 degrees of freedom, 1 in 1000


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (30_000, 2), (30_000, 1)])
def test_a_strip_takes_no_more_memory_than_it_has(size):
    """Resized whole, 1 x 5000 pixels would become 256 x 1,280,000."""
    content = encoded(Image.new("RGB", size, (9, 90, 200)), "PNG")
    crop = preprocessing(224, resize="crop", crop_fraction=0.875)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cut = random_crop(content, 3, 224, (256,), np.random.default_rng(0))
    middle = fitted(content, crop)
    predicted = crop(read_image(content, 3).unsqueeze(0))[0] * 255
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for seen in (cut, middle, predicted.round()):
        assert seen.shape == (3, 224, 224)
        assert seen[:, 100, 100].tolist() == [9, 90, 200]
    assert grown_kib < 80_000


@pytest.mark.parametrize("shape", [(7, 700), (700, 7), (9, 400)])
def test_of_a_strip_the_middle_is_seen(shape):
    image = smooth_picture(*shape)
    crop = preprocessing(56, resize="crop", crop_fraction=0.875)
    ours = crop(torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0))[0].permute(1, 2, 0).numpy() * 255
    width, height = (64 * side // min(image.size) for side in image.size)
    left, top = round((width - 56) / 2), round((height - 56) / 2)
    whole = image.resize((width, height), Image.Resampling.BILINEAR)
    theirs = np.asarray(whole.crop((left, top, left + 56, top + 56)))
    assert np.abs(ours - theirs).max() <= 4  # half a pixel of 64 for one
    assert np.abs(ours - theirs).mean() < 1
