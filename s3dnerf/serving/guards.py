"""Limits of every request before any handler sees it: its size, the pace of its body, and the page that sent it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s3dnerf.serving.errors import RequestError, make_response
from s3dnerf.serving.metrics import Metrics
from s3dnerf.serving.settings import MEGABYTE

RECEIVE_SECONDS = 30.0
"""How long the next bytes of a body may take."""
LOCALHOST = "localhost"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Methods that are counted by their names, of which clients may invent any number."""


class Guard:
    """ASGI middleware that refuses large and slow bodies and requests of pages of other sites, and counts responses."""

    def __init__(self, app: ASGIApp, megabytes: int, metrics: Metrics, names: Collection[str] = ()) -> None:
        """Wrap an application.

        Args:
            app: the application.
            megabytes: size of the largest body.
            metrics: count the responses.
            names: names by which browsers reach this server, see :func:`is_foreign`.
        """
        self.app, self.megabytes, self.metrics = app, megabytes, metrics
        self.names = [name.lower() for name in names]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if is_foreign(headers, self.names):
            sentence = "Pages of other sites may not use this server. If this is its own page, start it with --name."
            response = make_response(HTTPStatus.FORBIDDEN, sentence)
            await response(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.megabytes * MEGABYTE:
            error = self._refuse_size()
            self._count(scope, error.status_code)
            await make_response(error.status_code, error.sentence)(scope, receive, send)
            return
        received, complete = 0, False

        async def receive_some() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), RECEIVE_SECONDS)
            except asyncio.TimeoutError:
                raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "The request came too slowly.") from None
            received += len(message.get("body", b""))
            if received > self.megabytes * MEGABYTE:
                raise self._refuse_size()
            complete = not message.get("more_body", False)
            return message

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"])
            await send(message)

        await self.app(scope, receive_some, send_counted)

    def _refuse_size(self) -> RequestError:
        sentence = f"The request is larger than the limit of {self.megabytes} MB. Send smaller files."
        return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)

    def _count(self, scope: Scope, status: int) -> None:
        # The pattern and not the path, which has ids in it.
        path = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.requests.labels(method, path, str(status)).inc()


def is_foreign(headers: Headers, names: Collection[str] = ()) -> bool:
    """Tell whether a browser sends a request for a page of another site.

    A site could let its own name point to this machine ("DNS rebinding"), and its pages would seem to be ours. So
    pages count as ours if they are at a numeric address, at localhost, or at a known name.

    Args:
        headers: of the request.
        names: names of this server.
    """
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return True
    return parts.netloc != headers.get("host") or not (name in (LOCALHOST, *names) or is_address(name))


def is_address(name: str) -> bool:
    """Tell whether the name of a host is a numeric address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
