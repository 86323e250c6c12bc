"""What the handlers are given: the use cases, who asks, and the project of the path."""

from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Header, Path, Request

from greylag.domain.errors import UnauthorizedError
from greylag.domain.names import MAX_ID_LENGTH
from greylag.domain.project import ProjectRef
from greylag.domain.users import Principal
from greylag.services.use_cases import UseCases
from greylag.web.exchange import exchange_of
from greylag.web.prefer import Prefer, parse_prefer
from greylag.web.stream import Streams


@dataclass(frozen=True, slots=True)
class Web:
    """What one web application is made of; it stands in ``app.state.web``."""

    use_cases: UseCases
    streams: Streams


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks, and what the handler may use to answer."""

    principal: Principal
    use_cases: UseCases
    streams: Streams


@dataclass(frozen=True, slots=True)
class ProjectCall(Call):
    """A call whose path names a project (which may not exist)."""

    ref: ProjectRef

    @property
    def at(self) -> tuple[Principal, str, str]:
        """Who asks, the user and the project, as every use case takes them first."""
        return self.principal, self.ref.user_id, self.ref.project_id


async def _web(request: Request) -> Web:
    found: Web = request.app.state.web
    return found


WebDep = Annotated[Web, Depends(_web)]


async def _call(request: Request, web: WebDep) -> Call:
    principal = exchange_of(request.scope).principal
    if principal is None:
        raise UnauthorizedError("The request does not say who it comes from.")
    return Call(principal, web.use_cases, web.streams)


CallDep = Annotated[Call, Depends(_call)]
UserId = Annotated[
    str,
    Path(
        alias="user",
        description="A user's id, percent-encoded.",
        min_length=1,
        max_length=MAX_ID_LENGTH,
        examples=["me"],
    ),
]
_ProjectId = Annotated[
    str,
    Path(
        alias="project",
        description="A project's id, percent-encoded.",
        min_length=1,
        max_length=MAX_ID_LENGTH,
        examples=["notes"],
    ),
]


async def _project_call(call: CallDep, user: UserId, project: _ProjectId) -> ProjectCall:
    # Bound here, so that every line that the request logs from now on carries them.
    structlog.contextvars.bind_contextvars(user_id=user, project_id=project)
    return ProjectCall(call.principal, call.use_cases, call.streams, ProjectRef(user, project))


async def _prefer(
    prefer: Annotated[
        list[str] | None,
        Header(
            description=(
                "RFC 7240: `respond-async` answers 202 at once; `wait=N` waits N seconds at most"
                " (3600 at most); both: 202 when N seconds were not enough."
            ),
            examples=["respond-async"],
        ),
    ] = None,
) -> Prefer:
    return parse_prefer(prefer or ())


ProjectCallDep = Annotated[ProjectCall, Depends(_project_call)]
PreferDep = Annotated[Prefer, Depends(_prefer)]
