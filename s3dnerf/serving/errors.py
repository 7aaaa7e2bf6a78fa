"""Refusals as HTTP responses: a status, and one sentence as JSON."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from s3dnerf.errors import UserError
from s3dnerf.failures import explain_failure

log = logging.getLogger(__name__)
RETRY_SECONDS = 10
"""After how long a client should try again when the server is full."""
TRY_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class RequestError(HTTPException):
    """A request that is refused.

    Args:
        status: of HTTP.
        sentence: why, and what to do.
    """

    def __init__(self, status: int, sentence: str) -> None:
        headers = {"Retry-After": str(RETRY_SECONDS)} if status in TRY_AGAIN else None
        super().__init__(status, sentence, headers)

    @property
    def sentence(self) -> str:
        """Why the request is refused."""
        return str(self.detail)


def make_response(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response that says why a request failed."""
    return JSONResponse({"error": sentence}, status, headers)


def describe_error(error: BaseException) -> tuple[int, str]:
    """Return the status and the sentence for a failure. Bugs are logged, and their details stay on the server."""
    if isinstance(error, StarletteHTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, UserError):
        return HTTPStatus.UNPROCESSABLE_ENTITY, str(error)
    if isinstance(error, Exception) and explain_failure(error) is not None:
        log.error("the machine fails: %s", error)
        return HTTPStatus.SERVICE_UNAVAILABLE, "The server is out of resources. Try again later."
    log.error("a request failed", exc_info=error)
    return HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed; its log tells why."


def add_error_handlers(app: FastAPI) -> None:
    """Make an application answer all failures by :func:`make_response`."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        status, sentence = describe_error(error)
        headers = getattr(error, "headers", None)
        return make_response(status, sentence, headers and dict(headers))

    async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError), "the handler of this class"
        first = error.errors()[0]
        name = str(first["loc"][-1]) if first["loc"] else "request"
        return make_response(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name}: {first['msg']}.")

    app.add_exception_handler(StarletteHTTPException, answer)
    app.add_exception_handler(UserError, answer)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(Exception, answer)
