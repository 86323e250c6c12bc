"""The fixed list of users."""

import pytest

from greylag.domain.errors import ConfigError, UserNotFoundError
from greylag.domain.users import User
from greylag.store.users import StaticUsers

ADA, CAPS = User("ada", "Ada Lovelace"), User("Ada", "Another")


def test_users_come_in_the_order_given_and_by_their_exact_id() -> None:
    users = StaticUsers(iter([CAPS, ADA]))
    assert list(users.users()) == [CAPS, ADA]
    assert users.get("ada") == ADA
    assert users.get("Ada") == CAPS


def test_an_unknown_user_is_not_found() -> None:
    with pytest.raises(UserNotFoundError, match="'bob'"):
        StaticUsers([ADA]).get("bob")


def test_two_users_with_one_id_are_refused() -> None:
    with pytest.raises(ConfigError, match="'ada'"):
        StaticUsers([ADA, CAPS, User("ada", "Twin")])
