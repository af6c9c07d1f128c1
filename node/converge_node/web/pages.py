"""The files of the web page, as routes of an ASGI application. They hold nothing of the node, so they take no token.

Knows: the files in `static`, and what a browser is told to allow them. Must not know: the node, or tokens.
Source: docs/web.md; Content Security Policy Level 3; Trusted Types. The policy lets the page run its own files and ask
its own origin, and nothing else, so that a name that a stranger chose can neither run nor call out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

STATIC: Final = Path(__file__).parent / "static"
INDEX: Final = "index.html"
PREFIX: Final = "/web/"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # the next version of the program may listen on the same port
    "cache-control": "no-store",
}


def page_routes() -> list[Route]:
    """Read the files, and return a route for each, and one for the page itself."""
    files = sorted(path for path in STATIC.iterdir() if path.suffix in TYPES)
    routes = [_route(PREFIX + path.name, path) for path in files if path.name != INDEX]
    return [_route("/", STATIC / INDEX), *routes]


def _route(place: str, path: Path) -> Route:
    content, kind = path.read_bytes(), TYPES[path.suffix]

    async def serve(_request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return Route(place, serve, methods=["GET"])
