"""Where users are told, and the key for that, over every store."""

from dataclasses import replace

from tests.contract.store_adapters import at

from greylag.domain.users import NotificationTarget, PushKey, of_user
from greylag.ports import ProjectStore

ONE = NotificationTarget(
    "0" * 16, "ada", "browser", "Phone", "push.example", "https://g", "sealed", at(1)
)


async def test_a_target_is_kept_told_moved_to_another_user_and_taken_away(
    store: ProjectStore,
) -> None:
    assert await store.put(ONE, at(1))
    assert not await store.put(ONE, at(1))
    told = replace(ONE, version=1, last_at=at(2), last_result="delivered")
    assert await store.put(told, at(2))
    kept = replace(told, version=2)
    assert await store.labelled(NotificationTarget, of_user("ada")) == [kept]
    assert await store.put(replace(kept, user_id="bob"), at(3))
    assert not await store.labelled(NotificationTarget, of_user("ada"))
    assert [one.user_id for one in await store.labelled(NotificationTarget)] == ["bob"]
    assert await store.remove(NotificationTarget, ONE.id)
    assert not await store.labelled(NotificationTarget)


async def test_of_two_who_make_the_key_for_pushes_one_does(store: ProjectStore) -> None:
    assert await store.put(PushKey("first"), at(1))
    assert not await store.put(PushKey("second"), at(1))
    assert await store.find(PushKey, "push") == PushKey("first", version=1)
