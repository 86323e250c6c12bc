"""Which changes this process's listeners have heard of, so that each is told once.

A write of ours is told when the server has acknowledged it; the server then tells of it too. One
whose acknowledgement never came (its caller was cancelled, the connection broke) is told when the
server does.
"""

import secrets
from collections import OrderedDict
from itertools import count

from greylag.domain.project import ProjectRef
from greylag.store.signals import ChangeHub

_REMEMBERED = 10_000


class Echoes:
    """Tells ``hub`` of each change once, by whichever way it is heard of first."""

    def __init__(self, hub: ChangeHub) -> None:
        self._hub = hub
        self._source = secrets.token_hex(8)
        self._numbers = count(1)
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()

    def name(self) -> str:
        """Return a name for one write, which no other write of any process has."""
        return f"{self._source}:{next(self._numbers)}"

    def tell(self, news: str, record_id: str, ref: ProjectRef | None) -> None:
        """Tell of the write ``news`` to one project, unless that was told before; a project whose
        owner is not known (``None``) may be any.
        """
        if (news, "") not in self._told and self._note(news, record_id):
            self._hub.signal(ref)

    def tell_all(self, news: str) -> None:
        """Tell of a write to many projects, and of none of them again."""
        if self._note(news, ""):
            self._hub.signal(None)

    def pass_over(self, news: str, record_id: str) -> None:
        """Never tell of a write: it was before anybody listened."""
        self._note(news, record_id)

    def _note(self, news: str, record_id: str) -> bool:
        place = (news, record_id)
        if place in self._told:
            return False
        self._told[place] = None
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        return True
