"""What the handlers of all routes are given, and what OpenAPI says of answers that are not JSON."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from http import HTTPStatus
from operator import attrgetter
from typing import Annotated, Any
from urllib.parse import quote

import structlog
from fastapi import APIRouter, Depends, Header, Path
from fastapi.dependencies.models import Dependant
from starlette.datastructures import FormData, QueryParams
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Scope

from greylag.common.typed import parse_json
from greylag.domain.errors import (
    ErrorInfo,
    InvalidRequestError,
    UnauthorizedError,
)
from greylag.domain.names import ID_FORM, MAX_ID_LENGTH
from greylag.domain.project import ProjectRef
from greylag.domain.users import Action, Principal
from greylag.services.use_cases import Platform, UseCases
from greylag.web.auth import with_reason
from greylag.web.dashboard.pages import form_alone, respond
from greylag.web.errors import PROBLEM_MEDIA_TYPE
from greylag.web.request_log import exchange_of
from greylag.web.stream import Streams

# Who asks, for what, and the use cases that answer.


@dataclass(frozen=True, slots=True)
class Site:
    """What every page says, to whom and where; ``sign_out`` when there is a sign-in to end."""

    platform: Platform
    sign_out: bool
    principal: Principal | None = None
    path: str = "/"


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks, what the path names, and all that a handler may use to answer.

    ``user_id`` and ``project_id`` are as the path has them: nobody has looked yet whether they
    exist. They are empty where the path names none.
    """

    principal: Principal
    use_cases: UseCases
    streams: Streams
    site: Site
    scope: Scope
    user_id: str = ""
    project_id: str = ""

    @property
    def ref(self) -> ProjectRef:
        """The project of the path."""
        return ProjectRef(self.user_id, self.project_id)

    @property
    def at(self) -> tuple[Principal, ProjectRef]:
        """Who asks, and for which project, as the use cases of a project take them first."""
        return self.principal, self.ref

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Return a page of the site, for who asks."""
        return respond(template, status=status, site=self.site, **values)

    def form(
        self, template: str, form: FormData | None, error: str | ErrorInfo | None, **values: Any
    ) -> Response:
        """Return a page with a form as it was sent, with what is wrong in it, if anything is."""
        return self.page(template, status=422 if error else 200, form=form, error=error, **values)

    def while_allowed(self, action: Action) -> AbstractAsyncContextManager[None]:
        """Return a block that ends, by an error, once ``action`` is not allowed any more."""
        return self.streams.access.during(self.scope, self.ref, action)


async def _use_cases(request: HTTPConnection) -> UseCases:
    found: UseCases = request.app.state.use_cases
    return found


def path_id(name: str, text: str, form: str, *examples: str) -> Any:
    """Return what FastAPI is told of an id in a path; ``form`` is the pattern that it keeps to."""
    return Path(
        alias=name,
        description=text,
        min_length=1,
        max_length=MAX_ID_LENGTH,
        json_schema_extra={"pattern": form},
        examples=list(examples) or None,
    )


PROJECTS = "/api/users/{user}/projects"
PROJECT = PROJECTS + "/{project}"
LOCATION = {"description": "The project's path.", "schema": {"type": "string"}}

UseCasesDep = Annotated[UseCases, Depends(_use_cases)]
_UserId = Annotated[
    str,
    path_id("user", "A user's id, percent-encoded.", ID_FORM, "me"),
]
_ProjectId = Annotated[
    str,
    path_id("project", "A project's id, percent-encoded.", ID_FORM, "notes"),
]


async def _call(request: HTTPConnection, use_cases: UseCasesDep) -> RequestContext:
    principal = exchange_of(request.scope).principal
    if principal is None:
        raise UnauthorizedError("The request does not say who it comes from.")
    principal = with_reason(principal, request.scope)
    state = request.app.state
    path = quote(request.scope["path"])
    site = replace(state.site, principal=principal, path=path)
    return RequestContext(principal, use_cases, state.streams, site, request.scope)


CallDep = Annotated[RequestContext, Depends(_call)]


async def _user_call(call: CallDep, user: _UserId) -> RequestContext:
    return replace(call, user_id=user)


UserCallDep = Annotated[RequestContext, Depends(_user_call)]


async def _project_call(call: CallDep, user: _UserId, project: _ProjectId) -> RequestContext:
    # Bound here, so that every line that the request logs from now on carries them.
    structlog.contextvars.bind_contextvars(user_id=user, project_id=project)
    return replace(call, user_id=user, project_id=project)


ProjectCallDep = Annotated[RequestContext, Depends(_project_call)]

# What no operation looks at.


async def nothing_dropped(request: Request) -> None:
    """Refuse by name what the operation would not look at, so that nothing is dropped in silence.

    Raises:
        InvalidRequestError: for a query's name that is not known or comes twice, and for a body
            where none is taken. Programs that always send one send ``{}``.
    """
    route = request.scope["route"]
    if not route.include_in_schema:
        return
    extra = route.openapi_extra or {}
    if request.query_params:
        known = _queries(route.dependant)
        known |= {one["name"] for one in extra.get("parameters", ()) if one["in"] == "query"}
        _only(known, request.query_params)
    takes_body = route.body_field is not None or "requestBody" in extra
    if request.method != "GET" and not takes_body:
        await _no_body(request)


def api_router(*tags: str) -> APIRouter:
    """Return a router for operations of the API: each is named as its function is, and drops
    nothing of a request without a word.
    """
    return APIRouter(
        tags=list(tags),
        dependencies=[Depends(nothing_dropped)],
        generate_unique_id_function=attrgetter("name"),
    )


def pages_router() -> APIRouter:
    """Return a router for pages and their forms: no other body is taken for an empty form."""
    return APIRouter(include_in_schema=False, dependencies=[Depends(form_alone)])


def _only(known: set[str], given: QueryParams) -> None:
    for name, count in Counter(name for name, _ in given.multi_items()).items():
        if name not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise InvalidRequestError(f"{name[:100]} (query): is not known here: {takes}.")
        if count > 1:
            raise InvalidRequestError(f"{name} (query): may be given once only.")


def _queries(dependant: Dependant) -> set[str]:
    own = {one.alias for one in dependant.query_params}
    return own.union(*map(_queries, dependant.dependencies))


async def _no_body(request: Request) -> None:
    sent = await request.body()
    try:
        value = parse_json(sent or b"{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError("(body): the operation takes no body.")
    if value:
        raise InvalidRequestError(f"{next(iter(value))[:100]} (body): no member is taken here.")


# What a client would like of the answer: the Prefer header (RFC 7240), as far as we honour it.

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


async def _prefer(
    prefer: Annotated[
        list[str] | None,
        Header(
            description=(
                "RFC 7240: `respond-async` answers 202 at once; `wait=N` waits N seconds at most"
                " (3600 at most); both: 202 when N seconds were not enough."
            ),
            examples=[["respond-async"]],
        ),
    ] = None,
) -> Prefer:
    return parse_prefer(prefer or ())


PreferDep = Annotated[Prefer, Depends(_prefer)]

# What OpenAPI says of problems and streams.

Responses = dict[int | str, dict[str, Any]]

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
_PROBLEMS = {
    401: ("unauthorized", "No token, or a wrong one."),
    403: ("forbidden", "The host, the origin or the user is refused."),
    404: (
        "project_not_found",
        "The user, the project, or what the path names in it does not exist.",
    ),
    409: ("conflict", "The state of what is asked for does not allow it; the code says why."),
    410: ("snapshot_gone", "It is no longer kept."),
    413: ("too_large", "The body is too large."),
    422: (
        "invalid_request",
        "A part of the request is not of the form it must have; the detail names it.",
    ),
    429: ("limit_exceeded", "A limit is reached."),
    431: ("headers_too_large", "The headers are too large."),
    500: ("internal_error", "A fault in Greylag; the log has it under this request id."),
    502: ("agent_failed", "The cluster or the agent failed; the code says how."),
    503: ("store_unavailable", "The store or the cluster cannot be reached."),
    504: ("wait_timeout", "It goes on, but was not reached in the time given (`wait_timeout`)."),
}
"""The code that stands for each status in the examples, and what the status means."""
_ALWAYS = (401, 403, 422, 429, 431, 500, 503)


def problems(*statuses: int) -> Responses:
    """Return the documentation of these errors, and of those that any request may meet."""
    return {status: _problem(status) for status in sorted({*_ALWAYS, *statuses})}


def events(id: str, type: str, content: Mapping[str, Any]) -> Responses:  # noqa: A002 - an event's own names
    """Return the documentation of an answer that is a stream of server-sent events such as this."""
    example = {"id": id, "data": json.dumps({"type": type, "content": content})}
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


def _problem(status: int) -> dict[str, Any]:
    code, reason = _PROBLEMS[status]
    example = {
        "type": f"urn:greylag:error:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "code": code,
        "detail": reason,
        "hint": HTTPStatus(status).description,
        "request_id": "4f1c2d3e4b5a69788796a5b4c3d2e1f0",
    }
    content = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}
    return {"description": reason, "content": {PROBLEM_MEDIA_TYPE: content}}
