"""The installation, its users, and the health of the web and of a worker."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from greylag.domain.errors import GreylagError
from greylag.web.deps import CallDep, UseCasesDep, api_router, problems
from greylag.web.errors import problem_response
from greylag.web.request_log import RequestLogger
from greylag.web.schemas import HealthOut, PlatformOut, UserOut, UsersOut

router = api_router()


@router.get(
    "/api/platform",
    summary="What this installation is",
    tags=["platform"],
    responses=problems(),
)
async def show_platform(call: CallDep) -> PlatformOut:
    """Version, cluster and store, and the sentences that every user must see."""
    return PlatformOut.model_validate(call.use_cases.platform)


@router.get(
    "/api/users",
    summary="List the users",
    tags=["users"],
    responses=problems(),
)
async def list_users(call: CallDep) -> UsersOut:
    """All users whom the caller may act for, in the order they are to be shown."""
    users = await call.use_cases.gate.visible(call.principal)
    return UsersOut(users=[UserOut.model_validate(user) for user in users])


@router.get(
    "/healthz",
    summary="Whether the process runs",
    tags=["platform"],
    responses=problems(),
)
async def health() -> HealthOut:
    """Always ok: that it is answered is the news."""
    return HealthOut(status="ok")


@router.get(
    "/readyz",
    summary="Whether requests can be served",
    tags=["platform"],
    responses=problems(),
)
async def ready(use_cases: UseCasesDep) -> HealthOut:
    """Ok when the store can be read and written; a problem document otherwise."""
    await use_cases.store.ping()
    return HealthOut(status="ok")


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
