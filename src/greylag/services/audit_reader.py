"""Who reads the audit trail: administrators, page by page, or all of it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from greylag.domain.audit import AuditBounds
from greylag.domain.users import Action, Principal
from greylag.ports import AuditFilter, AuditStore, NumberedEntry
from greylag.services.access import Gate

EXPORT_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries, the newest first; ``cursor`` asks for older ones, if there are."""

    entries: Sequence[NumberedEntry]
    cursor: int | None
    bounds: AuditBounds


class AuditReader:
    """Reads the audit trail, for administrators."""

    def __init__(self, store: AuditStore, gate: Gate) -> None:
        self._store = store
        self._gate = gate

    async def page(
        self, principal: Principal, asked: AuditFilter, limit: int, before: int | None
    ) -> AuditPage:
        """Return one page, of entries with numbers below ``before``."""
        await self._gate.administrate(principal, Action.AUDIT_READ)
        bounds = await self._store.audit_bounds()
        before = bounds.end.number + 1 if before is None else before
        found = await self._store.audit_entries(asked, limit + 1, before=before)
        shown = found[:limit]
        cursor = shown[-1][0] if len(found) > limit else None
        return AuditPage(shown, cursor, bounds)

    async def export(
        self, principal: Principal, asked: AuditFilter
    ) -> AsyncIterator[Sequence[NumberedEntry]]:
        """Return all entries up to now, the oldest first, some at a time."""
        await self._gate.administrate(principal, Action.AUDIT_READ)
        return self._batches(asked, await self._store.audit_bounds())

    async def _batches(
        self, asked: AuditFilter, bounds: AuditBounds
    ) -> AsyncIterator[Sequence[NumberedEntry]]:
        after = bounds.start.number
        while after < bounds.end.number:
            batch = await self._store.audit_entries(asked, EXPORT_AT_ONCE, after=after)
            kept = [one for one in batch if one[0] <= bounds.end.number]
            if not kept:
                return
            yield kept
            after = kept[-1][0]
