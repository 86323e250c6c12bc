"""Who uses Greylag, and who asks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who owns projects."""

    id: str
    display_name: str


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request. Every service call takes one.

    Today there is the operator, who may act for every user; a per-user sign-in adds principals with
    a ``user_id`` and changes only ``may_act_for``.
    """

    name: str
    user_id: str | None = None

    def may_act_for(self, user_id: str) -> bool:
        """Tell whether this principal may see and change what ``user_id`` owns."""
        return self.user_id is None or self.user_id == user_id


OPERATOR = Principal("operator")
