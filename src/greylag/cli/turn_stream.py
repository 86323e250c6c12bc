"""A message and all that answers it, whatever happens to the connection meanwhile."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from greylag.cli.api_types import OutgoingMessage, ProjectPlace, StreamEvent
from greylag.cli.client import ApiClient
from greylag.cli.errors import CliError, ServerUnreachableError
from greylag.cli.patience import Patience


class TurnStream:
    """Yields each event of one turn exactly once, in order, to ``complete``.

    After a dropped connection it goes on by itself: before the turn is known by sending the message
    again (the same ``message_id`` is the same turn), else with the event after the last one.

    Args:
        api: the client.
        place: the project.
        message: what the agent is given.
        note: told, in words, when the connection drops.
        patience: how long to try again.
    """

    def __init__(
        self,
        api: ApiClient,
        place: ProjectPlace,
        message: OutgoingMessage,
        note: Callable[[str], None],
        patience: Patience | None = None,
    ) -> None:
        self._api = api
        self._place = place
        self._message = message
        self._note = note
        self._patience = patience or Patience()
        self._last_id: str | None = None
        self.turn_id: str | None = None
        self.session_id: str | None = message.session_id

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events. Raises what the first try raises, or what lasts too long."""
        arrived = False
        while True:
            try:
                async with self._open() as events:
                    arrived = True
                    self._patience.opened()
                    async for event in events:
                        self._patience.worked()
                        self._remember(event)
                        yield event
                        if event.type == "complete":
                            return
                # The server, or what is between, ended the stream too early.
                failure: CliError = ServerUnreachableError(
                    "The connection ended before the answer did.", connected=True
                )
            except CliError as error:
                if not arrived and not _may_have_arrived(error):
                    raise
                failure = error
            arrived = True
            self._note("The connection dropped; going on ...")
            if not await self._patience.pause_after(failure):
                raise failure

    def _open(self) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        if self.turn_id is None:
            return self._api.send(self._place, self._message)
        return self._api.turn_events(self._place, self.turn_id, self._last_id)

    def _remember(self, event: StreamEvent) -> None:
        if event.id is not None:
            self._last_id = event.id
        if event.type == "turn":
            self.turn_id = event.text("turn_id") or None
            self.session_id = event.text("session_id") or None


def _may_have_arrived(error: CliError) -> bool:
    return isinstance(error, ServerUnreachableError) and error.connected
