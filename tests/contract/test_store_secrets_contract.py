"""Secrets over every store: found by name and by user, and overwritten only as they were read."""

from dataclasses import replace

from tests.contract.store_adapters import at

from greylag.domain.users import UserSecret, of_user
from greylag.ports import ProjectStore

ONE = UserSecret("ada", "hub", "github.com", "x-access-token", "sealed", at(1), at(2))


async def test_a_secret_is_kept_replaced_and_taken_away(store: ProjectStore) -> None:
    other = replace(ONE, user_id="bob")
    assert await store.put(ONE, at(2))
    assert await store.put(other, at(2))
    assert not await store.put(ONE, at(2))
    kept = replace(ONE, version=1)
    assert await store.find(UserSecret, "ada/hub") == kept
    assert await store.put(replace(kept, sealed="anew", updated_at=at(3)), at(3))
    (found,) = await store.labelled(UserSecret, of_user("ada"))
    assert (found.sealed, found.created_at, found.updated_at) == ("anew", at(1), at(3))
    assert await store.remove(UserSecret, "ada/hub")
    assert not await store.labelled(UserSecret, of_user("ada"))
    assert await store.find(UserSecret, "bob/hub") is not None
