"""Running the server until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from s3dnerf.errors import ArgumentError
from s3dnerf.interruption import Interrupted
from s3dnerf.serving.websocket import MAX_MESSAGE

CLOSE_SECONDS = 5
"""How long responses that are being sent may go on after SIGTERM."""
MAX_CONNECTIONS = 200
"""Connections at once; further ones get 503."""
HEADER_SECONDS = 20.0
"""How long a client may take from the connection, or from the first byte of a further request, to the end of its
headers. Otherwise connections on which nothing is sent would keep everyone else out."""

if TYPE_CHECKING:
    Protocol = Any
else:
    Protocol = AutoHTTPProtocol


def run_application(app: FastAPI, host: str, port: int, verbose: bool = False) -> None:
    """Serve an application until SIGTERM or Ctrl-C, which end it in an orderly way.

    Args:
        app: the application.
        host: address to listen on.
        port: port to listen on; 0 chooses a free one.
        verbose: whether each request is logged.

    Raises:
        ArgumentError: the address cannot be used.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=PunctualProtocol,
        log_level="info" if verbose else "warning",
        ws_max_size=MAX_MESSAGE,
        # Frames are compressed already.
        ws_per_message_deflate=False,
        # A client that sends faster than frames are rendered is not read from, so its answers to pings come late.
        # Silent clients are sent away by `idle_seconds`.
        ws_ping_timeout=None,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
    )
    server = _AnnouncedServer(config)
    try:
        with omit_cancellations():
            server.run()
    except (KeyboardInterrupt, Interrupted):
        # uvicorn sends the signal again after an orderly end.
        if not server.was_started:
            raise
    except SystemExit as left:
        reason = "cannot be listened on"
        raise ArgumentError("port", f"{host}:{port}", reason, "Choose another port or address.") from left
    print("s3dnerf: stopped", flush=True)


@contextmanager
def omit_cancellations() -> Iterator[None]:
    """Keep the requests that are cancelled when the server stops out of its log, where each leaves a traceback."""
    logger, keep = logging.getLogger("uvicorn.error"), _is_no_cancellation
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class PunctualProtocol(Protocol):
    """Closes connections on which the headers of a request do not arrive in time."""

    deadline: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether there is no request to be answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of the headers, if they are not complete."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop waiting."""
        if self.deadline is not None:
            self.deadline.cancel()
        super().connection_lost(error)

    def _watch(self) -> None:
        if not self.waits and self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        elif self.waits and self.deadline is None:
            self.deadline = self.loop.call_later(HEADER_SECONDS, self._expire)

    def _expire(self) -> None:
        self.deadline = None
        # After an upgrade, the connection belongs to the protocol of WebSocket.
        if self.waits and self.transport.get_protocol() is self and not self.transport.is_closing():
            self.transport.close()


class _AnnouncedServer(uvicorn.Server):
    """Prints the address when connections are accepted."""

    was_started = False

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if not self.started:
            return
        self.was_started = True
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"s3dnerf: http://{shown}:{port} (end with Ctrl-C)", flush=True)
