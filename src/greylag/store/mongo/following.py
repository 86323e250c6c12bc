"""How one process hears of changes: the server says which of the two ways there is."""

from greylag.domain.project import ProjectRef
from greylag.store.mongo.changes import Follower, PollingFollower, StreamFollower
from greylag.store.mongo.client import Client, Documents, has_change_streams
from greylag.store.mongo.echoes import Echoes
from greylag.store.signals import ChangeHub


class Following:
    """Follows by change stream where there are any, else by looking every ``poll`` seconds.

    It is made before the server is asked anything; ``choose`` asks. ``timeout`` is in seconds.
    """

    def __init__(  # noqa: PLR0913 - what the two ways need
        self,
        client: Client,
        database: Documents,
        hub: ChangeHub,
        echoes: Echoes,
        *,
        poll: float,
        timeout: float,
    ) -> None:
        self._client = client
        self._database = database
        self._hub = hub
        self._echoes = echoes
        self._poll = poll
        self._timeout = timeout
        self._chosen: Follower | None = None

    async def choose(self) -> None:
        """Ask the server what it is. Raises the driver's errors, and ``ConfigError`` for a URI that
        leads to no servers.
        """
        if await has_change_streams(self._client):
            self._chosen = StreamFollower(self._database, self._hub, self._echoes)
            return
        self._chosen = PollingFollower(
            self._database, self._hub, self._echoes, poll=self._poll, timeout=self._timeout
        )

    async def start(self) -> None:
        """Take note of where the changes end now: what comes after will be told."""
        await self._way.start()

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._way.run()

    async def note(self, news: str, record_id: str, ref: ProjectRef | None) -> None:
        """Leave word of a write, where the server does not tell of it by itself."""
        await self._way.note(news, record_id, ref)

    @property
    def _way(self) -> Follower:
        if self._chosen is None:
            raise RuntimeError("the server was not asked what it is")
        return self._chosen
