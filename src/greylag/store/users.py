"""Users from a fixed list."""

from collections.abc import Iterable, Sequence

from greylag.domain.errors import ConfigError, UserNotFoundError
from greylag.domain.users import User


class StaticUsers:
    """Implements ``greylag.ports.UserDirectory`` over the users that the settings name.

    Raises:
        ConfigError: two have the same id.
    """

    def __init__(self, users: Iterable[User]) -> None:
        self._users = tuple(users)
        self._by_id: dict[str, User] = {}
        for user in self._users:
            if user.id in self._by_id:
                raise ConfigError(f"Two users have the id {user.id!r}.")
            self._by_id[user.id] = user

    def users(self) -> Sequence[User]:
        """Return all users, in the order of the settings."""
        return self._users

    def get(self, user_id: str) -> User:
        """Return one user."""
        try:
            return self._by_id[user_id]
        except KeyError:
            raise UserNotFoundError(f"There is no user {user_id!r}.") from None
