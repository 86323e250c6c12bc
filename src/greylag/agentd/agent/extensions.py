"""The extensions of the agent's sessions: each starts by itself, within its own time.

goose starts all that is enabled inside session/new, and waits for a server's handshake without an
end: one that never finishes would hold back every session. So a session is made with what lives in
goose itself; each server is added by a call of its own, in the background, and how that went is
kept.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import structlog

from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.types import (
    AgentError,
    AgentRefusedError,
    AgentSetup,
    ExtensionState,
    understood,
)
from greylag.common.concurrent import cancel_all
from greylag.common.typed import dig

CONFIGURED = "_goose/unstable/config/extensions"
_OF_SESSION = "_goose/unstable/session/extensions"
DEFAULT_SECONDS = 300
_TRIAL_SECONDS = 8.0
_KNOWN_SECONDS = 20.0
_NEW_SECONDS = 5.0
"""How long a creation waits for its trial; a turn for what has started before, and for others."""
_ENDED = "Transport closed"
"""What goose (1.52) answers a call with whose server has ended."""
_MOST_CALLS, _LONGEST_CALL = 1000, 1000
"""How many calls are noted at once, and how long the id of one and a name may be together."""

_log = structlog.get_logger(__name__)

Entry = dict[str, Any]
"""One of goose's list: ``extension``, ``enabled`` and ``configKey``."""
Make = Callable[[Sequence[Entry]], Awaitable[tuple[str, dict[str, str]]]]
"""Makes a session that has these extensions, and returns what ``new_session`` does."""


async def new_session(
    peer: AcpPeer, setup: AgentSetup, title: str, inside: Sequence[Entry] = ()
) -> tuple[str, dict[str, str]]:
    """Make a session that has no extensions but those ``inside`` goose itself.

    Returns:
        The agent's id for it, and why extensions did not start, by name.

    Raises:
        AgentRefusedError: the agent answered with an error.
        AgentDiedError: it ended meanwhile.
    """
    wanted = [{name: one["extension"][name] for name in ("type", "name")} for one in inside]
    # With a title given, goose makes no extra model calls to find one.
    meta = {"sessionTitle": title, "enabledExtensions": wanted}
    params = {"cwd": str(setup.workspace), "mcpServers": [], "_meta": meta}
    answer = await peer.request("session/new", params)
    session = str(answer["sessionId"])
    return session, await failures_of(peer, session, answer, inside)


async def failures_of(
    peer: AcpPeer, session: str, answer: dict[str, Any], inside: Sequence[Entry]
) -> dict[str, str]:
    """Return why extensions of a session that was made did not start, by name."""
    results = (answer.get("_meta") or {}).get("extensionResults") or []
    names = {one["extension"]["name"] for one in inside}
    for extra in (one for one in results if one["success"] and one["name"] not in names):
        # goose puts one in by itself when none is wanted.
        params = {"sessionId": session, "extensionKey": extra["name"]}
        await peer.request(f"{_OF_SESSION}/remove", params)
    return {one["name"]: str(one.get("error")) for one in results if not one["success"]}


def is_server(entry: Entry) -> bool:
    """Tell whether an extension is a server of its own, and not a part of goose."""
    return bool(entry["extension"].get("type") == "mcp")


class ExtensionStarter:
    """Starts extensions for sessions, and knows how each has fared last.

    One that did not finish its handshake is not started again until it is changed, or the agent
    is: goose never ends such a server.

    Args:
        held: keeps a session open while something starts in it.
    """

    def __init__(self, held: Callable[[str], AbstractContextManager[None]]) -> None:
        self._held = held
        self._servers: dict[str, dict[str, Entry]] = {}
        self._whole: set[str] = set()  # the sessions that have all of theirs since they were opened
        self._states: dict[str, ExtensionState] = {}
        self._starts: dict[str, dict[str, asyncio.Task[None]]] = {}
        self._trials: set[asyncio.Task[None]] = set()
        self._told: dict[str, set[str]] = {}
        self._calls: dict[tuple[str, str], str] = {}  # whose tool a call that runs is
        self._ended: dict[str, set[str]] = {}  # servers that have ended in a session that is open

    def state(self, key: str) -> ExtensionState | None:
        """Return how an extension has fared, None when it was not started yet."""
        return self._states.get(key)

    def forget(self, key: str) -> None:
        """Forget how an extension has fared: it is another now, or gone."""
        self._states.pop(key, None)

    def doubt(self, key: str) -> None:
        """Forget how an extension has fared, as it may hang by now; but not that one hung."""
        if not self._is_hung(key):
            self.forget(key)

    async def open(self, peer: AcpPeer, make: Make) -> str:
        """Make a session with all that is enabled; servers are still starting on return."""
        listed = await peer.request(f"{CONFIGURED}/list", {})
        entries = [one for one in listed["extensions"] if one["enabled"]]
        keyed = {_key(one): one for one in entries}
        session = await self._inside(make, entries)
        self._launch(peer, session, keyed)
        return session

    def note(self, session: str, update: dict[str, Any]) -> None:
        """Take note of what a turn tells of its tools: goose starts no server again that has ended,
        and answers each further call of it as the one that met its end.
        """
        kind, called = update.get("sessionUpdate"), update.get("toolCallId")
        if not isinstance(called, str):
            return
        call = (session, called)
        if kind == "tool_call":
            name = dig(update, "_meta", "goose", "toolCall").get("extensionName")
            if not isinstance(name, str) or len(called) + len(name) > _LONGEST_CALL:
                return
            if len(self._calls) < _MOST_CALLS:
                self._calls[call] = "".join(name.split()).lower()
        elif kind == "tool_call_update" and update.get("status") in ("completed", "failed"):
            key, told = self._calls.pop(call, None), update.get("content")
            first = told[0] if isinstance(told, list) and told else None
            if key is not None and dig(first, "content").get("text") == _ENDED:
                self._ended.setdefault(session, set()).add(key)

    async def complete(self, peer: AcpPeer, session: str) -> None:
        """Start again what is missing in a session since its last turn."""
        self._calls = {call: key for call, key in self._calls.items() if call[0] != session}
        await self._complete(peer, session)
        if session in self._ended:
            await self._revive(peer, session, self._ended.pop(session))

    async def _revive(self, peer: AcpPeer, session: str, ended: set[str]) -> None:
        try:
            listed = [one for one in await _listed(peer, session) if is_server(one)]
            entries = {one["extensionKey"]: one for one in listed if one["extensionKey"] in ended}
            for key in entries:
                params = {"sessionId": session, "extensionKey": key}
                await peer.request(f"{_OF_SESSION}/remove", params)
                self.forget(key)
        except AgentRefusedError as error:
            _log.warning("extensions_not_started_again", reason=error.words)
        else:
            self._launch(peer, session, entries)

    async def _complete(self, peer: AcpPeer, session: str) -> None:
        """Start again what goose has dropped when it opened a session again, which it does for good
        with each extension that fails then.
        """
        servers = self._servers.get(session)
        if servers is None or session in self._whole:
            return
        try:
            there = {one["extensionKey"] for one in await _listed(peer, session)}
        except AgentRefusedError as error:
            _log.warning("extensions_not_listed", reason=error.words)
            self._whole.add(session)
            return
        missing = {key for key in servers.keys() - there if not self._is_hung(key)}
        for key in missing:
            self.forget(key)  # how it fared before is not what the next turn is to be told
        self._launch(peer, session, {key: servers[key] for key in missing})

    async def servers(self, peer: AcpPeer, session: str) -> list[str]:
        """Return which servers a session starts when goose opens it; it need not be open."""
        return [one["extensionKey"] for one in await _listed(peer, session) if is_server(one)]

    async def attempt(self, peer: AcpPeer, setup: AgentSetup, entry: Entry) -> ExtensionState:
        """Start an extension once in a session of its own, and tell how that went so far."""
        key = _key(entry)
        self.forget(key)
        self._states[key] = ExtensionState("starting", "It is starting.")
        trial = asyncio.create_task(self._attempt(peer, setup, entry), name=f"try extension {key}")
        self._trials.add(trial)
        trial.add_done_callback(self._trials.discard)
        await asyncio.wait({trial}, timeout=_TRIAL_SECONDS)
        return self._states.get(key) or ExtensionState("failed", "It was removed meanwhile.")

    async def settled(self, session: str) -> list[str]:
        """Wait a moment for a session's extensions; return what to tell of those that failed.

        Each is told of once in a session. To be cancelled when the caller waits no more; what is
        starting still goes on.
        """
        starts = self._starts.get(session, {})
        known = {task for key, task in starts.items() if self._has_status(key, "ready")}
        new = {task for key, task in starts.items() if key not in self._states}
        for tasks, seconds in ((new, _NEW_SECONDS), (known, _KNOWN_SECONDS)):
            if tasks:
                await asyncio.wait(tasks, timeout=seconds)
        left = {key: task for key, task in starts.items() if not task.done()}
        if left:
            self._starts[session] = left
        else:
            self._starts.pop(session, None)
        untold = self._told.get(session, set())
        failed = {key for key in untold if self._has_status(key, "failed")}
        untold -= failed
        return [
            f"The extension {key!r} does not work: {self._states[key].detail}"
            for key in sorted(failed)
        ]

    def closed(self, session: str) -> None:
        """Take note that goose opens a session again with its next use."""
        self._whole.discard(session)
        self._ended.pop(session, None)

    def close(self, session: str) -> None:
        """Start no more for a session that is gone."""
        self._told.pop(session, None)
        self._ended.pop(session, None)
        self._servers.pop(session, None)
        self._whole.discard(session)
        for task in self._starts.pop(session, {}).values():
            task.cancel()

    async def end(self) -> None:
        """Stop all starts, as the agent has ended; a new one may fare better."""
        starts = (one for starts in self._starts.values() for one in starts.values())
        await cancel_all([*self._trials, *starts])
        self._starts.clear()
        self._states.clear()
        self._whole.clear()
        self._calls.clear()
        self._ended.clear()

    def _launch(self, peer: AcpPeer, session: str, entries: Mapping[str, Entry]) -> None:
        starts, keeping = self._starts.setdefault(session, {}), asyncio.Lock()
        for key, one in entries.items():
            if is_server(one) and not self._is_hung(key):
                adding = self._add(peer, session, key, one, keeping)
                starts[key] = asyncio.create_task(adding, name=f"extension {key}")
        self._told.setdefault(session, set()).update(entries)
        self._whole.add(session)

    def _has_status(self, key: str, status: str) -> bool:
        state = self._states.get(key)
        return state is not None and state.status == status

    def _is_hung(self, key: str) -> bool:
        state = self._states.get(key)
        return state is not None and state.hung

    async def _inside(self, make: Make, entries: Sequence[Entry]) -> str:
        inside = [one for one in entries if not is_server(one)]
        session, failed = await make(inside)
        for one in inside:
            reason = failed.get(one["extension"]["name"])
            self._note(_key(one), reason)
        return session

    async def _attempt(self, peer: AcpPeer, setup: AgentSetup, entry: Entry) -> None:
        key = _key(entry)
        try:
            with understood():
                make = partial(new_session, peer, setup, "Trial of an extension")
                session = await self._inside(make, [entry])
                try:
                    if is_server(entry):
                        await self._start(peer, session, key, entry)
                finally:
                    await peer.request("session/delete", {"sessionId": session})
        except AgentRefusedError as error:
            self._note(key, error.words)
        except AgentError as error:
            _log.info("extension_start_interrupted", error=str(error))

    async def _add(
        self, peer: AcpPeer, session: str, key: str, entry: Entry, keeping: asyncio.Lock
    ) -> None:
        with self._held(session):
            if not await self._start(peer, session, key, entry):
                return
            self._servers.setdefault(session, {})[key] = entry
            self._told.get(session, set()).discard(key)  # what fails elsewhere works here
            # Of adds at once goose may keep what an earlier one found: when it opens the session
            # again, an extension is missing. One more, by itself, starts nothing and keeps all.
            async with keeping:
                await self._start(peer, session, key, entry)

    async def _start(self, peer: AcpPeer, session: str, key: str, entry: Entry) -> bool:
        seconds = float(DEFAULT_SECONDS)
        try:
            with understood():
                seconds = float(entry["extension"].get("timeout") or DEFAULT_SECONDS)
                if not math.isfinite(seconds):
                    raise ValueError("an extension's timeout is no time")
                params = {"sessionId": session, "extension": entry["extension"]}
                async with asyncio.timeout(seconds):
                    await peer.request(f"{_OF_SESSION}/add", params)
        except TimeoutError:
            words = f"It did not finish its handshake within {seconds:g} seconds."
            self._note(key, words, hung=True)
        except AgentRefusedError as error:
            self._note(key, error.words)
        except AgentError as error:
            _log.info("extension_start_interrupted", key=key, error=str(error))
        else:
            self._note(key, None)
            return True
        return False

    def _note(self, key: str, failure: str | None, *, hung: bool = False) -> None:
        if failure is None:
            self._states[key] = ExtensionState("ready", "It works.")
            return
        self._states[key] = ExtensionState("failed", failure, hung=hung)
        _log.warning("extension_failed", key=key, reason=failure)


async def _listed(peer: AcpPeer, session: str) -> list[Entry]:
    with understood():
        listed = await peer.request(f"{_OF_SESSION}/list", {"sessionId": session})
        return [{**one, "extensionKey": str(one["extensionKey"])} for one in listed["extensions"]]


def _key(entry: Entry) -> str:
    return str(entry["configKey"])
