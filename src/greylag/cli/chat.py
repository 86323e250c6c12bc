"""`greylag chat`: talking to a project's agent.

A ``Chat`` sends one message after the other in one session. Each one's turn comes over a
``TurnStream``, whatever happens to the connection meanwhile; what the agent asks on the way is
answered by ``ConfirmationPrompts``. How it looks is in ``chat_view``.
"""

import asyncio
import contextlib
import importlib
import select
import signal
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import click

from greylag.cli.access import Access, api_options, task_group
from greylag.cli.chat_view import JsonView, TextView, TurnView, may_last
from greylag.cli.client import ApiClient, OutgoingMessage, ProjectPlace
from greylag.cli.errors import (
    CliError,
    Exit,
    InterruptedByUserError,
    Patience,
    ServerUnreachableError,
)
from greylag.cli.output import YES, drop_typed, read_line, somebody_is_there, visible
from greylag.cli.sessions import found_session
from greylag.cli.transport import EventStreaming, StreamEvent
from greylag.common.agent_api import Decision

PROMPT = "you> "
ALWAYS = {"a", "always"}
# Far above what a server takes; it only guards this machine's memory.
LONGEST_MESSAGE = 64 * 1024 * 1024
SILENT_SECONDS = 3
_PASTED_SECONDS = 0.05


@dataclass
class ConfirmationPrompts:
    """The confirmations of one turn, each answered by a task of ``group``.

    ``close`` is to be called before the group is left. ``fixed`` is the answer to all; without one
    they are asked on the terminal.
    """

    api: ApiClient
    place: ProjectPlace
    view: TurnView
    group: asyncio.TaskGroup
    fixed: Decision | None
    _terminal: asyncio.Lock = field(default_factory=asyncio.Lock)
    _open: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def asked(self, turn_id: str, event: StreamEvent) -> None:
        """Begin to answer a ``tool_confirmation``."""
        confirmation_id = event.text("id")
        self._open[confirmation_id] = self.group.create_task(
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
        path = (*self.place.path, "turns", turn_id, "confirmations", confirmation_id)
        patience = Patience()
        while True:
            try:
                await self.api.post(*path, body={"decision": decision})
            except CliError as error:
                if not await patience.pause_after(error):
                    return self.view.note(f"The answer was not taken: {error.message}")
            else:
                return None

    async def _decide(self, event: StreamEvent) -> Decision:
        if self.fixed is not None:
            word = "Allowed" if self.fixed == "allow_once" else "Declined"
            self.view.note(f"{word} without asking: {event.text('tool_name')}")
            return self.fixed
        drop_typed()
        self.view.question(event)
        answer = await read_line()
        if answer:
            self.view.answered()
        said = answer.strip().lower()
        if said in ALWAYS and may_last(event):
            return "allow_session"
        return "allow_once" if said in YES else "reject_once"


@dataclass
class TurnStream:
    """Yields each event of one turn exactly once, in order, to ``complete``.

    After a dropped connection it goes on by itself: before the turn is known by sending the message
    again (the same ``message_id`` is the same turn), else with the event after the last one.
    ``note`` hears of it in words.
    """

    api: ApiClient
    place: ProjectPlace
    message: OutgoingMessage
    note: Callable[[str], None]
    patience: Patience = field(default_factory=Patience)
    turn_id: str | None = None
    session_id: str | None = None
    _last_id: str | None = None

    def __post_init__(self) -> None:
        self.session_id = self.message.session_id

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events.

        Raises:
            CliError: the first try failed, or what usually passes lasts too long.
        """
        arrived = told = False
        while True:
            try:
                async with self._open() as events:
                    arrived = True
                    self.patience.opened()
                    async for event in events:
                        self.patience.worked()
                        told = False
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
            if not told:
                self.note("The connection dropped; going on ...")
            arrived = told = True
            if not await self.patience.pause_after(failure):
                raise failure

    def _open(self) -> EventStreaming:
        if self.turn_id is None:
            return self.api.send(self.place, self.message)
        return self.api.turn_events(self.place, self.turn_id, self._last_id)

    def _remember(self, event: StreamEvent) -> None:
        if event.id is not None:
            self._last_id = event.id
        if event.type == "turn":
            self.turn_id = event.text("turn_id") or None
            self.session_id = event.text("session_id") or None


def _may_have_arrived(error: CliError) -> bool:
    return isinstance(error, ServerUnreachableError) and error.connected and error.passes


class _SilenceClock:
    """Shows a person how long nothing has come, from ``SILENT_SECONDS`` on, each second."""

    def __init__(self, view: TurnView) -> None:
        self._view = view
        self._since = time.monotonic()
        self._shown = False

    def broken(self) -> None:
        """Something came."""
        self._since = time.monotonic()
        if self._shown:
            self._shown = False
            self._view.silent(0)

    async def run(self) -> None:
        """Show it until cancelled."""
        while True:
            await asyncio.sleep(1)
            silent = int(time.monotonic() - self._since)
            if silent >= SILENT_SECONDS:
                self._shown = True
                self._view.silent(silent)


@dataclass
class Chat:
    """Sends messages, one after the other, and shows what answers them.

    Without ``session_id`` a new session begins; ``fixed`` as in ``ConfirmationPrompts``.
    """

    api: ApiClient
    place: ProjectPlace
    view: TurnView
    session_id: str | None
    fixed: Decision | None
    _presses: int = 0

    async def turn(self, message: str) -> Exit:
        """Send one message and show its turn to the end; return what came of it.

        The first Ctrl-C cancels the turn (before there is one, it stops waiting).

        Raises:
            InterruptedByUserError: there was a second Ctrl-C.
            CliError: the message is not taken.
        """
        self._presses = 0
        clean = message.encode("utf-8", "replace").decode()
        outgoing = OutgoingMessage(clean, uuid.uuid4().hex, self.session_id)
        stream = TurnStream(self.api, self.place, outgoing, self.view.note)
        try:
            return await self._watch(stream)
        except asyncio.CancelledError:
            if self._presses > 1:
                raise InterruptedByUserError("The person left.") from None
            if self._presses == 1:
                self.view.note("Stopped waiting; what was begun goes on.")
                return Exit.INTERRUPTED
            raise
        finally:
            self.view.end()
            self.session_id = stream.session_id or self.session_id

    async def _watch(self, stream: TurnStream) -> Exit:
        end = Exit.OK
        async with task_group() as group:
            prompts = ConfirmationPrompts(self.api, self.place, self.view, group, self.fixed)
            with _on_interrupt(self._interrupter(stream, group)):
                clock = _SilenceClock(self.view)
                ticking = group.create_task(clock.run(), name="silence")
                async with aclosing(stream.events()) as events:
                    async for event in events:
                        clock.broken()
                        end = _end_after(end, event)
                        self._take(stream, prompts, event)
                ticking.cancel()
                clock.broken()
            prompts.close()
        return Exit.INTERRUPTED if self._presses and end is not Exit.OK else end

    def _take(self, stream: TurnStream, prompts: ConfirmationPrompts, event: StreamEvent) -> None:
        self.view.show(event)
        if event.type == "tool_confirmation":
            prompts.asked(stream.turn_id or "", event)
        elif event.type == "status":
            prompts.settled(event)

    def _interrupter(self, stream: TurnStream, group: asyncio.TaskGroup) -> Callable[[], None]:
        watching = asyncio.current_task()

        def pressed() -> None:
            self._presses += 1
            self.view.interrupted()
            if self._presses == 1 and stream.turn_id is not None:
                group.create_task(self._cancel(stream.turn_id), name="cancel the turn")
            elif watching is not None:
                watching.cancel()

        return pressed

    async def _cancel(self, turn_id: str) -> None:
        self.view.note("Cancelling ... (Ctrl-C again to leave)")
        try:
            await self.api.post(*self.place.path, "turns", turn_id, "cancel")
        except CliError as error:
            self.view.note(f"The turn cannot be cancelled: {error.message}")


def _end_after(end: Exit, event: StreamEvent) -> Exit:
    cancelled = event.type == "complete" and event.text("stop_reason") == "cancelled"
    return Exit.REFUSED if event.type == "error" or cancelled else end


@contextmanager
def _on_interrupt(pressed: Callable[[], None]) -> Iterator[None]:
    """Call ``pressed`` for each Ctrl-C instead of ending the program."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, pressed)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@click.command()
@click.argument("project")
@click.argument("message", required=False)
@click.option(
    "--session",
    metavar="SESSION",
    help="Go on with this session (the beginning of its id will do); without it a new one begins.",
)
@click.option("--continue", "newest", is_flag=True, help="Go on with the newest session.")
@click.option("--full", is_flag=True, help="Show the results of tools whole.")
@click.option("--allow-tools", is_flag=True, help="Allow every tool call without asking.")
@api_options
def chat(  # noqa: PLR0913 - one argument per option
    access: Access,
    *,
    project: str,
    message: str | None,
    session: str | None,
    newest: bool,
    full: bool,
    allow_tools: bool,
) -> int:
    """Talk to PROJECT's agent; a sleeping environment is woken first.

    With MESSAGE (or a message on stdin) one turn, else a conversation until Ctrl-D; what is pasted
    is one message, of however many lines. Ctrl-C cancels the turn; Ctrl-C again leaves. The answer
    goes to stdout, all else to stderr. Where nobody can be asked, tool calls that need a
    confirmation are declined, unless --allow-tools is given.

    \b
    Examples:
      greylag chat search "Which files are in the workspace?"
      git diff | greylag chat search > review.md
      greylag chat search --continue
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    if newest and session is not None:
        raise click.UsageError("Give either --session or --continue.")
    text = _message(message, as_json=access.output.json)
    access.tell_withheld()
    # One loop for the whole conversation; it rests while the prompt waits for a line.
    with asyncio.Runner() as runner:
        runner.run(access.api.__aenter__())
        try:
            place = runner.run(access.place(project))
            output = access.output
            view = JsonView(output) if output.json else TextView(output, full=full)
            if newest or session is not None:
                session = runner.run(found_session(access, place, session or ""))
            fixed = _fixed_decision(access, allow_tools=allow_tools)
            talk = Chat(access.api, place, view, session, fixed)
            if text is not None:
                end = runner.run(talk.turn(text))
                _tell_session(access, talk)
                return end
            return _converse(runner, talk, access)
        finally:
            runner.run(access.api.__aexit__())


def _converse(runner: asyncio.Runner, talk: Chat, access: Access) -> int:
    # Line editing and history at the prompt, where Python was built with it.
    with contextlib.suppress(ImportError):
        readline = importlib.import_module("readline")
        readline.parse_and_bind("set enable-bracketed-paste on")
    access.output.note("Ctrl-D ends the conversation.")
    while True:
        try:
            line = _typed()
        except EOFError:
            access.output.note("")
            _tell_session(access, talk)
            return Exit.OK
        if not line.strip():
            continue
        try:
            runner.run(talk.turn(line))
        except InterruptedByUserError:
            raise
        except CliError as error:
            for line in error.lines:
                access.output.note(line, style="red")


def _typed() -> str:
    """Return what the person typed, or pasted: more lines that are there already belong to it."""
    lines = [input(PROMPT)]
    while select.select([sys.stdin], [], [], _PASTED_SECONDS)[0]:
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines)


def _message(argument: str | None, *, as_json: bool) -> str | None:
    """Return the one message to send, or ``None`` to converse on the terminal."""
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        if as_json or not sys.stdout.isatty():
            raise click.UsageError("Give a MESSAGE, as an argument or on stdin.")
        return None
    raw = sys.stdin.buffer.read(LONGEST_MESSAGE + 1)
    if len(raw) > LONGEST_MESSAGE:
        raise click.UsageError(f"The message on stdin is longer than {LONGEST_MESSAGE} bytes.")
    text = raw.decode("utf-8", "replace")
    if not text.strip():
        raise click.UsageError("The message on stdin is empty.")
    return text


def _fixed_decision(access: Access, *, allow_tools: bool) -> Decision | None:
    if allow_tools:
        return "allow_once"
    return None if somebody_is_there() and not access.output.json else "reject_once"


def _tell_session(access: Access, talk: Chat) -> None:
    if talk.session_id is not None and not access.output.json:
        access.output.note(f"session: {visible(talk.session_id)}")
