"""The FastAPI application of ``s3dnerf serve`` and ``s3dnerf demo``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from s3dnerf import __version__
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.serving.errors import add_error_handlers
from s3dnerf.serving.guards import Guard
from s3dnerf.serving.live_routes import add_live_routes
from s3dnerf.serving.marks import VideoMarks
from s3dnerf.serving.page import add_page
from s3dnerf.serving.render_routes import add_render_routes
from s3dnerf.serving.server import Server
from s3dnerf.serving.settings import ServerSettings


def make_application(
    pipeline: TalkingHeadPipeline,
    settings: ServerSettings | None = None,
    *,
    page: bool = False,
    ice_servers: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    marks: VideoMarks | None = None,
) -> FastAPI:
    """Return the application; ``app.state.server`` is its :class:`Server`, which is stopped at the end.

    Args:
        pipeline: renders.
        settings: limits.
        page: whether ``/`` is the page of ``s3dnerf demo``.
        ice_servers: STUN or TURN servers for WebRTC, such as "stun:stun.example.org". None are needed where clients
            reach the server directly.
        names: names by which browsers reach the server, such as "faces.example.org". None are needed for localhost and
            numeric addresses.
        marks: what shows that videos are generated.

    Raises:
        ArgumentError: a limit is out of range.
    """
    server = Server(pipeline, settings or ServerSettings(), ice_servers, marks or VideoMarks())

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        expiry = asyncio.create_task(server.expire())
        try:
            yield
        finally:
            expiry.cancel()
            with suppress(asyncio.CancelledError):
                await expiry
            await server.stop()

    app = FastAPI(
        title="s3dnerf",
        version=__version__,
        summary="A portrait and speech become a talking video, as a file or live.",
        lifespan=live,
    )
    app.state.server = server
    app.add_middleware(Guard, megabytes=server.settings.upload_megabytes, metrics=server.metrics, names=names)
    add_error_handlers(app)
    add_render_routes(app, server)
    add_live_routes(app, server)
    if page:
        add_page(app)
    return app
