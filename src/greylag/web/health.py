"""Health of a program that serves nothing else: what probes ask of `greylag worker`."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from greylag.domain.errors import GreylagError
from greylag.web.errors import problem_response
from greylag.web.request_log import RequestLog
from greylag.web.schemas import HealthOut


def create_health_app(check_ready: Callable[[], Awaitable[None]]) -> ASGIApp:
    """Return an application that answers `/healthz` and `/readyz` as the web does.

    ``check_ready`` returns when work can be done and raises ``GreylagError`` otherwise.
    """

    async def health(_: Request) -> Response:
        return JSONResponse(HealthOut(status="ok").model_dump())

    async def ready(request: Request) -> Response:
        try:
            await check_ready()
        except GreylagError as error:
            return problem_response(request.scope, error.info)
        return await health(request)

    return RequestLog(Starlette(routes=[Route("/healthz", health), Route("/readyz", ready)]))
