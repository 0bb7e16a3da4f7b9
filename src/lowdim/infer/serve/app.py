"""The routes: OpenAI's chat and text completions and list of models, health and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from lowdim.infer.serve import errors
from lowdim.infer.serve.gate import Gate
from lowdim.infer.serve.keys import Keys
from lowdim.infer.serve.schema import ChatRequest, CompletionRequest
from lowdim.infer.serve.service import Service

Handler = TypeVar("Handler", bound=Callable[..., Any])
_BODY_SECONDS = 60.0  # most time that a body may take to arrive


def build_app(service: Service, keys: Keys, local_only: bool) -> FastAPI:
    """Build the application; its start and end are the service's."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(lifespan=life, openapi_url=None, redirect_slashes=False)
    app.add_middleware(
        Gate,
        keys=keys,
        local_only=local_only and not keys,
        body=service.limits.body,
        seconds=min(service.limits.timeout, _BODY_SECONDS),
        metrics=service.metrics,
    )
    errors.install(app)
    _add_generation(app, service)
    _add_status(app, service)
    return app


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest) -> Response:
        return await service.chat(body)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest) -> Response:
        return await service.complete(body)


def _add_status(app: FastAPI, service: Service) -> None:
    def status(path: str) -> Callable[[Handler], Handler]:
        return app.api_route(path, methods=["GET", "HEAD"])

    @status("/v1/models")
    async def models() -> dict[str, Any]:
        service.scheduler.check_running()
        return {"object": "list", "data": [service.describe()]}

    @status("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.scheduler.check_running()
        service.check_model(name)
        return service.describe()

    @status("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": service.scheduler.state}, 200 if service.is_healthy else 503)

    @status("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
