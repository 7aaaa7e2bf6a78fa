"""Routes of pictures, rendering jobs and stills, and of the state of the server."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response

from s3dnerf.errors import ArgumentError
from s3dnerf.limits import require_choice
from s3dnerf.render_options import TRANSPARENT
from s3dnerf.serving.errors import RequestError
from s3dnerf.serving.forms import choose_picture, open_form
from s3dnerf.serving.jobs import DONE, ENDED, RUNNING, WAITING, Job
from s3dnerf.serving.options import describe_options, make_schema
from s3dnerf.serving.server import Server
from s3dnerf.serving.uploads import check_picture, remove_files

FORMATS = {"mp4": "video/mp4", "webm": "video/webm"}
IMAGE = "the portrait: PNG, JPEG, WebP, HEIC or AVIF; send the field again for further pictures of the same person"
AUDIO = "the speech: an audio or video file"
MOTION = "a driving video, in place of the option pose"
PORTRAIT = "id of a picture from POST /v1/portraits, in place of image"
BACKGROUND = "a picture behind the person, in place of the option background"
FORMAT = "mp4 (the default) or webm, which can be transparent"
RENDER_FORM = make_schema(
    {"image": IMAGE, "audio": AUDIO, "motion": MOTION, "background_image": BACKGROUND},
    {"portrait": PORTRAIT, "format": FORMAT},
    ("audio",),
)
STILL_FORM = make_schema({"image": IMAGE}, {"portrait": PORTRAIT}, ())
PICTURE_FORM = make_schema({"image": IMAGE}, {}, ("image",))


def add_render_routes(app: FastAPI, server: Server) -> None:
    """Add the routes to an application."""

    @app.post("/v1/portraits", status_code=201, tags=["pictures"], openapi_extra=PICTURE_FORM)
    async def upload_portrait(request: Request) -> dict[str, Any]:
        """Upload a picture once, for stills, live sessions and any number of videos."""
        async with open_form(request, server, ("image",), ()) as form:
            if "image" not in form.files:
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"image: is missing. Send {IMAGE}.")
            file = form.files["image"]
            width, height = await asyncio.to_thread(check_picture, file, server.settings)
            portrait = await asyncio.to_thread(server.renderer.encode, file, form.options)
            server.storage.keep_picture(file)
        return {"id": file.id, "width": width, "height": height, "notes": list(portrait.notes)}

    @app.delete("/v1/portraits/{id}", status_code=204, tags=["pictures"])
    async def delete_portrait(id: str) -> None:
        """Remove an uploaded picture."""
        server.storage.remove_picture(id)

    @app.post("/v1/stills", tags=["pictures"], openapi_extra=STILL_FORM, response_class=Response)
    async def render_still(request: Request) -> Response:
        """Render one frame without speech, as JPEG, or PNG if it is transparent."""
        async with open_form(request, server, ("image",), ("portrait",)) as form:
            image = choose_picture(form, server)
            try:
                data = await asyncio.to_thread(server.renderer.render_still, image, form.options)
            finally:
                remove_files([image])
        return Response(data, media_type="image/png" if data.startswith(b"\x89PNG") else "image/jpeg")

    @app.post("/v1/render", status_code=202, tags=["videos"], openapi_extra=RENDER_FORM)
    async def start_render(request: Request) -> dict[str, Any]:
        """Start to render a video; the answer has its id."""
        client = request.client.host if request.client else ""
        server.jobs.check_room(client)
        files = ("image", "audio", "motion", "background_image")
        async with open_form(request, server, files, ("portrait", "format")) as form:
            if "audio" not in form.files:
                raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"audio: is missing. Send {AUDIO}.")
            background = form.files.get("background_image")
            transparent = form.options.background == TRANSPARENT and background is None
            suffix = form.texts.get("format", "webm" if transparent else "mp4")
            require_choice("format", suffix, FORMATS)
            if transparent and suffix != "webm":
                raise ArgumentError("format", suffix, "has no transparency", "Use webm.")
            if server.renderer.marks.credentials is not None and suffix != "mp4":
                raise ArgumentError("format", suffix, "cannot be signed, and this server signs videos", "Use mp4.")
            image = choose_picture(form, server)
            result = server.storage.name_file(f".{suffix}")
            audio, motion = form.files["audio"], form.files.get("motion")
            job = Job(client, form.options, image, audio, motion, background, result)
            try:
                server.jobs.submit(job)
            except BaseException:
                remove_files([image])
                raise
        return job.describe()

    @app.get("/v1/render/{id}", tags=["videos"])
    async def show_render(id: str) -> dict[str, Any]:
        """Show how far a video is."""
        return server.jobs.find(id).describe()

    @app.get("/v1/render/{id}/result", tags=["videos"], response_class=FileResponse)
    async def download_render(id: str) -> FileResponse:
        """Download a video that is done."""
        job = server.jobs.find(id)
        if job.state not in ENDED:
            raise RequestError(HTTPStatus.CONFLICT, "The video is not done yet. Ask for its progress first.")
        if job.state != DONE:
            raise RequestError(HTTPStatus.CONFLICT, f"There is no video: {job.error or 'the job was cancelled.'}")
        suffix = job.result.suffix
        return FileResponse(job.result, media_type=FORMATS[suffix[1:]], filename=f"talking{suffix}")

    @app.delete("/v1/render/{id}", status_code=204, tags=["videos"])
    async def delete_render(id: str) -> None:
        """Cancel a video, or remove it after it is done."""
        server.jobs.remove(id)

    @app.get("/v1/options", tags=["server"])
    async def list_options() -> list[dict[str, Any]]:
        """List the rendering options: name, help, kind, default and allowed values."""
        return describe_options()

    @app.get("/healthz", tags=["server"])
    async def show_health() -> dict[str, Any]:
        """Tell that the server works, and what it does."""
        return {
            "status": "ok",
            "jobs_running": server.jobs.count(RUNNING),
            "jobs_waiting": server.jobs.count(WAITING),
            "live_sessions": server.sessions.open,
            "live_sessions_limit": server.settings.live_sessions,
        }

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def show_metrics() -> Response:
        """Return measurements in the format of Prometheus."""
        return Response(server.metrics.format(), media_type="text/plain; version=0.0.4; charset=utf-8")
