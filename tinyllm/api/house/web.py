"""The page's files: read once, served under /web/, with headers that let nothing else run."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from tinyllm.api.contract.errors import status_error

PREFIX = "/web/"
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    # Only files of this server: no script or style in the markup, nothing from elsewhere, no frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def wants_page(accept: str) -> bool:
    """Whether an Accept header is a browser's: it names HTML."""
    return "text/html" in accept.lower()


def page() -> Response:
    """The page itself."""
    body = _files()["index.html"]
    return Response(body, headers={**HEADERS, "Vary": "Accept"}, media_type=KINDS["html"])


async def file(request: Request) -> Response:
    """One of its files. ApiError 404."""
    name = request.path_params["name"]
    body = _files().get(name)
    if body is None:
        raise status_error(404)
    return Response(body, headers=HEADERS, media_type=KINDS[name.rpartition(".")[2]])


@cache
def _files() -> dict[str, bytes]:
    """Every file by its path under web/: a name that is asked for is looked up, never opened."""
    root = files("tinyllm.api") / "web"
    found = {}
    for folder in (root, root / "views"):
        for entry in folder.iterdir():
            if entry.name.rpartition(".")[2] in KINDS:
                name = entry.name if folder is root else f"views/{entry.name}"
                found[name] = entry.read_bytes()
    return found
