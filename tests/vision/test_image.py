"""Decoding images from strangers: what they hold, and everything that can be wrong with them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from tests.vision_models import picture
from tinyllm.errors import ImageError
from tinyllm.vision import image as image_module
from tinyllm.vision.image import MAX_PIXELS, decode_image, sniff_format

RGB = Image.fromarray(picture(30, 41))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def png_of_size(
    width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b""
) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + png_chunk(b"IDAT", zlib.compress(data))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_formats_are_found_from_the_bytes(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(RGB, kind, **options)
    assert sniff_format(data) == kind
    pixels = decode_image(data)
    assert pixels.shape == (30, 41, 3) and pixels.dtype == np.uint8
    if kind in ("PNG", "WEBP"):
        assert np.array_equal(pixels, np.asarray(RGB))
    else:
        assert np.abs(pixels.astype(int) - np.asarray(RGB)).mean() < 12


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "PDF"])
def test_other_formats_are_refused_however_well_formed(kind: str) -> None:
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("Pillow is built without it")
    data = encoded(RGB, kind)
    with pytest.raises(ImageError, match="not a PNG, JPEG, WebP or GIF"):
        decode_image(data)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"<svg></svg>", b"RIFF\x00\x00\x00\x00WAVE", b"\x89PNG"]
)
def test_things_that_are_no_image(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"it is (empty|not a)"):
        decode_image(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = np.zeros((24, 32, 3), np.uint8)
    upright[:12, :16] = (255, 0, 0)
    upright[:12, 16:] = (0, 255, 0)
    upright[12:, :16] = (0, 0, 255)
    # What a camera stores for each orientation, from EXIF's table: where row 0 and column 0 lie.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(np.ascontiguousarray(stored))
    pixels = decode_image(encoded(image, kind, exif=exif, **options))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 6


@pytest.mark.parametrize("value", [0, 9, 77, 65535])
def test_an_orientation_that_makes_no_sense_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert decode_image(encoded(RGB, "JPEG", exif=exif)).shape == (30, 41, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored() -> None:
    data = encoded(RGB, "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + b"\xee" * 40)
    assert decode_image(data).shape == (30, 41, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_flattened_on_white(kind: str) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 4:, 3] = 255
    rgba[:, 2:4, 3] = 128
    pixels = decode_image(
        encoded(
            Image.fromarray(rgba),
            kind,
            **({"lossless": True, "exact": True} if kind == "WEBP" else {}),
        )
    )
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 4:] == (200, 0, 0)).all()
    assert np.abs(pixels[:, 2:4].astype(int) - (227, 127, 127)).max() <= 1


def test_grey_with_alpha_and_grey_with_a_transparent_level() -> None:
    la = Image.merge("LA", (Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 0)))
    assert (decode_image(encoded(la, "PNG")) == 255).all()
    grey = Image.new("L", (4, 4), 10)
    assert (decode_image(encoded(grey, "PNG", transparency=10)) == 255).all()
    assert (decode_image(encoded(grey, "PNG")) == 10).all()


def test_palettes() -> None:
    palette = RGB.quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(decode_image(encoded(palette, "PNG")), expected)
    assert np.array_equal(decode_image(encoded(palette, "GIF")), expected)
    see_through = decode_image(encoded(palette, "PNG", transparency=0))
    where = np.asarray(palette) == 0
    assert where.any() and (see_through[where] == 255).all()
    assert np.array_equal(see_through[~where], expected[~where])
    bits = Image.fromarray(np.eye(9) > 0)
    assert np.array_equal(decode_image(encoded(bits, "PNG"))[..., 0], np.eye(9) * 255)


def test_sixteen_bits_keep_their_high_byte() -> None:
    grey = np.array([[0, 255, 256, 0x1234], [0x8000, 0xFF00, 0xFFFF, 1]], np.uint16)
    pixels = decode_image(encoded(Image.fromarray(grey), "PNG"))
    assert np.array_equal(pixels[..., 1], grey >> 8)
    rows = b"".join(
        b"\x00" + struct.pack(">6H", *[(7 * r + c) * 2500 for c in range(6)]) for r in range(2)
    )
    pixels = decode_image(png_of_size(2, 2, depth=16, data=rows))
    assert pixels.reshape(-1).tolist() == [
        (7 * r + c) * 2500 >> 8 for r in range(2) for c in range(6)
    ]


def test_cmyk() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = decode_image(encoded(cmyk, "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (12, 9), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode_image(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (8000, 10), (10, 8000), (3, 1)], ids=str)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_unusual_sizes(kind: str, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size, "teal"), kind)
    assert decode_image(data).shape == (size[1], size[0], 3)


def webp_canvas(width: int, height: int) -> bytes:
    body = (
        b"\x10\x00\x00\x00" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    chunk = b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def gif_canvas(width: int, height: int, frame: tuple[int, int] | None = None) -> bytes:
    frame = frame or (width, height)
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + b"\x00\x00\x00\xff\xff\xff"
        + b","
        + struct.pack("<HHHHB", 0, 0, *frame, 0)
        + b"\x02\x02\x44\x01\x00;"
    )


@pytest.mark.parametrize(
    "data",
    [
        png_of_size(50_000, 50_000),
        png_of_size(2**31 - 1, 2**31 - 1),
        png_of_size(1, 2**31 - 1),
        png_of_size(7000, 6000, data=bytes(1000)),
        encoded(Image.new("1", (20_000, 20_000)), "PNG", compress_level=9),
        webp_canvas(16_000_000, 16_000_000),
        webp_canvas(16_383, 16_383),
        gif_canvas(65_535, 65_535),
        gif_canvas(10, 10, frame=(65_000, 65_000)),
        encoded(Image.new("RGB", (8, 8)), "JPEG").replace(
            b"\x00\x08\x00\x08", b"\xff\x00\xff\x00", 1
        ),
    ],
    ids=lambda data: f"{sniff_format(data)}-{len(data)}",
)
def test_bombs_are_refused_before_they_are_decoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", boom)
    monkeypatch.setattr(image_module, "_to_rgb", boom)
    with pytest.raises(ImageError, match="pixels"):
        decode_image(data)


def test_the_limit_is_a_number_of_pixels() -> None:
    data = encoded(RGB, "PNG")
    assert decode_image(data, max_pixels=30 * 41).shape == (30, 41, 3)
    with pytest.raises(ImageError, match="41 × 30 is more than 1,229 pixels"):
        decode_image(data, max_pixels=30 * 41 - 1)
    assert 8000 * 4000 < MAX_PIXELS < 100_000_000


def test_a_webp_may_have_fewer_pixels_for_it_takes_more_memory() -> None:
    sides = (4999).to_bytes(3, "little") + (5000).to_bytes(3, "little")  # each minus 1
    data = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + sides
    with pytest.raises(ImageError, match=r"5,000 × 5,001 is more than 25,000,000 pixels"):
        decode_image(data)


def test_a_text_chunk_that_unpacks_to_a_gigabyte() -> None:
    packed = zlib.compress(bytes(200_000_000), 9)
    data = encoded(RGB, "PNG")
    bomb = data[:33] + png_chunk(b"zTXt", b"x\x00\x00" + packed) + data[33:]
    with pytest.raises(ImageError, match="damaged"):
        decode_image(bomb)


def test_a_jpeg_of_ten_thousand_scans() -> None:
    data = encoded(RGB, "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    bomb = data[:scan] + data[scan:-2] * 10_000 + data[-2:]
    with pytest.raises(ImageError, match="more than 100 scans"):
        decode_image(bomb)
    assert decode_image(data).shape == (30, 41, 3)


def seeds() -> list[bytes]:
    rgba = RGB.convert("RGBA")
    rgba.putalpha(100)
    frames: dict[str, Any] = {"save_all": True, "append_images": [RGB.rotate(90), RGB]}
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(RGB, "PNG"),
        encoded(rgba, "PNG"),
        encoded(RGB.quantize(9), "PNG", transparency=2),
        encoded(Image.fromarray(np.arange(200, dtype=np.uint16).reshape(10, 20) * 300), "PNG"),
        encoded(RGB, "PNG", exif=exif, **frames),
        encoded(RGB, "JPEG", exif=exif),
        encoded(RGB, "JPEG", progressive=True, quality=30),
        encoded(RGB.convert("CMYK"), "JPEG"),
        encoded(RGB.convert("L"), "JPEG", subsampling=0),
        encoded(RGB, "WEBP", quality=40),
        encoded(rgba, "WEBP", lossless=True, exif=exif),
        encoded(RGB, "WEBP", **frames),
        encoded(RGB, "GIF"),
        encoded(RGB, "GIF", transparency=3, **frames),
    ]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four of the things that happen to files, by accident or on purpose."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, other = (int(i) for i in rng.integers(0, max(len(out), 1), size=2))
        size = int(rng.integers(1, 9))
        match rng.integers(0, 8):
            case 0:
                out[at : at + 1] = rng.bytes(1)
            case 1:
                out[at % 64 : at % 64 + 1] = rng.bytes(1)  # headers matter most
            case 2:
                out[at : at + size] = rng.bytes(size)
            case 3:
                out[at : at + 4] = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"][size % 3]
            case 4:
                out[at:at] = rng.bytes(size)
            case 5:
                del out[at : at + size]
            case 6:
                del out[at:]
            case 7:
                out[at:at] = out[other : other + 40 * size]
    return bytes(out)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged EXIF and the like
def test_mutated_files_are_images_or_errors_that_say_why() -> None:
    """10,000 mutations; TINYLLM_FUZZ sets another number."""
    rng = np.random.default_rng(20_241_124)
    originals = seeds()
    outcomes = {"image": 0, "error": 0}
    for i in range(int(os.environ.get("TINYLLM_FUZZ", "10000"))):
        data = mutate(originals[i % len(originals)], rng)
        try:
            pixels = decode_image(data, max_pixels=4_000_000)
        except ImageError as error:
            assert str(error).startswith("it ") or "pixels" in str(error) or "file is" in str(error)
            outcomes["error"] += 1
        else:
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
            outcomes["image"] += 1
    assert outcomes["image"] > 100 and outcomes["error"] > 100


MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "1": ("PNG", {}), "L": ("PNG", {}), "LA": ("PNG", {}), "P": ("PNG", {"transparency": 3}),
    "RGB": ("JPEG", {"quality": 95}), "RGBA": ("PNG", {}), "I;16": ("PNG", {}),
    "CMYK": ("JPEG", {}),
}  # fmt: skip


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
@pytest.mark.parametrize("mode", MODES)
def test_shrinking_while_decoding_shows_the_same(mode: str, turn: int) -> None:
    """Beside the whole picture, decoded, turned and then shrunk: other roundings, same picture."""
    kind, options = MODES[mode]
    smooth = Image.fromarray(picture(6, 8)).resize((320, 240), Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) << 8)
    else:
        image = smooth.quantize(64) if mode == "P" else smooth.convert(mode)
    notes = Image.Exif()
    notes[image_module.ORIENTATION_TAG] = turn
    data = encoded(image, kind, exif=notes, **options)
    small = decode_image(data, max_side=80)
    whole = Image.fromarray(decode_image(data))
    whole.thumbnail((80, 80))
    wanted = np.asarray(whole)
    assert small.shape == wanted.shape == ((60, 80, 3) if turn in (1, 3) else (80, 60, 3))
    assert np.abs(small.astype(int) - wanted.astype(int)).mean() < 2.5
