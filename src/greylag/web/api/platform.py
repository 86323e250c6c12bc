"""The installation, its users, and its health."""

from fastapi import APIRouter

from greylag.web.api.deps import CallDep, WebDep, problems
from greylag.web.schemas import HealthOut, PlatformOut, UserOut, UsersOut

router = APIRouter()


@router.get(
    "/api/platform",
    operation_id="show_platform",
    summary="What this installation is",
    tags=["platform"],
    responses=problems(),
)
async def show_platform(call: CallDep) -> PlatformOut:
    """Version, cluster and store, and the sentences that every user must see."""
    return PlatformOut.of(call.use_cases.platform)


@router.get(
    "/api/users",
    operation_id="list_users",
    summary="List the users",
    tags=["users"],
    responses=problems(),
)
async def list_users(call: CallDep) -> UsersOut:
    """All users whom the caller may act for, in the order they are to be shown."""
    users = call.use_cases.projects.users(call.principal)
    return UsersOut(users=[UserOut.model_validate(user) for user in users])


@router.get(
    "/healthz",
    operation_id="health",
    summary="Whether the process runs",
    tags=["platform"],
    responses=problems(),
)
async def health() -> HealthOut:
    """Always ok: that it is answered is the news."""
    return HealthOut(status="ok")


@router.get(
    "/readyz",
    operation_id="ready",
    summary="Whether requests can be served",
    tags=["platform"],
    responses=problems(),
)
async def ready(web: WebDep) -> HealthOut:
    """Ok when the store can be read and written; a problem document otherwise."""
    await web.use_cases.check_ready()
    return HealthOut(status="ok")
