"""What probes ask of a program that serves nothing else, without what the web is made of."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from greylag.domain.errors import GreylagError
from greylag.web.errors import problem_response
from greylag.web.request_log import RequestLogger
from greylag.web.schemas import HealthOut


def create_health_app(check_ready: Callable[[], Awaitable[None]]) -> ASGIApp:
    """Return the application that tells the health of a program that serves nothing else.

    It answers `/healthz` and `/readyz` as the web does.
    ``check_ready`` returns when work can be done and fails by a ``GreylagError`` otherwise.
    """
    ok = HealthOut(status="ok").model_dump()

    async def health(_: Request) -> Response:
        return JSONResponse(ok)

    async def ready(_: Request) -> Response:
        try:
            await check_ready()
        except GreylagError as error:
            return problem_response(error.info)
        return JSONResponse(ok)

    return RequestLogger(Starlette(routes=[Route("/healthz", health), Route("/readyz", ready)]))
