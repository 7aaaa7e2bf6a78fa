"""Limits of every request before any handler sees it: its size, the pace of its body, and the page that sent it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s3dnerf.serving.errors import RequestError, make_response
from s3dnerf.serving.metrics import Metrics
from s3dnerf.serving.settings import MEGABYTE

RECEIVE_SECONDS = 30.0
"""How long the next bytes of a body may take."""


class Guard:
    """ASGI middleware that refuses large and slow bodies and requests of pages of other sites, and counts responses."""

    def __init__(self, app: ASGIApp, megabytes: int, metrics: Metrics) -> None:
        """Wrap an application.

        Args:
            app: the application.
            megabytes: size of the largest body.
            metrics: count the responses.
        """
        self.app, self.megabytes, self.metrics = app, megabytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if is_foreign(headers):
            response = make_response(HTTPStatus.FORBIDDEN, "Pages of other sites may not use this server.")
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
        self.metrics.requests.labels(scope["method"], path, str(status)).inc()


def is_foreign(headers: Headers) -> bool:
    """Tell whether a browser sends a request for a page of another site."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
