"""One conversation with an agent: turn after turn in one session."""

import asyncio
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from enum import Enum, auto

from greylag.cli.api_types import Decision, OutgoingMessage, ProjectPlace, StreamEvent
from greylag.cli.chat_view import TurnView
from greylag.cli.client import ApiClient
from greylag.cli.confirmations import Confirmations
from greylag.cli.errors import CliError, InterruptedByUserError
from greylag.cli.tasks import task_group
from greylag.cli.turn_stream import TurnStream


class End(Enum):
    """How a turn ended for the person who watched it."""

    COMPLETED = auto()
    FAILED = auto()
    CANCELLED = auto()
    INTERRUPTED = auto()


class Conversation:
    """Sends messages, one after the other, and shows what answers them.

    Args:
        api: an open client.
        place: the project.
        view: where it is shown.
        session_id: the session to go on with; ``None`` for a new one.
        fixed: the answer to all confirmations, or ``None`` to ask on the terminal.
    """

    def __init__(
        self,
        api: ApiClient,
        place: ProjectPlace,
        view: TurnView,
        *,
        session_id: str | None,
        fixed: Decision | None,
    ) -> None:
        self._api = api
        self._place = place
        self._view = view
        self._fixed = fixed
        self._presses = 0
        self.session_id = session_id

    async def turn(self, message: str) -> End:
        """Send one message and show its turn to the end.

        The first Ctrl-C cancels the turn (before there is one, it stops waiting); a second one
        raises ``InterruptedByUserError``. Raises ``CliError`` when the message is not taken.
        """
        self._presses = 0
        clean = message.encode("utf-8", "replace").decode()
        outgoing = OutgoingMessage(clean, uuid.uuid4().hex, self.session_id)
        stream = TurnStream(self._api, self._place, outgoing, self._view.note)
        try:
            return await self._watch(stream)
        except asyncio.CancelledError:
            if self._presses > 1:
                raise InterruptedByUserError("The person left.") from None
            if self._presses == 1:
                self._view.note("Stopped waiting; what was begun goes on.")
                return End.INTERRUPTED
            raise
        finally:
            self._view.end()
            self.session_id = stream.session_id or self.session_id

    async def _watch(self, stream: TurnStream) -> End:
        end = End.COMPLETED
        async with task_group() as group:
            confirmations = Confirmations(
                self._api, self._place, self._view, group, fixed=self._fixed
            )
            with _on_interrupt(self._interrupter(stream, group)):
                async with aclosing(stream.events()) as events:
                    async for event in events:
                        end = _end_after(end, event)
                        self._take(stream, confirmations, event)
            confirmations.close()
        return End.INTERRUPTED if self._presses and end is not End.COMPLETED else end

    def _take(self, stream: TurnStream, confirmations: Confirmations, event: StreamEvent) -> None:
        self._view.show(event)
        if event.type == "tool_confirmation":
            confirmations.asked(stream.turn_id or "", event)
        elif event.type == "status":
            confirmations.settled(event)

    def _interrupter(self, stream: TurnStream, group: asyncio.TaskGroup) -> Callable[[], None]:
        watching = asyncio.current_task()

        def pressed() -> None:
            self._presses += 1
            self._view.interrupted()
            if self._presses == 1 and stream.turn_id is not None:
                group.create_task(self._cancel(stream.turn_id), name="cancel the turn")
            elif watching is not None:
                watching.cancel()

        return pressed

    async def _cancel(self, turn_id: str) -> None:
        self._view.note("Cancelling ... (Ctrl-C again to leave)")
        try:
            await self._api.cancel_turn(self._place, turn_id)
        except CliError as error:
            self._view.note(f"The turn cannot be cancelled: {error.message}")


def _end_after(end: End, event: StreamEvent) -> End:
    if event.type == "error":
        return End.FAILED
    if event.type == "complete" and event.text("stop_reason") == "cancelled":
        return End.CANCELLED
    return end


@contextmanager
def _on_interrupt(pressed: Callable[[], None]) -> Iterator[None]:
    """Call ``pressed`` for each Ctrl-C instead of ending the program."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, pressed)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
