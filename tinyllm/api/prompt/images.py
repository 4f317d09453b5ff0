"""Images in messages: from a URL in the request to pixels, and the seam to vision models.

Everything about an image comes from a stranger. `data:` URLs are taken apart here; https ones are
fetched by `fetch_image`; what the bytes are, and whether they are decoded at all, is settled by
`tinyllm.vision.image`.
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyllm.api.contract.errors import ApiError, Loc
from tinyllm.api.limits import BIG_BODY, MAX_IMAGE_BYTES, MAX_IMAGE_SIDE
from tinyllm.api.prompt.turns import Workers
from tinyllm.engine.types import Prompt
from tinyllm.errors import ImageError
from tinyllm.vision.seen import Seen

_SPACE = string.whitespace.encode()
_ALPHABET = bytes.maketrans(b"-_", b"+/")
# What isn't a letter or a digit, as a URL may write it.
_ESCAPES = {
    escape: bytes([letter])
    for letter in b"+/=-_" + _SPACE
    for escape in (b"%%%02X" % letter, b"%%%02x" % letter)
}
_DATA_URL = re.compile(r"data:([^,;]{0,200})((?:;[^,;]{0,200}){0,8}),", re.IGNORECASE)

Pixels = NDArray[np.uint8]  # (height, width, 3)


class VisionPrompts(Protocol):
    """What a vision model offers the API; `tinyllm.vision.prompt.ImagePrompts` is one."""

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], images: Sequence[Pixels], **extra: Any
    ) -> Prompt:
        """`messages` are the template's; each part {"type": "image"} takes the next image."""
        ...

    def around(self, tokens: Sequence[int], images: Sequence[Pixels]) -> Prompt:
        """`tokens` in which the images' layouts stand already."""
        ...

    def seen(self, image: Pixels) -> tuple[Seen, NDArray[np.float32]]:
        """An image's patches, and the rows (M, dim) that stand for it."""
        ...


class ImageSource(Protocol):
    """Fetches https images; `fetch_image.ImageFetcher` is one."""

    async def fetch(self, url: str) -> bytes:
        """The bytes behind an https URL. Raises ImageError with a message for the client."""
        ...


def bad_image(message: str, loc: Loc) -> ApiError:
    return ApiError(400, message, code="invalid_image", loc=loc, kind="invalid_image")


async def read_url(url: str, source: ImageSource, loc: Loc, workers: Workers, share: str) -> bytes:
    """The bytes of an image; a long `data:` URL is read by `workers`. ApiError 400."""
    scheme = url[:8].lower()
    if scheme.startswith("data:"):
        if len(url) > BIG_BODY:
            return await workers.run(share, decode_data_url, url, loc)
        return decode_data_url(url, loc)
    if not scheme.startswith("https://"):
        raise bad_image("An image URL must begin with https:// or data:image/.", loc)
    try:
        return await source.fetch(url)
    except ImageError as error:
        raise bad_image(f"The image can't be fetched: {error}.", loc) from None


def decode_data_url(url: str, loc: Loc) -> bytes:
    """The bytes in a `data:image/…;base64,…` URL. ApiError 400.

    The type that it declares doesn't matter: the bytes say what they are. Base64 is read
    leniently: padding may be missing or too much, the URL-safe alphabet and white space are fine,
    escaped or not. All in a few passes over the bytes: what is done a letter or an escape at a time
    holds the interpreter's lock for a second, if there are millions of them.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise bad_image("The data URL must look like data:image/…;base64,…", loc)
    options = match.group(2).lower()
    if ";base64" not in options.replace(" ", ""):
        raise bad_image("The data URL must be base64.", loc)
    text = url[match.end() :]
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 1024:
        raise bad_image(f"The image has more than {MAX_IMAGE_BYTES} bytes.", loc)
    raw = text.encode("utf-8")
    if b"%" in raw:
        for escape, letter in _ESCAPES.items():
            raw = raw.replace(escape, letter)
    raw = raw.translate(_ALPHABET, _SPACE).rstrip(b"=")
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise bad_image("The data URL isn't valid base64.", loc) from None


def decode(data: bytes, loc: Loc) -> Pixels:
    """Encoded bytes as upright RGB pixels. ApiError 400."""
    from tinyllm.vision.image import decode_image  # with the first image, not with a server's start

    if len(data) > MAX_IMAGE_BYTES:
        raise bad_image(f"The image has more than {MAX_IMAGE_BYTES} bytes.", loc)
    try:
        return decode_image(data, max_side=MAX_IMAGE_SIDE)
    except ImageError as error:
        raise bad_image(f"The image can't be used: {error}.", loc) from None
