"""Time and people."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from greylag.domain.users import User


class Clock(Protocol):
    """Time, so that tests can own it."""

    def now(self) -> datetime:
        """Return the time, aware, in UTC, cut to milliseconds (what every store can keep)."""

    def monotonic(self) -> float:
        """Return seconds that never go back, for deadlines."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""


class UserDirectory(Protocol):
    """Who there is."""

    def users(self) -> Sequence[User]:
        """Return all users, in the order they are to be shown."""

    def get(self, user_id: str) -> User:
        """Return one user, or raise ``UserNotFoundError``."""
