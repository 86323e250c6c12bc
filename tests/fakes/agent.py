"""An agent in memory: the verified fake of the gateway.

A message is answered with its own words. Four beginnings make it do more: ``run: `` asks for a
confirmation and then tells what it would have run (``run: pictures`` gives a picture and what only
looks like one), ``wait: `` says nothing until the turn is cancelled, ``fail: `` ends with an error
event, ``events: `` gives a JSON list of types and contents, which may end in a question, or with
``wait``. Of what is relayed all is answered; of settings it has three.
"""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tests.fakes.files import FILE_ANSWERS, Files

from greylag.common import agent_api, sse
from greylag.common.agent_api import (
    MOST_AUTHOR,
    ChatMessage,
    Decision,
    ForwardedAnswer,
    ForwardedRequest,
    ForwardedSocket,
    History,
    OpenSocket,
    Session,
    SessionList,
    Socket,
    Turn,
    TurnList,
)
from greylag.common.clock import rfc3339
from greylag.common.git import CloneState, GitSetup, is_ref
from greylag.domain.errors import (
    AgentUnreachableError,
    ConfirmationNotFoundError,
    ConfirmationSettledError,
    ConflictError,
    InvalidRequestError,
    MissingError,
    RefusalError,
    SessionNotFoundError,
    TurnOverError,
)
from greylag.domain.names import path_segment
from greylag.ports import AgentAddress, AgentAnswer, AgentRequest, AgentStatus


@dataclass
class _Run:
    """A turn on its way: its frames so far, what it waits for, and who hears of a change."""

    turn: Turn
    touch: Callable[[], None]
    frames: list[bytes] = field(default_factory=list)
    answer: str = ""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    confirmation: str | None = None
    decision: Decision | None = None
    arguments: dict[str, str] = field(default_factory=dict)
    expires_at: int = 0
    of_late: bool = True

    def add(self, kind: str, **content: Any) -> None:
        event_id = f"{self.turn.turn_id}-{len(self.frames)}"
        content |= {"session_id": self.turn.session_id}
        self.frames.append(sse.encode({"type": kind, "content": content}, id=event_id))
        self._wake()

    @property
    def shown(self) -> Turn:
        """The turn with the question that waits."""
        if self.turn.status != "running" or not self.confirmation or self.decision:
            return self.turn
        arguments, end = json.dumps(self.arguments), rfc3339(self.expires_at)
        question = agent_api.Question(
            self.confirmation, "shell", arguments, decisions=[*agent_api.DECISIONS], expires_at=end
        )
        return replace(self.turn, question=question)

    def end(self, status: str) -> None:
        self.turn = replace(self.turn, status=status, ended_at=_now(), answer=self.answer)
        self.add("complete", message="Response complete", stop_reason=status)

    def _wake(self) -> None:
        self.touch()
        self.news.set()
        self.news = asyncio.Event()


def _extension(name: str, kind: str, **more: Any) -> agent_api.AgentExtension:
    return agent_api.AgentExtension(
        name=name,
        display_name=None,
        type=kind,
        extension_type=kind,
        enabled=more.pop("enabled", True),
        timeout=300,
        cmd=None,
        args=[],
        uri=None,
        bundled=None,
        description=None,
        env_keys=[],
        **more,
    )


EXTENSIONS = agent_api.ExtensionList(
    [
        _extension("broken", "stdio", state="failed", state_detail="It said: missing API key"),
        _extension("developer", "platform"),
        _extension("memory", "builtin", enabled=False),
    ],
    3,
)


@dataclass
class _Environment:
    """What one address remembers."""

    sessions: dict[str, Session] = field(default_factory=dict)
    runs: dict[str, _Run] = field(default_factory=dict)
    settings: dict[str, agent_api.SettingValue] = field(default_factory=dict)
    extensions: dict[str, agent_api.AgentExtension] = field(
        default_factory=lambda: {one.name: one for one in EXTENSIONS.extensions}
    )
    sent: Any = field(default_factory=dict)
    files: Files = field(default_factory=dict)
    terminals: dict[str, agent_api.Terminal] = field(default_factory=dict)
    changes: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def revision(self) -> str:
        return f"memory.{self.changes}"

    def touch(self) -> None:
        self.changes += 1
        self.news.set()
        self.news = asyncio.Event()

    def session(self, session_id: str) -> Session:
        path_segment(session_id, "session")
        if session_id not in self.sessions:
            raise SessionNotFoundError(f"There is no session {session_id}.")
        return self.sessions[session_id]

    def run(self, turn_id: str) -> _Run:
        path_segment(turn_id, "turn")
        if turn_id not in self.runs:
            raise RefusalError(f"There is no turn {turn_id}.", "turn_not_found")
        return self.runs[turn_id]

    def runs_of(self, session_id: str) -> list[_Run]:
        return [run for run in self.runs.values() if run.turn.session_id == session_id]

    def counted(self, session: Session) -> Session:
        said = self.history(session).messages
        title = session.title or (said[0].content[:80] if said else "")
        moments = [
            run.turn.ended_at or run.turn.started_at for run in self.runs_of(session.session_id)
        ]
        updated_at = max([session.updated_at, *moments])
        return replace(session, message_count=len(said), title=title, updated_at=updated_at)

    def history(self, session: Session) -> History:
        said = list(_messages(self.runs_of(session.session_id)))
        return History(session.session_id, said, len(said))

    def create(self) -> Session:
        now = _now()
        session = Session(str(uuid.uuid4()), created_at=now, updated_at=now, message_count=0)
        self.sessions[session.session_id] = session
        self.touch()
        return session

    def delete(self, session: Session) -> None:
        for run in self.runs_of(session.session_id):
            if run.turn.status == "running":
                run.end("cancelled")
            del self.runs[run.turn.turn_id]
        del self.sessions[session.session_id]
        self.touch()


# What each relayed operation answers: a shape, text, or nothing.


def _list_sessions(here: _Environment, _asked: AgentRequest) -> SessionList:
    sessions = [here.counted(one) for one in reversed(here.sessions.values())]
    return SessionList(sessions, len(sessions))


def _create_session(here: _Environment, _asked: AgentRequest) -> Session:
    return here.create()


def _show_session(here: _Environment, asked: AgentRequest) -> Session:
    return here.counted(here.session(asked.parts["session"]))


def _rename_session(here: _Environment, asked: AgentRequest) -> Session:
    session = here.session(asked.parts["session"])
    title = here.sent.pop("title", None)
    if not isinstance(title, str) or len(title) > agent_api.MOST_TITLE or here.sent:
        raise InvalidRequestError("title must be text, and all there is.")
    here.sessions[session.session_id] = replace(session, title=title.strip())
    here.touch()
    return here.counted(here.sessions[session.session_id])


async def _show_activity(here: _Environment, asked: AgentRequest) -> agent_api.Activity:
    wait = asked.query.get("wait", str(agent_api.MOST_WAIT))
    if not (wait.isascii() and wait.isdecimal() and 1 <= int(wait) <= agent_api.MOST_WAIT):
        raise InvalidRequestError(f"wait must be from 1 to {agent_api.MOST_WAIT}.")
    if asked.query.get("since") == here.revision:
        with suppress(TimeoutError):
            async with asyncio.timeout(int(wait)):
                await here.news.wait()
    turns = [
        agent_api.TurnState(
            run.turn.turn_id, run.turn.session_id, run.turn.message_id, _state_of(run)
        )
        for run in here.runs.values()
        if run.of_late
    ]
    last = max((run.turn.ended_at or run.turn.started_at for run in here.runs.values()), default="")
    return agent_api.Activity(here.revision, turns, last or None)


def _state_of(run: _Run) -> str:
    if run.turn.status != "running":
        return "ended"
    return "asks" if run.confirmation and run.decision is None else "working"


def _delete_session(here: _Environment, asked: AgentRequest) -> None:
    here.delete(here.session(asked.parts["session"]))


def _list_messages(here: _Environment, asked: AgentRequest) -> History:
    history = here.history(here.session(asked.parts["session"]))
    before = int(asked.query.get("before", history.total_count))
    said = [one for one in history.messages if one.message_index < before]
    limit = int(asked.query.get("limit", len(said)))
    return replace(history, messages=said[max(0, len(said) - limit) :])


def _export_session(here: _Environment, asked: AgentRequest) -> str:
    said = here.history(here.session(asked.parts["session"])).messages
    return "".join(f"## {one.role}\n\n{one.content}\n\n" for one in said)


def _list_turns(here: _Environment, asked: AgentRequest) -> TurnList:
    session = here.session(asked.parts["session"])
    limit = asked.query.get("limit", str(agent_api.TURNS))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit) <= agent_api.MOST_TURNS):
        raise InvalidRequestError(f"limit must be from 1 to {agent_api.MOST_TURNS}.")
    runs = here.runs_of(session.session_id)[::-1]
    return TurnList([run.shown for run in runs[: int(limit)]])


def _show_turn(here: _Environment, asked: AgentRequest) -> Turn:
    return here.run(asked.parts["turn"]).shown


def _start_terminal(here: _Environment, _asked: AgentRequest) -> agent_api.Terminal:
    sides = [here.sent.pop(name, None) for name in ("rows", "columns")]
    allowed = [one for one in sides if not isinstance(one, bool) and one in range(1, 1001)]
    if len(allowed) < len(sides) or here.sent:
        raise InvalidRequestError("rows and columns must be whole numbers, and all there is.")
    rows, columns = map(int, allowed)
    one = agent_api.Terminal(uuid.uuid4().hex, rows, columns, _now(), 0, False, None)  # noqa: FBT003 - in their order
    here.terminals[one.terminal_id] = one
    return one


_CHANGE = agent_api.FileChange("src/main.py", "modified", "file", added_lines=3, deleted_lines=1)
_CHANGES = agent_api.Changes(4, 5, [_CHANGE], 1, 3, 1, [], 0)


def _turn_changes(here: _Environment, asked: AgentRequest) -> agent_api.Changes:
    here.run(asked.parts["turn"])
    return _CHANGES


def _turn_diff(here: _Environment, asked: AgentRequest) -> agent_api.FileDiff:
    here.run(asked.parts["turn"])
    return _diff(here, asked)


def _diff(_here: _Environment, asked: AgentRequest) -> agent_api.FileDiff:
    if asked.query.get("path") != _CHANGE.path:
        raise MissingError("The turn did not change this.")
    return agent_api.FileDiff(_CHANGE, "@@ -1 +1,3 @@\n", whole=True)


def _undo_turn(here: _Environment, asked: AgentRequest) -> agent_api.Undone:
    here.run(asked.parts["turn"])
    override, paths = here.sent.pop("override", False), here.sent.pop("paths", None)
    history = here.sent.pop("history", "keep")
    texts = paths is None or (isinstance(paths, list) and all(isinstance(p, str) for p in paths))
    if not isinstance(override, bool) or not texts or here.sent or history not in ("keep", "cut"):
        raise InvalidRequestError("This is no wish to undo.")
    return agent_api.Undone("0" * 32, _CHANGES, [], 0, int(history == "cut"))


def _list_terminals(here: _Environment, _asked: AgentRequest) -> agent_api.TerminalList:
    return agent_api.TerminalList(list(here.terminals.values()))


def _end_terminal(here: _Environment, asked: AgentRequest) -> None:
    if here.terminals.pop(path_segment(asked.parts["terminal"], "terminal"), None) is None:
        raise MissingError("There is no such terminal.")


_SETTINGS = {
    key: agent_api.AgentSetting(
        key=key,
        value=value,
        default_value=value,
        description=description,
        value_type="string" if isinstance(value, str) else "number",
        validation=rules,
        env_override=None,
        restart_required=True,
    )
    for key, value, description, rules in (
        ("GOOSE_MODEL", "echo", "Name of the model that answers.", {}),
        ("GOOSE_MODE", "approve", "When the agent asks.", {"allowed_values": ["auto", "approve"]}),
        ("GOOSE_TEMPERATURE", 0.7, "How freely it chooses its words.", {"min": 0, "max": 2}),
    )
}


def _show_setting(here: _Environment, asked: AgentRequest) -> agent_api.AgentSetting:
    key = path_segment(asked.parts["key"], "key")
    if key not in _SETTINGS:
        raise MissingError("There is no such setting.")
    setting = _SETTINGS[key]
    return replace(setting, value=here.settings.get(key, setting.value))


def _wanted_value(here: _Environment, setting: agent_api.AgentSetting) -> agent_api.SettingValue:
    value = here.sent.pop("value", None)
    kind = str if setting.value_type == "string" else int | float
    if not isinstance(value, kind) or isinstance(value, bool) or here.sent:
        raise InvalidRequestError("value must be of the setting's type, and all there is.")
    if isinstance(value, str):
        if value not in setting.validation.get("allowed_values", [value, ""]):
            raise InvalidRequestError(f"{setting.key}: the value must be one that is allowed.")
    elif not 0 <= value <= 2:
        raise InvalidRequestError("It must be a number from 0 to 2.")
    return value


def _change_setting(here: _Environment, asked: AgentRequest) -> agent_api.ChangedSetting:
    setting = _show_setting(here, asked)
    here.settings[setting.key] = value = _wanted_value(here, setting)
    words = "Setting updated successfully"
    return agent_api.ChangedSetting(words, setting.key, value, setting.restart_required)


def _reset_setting(here: _Environment, asked: AgentRequest) -> agent_api.ResetSetting:
    setting = _show_setting(here, asked)
    here.settings.pop(setting.key, None)
    words = "Setting reset to default successfully"
    return agent_api.ResetSetting(words, setting.key, setting.default_value)


def _change_session_setting(here: _Environment, asked: AgentRequest) -> agent_api.ChangedSetting:
    session = here.session(asked.parts["session"])
    setting = _show_setting(here, asked)
    if not isinstance(setting.value, str):
        raise MissingError("A session has no such setting.")
    value = _wanted_value(here, setting)
    own: dict[str, Any] = {setting.key.removeprefix("GOOSE_").lower(): value or None}
    here.sessions[session.session_id] = replace(session, **own)
    here.touch()
    words = "Setting updated successfully"
    return agent_api.ChangedSetting(words, setting.key, value or setting.value, False)  # noqa: FBT003 - no restart


def _list_models(_here: _Environment, _asked: AgentRequest) -> agent_api.ModelList:
    return agent_api.ModelList(["echo", "parrot"])


def _list_settings(here: _Environment, _asked: AgentRequest) -> agent_api.SettingList:
    held = [replace(one, value=here.settings.get(key, one.value)) for key, one in _SETTINGS.items()]
    return agent_api.SettingList(held, len(held))


def _git_commit(here: _Environment, _asked: AgentRequest) -> agent_api.GitCommitted:
    message, paths = here.sent.pop("message", ""), here.sent.pop("paths", None)
    texts = paths is None or (isinstance(paths, list) and all(map(_is_path, paths)) and paths)
    fits = isinstance(message, str) and 0 < len(message) <= agent_api.MOST_GIT_MESSAGE
    if not fits or not message.strip() or "\0" in message or not texts or here.sent:
        raise InvalidRequestError("This is no wish to commit.")
    if message == "nothing":
        raise RefusalError("Nothing has changed since the last commit.", "git_nothing_to_commit")
    return agent_api.GitCommitted("0" * 40, "main")


def _is_path(path: object) -> bool:
    return isinstance(path, str) and path != "" and "\0" not in path


def _git_status(_here: _Environment, _asked: AgentRequest) -> agent_api.GitStatus:
    return agent_api.GitStatus(repository=True, branch="main", ahead=1)


def _git_push(here: _Environment, _asked: AgentRequest) -> agent_api.GitPushed:
    branch = here.sent.pop("branch", None)
    if here.sent or not (branch is None or (isinstance(branch, str) and is_ref(branch))):
        raise InvalidRequestError("This is no wish to push.")
    return agent_api.GitPushed(branch or "main", "https://example.org/a.git")


def _list_extensions(here: _Environment, _asked: AgentRequest) -> agent_api.ExtensionList:
    return agent_api.ExtensionList(list(here.extensions.values()), len(here.extensions))


def _known_extension(here: _Environment, asked: AgentRequest) -> agent_api.AgentExtension:
    found = here.extensions.get(path_segment(asked.parts["extension"], "extension"))
    if found is None:
        raise MissingError("There is no such extension.")
    return found


def _switch_extension(here: _Environment, asked: AgentRequest) -> agent_api.SwitchedExtension:
    found = _known_extension(here, asked)
    enabled = here.sent.pop("enabled", None)
    if not isinstance(enabled, bool) or here.sent:
        raise InvalidRequestError("enabled must be true or false, and all there is.")
    here.extensions[found.name] = replace(found, enabled=enabled, state=None, state_detail=None)
    return agent_api.SwitchedExtension("Extension toggled successfully", found.name, enabled)


def _remove_extension(here: _Environment, asked: AgentRequest) -> None:
    found = _known_extension(here, asked)
    if found.enabled:
        raise InvalidRequestError("Cannot remove enabled extension. Disable it first.")
    del here.extensions[found.name]


_ANSWERS: Mapping[str, Callable[[_Environment, AgentRequest], Any]] = {
    agent_api.LIST_SESSIONS.name: _list_sessions,
    agent_api.CREATE_SESSION.name: _create_session,
    agent_api.SHOW_SESSION.name: _show_session,
    agent_api.RENAME_SESSION.name: _rename_session,
    agent_api.DELETE_SESSION.name: _delete_session,
    agent_api.LIST_MESSAGES.name: _list_messages,
    agent_api.EXPORT_SESSION.name: _export_session,
    agent_api.LIST_TURNS.name: _list_turns,
    agent_api.SHOW_TURN.name: _show_turn,
    agent_api.LIST_EXTENSIONS.name: _list_extensions,
    agent_api.SWITCH_EXTENSION.name: _switch_extension,
    agent_api.REMOVE_EXTENSION.name: _remove_extension,
    agent_api.LIST_SETTINGS.name: _list_settings,
    agent_api.SHOW_SETTING.name: _show_setting,
    agent_api.CHANGE_SETTING.name: _change_setting,
    agent_api.RESET_SETTING.name: _reset_setting,
    agent_api.CHANGE_SESSION_SETTING.name: _change_session_setting,
    agent_api.LIST_MODELS.name: _list_models,
    agent_api.TURN_CHANGES.name: _turn_changes,
    agent_api.TURN_DIFF.name: _turn_diff,
    agent_api.UNDO_TURN.name: _undo_turn,
    agent_api.LIST_CHANGES.name: lambda _here, _asked: _CHANGES,
    agent_api.DIFF_CHANGES.name: _diff,
    agent_api.LIST_TERMINALS.name: _list_terminals,
    agent_api.START_TERMINAL.name: _start_terminal,
    agent_api.END_TERMINAL.name: _end_terminal,
    agent_api.GIT_STATUS.name: _git_status,
    agent_api.GIT_COMMIT.name: _git_commit,
    agent_api.GIT_FETCH.name: _git_status,
    agent_api.GIT_PUSH.name: _git_push,
    agent_api.LIST_PORTS.name: lambda _here, _asked: agent_api.PortList(
        [agent_api.ListeningPort(5173, "node")]
    ),
}


def _sent(body: bytes) -> dict[str, Any]:
    try:
        sent = json.loads(body)
    except ValueError as error:
        raise InvalidRequestError("The body is not JSON.") from error
    if not isinstance(sent, dict):
        raise InvalidRequestError("The body is no object.")
    return sent


def _body(answer: Any) -> bytes:
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, str):
        return answer.encode()
    return b"" if answer is None else json.dumps(asdict(answer)).encode()


async def _once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


class MemoryAgents:
    """Every environment's agent. ``unreachable`` holds the URLs that do not answer."""

    def __init__(self) -> None:
        self.unreachable: set[str] = set()
        self.open_streams = 0
        self.git: dict[str, GitSetup] = {}
        self.clones: dict[str, list[CloneState]] = {}
        self.idle_seconds: float | None = 0.0
        self._environments: dict[str, _Environment] = {}

    async def status(self, at: AgentAddress) -> AgentStatus:
        """Return what answers there."""
        busy = any(run.turn.status == "running" for run in self._at(at).runs.values())
        return AgentStatus("memory", "1", "echo", busy=busy, idle_seconds=self.idle_seconds)

    async def set_up_git(self, at: AgentAddress, setup: GitSetup) -> CloneState:
        """Take what git is to have; ``clones`` says how what is to be cloned goes."""
        self._at(at)
        self.git[at.url] = setup
        if setup.url is None:
            return CloneState("none")
        states = self.clones.get(setup.url, [])
        return states.pop(0) if len(states) > 1 else [*states, CloneState("done", "Cloned.")][0]

    def lose(self, at: AgentAddress, turn_id: str) -> None:
        """Let the agent come back from its end, by which a turn failed, of which it knows no more
        than that.
        """
        run = self._at(at).run(turn_id)
        run.of_late = False
        run.end("error")

    def vanish(self, at: AgentAddress, session_id: str) -> None:
        """Forget a session, of whose turns it is told for a moment still."""
        del self._at(at).sessions[session_id]

    def relay(
        self, at: AgentAddress, request: AgentRequest
    ) -> AbstractAsyncContextManager[AgentAnswer]:
        """Ask for an operation of the agent's API."""
        return self._relay(at, request)

    @asynccontextmanager
    async def _relay(self, at: AgentAddress, request: AgentRequest) -> AsyncIterator[AgentAnswer]:
        operation = request.operation
        here = self._at(at)
        if request.body is not None:
            raw = b"".join([chunk async for chunk in request.body])
            here.sent = raw if operation.body is bytes else _sent(raw)
        if operation.name in FILE_ANSWERS:
            answer = FILE_ANSWERS[operation.name](here.files, request.query, here.sent)
        elif operation is agent_api.SHOW_ACTIVITY:
            answer = await _show_activity(here, request)
        else:
            answer = _ANSWERS[operation.name](here, request)
        body = _body(answer)
        headers = {"content-type": operation.media} if body else {}
        yield AgentAnswer(operation.status, headers, _once(body))

    async def start_turn(
        self,
        at: AgentAddress,
        session_id: str | None,
        message: str,
        message_id: str,
        author: str | None = None,
    ) -> Turn:
        """Give the agent a message."""
        here = self._at(at)
        for run in here.runs.values():
            if run.turn.message_id == message_id:
                if session_id not in {None, run.turn.session_id}:
                    raise ConflictError("This message_id was used in another session.")
                return run.turn
        if session_id is None:
            session_id = here.create().session_id
        session_id = here.session(session_id).session_id
        if any(run.turn.status == "running" for run in here.runs_of(session_id)):
            raise RefusalError(f"Session {session_id} works on another message.", "session_busy")
        turn = Turn(
            uuid.uuid4().hex,
            session_id,
            message_id,
            "running",
            message,
            _now(),
            author=author and author[:MOST_AUTHOR],
        )
        here.runs[turn.turn_id] = run = _Run(turn, here.touch)
        _begin(run)
        return run.turn

    def stream_turn(
        self, at: AgentAddress, turn_id: str, after: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a turn's events from the one after id ``after``."""
        return self._stream(at, turn_id, after)

    @asynccontextmanager
    async def _stream(
        self, at: AgentAddress, turn_id: str, after: str | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        run = self._at(at).run(turn_id)
        start = _position(run, after)
        if after is not None and run.turn.status != "running" and start >= len(run.frames):
            raise TurnOverError("Nothing follows that event: the turn is over.")
        self.open_streams += 1
        try:
            yield _follow(run, start)
        finally:
            self.open_streams -= 1

    @asynccontextmanager
    async def socket(
        self, at: AgentAddress, socket: Socket, parts: Mapping[str, str]
    ) -> AsyncIterator[OpenSocket]:
        """Open a WebSocket: a terminal says what is typed, until that is ``exit``."""
        here = self._at(at)
        assert socket in agent_api.SOCKETS
        for name, value in parts.items():
            path_segment(value, name)
            if value not in here.terminals:
                raise MissingError(f"There is no {name} {value}.")
        self.open_streams += 1
        try:
            yield _Echo()
        finally:
            self.open_streams -= 1

    @asynccontextmanager
    async def forward(
        self, at: AgentAddress, port: int, request: ForwardedRequest
    ) -> AsyncIterator[ForwardedAnswer]:
        """Tell what was asked of a port."""
        self._at(at)
        about = {"method": request.method, "target": request.target, "port": port}
        yield ForwardedAnswer(200, [], _once(json.dumps(about).encode()))

    @asynccontextmanager
    async def forward_socket(
        self, at: AgentAddress, port: int, request: ForwardedRequest, protocols: Sequence[str]
    ) -> AsyncIterator[ForwardedSocket]:
        """Open a WebSocket to a port: it says what it is told."""
        self._at(at)
        assert (request.method, 0 < port < 65_536) == ("GET", True)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield ForwardedSocket(reader, writer, next(iter(protocols), None))
        finally:
            writer.close()

    async def cancel_turn(self, at: AgentAddress, turn_id: str) -> Turn:
        """Ask the turn to end."""
        run = self._at(at).run(turn_id)
        if run.turn.status == "running":
            run.end("cancelled")
        return run.turn

    async def confirm(
        self, at: AgentAddress, turn_id: str, confirmation_id: str, decision: Decision
    ) -> None:
        """Answer a confirmation."""
        run = self._at(at).run(turn_id)
        if confirmation_id != run.confirmation:
            raise ConfirmationNotFoundError(f"The turn asks for no confirmation {confirmation_id}.")
        if run.decision == decision:
            return
        if run.decision is not None or run.turn.status != "running":
            raise ConfirmationSettledError("The confirmation has been settled otherwise.")
        run.decision = decision
        run.add(
            "status",
            message=f"Answered: {decision}.",
            confirmation_id=confirmation_id,
            decision=decision,
        )
        _after_confirmation(run)

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    def _at(self, at: AgentAddress) -> _Environment:
        if at.url in self.unreachable:
            raise AgentUnreachableError("The agent does not answer.")
        return self._environments.setdefault(at.url, _Environment())


class _Echo:
    """A terminal that says what is typed."""

    def __init__(self) -> None:
        self.close_code: int | None = None
        self._said: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        size = {"rows": 24, "columns": 80}
        self._said.put_nowait(json.dumps({"attached": {**size, "replay": 0, "pings": True}}))

    async def send(self, content: bytes | str) -> None:
        self._said.put_nowait('{"pong": true}' if content == '{"ping": true}' else content)
        if content == b"exit":
            self._said.put_nowait(json.dumps({"exit": 0}))
            self.close_code = 1000
            self._said.put_nowait(None)

    async def receive(self) -> bytes | str | None:
        return await self._said.get()


_SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload=\"document.title='owned'\"/>"
_PICTURES = [
    {"type": "image", "data": base64.b64encode(content).decode(), "mimeType": kind}
    for content, kind in [
        (b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;", "image/gif"),
        (_SVG, "image/svg+xml"),
        (b"<script>document.title='owned'</script>", "text/html"),
    ]
]


def _begin(run: _Run) -> None:
    turn = run.turn
    told = {"message_id": turn.message_id, "demonstration": None, "author": turn.author}
    run.add("turn", turn_id=turn.turn_id, **told)
    kind, _, rest = turn.message.partition(": ")
    if kind == "wait":
        return
    if kind == "fail":
        run.add("error", message="Agent processing error", error=rest, code="model_failed")
        run.turn = replace(run.turn, error=rest, error_code="model_failed")
        run.end("error")
    elif kind == "events":
        for told, content in json.loads(rest):
            if told == "wait":
                return
            run.add(told, **content)
            run.answer += str(content.get("content", "")) if told == "message" else ""
            if told == "tool_confirmation":
                run.confirmation = content["id"]
        if run.confirmation is None:
            run.end("completed")
    elif kind == "run":
        run.confirmation = uuid.uuid4().hex
        run.arguments = {"command": rest}
        asked = {"id": run.confirmation, "tool_name": "shell", "arguments": run.arguments}
        run.add("tool_request", id="call_1", tool_name="shell", arguments={"command": rest})
        run.expires_at = int(time.time()) + 570
        times = {"timestamp": run.expires_at - 570, "expires_at": run.expires_at}
        run.add(
            "tool_confirmation",
            **asked,
            **times,
            decisions=[*agent_api.DECISIONS],
            needs_confirmation=True,
        )
    else:
        _say(run, f"You said: {turn.message}")
        run.end("completed")


def _after_confirmation(run: _Run) -> None:
    allowed = run.decision != "reject_once"
    given = _PICTURES if run.turn.message == "run: pictures" else [{"type": "text", "text": "done"}]
    result: dict[str, Any] = {"Ok": given} if allowed else {"Err": "declined"}
    if run.turn.message == "run: failing pictures":
        result = {"Err": "no luck", "content": _PICTURES}
    run.add("tool_response", id="call_1", result=result, is_error="Err" in result)
    _say(run, "It ran." if allowed else "You declined.")
    run.end("completed")


def _say(run: _Run, text: str) -> None:
    for word in text.split(" "):
        piece = word if not run.answer else f" {word}"
        run.answer += piece
        run.add("message", role="Assistant", content=piece, content_type="text")


def _messages(runs: Sequence[_Run]) -> Iterator[ChatMessage]:
    index = 0
    for run in runs:
        for role, text in (("User", run.turn.message), ("Assistant", run.answer)):
            if text:
                who = run.turn.author if role == "User" else None
                yield ChatMessage(role, text, None, index, run.turn.turn_id, author=who)
                index += 1


def _position(run: _Run, after: str | None) -> int:
    if after is None:
        return 0
    turn_id, _, number = after.rpartition("-")
    if turn_id != run.turn.turn_id or not number.isdecimal():
        raise InvalidRequestError(f"{after!r} is not an event id of this turn.")
    return int(number) + 1


async def _follow(run: _Run, at: int) -> AsyncIterator[bytes]:
    while True:
        news = run.news
        while at < len(run.frames):
            yield run.frames[at]
            at += 1
        if run.turn.status != "running" and at >= len(run.frames):
            return
        await news.wait()


def _now() -> str:
    return rfc3339(datetime.now(UTC))
