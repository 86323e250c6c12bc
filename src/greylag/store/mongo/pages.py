"""Pages of one user's projects."""

from collections.abc import Iterator
from typing import Any

import structlog

from greylag.domain.project import Project
from greylag.ports.store import Page, PageQuery
from greylag.store import cursor
from greylag.store.mongo.claims import Projects
from greylag.store.mongo.documents import WITHOUT_TAIL, Document, from_document, key
from greylag.store.mongo.errors import DocumentError

_AT_ONCE = 1000
_LARGEST = 2**31 - 2
_NEWEST_FIRST = [("created_at", -1), ("_id", -1)]

_log = structlog.get_logger(__name__)


async def page(projects: Projects, owner: str, query: PageQuery) -> Page:
    """Return one page, as the port says. What cannot be read is left out, and the log tells."""
    cursor.check_limit(query.limit)
    limit = min(query.limit, _LARGEST)
    matching = _matching(owner, query)
    passed_over = 0
    while True:
        found = await projects.find(
            matching,
            WITHOUT_TAIL,
            sort=_NEWEST_FIRST,
            skip=passed_over,
            limit=limit + 1,
            # All at once: the driver cannot try the second half of an answer again.
            batch_size=min(limit + 1, _AT_ONCE),
        ).to_list()
        shown = list(_readable(found[:limit]))
        if shown or len(found) <= limit:
            break
        passed_over += limit
    more = len(found) > limit
    return Page(shown, cursor.encode(cursor.position(shown[-1])) if more else None)


def _matching(owner: str, query: PageQuery) -> Document:
    matching: Document = {"user_id": owner}
    if query.status is not None:
        matching["status"] = query.status.value
    if query.cursor is not None:
        place = cursor.decode(query.cursor)
        created = cursor.from_millis(place.created)
        # The first condition follows from the others, and lets the index begin in the right place.
        matching["created_at"] = {"$lte": created}
        matching["$or"] = [
            {"created_at": {"$lt": created}},
            {"created_at": created, "_id": {"$lt": key(place.record_id)}},
        ]
    return matching


def _readable(found: list[dict[str, Any]]) -> Iterator[Project]:
    for raw in found:
        try:
            yield from_document(raw).project
        except DocumentError as error:
            _log.warning("document passed over", reason=str(error))
