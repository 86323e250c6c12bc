"""What OpenAPI says of answers that are not plain JSON: problems and streams."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import structlog
from fastapi import Depends, Header, Path, Request

from greylag.domain.errors import UnauthorizedError
from greylag.domain.names import MAX_ID_LENGTH
from greylag.domain.project import ProjectRef
from greylag.domain.users import Principal
from greylag.services.use_cases import UseCases
from greylag.web.errors import PROBLEM_MEDIA_TYPE, exchange_of
from greylag.web.stream import Streams

Responses = dict[int | str, dict[str, Any]]

_PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}

_REASONS = {
    401: "No token, or a wrong one.",
    403: "The host, the origin or the user is refused.",
    404: "The user, the project, or what the path names in it does not exist.",
    409: "The state of what is asked for does not allow it; the code says why.",
    413: "The body is too large.",
    422: "A part of the request is not of the form it must have; the detail names it.",
    429: "A limit is reached.",
    431: "The headers are too large.",
    500: "A fault in Greylag; the log has it under this request id.",
    502: "The cluster or the agent failed; the code says how.",
    503: "The store or the cluster cannot be reached.",
    504: "It goes on, but was not reached in the time given (`wait_timeout`).",
}
_ALWAYS = (401, 403, 422, 429, 431, 500, 503)


def problems(*statuses: int) -> Responses:
    """Return the documentation of these errors, and of those that any request may meet."""
    return {status: _problem(status) for status in sorted({*_ALWAYS, *statuses})}


def events(example: str) -> Responses:
    """Return the documentation of an answer that is a stream of server-sent events."""
    return {
        200: {
            "description": (
                "Server-sent events: each has `data`, one line of JSON with `type` and `content`;"
                " comments keep the connection alive. A client that lost it sends the last `id`"
                " as Last-Event-ID and gets what follows."
            ),
            "content": {"text/event-stream": {"schema": _EVENT, "example": example}},
        }
    }


def text(description: str) -> Responses:
    """Return the documentation of an answer that is plain text."""
    return {200: {"description": description, "content": {"text/plain": {"schema": _STRING}}}}


_STRING = {"type": "string"}
# One event of the stream: OpenAPI 3.1 has no word for "a stream of these".
_EVENT = {
    "type": "object",
    "description": "One event; the stream is a sequence of these.",
    "properties": {
        "id": _STRING,
        "data": {**_STRING, "contentMediaType": "application/json"},
    },
    "required": ["data"],
}


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": _REASONS[status],
        "content": {PROBLEM_MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA, "example": _example(status)}},
    }


def _example(status: int) -> dict[str, Any]:
    code = _CODES[status]
    return {
        "type": f"urn:greylag:error:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "code": code,
        "detail": _REASONS[status],
        "hint": HTTPStatus(status).description,
        "request_id": "4f1c2d3e4b5a69788796a5b4c3d2e1f0",
    }


_CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "project_not_found",
    409: "conflict",
    413: "too_large",
    422: "invalid_request",
    429: "limit_exceeded",
    431: "headers_too_large",
    500: "internal_error",
    502: "agent_failed",
    503: "store_unavailable",
    504: "wait_timeout",
}


# The Prefer header (RFC 7240), as far as we honour it: ``respond-async`` and ``wait``.

MAX_WAIT_SECONDS = 3600
_WAIT = re.compile(r'wait\s*=\s*"?(\d+)"?')


@dataclass(frozen=True, slots=True)
class Prefer:
    """What a client would like: an answer at once, and how long to wait, in seconds."""

    respond_async: bool = False
    wait: float | None = None

    @property
    def applied(self) -> str:
        """The value of Preference-Applied that says so; empty when there is nothing to say."""
        said = ["respond-async"] if self.respond_async else []
        if self.wait is not None:
            said.append(f"wait={self.wait:.0f}")
        return ", ".join(said)


def parse_prefer(headers: Sequence[str]) -> Prefer:
    """Return the preferences in the request's Prefer headers.

    What we do not know or cannot read is passed over, as section 2 of the RFC demands; of one given
    twice the first counts. ``wait`` is cut to an hour.
    """
    respond_async = False
    wait: float | None = None
    for part in ",".join(headers).split(","):
        preference = part.partition(";")[0].strip().lower()
        if preference == "respond-async":
            respond_async = True
        elif wait is None and (found := _WAIT.fullmatch(preference)):
            # Digits are compared by their number first: a huge one is not worth converting.
            digits = found[1].lstrip("0") or "0"
            wait = min(int(digits[:5]), MAX_WAIT_SECONDS)
    return Prefer(respond_async, wait)


# What the handlers are given: the use cases, who asks, and the project of the path.


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
