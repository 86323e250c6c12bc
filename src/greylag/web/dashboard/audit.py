"""The page of the audit trail, for administrators: who, what, when; filtered, and as a file."""

from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.audit import Result
from greylag.domain.errors import InvalidRequestError
from greylag.ports import AuditFilter
from greylag.web.addresses import address
from greylag.web.api.audit import lines
from greylag.web.deps import CallDep

AUDIT_PAGE = "/audit"
STEP = 100
_LARGEST = 10**15

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class AuditForm:
    """What the filter's form holds, as it was typed."""

    user: str = ""
    action: str = ""
    object: str = ""
    result: str = ""
    since: str = ""
    until: str = ""

    @classmethod
    def read(cls, request: Request) -> Self:
        """Return what the address asks for."""
        query = request.query_params
        return cls(**{one.name: query.get(one.name, "").strip() for one in fields(cls)})

    def filter(self) -> AuditFilter:
        """Return which entries it asks for; days are whole ones, in UTC.

        Raises:
            InvalidRequestError: there is no such day or result.
        """
        try:
            until = _day(self.until)
            return AuditFilter(
                user=self.user or None,
                action=self.action or None,
                object=self.object or None,
                result=Result(self.result) if self.result else None,
                since=_day(self.since),
                until=until and until + timedelta(days=1),
            )
        except (ValueError, OverflowError) as error:
            raise InvalidRequestError(f"The filter asks for what cannot be: {error}.") from error

    def url(self, path: str = AUDIT_PAGE, **more: Any) -> str:
        """Return the address at ``path`` that asks for the same."""
        given = {name: value for name, value in {**asdict(self), **more}.items() if value}
        return address(f"{path}?{urlencode(given)}" if given else path)


@router.get(AUDIT_PAGE)
async def show_audit(request: Request, call: CallDep) -> Response:
    """Show the newest entries, or those before the one that the address names."""
    form = AuditForm.read(request)
    cursor = request.query_params.get("cursor", "")
    before = int(cursor[:15]) if cursor.isascii() and cursor.isdecimal() else None
    page = await call.use_cases.audit_reader.page(call.principal, form.filter(), STEP, before)
    return call.page(
        "audit.html",
        form=form,
        results=tuple(Result),
        entries=[_row(number, entry) for number, entry in page.entries],
        older=page.cursor and form.url(cursor=page.cursor),
        newest=form.url() if before else None,
        export=form.url(f"{AUDIT_PAGE}/export"),
    )


@router.get(f"{AUDIT_PAGE}/export")
async def export_audit(request: Request, call: CallDep) -> Response:
    """Give all that the filter finds as a file, a line of JSON for each entry."""
    saved = {"content-disposition": 'attachment; filename="audit.jsonl"'}
    return await lines(call, AuditForm.read(request).filter(), saved)


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
