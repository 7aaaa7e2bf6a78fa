"""Routes of live sessions."""

from __future__ import annotations

import json
from http import HTTPStatus

from fastapi import FastAPI, Request, WebSocket

from s3dnerf.serving.errors import RequestError, make_response
from s3dnerf.serving.server import Server
from s3dnerf.serving.websocket import LiveSocket

MAX_OFFER = 2**17
"""Bytes of the largest offer."""
OFFER = {
    "type": "object",
    "required": ["sdp", "type", "portrait"],
    "properties": {
        "sdp": {"type": "string", "description": "what createOffer of the browser returns, with audio and video"},
        "type": {"type": "string", "enum": ["offer"]},
        "portrait": {"type": "string", "description": "id of a picture from POST /v1/portraits"},
        "options": {"type": "object", "description": "rendering options by name, see GET /v1/options"},
    },
}
OFFER_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": OFFER}}}}


def add_live_routes(app: FastAPI, server: Server) -> None:
    """Add the routes to an application."""

    @app.websocket("/v1/live")
    async def speak(socket: WebSocket) -> None:
        try:
            with server.sessions.admit():
                await socket.accept()
                await LiveSocket(socket, server.sessions, server.renderer, server.storage).serve()
        except RequestError as error:
            await socket.send_denial_response(
                make_response(error.status_code, error.sentence, dict(error.headers or {}))
            )

    @app.post("/v1/live/offer", status_code=201, tags=["live"], openapi_extra=OFFER_BODY)
    async def answer_offer(request: Request) -> dict[str, str]:
        """Start a live session over WebRTC: the microphone in, the face and its sound out."""
        body = await request.body()
        if len(body) > MAX_OFFER:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The offer is too large.")
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "The offer is no JSON object.")
        return await server.peers.offer(message)

    @app.delete("/v1/live/{id}", status_code=204, tags=["live"])
    async def end_live(id: str) -> None:
        """End a live session over WebRTC."""
        await server.peers.end(id)
