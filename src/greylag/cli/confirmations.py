"""Whether the agent may run a tool: asked of the person, or decided beforehand."""

import asyncio

from greylag.cli.api_types import Decision, ProjectPlace, StreamEvent
from greylag.cli.ask import YES, drop_typed, read_line
from greylag.cli.chat_view import TurnView
from greylag.cli.client import ApiClient
from greylag.cli.errors import CliError
from greylag.cli.patience import Patience


class Confirmations:
    """The confirmations of one turn, each answered by a task of ``group``.

    Args:
        api: the client.
        place: the project.
        view: where questions are shown.
        group: owns the tasks; the caller calls ``close`` before leaving it.
        fixed: the answer to all, or ``None`` to ask on the terminal.
    """

    def __init__(
        self,
        api: ApiClient,
        place: ProjectPlace,
        view: TurnView,
        group: asyncio.TaskGroup,
        *,
        fixed: Decision | None,
    ) -> None:
        self._api = api
        self._place = place
        self._view = view
        self._group = group
        self._fixed = fixed
        self._terminal = asyncio.Lock()
        self._open: dict[str, asyncio.Task[None]] = {}

    def asked(self, turn_id: str, event: StreamEvent) -> None:
        """Begin to answer a ``tool_confirmation``."""
        confirmation_id = event.text("id")
        self._open[confirmation_id] = self._group.create_task(
            self._answer(turn_id, event), name=f"confirmation {confirmation_id}"
        )

    def settled(self, event: StreamEvent) -> None:
        """Drop the question that a ``status`` event tells to be settled, if it is still open."""
        task = self._open.pop(event.text("confirmation_id"), None)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """Drop all questions; the turn is over."""
        for task in self._open.values():
            task.cancel()

    async def _answer(self, turn_id: str, event: StreamEvent) -> None:
        async with self._terminal:
            decision = await self._decide(event)
            await self._tell(turn_id, event.text("id"), decision)

    async def _tell(self, turn_id: str, confirmation_id: str, decision: Decision) -> None:
        """Give the answer to the agent; it may be given twice, so a broken try is repeated."""
        patience = Patience()
        while True:
            try:
                return await self._api.confirm(self._place, turn_id, confirmation_id, decision)
            except CliError as error:
                if not await patience.pause_after(error):
                    return self._view.note(f"The answer was not taken: {error.message}")

    async def _decide(self, event: StreamEvent) -> Decision:
        if self._fixed is not None:
            word = "Allowed" if self._fixed == "allow_once" else "Declined"
            self._view.note(f"{word} without asking: {event.text('tool_name')}")
            return self._fixed
        drop_typed()
        self._view.question(event)
        answer = await read_line()
        if answer:
            self._view.answered()
        return "allow_once" if answer.strip().lower() in YES else "reject_once"
