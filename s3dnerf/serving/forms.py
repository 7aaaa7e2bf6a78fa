"""Multipart forms: files are stored and checked, the other fields are rendering options and a few texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Request
from starlette.datastructures import UploadFile

from s3dnerf.media.image import MAX_IMAGES
from s3dnerf.render_options import RenderOptions
from s3dnerf.serving.errors import RequestError
from s3dnerf.serving.options import read_options
from s3dnerf.serving.server import Server
from s3dnerf.serving.uploads import CHECKS, StoredFile, remove_files

FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
IMAGE = "image"
"""The field that may be sent several times, with pictures of one person."""
MAX_FIELDS = 100
MAX_TEXT = 2**16
"""Bytes of the longest field that is no file."""


@dataclass(frozen=True)
class Form:
    """What a client sent."""

    files: dict[str, StoredFile]
    """Stored and checked, by field."""
    texts: dict[str, str]
    options: RenderOptions


@asynccontextmanager
async def open_form(
    request: Request, server: Server, files: tuple[str, ...], texts: tuple[str, ...]
) -> AsyncIterator[Form]:
    """Read a form. If the block raises, its files are removed.

    Args:
        request: the request.
        server: stores the files.
        files: fields that may be files, of those in ``CHECKS``.
        texts: fields that are neither files nor rendering options.

    Raises:
        UserError, RequestError: a field is unknown or wrong.
    """
    kind = request.headers.get("content-type", "")
    if not kind.startswith(FORM_TYPES):
        sentence = f"The request has the type {kind or 'none'}. Send multipart/form-data."
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, sentence)
    limits = {"max_files": len(CHECKS) + MAX_IMAGES, "max_fields": MAX_FIELDS, "max_part_size": MAX_TEXT}
    with ExitStack() as stack:
        async with request.form(**limits) as form:
            # A browser also sends the file fields that are empty.
            uploads = [
                (name, part)
                for name, part in form.multi_items()
                if isinstance(part, UploadFile) and (part.filename or part.size)
            ]
            values = {name: part for name, part in form.multi_items() if isinstance(part, str)}
            for name, _ in uploads:
                if name not in files:
                    sentence = f"{name}: no file is expected. Files are {', '.join(files)}."
                    raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)
            for name in files:
                if values.pop(name, "") != "":
                    raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name}: is text. Send the file itself.")
            given = {name: values.pop(name) for name in texts if values.get(name)}
            options = read_options({name: text for name, text in values.items() if name not in texts})
            stored: dict[str, StoredFile] = {}
            for name, upload in uploads:
                if name not in stored:
                    stored[name] = await asyncio.to_thread(server.storage.save, upload.file, name)
                    stack.callback(remove_files, [stored[name]])
                elif name == IMAGE:
                    others = stored[name].others
                    if len(others) + 1 == MAX_IMAGES:
                        sentence = f"image: more than {MAX_IMAGES} pictures are sent. Send the best ones."
                        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)
                    others.append(await asyncio.to_thread(server.storage.save, upload.file, f"image {len(others) + 2}"))
                else:
                    raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name}: is sent twice. Send one file.")
        for name, file in stored.items():
            for part in file.parts:
                await asyncio.to_thread(CHECKS[name], part, server.settings)
        yield Form(stored, given, options)
        stack.pop_all()


def choose_picture(form: Form, server: Server) -> StoredFile:
    """Return the picture of a form, which is a file, or the id of one as ``portrait``.

    Raises:
        RequestError: there is neither, or no picture of this id.
    """
    if IMAGE in form.files:
        return form.files[IMAGE]
    if "portrait" in form.texts:
        return server.storage.copy(server.storage.find_picture(form.texts["portrait"]))
    sentence = "image: is missing. Send a picture, or the id of an uploaded one as portrait."
    raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)
