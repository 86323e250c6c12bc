"""Documents that an older system wrote become records of ours, where they stand."""

import structlog
from pymongo import UpdateOne

from greylag.store.mongo.claims import Projects
from greylag.store.mongo.documents import WITHOUT_TAIL, Document, difference, from_document
from greylag.store.mongo.errors import DocumentError

_AT_ONCE = 500

_log = structlog.get_logger(__name__)


async def adopt(projects: Projects) -> None:
    """Write our fields beside the old ones, where no write of ours has been. May be repeated.

    A document that cannot be read is left as it is, and the log tells of it.
    """
    updates: list[UpdateOne] = []
    async for raw in projects.find({"revision": {"$exists": False}}, WITHOUT_TAIL):
        update = _update(raw)
        if update is not None:
            updates.append(update)
        if len(updates) == _AT_ONCE:
            await projects.bulk_write(updates, ordered=False)
            updates.clear()
    if updates:
        await projects.bulk_write(updates, ordered=False)


def _update(raw: Document) -> UpdateOne | None:
    try:
        record = from_document(raw)
    except DocumentError as error:
        _log.warning("document passed over", reason=str(error))
        return None
    update = difference(raw, record, record)
    changed = update.get("$set", {}) | {"revision": 1}
    # Whoever has written meanwhile has adopted it.
    untouched = {"_id": raw["_id"], "revision": {"$exists": False}}
    return UpdateOne(untouched, update | {"$set": changed})
