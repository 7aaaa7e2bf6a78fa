"""The page of ``s3dnerf demo``: static files that use the same routes as every other client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

STATIC = Path(__file__).parent / "static"
ASSETS = Path(__file__).parents[1] / "assets"
FILES = {
    "/": (STATIC / "index.html", "text/html; charset=utf-8"),
    "/page.js": (STATIC / "page.js", "text/javascript; charset=utf-8"),
    "/live.js": (STATIC / "live.js", "text/javascript; charset=utf-8"),
    "/page.css": (STATIC / "page.css", "text/css; charset=utf-8"),
    "/examples/portrait.jpg": (ASSETS / "portrait.jpg", "image/jpeg"),
    "/examples/speech.wav": (ASSETS / "speech.wav", "audio/wav"),
}
HEADERS = {
    # Nothing is loaded from elsewhere, and no other page may show this one.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Add the page and its examples to an application."""
    for address, (path, kind) in FILES.items():
        app.add_api_route(address, _send(path, kind), include_in_schema=False, response_class=FileResponse)


def _send(path: Path, kind: str) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(path, media_type=kind, headers=HEADERS)

    return send
