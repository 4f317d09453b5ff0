"""Bytes from anywhere → RGB pixels: sniffed, measured before decoding, upright, on white.

Whoever sends an image is not to be trusted with more than its pixels: the format is found from the
bytes and must be on a list, the size is read from the header and checked before anything is
decoded, and whatever the decoder says about damaged bytes becomes one error that names the reason.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyllm.errors import ImageError

ImageSource = str | os.PathLike[str] | bytes | NDArray[Any] | Image.Image

THUMBNAIL: Final = 96  # pixels of the longer side
MAX_PIXELS: Final = 40_000_000  # 12 bytes each while decoding; a phone's 12 or 24 megapixels pass
MAX_WEBP_PIXELS: Final = 25_000_000  # libwebp takes 17 bytes each, for animations' sake

# A progressive JPEG repeats its whole picture in scans, each a pass over every pixel. Encoders
# write about ten; a file of ten thousand ten-byte scans would keep the decoder busy for hours.
MAX_JPEG_SCANS: Final = 100

ORIENTATION_TAG: Final = 0x0112
# EXIF 2.32, section 4.6.4: how to turn the stored rows and columns upright.
ORIENTATIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_side: int | None = None
) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG, WebP or GIF file into (height, width, 3) uint8 RGB.

    The first frame of an animation is taken, EXIF orientation is applied, transparency is flattened
    on white, 16-bit values keep their high byte, palettes and CMYK become RGB.

    With `max_side` a larger picture is shrunk to it at once: a JPEG is decoded at a half, a quarter
    or an eighth of its size to begin with, and of others only one copy is ever whole.

    Raises:
        ImageError: another format, too many pixels, a truncated or damaged file.
    """
    kind = sniff_format(data)
    if kind is None:
        raise ImageError("it is empty" if not data else "it is not a PNG, JPEG, WebP or GIF file")
    if kind == "WEBP":
        # Pillow's WebP reader allocates the canvas when it opens the file: measure it first.
        max_pixels = min(max_pixels, MAX_WEBP_PIXELS)
        _check_size(*_webp_size(data), max_pixels)
    elif kind == "JPEG" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise ImageError(f"it is a JPEG of more than {MAX_JPEG_SCANS} scans")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_size(*image.size, max_pixels)
            upright = _upright if max_side is None else partial(_shrunk, max_side=max_side)
            return _to_rgb(upright(image))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"it has more than {max_pixels:,} pixels") from None
    except Exception as error:  # the decoders raise a dozen kinds of errors on damaged bytes
        raise ImageError(f"the {kind} file is truncated or damaged") from error


def read_image(source: ImageSource) -> NDArray[np.uint8]:
    """An image from a file's path, its bytes, a PIL image, or pixels (height, width, 3) uint8.

    Raises:
        ImageError: as `decode_image`, or there is no such file; the message names it.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8:
            raise ImageError(
                f"pixels must be (height, width, 3) uint8, not {source.shape} {source.dtype}"
            )
        return source
    if isinstance(source, Image.Image):
        _check_size(*source.size, MAX_PIXELS)
        return _to_rgb(_upright(source))
    if isinstance(source, bytes):
        return decode_image(source)
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise ImageError(f"an image is a path, a file's bytes, a PIL image or pixels, not {kind}")
    path = Path(source)
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise ImageError(f"{path} can't be read: {error.strerror or error}") from None
    except ImageError as error:
        raise ImageError(f"{path} can't be used: {error}") from None


def thumbnail(pixels: NDArray[np.uint8], side: int = THUMBNAIL) -> bytes:
    """A small PNG of pixels (height, width, 3), its longer side at most `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.quantize(64).save(out, "PNG", optimize=True)  # 2 to 5 kB
    return out.getvalue()


def list_of_images(images: ImageSource | Sequence[ImageSource] | None) -> list[ImageSource]:
    """One image or several, as a list: a path is one image, whatever letters it has."""
    if images is None:
        return []
    if isinstance(images, (str, os.PathLike, bytes, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise ImageError(
            "images must be a PIL image, an array, a path, bytes, or a list of them, not "
            f"{type(images).__name__}"
        )
    return list(images)


def sniff_format(data: bytes) -> str | None:
    """Pillow's name of the format that the first bytes announce, or None if not on the list."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("it has no pixels")
    if width * height > max_pixels:
        raise ImageError(f"{width:,} × {height:,} is more than {max_pixels:,} pixels")


def _webp_size(data: bytes) -> tuple[int, int]:
    """The canvas of a WebP file; https://developers.google.com/speed/webp/docs/riff_container."""
    chunk, body = data[12:16], data[20:30]
    if len(body) == 10:
        if chunk == b"VP8X":  # 24-bit width - 1, height - 1 after 4 bytes of flags
            return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        if chunk == b"VP8L" and body[0] == 0x2F:  # 14 bits each, minus 1
            bits = int.from_bytes(body[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if chunk == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":  # 14 bits each, 2 bits of scale
            width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:], "little")
            return width & 0x3FFF, height & 0x3FFF
    raise ImageError("the WEBP file is truncated or damaged")


def _shrunk(image: Image.Image, max_side: int) -> Image.Image:
    """Upright, and its longer side at most `max_side`; of the whole there is one copy at a time."""
    turn = _turn(image)
    if max(image.size) > max_side and image.mode in ("1", "P", "PA"):
        clear = image.mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if clear else "RGB")
    elif image.mode.startswith("I"):
        image = Image.fromarray(_high_byte(image))
    image.thumbnail((max_side, max_side))  # in the decoder, as far as that can
    return image if turn is None else image.transpose(turn)


def _upright(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes it upright, if its notes say so."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # a picture whose notes are damaged is still a picture
        return None
    return ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None


def _high_byte(image: Image.Image) -> NDArray[np.uint8]:
    """(height, width) of 16-bit grey: Pillow's own conversion would clip at 255, not scale."""
    high: NDArray[np.int64] = np.asarray(image) >> 8
    return high.clip(0, 255).astype(np.uint8)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        return np.repeat(_high_byte(image)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return np.array(image.convert("RGB"))
