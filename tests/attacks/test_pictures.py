"""Pictures that are larger than they look, of every format, and files that are only nearly one."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.attacks.support import CHAT, PATIENCE, ask, chat, polite
from tests.load.servers import Server

pytestmark = pytest.mark.attacks
MB = 1_000_000
SIZE = (8000, 5000)  # as many pixels as are allowed
SMALL = (64, 64)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, size: tuple[int, int] = SIZE) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 30_000, np.uint16))
    return Image.new(mode, size)


def chunk(name: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def with_chunk(name: bytes) -> bytes:
    """A small PNG with a note or a profile that would unpack to 200 MB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    data = encoded(flat("RGB", SMALL), "PNG")
    return data[:33] + chunk(name, b"k\0\0" + packed) + data[33:]


def announced(width: int, height: int) -> bytes:
    """A small PNG whose header announces other sizes."""
    data = encoded(flat("RGB", SMALL), "PNG")
    head = struct.pack(">II", width, height) + data[24:29]
    return data[:8] + chunk(b"IHDR", head) + data[33:]


def many_scans() -> bytes:
    data = encoded(flat("RGB", SMALL), "JPEG", progressive=True)
    return data[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 5000 + data[-2:]


def many_frames() -> bytes:
    frames = [Image.new("P", (2000, 2000), i) for i in range(60)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


BOMBS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "PNG": (200, lambda: encoded(flat("RGB"), "PNG", compress_level=1)),
    "PNG with a palette that is clear": (200, lambda: encoded(flat("P"), "PNG", transparency=0)),
    "PNG of 16 bits": (200, lambda: encoded(flat("I;16"), "PNG", compress_level=1)),
    "PNG of a bit a pixel": (200, lambda: encoded(flat("1"), "PNG")),
    "JPEG": (200, lambda: encoded(flat("RGB"), "JPEG")),
    "JPEG in CMYK": (200, lambda: encoded(flat("CMYK"), "JPEG")),
    "WebP": (200, lambda: encoded(flat("RGBA", (5000, 5000)), "WEBP", quality=1, method=0)),
    "WebP a little too large": (
        400,
        lambda: encoded(flat("RGB", (5001, 5000)), "WEBP", quality=1, method=0),
    ),
    "GIF": (200, lambda: encoded(flat("P"), "GIF")),
    "GIF of many frames": (200, many_frames),
    "PNG with a large note": (400, lambda: with_chunk(b"zTXt")),
    "PNG with a large profile": (400, lambda: with_chunk(b"iCCP")),
    "PNG beyond all measure": (400, lambda: announced(2**31 - 1, 2**31 - 1)),
    "PNG a little too large": (400, lambda: announced(8000, 5001)),
    "PNG that ends early": (400, lambda: announced(8000, 5000)),
    "JPEG of many scans": (400, many_scans),
    "BMP": (400, lambda: encoded(flat("1"), "BMP")),
    "TIFF": (400, lambda: encoded(flat("RGB", (2000, 2000)), "TIFF", compression="tiff_lzw")),
    "ICO": (400, lambda: encoded(flat("RGB", SMALL), "ICO")),
    "PDF": (400, lambda: encoded(flat("RGB", SMALL), "PDF")),
    "SVG": (400, lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
}


@pytest.fixture(scope="module")
def seeing(server: Server) -> Server:
    """The server, its image encoder loaded."""
    assert ask(server.port, asked(encoded(flat("RGB", SMALL), "PNG")))[0] == 200
    return server


def asked(data: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return chat(parts, model="smollm2-135m-vision")


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_costs_what_its_pixels_do(seeing: Server, name: str) -> None:
    wanted, make = BOMBS[name]
    body = asked(make())
    with polite(seeing) as seen:
        status, answer = ask(seeing.port, body, CHAT)
    seen.report(f"{name} (status {status})")
    assert status == wanted, answer[:300]
    assert max(seen.waits) < PATIENCE
    assert max(seen.memory) < seen.memory[0] + 600 * MB
