"""The audit trail, for administrators: who, what, when; in the API and on a page, filtered, and as
lines of JSON.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BeforeValidator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from greylag.common.clock import parse_rfc3339
from greylag.domain.audit import Result
from greylag.domain.errors import InvalidRequestError
from greylag.domain.users import Action
from greylag.ports import AgentAnswer, AuditFilter, NumberedEntry
from greylag.web.addresses import address
from greylag.web.api.relay import RelayedAnswer
from greylag.web.deps import CallDep, RequestContext, api_router, problems
from greylag.web.schemas import AuditOut

AUDIT_PAGE = "/audit"
LINES = "application/jsonl"
MAX_PAGE = 500
STEP = 100
_MAX_NUMBER = 2**53
_LONGEST = 1000

router = api_router("audit")
page_router = APIRouter(include_in_schema=False)

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


def _form(request: Request) -> dict[str, str]:
    """Return what the filter's form holds, as it was typed."""
    query = request.query_params
    return {one.name: query.get(one.name, "").strip() for one in fields(AuditFilter)}


def _asked(form: Mapping[str, str]) -> AuditFilter:
    """Return which entries a form asks for; days are whole ones, in UTC.

    Raises:
        InvalidRequestError: there is no such day or result.
    """
    try:
        until = _day(form["until"])
        return AuditFilter(
            user=form["user"] or None,
            action=form["action"] or None,
            object=form["object"] or None,
            result=Result(form["result"]) if form["result"] else None,
            since=_day(form["since"]),
            until=until and until + timedelta(days=1),
        )
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"The filter asks for what cannot be: {error}.") from error


def _url(form: Mapping[str, str], path: str = AUDIT_PAGE, **more: Any) -> str:
    """Return the address at ``path`` that asks for what a form does."""
    given = {name: value for name, value in {**form, **more}.items() if value}
    return address(f"{path}?{urlencode(given)}" if given else path)


@page_router.get(AUDIT_PAGE)
async def show_audit(request: Request, call: CallDep) -> Response:
    """Show the newest entries, or those before the one that the address names."""
    form = _form(request)
    cursor = request.query_params.get("cursor", "")
    known = cursor.isascii() and cursor.isdecimal() and len(cursor) < 16  # noqa: PLR2004 - of 2^53
    before = int(cursor) if known else None
    page = await call.use_cases.audit_reader.page(call.principal, _asked(form), STEP, before)
    return call.page(
        "audit.html",
        form=form,
        results=tuple(Result),
        entries=[_row(number, entry) for number, entry in page.entries],
        older=page.cursor and _url(form, cursor=page.cursor),
        newest=_url(form) if before else None,
        export=_url(form, f"{AUDIT_PAGE}/export"),
    )


@page_router.get(f"{AUDIT_PAGE}/export")
async def export_audit(request: Request, call: CallDep) -> Response:
    """Give all that the filter finds as a file, a line of JSON for each entry."""
    saved = {"content-disposition": 'attachment; filename="audit.jsonl"'}
    return await lines(call, _asked(_form(request)), saved)


def _day(text: str) -> datetime | None:
    return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC) if text else None


def _row(number: int, entry: Any) -> dict[str, Any]:
    """Return what the page shows of an entry; of one that was damaged, what is left of it."""
    actor = _members(entry.get("actor"))
    texts = {name: str(entry.get(name, "")) for name in ("action", "object", "result")}
    more = [("Via", actor.get("via")), ("Address", actor.get("address"))]
    more += [("Error", entry.get("code")), ("Request", entry.get("request_id"))]
    count = entry.get("count")
    return {
        "number": number,
        "at": str(entry.get("at", ""))[:19].replace("T", " "),
        "who": str(actor.get("name") or actor.get("user") or actor.get("kind", "damaged")),
        "user": str(actor.get("user") or ""),
        **texts,
        "count": count if isinstance(count, int) else 1,
        "changed": [f"{name}: {value}" for name, value in _members(entry.get("changed")).items()],
        "more": [(name, str(value)) for name, value in more if value],
    }


def _members(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
