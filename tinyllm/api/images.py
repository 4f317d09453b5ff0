"""Images in messages: from a URL in the request to an image that a vision model can take.

Everything about an image comes from a stranger, so each step checks before the next one trusts:
the form of the URL, the size of the data, the format by its first bytes, the number of pixels
before a single one is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from PIL import Image, ImageOps, UnidentifiedImageError

from tinyllm.api.errors import ApiError, Loc
from tinyllm.engine.types import Prompt
from tinyllm.tokenizer import Tokenizer

MAX_IMAGES = 8  # a request
MAX_BYTES = 10 * 1024 * 1024  # an image, encoded
MAX_PIXELS = 32_000_000  # an image, decoded
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}
_DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)


class VisionPrompts(Protocol):
    """What a vision model offers the API: a conversation with images as a prompt."""

    def prompt(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image],
    ) -> Prompt:
        """`messages` are the template's; each part {"type": "image"} takes the next image."""
        ...


class ImageSource(Protocol):
    """Fetches https images; see `Settings.image_urls`."""

    async def fetch(self, url: str) -> bytes:
        """The bytes behind an https URL. Raises ValueError with a message for the client."""


class NoFetching:
    """The source of a server that fetches nothing."""

    async def fetch(self, url: str) -> bytes:
        raise ValueError("this server doesn't fetch images: send a data: URL")


def bad_image(message: str, loc: Loc) -> ApiError:
    return ApiError(400, message, code="invalid_image", loc=loc, kind="invalid_image")


def decode_data_url(url: str, loc: Loc) -> bytes:
    """The bytes in a `data:image/…;base64,…` URL; base64 is read leniently. ApiError 400."""
    match = _DATA_URL.match(url)
    if match is None:
        raise bad_image("The data URL must look like data:image/…;base64,…", loc)
    media, options = match.group(1).strip().lower(), match.group(2).lower()
    if not media.startswith("image/"):
        raise bad_image(f"The data URL holds {media[:40] or 'text'!r}, not an image.", loc)
    if ";base64" not in options.replace(" ", ""):
        raise bad_image("The data URL must be base64.", loc)
    text = url[match.end() :]
    if len(text) > MAX_BYTES * 4 // 3 + 1024:
        raise bad_image(f"The image has more than {MAX_BYTES} bytes.", loc)
    raw = unquote_to_bytes(text) if "%" in text else text.encode("utf-8")
    raw = re.sub(rb"\s+", b"", raw).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise bad_image("The data URL isn't valid base64.", loc) from None


def decode_image(data: bytes, loc: Loc) -> Image.Image:
    """Encoded bytes as an upright RGB image, transparency flattened on white. ApiError 400."""
    if len(data) > MAX_BYTES:
        raise bad_image(f"The image has more than {MAX_BYTES} bytes.", loc)
    kind = _format_of(data)
    if kind is None:
        raise bad_image("The data is none of PNG, JPEG, WebP and GIF.", loc)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            width, height = image.size
            if width < 1 or height < 1 or width * height > MAX_PIXELS:
                raise bad_image(f"The image has {width}×{height} pixels; the limit is "
                                f"{MAX_PIXELS} in all.", loc)  # fmt: skip
            image.seek(0)
            image.load()
            return _flattened(ImageOps.exif_transpose(image))
    except ApiError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, MemoryError,
            ArithmeticError, LookupError, TypeError, AttributeError,
            Image.DecompressionBombError):  # fmt: skip
        raise bad_image("The image is damaged or cut short.", loc) from None


def _format_of(data: bytes) -> str | None:
    """What the first bytes say; the name in the URL counts for nothing."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
