"""What every store promises about sign-ins that were ended and links that were used."""

import asyncio
from datetime import UTC, datetime, timedelta

from greylag.ports import ProjectStore

# The real time: one of the stores lets its server forget what has run out.
NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=1)


async def test_what_is_revoked_stays_so_and_nothing_else_is(store: ProjectStore) -> None:
    assert not await store.is_revoked("a")
    assert await store.revoke("a", LATER, NOW)
    assert await store.is_revoked("a")
    assert not await store.is_revoked("b")


async def test_of_those_that_revoke_at_once_one_was_first(store: ProjectStore) -> None:
    told = await asyncio.gather(*(store.revoke("a", LATER, NOW) for _ in range(8)))
    assert sorted(told) == [False] * 7 + [True]


async def test_what_has_not_run_out_is_not_forgotten_for_another(store: ProjectStore) -> None:
    assert await store.revoke("a", LATER, NOW)
    assert await store.revoke("b", LATER + timedelta(hours=2), LATER - timedelta(seconds=1))
    assert await store.is_revoked("a")
    assert not await store.revoke("a", LATER, NOW)
