"""A page for people at ``/``: what is served and how it does, read from ``/metrics`` by the browser."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import edge_sdk

__all__ = ["STATUS_PATHS", "status_routes"]

_HERE = Path(__file__).with_name("status")
_FILES = {
    "/": (_HERE / "index.html", "text/html"),
    "/status/page.css": (Path(edge_sdk.__file__).with_name("page.css"), "text/css"),
    "/status/status.css": (_HERE / "status.css", "text/css"),
    "/status/status.js": (_HERE / "status.js", "text/javascript"),
}

STATUS_PATHS = tuple(_FILES)
"""Open to all: the files say nothing of the models; what the page then asks for needs a token where all else does."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def status_routes() -> list[Route]:
    """Of the page and what it is made of."""
    return [_route(path, file.read_bytes(), kind) for path, (file, kind) in _FILES.items()]


def _route(path: str, content: bytes, kind: str) -> Route:
    async def send(request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return Route(path, send)
