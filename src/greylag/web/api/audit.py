"""The audit trail: who did what, in pages for people and as lines of JSON for programs."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from pydantic import AwareDatetime, BeforeValidator
from starlette.responses import JSONResponse

from greylag.common.clock import parse_rfc3339
from greylag.domain.audit import Result
from greylag.domain.users import Action
from greylag.ports import AgentAnswer, AuditFilter, NumberedEntry
from greylag.web.api.relay import RelayedAnswer
from greylag.web.deps import CallDep, RequestContext, api_router, problems
from greylag.web.schemas import AuditOut

LINES = "application/jsonl"
MAX_PAGE = 500
_MAX_NUMBER = 2**53
_LONGEST = 1000

router = api_router("audit")

# Pydantic by itself takes numbers for moments, too.
_Moment = Annotated[AwareDatetime, BeforeValidator(parse_rfc3339)]
_Text = Annotated[str | None, Query(min_length=1, max_length=_LONGEST)]


async def _filter(  # noqa: PLR0913 - one for each member of the query
    *,
    user: Annotated[_Text, Query(description="What this user did, by their id.")] = None,
    action: Annotated[_Text, Query(description="Exactly this action.")] = None,
    object: Annotated[  # noqa: A002 - the API's own name
        _Text, Query(description="What was done with this, or with what is below it.")
    ] = None,
    result: Annotated[Result | None, Query(description="What came of it.")] = None,
    since: Annotated[_Moment | None, Query(description="Not before.")] = None,
    until: Annotated[_Moment | None, Query(description="Before.")] = None,
) -> AuditFilter:
    return AuditFilter(user, action, object, result, since, until)


FilterDep = Annotated[AuditFilter, Depends(_filter)]


@router.get(
    "/api/audit",
    summary="Read the audit trail",
    response_model=AuditOut,
    responses={
        **problems(),
        200: {
            "description": "A page, the newest first; with `Accept: application/jsonl` all entries,"
            " the oldest first, each a line of JSON.",
            "content": {LINES: {"schema": {"type": "string"}}},
        },
    },
)
async def read_audit(
    request: Request,
    call: CallDep,
    asked: FilterDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most.")] = 50,
    cursor: Annotated[
        int | None, Query(ge=1, le=_MAX_NUMBER, description="`next_cursor` of the page before.")
    ] = None,
) -> Any:
    """For the operator and administrators. Each entry carries the hash of the one before it."""
    if LINES in request.headers.get("accept", ""):
        return await lines(call, asked)
    page = await call.use_cases.audit_reader.page(call.principal, asked, limit, cursor)
    return JSONResponse(
        {
            "entries": [entry for _, entry in page.entries],
            "next_cursor": page.cursor,
            "start": {"number": page.bounds.start.number, "hash": page.bounds.start.hash},
            "end": {"number": page.bounds.end.number, "hash": page.bounds.end.hash},
        }
    )


async def lines(
    call: RequestContext, asked: AuditFilter, headers: Mapping[str, str] = MappingProxyType({})
) -> Response:
    """Return the answer that streams entries, the oldest first, in constant memory."""
    batches = await call.use_cases.audit_reader.export(call.principal, asked)
    answer = AgentAnswer(200, {"content-type": LINES, **headers}, _encoded(batches))
    allowed = call.while_allowed(Action.AUDIT_READ)
    return RelayedAnswer(nullcontext(answer), allowed, "audit_export_cut")


async def _encoded(batches: AsyncIterator[Sequence[NumberedEntry]]) -> AsyncIterator[bytes]:
    async for batch in batches:
        yield "".join(f"{json.dumps(entry)}\n" for _, entry in batch).encode()
