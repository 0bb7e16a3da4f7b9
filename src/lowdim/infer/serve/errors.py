"""Errors in the shape that OpenAI clients expect: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

NO_RETRY = {"x-should-retry": "false"}
"""Tells OpenAI clients not to send the same request again of their own accord."""


class ApiError(Exception):
    """What a client is told instead of an answer.

    Args:
        status: HTTP status.
        message: what went wrong and what to do about it.
        param: the field of the request at fault, such as ``messages[0].content``.
        code: a word for programs, such as ``context_length_exceeded``.
        headers: extra headers of the response.

    Example:
        >>> ApiError(400, "n must be at least 1.", param="n").body()["error"]["type"]
        'invalid_request_error'
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON that goes with the status."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response that carries this error."""
        return JSONResponse(self.body(), self.status, self.headers)


def internal_error() -> ApiError:
    """Return the answer to a request that met a mistake of ours; details go to the log alone."""
    return ApiError(500, "The server met an internal error. Its log has the details.", code="internal_error")


def install(app: FastAPI) -> None:
    """Make every error of an application an `ApiError`'s response."""

    @app.exception_handler(ApiError)
    async def _ours(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.__cause__ is not None:
            return _unreadable(error.__cause__).response()
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = f"{message}: {request.method} {request.url.path}. See /v1/models for what is served."
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> JSONResponse:
        return internal_error().response()


def from_validation(errors: Any) -> ApiError:
    """Return the answer to a body that does not fit its schema: the first of pydantic's errors, with its field.

    Example:
        >>> from_validation([{"loc": ("body", "messages", 0, "role"), "msg": "bad", "type": "x"}]).message
        'messages[0].role: bad'
    """
    first = errors[0]
    context = first.get("ctx", {})
    if first["type"] == "json_invalid":
        reason = f"{context.get('error', 'invalid').removesuffix(' at')}, at character {first['loc'][-1]}"
        return ApiError(400, f"The body is not valid JSON: {reason}.", code="invalid_json")
    param = _path((*first["loc"][1:], *([context["param"]] if "param" in context else [])))
    message = first["msg"].removeprefix("Value error, ")
    named = message if message.startswith(f"{param} ") else f"{param or 'body'}: {message}"
    code = first["type"] if first["type"] in ("unsupported_parameter", "unknown_parameter") else None
    return ApiError(400, named, param=param, code=code or "invalid_value")


def _unreadable(error: BaseException) -> ApiError:
    """Return the answer to a body that JSON's grammar was not even tried on, or that it could not be held against."""
    reason = str(error)
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        reason = f"it is not {error.encoding.upper()}: byte 0x{byte:02x} at position {error.start}"
    elif isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    return ApiError(400, f"The body cannot be read: {reason}.", code="invalid_json")


def _path(parts: tuple[str | int, ...]) -> str | None:
    """Spell a place in a body.

    Example:
        >>> _path(("messages", 0, "content"))
        'messages[0].content'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or None
