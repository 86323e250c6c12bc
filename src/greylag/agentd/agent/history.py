"""The agent's own history of a session, and the same without its end.

goose can cut a history at a whole second only, in which one turn may have ended and the next begun.
So what is to stay is exported and imported as a session of its own, and the old one is untouched
until that has taken its place.
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.extensions import Entry, failures_of
from greylag.agentd.agent.types import AgentError, AgentSetup, HistoryFixedError
from greylag.common.typed import dig, parse_json

_SESSION = "_goose/unstable/session"
_BESIDE = "extension_data"
_EXTENSIONS = "enabled_extensions.v0"
_MODEL = "model"
_MOST_MESSAGES = 2**31
_ARCHIVED_WITHIN = 5.0


async def message_count(peer: AcpPeer, session: str) -> int:
    """Return how many messages a session has that people see; a summary adds none, and takes none
    away.
    """
    answer = await peer.request(f"{_SESSION}/info", {"sessionId": session})
    try:
        count = answer["session"]["_meta"]["messageCount"]
    except (TypeError, KeyError) as error:
        raise _unreadable() from error
    if not isinstance(count, int) or not 0 <= count <= _MOST_MESSAGES:
        raise _unreadable()
    return count


async def whole(peer: AcpPeer, session: str) -> dict[str, Any]:
    """Return a session as goose exports it, which need not be open for that.

    Raises:
        HistoryFixedError: it cannot be read.
    """
    answer = await peer.request(f"{_SESSION}/export", {"sessionId": session})
    try:
        exported: dict[str, Any] = await asyncio.to_thread(parse_json, answer["data"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _unreadable() from error
    return exported


async def beginning(peer: AcpPeer, session: str, kept: int) -> dict[str, Any] | None:
    """Return a session as goose exports it, with only the first ``kept`` messages that people see
    and what goes with them; ``None`` when it has no more.

    Raises:
        HistoryFixedError: it cannot be cut there.
    """
    if await message_count(peer, session) <= kept:
        return None
    answer = await peer.request(f"{_SESSION}/export", {"sessionId": session})
    # In a thread: it may have megabytes.
    return await asyncio.to_thread(_cut, answer, kept)


def _cut(answer: Any, kept: int) -> dict[str, Any] | None:
    try:
        session: dict[str, Any] = parse_json(answer["data"])
        messages = session["conversation"]
        shown = [at for at, one in enumerate(messages) if one["metadata"]["userVisible"]]
        if len(shown) <= kept:
            return None
        cut = shown[kept]
        before, after = messages[:cut], messages[cut:]
        asked = after[0]["role"] == "user"
        known = not before or any(one["metadata"]["agentVisible"] for one in before)
        summarised = any(_is_hidden(one["metadata"]) for one in after)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _unreadable() from error
    if not asked:
        raise HistoryFixedError(
            "The agent's history is not as it was when this turn began, so it cannot be cut there."
        )
    if not known and summarised:
        raise HistoryFixedError(
            "The agent has summarised what was said before this turn, so its history cannot be cut "
            "there any more."
        )
    session["conversation"] = before
    # How full the model's context was, which goose counts anew, and what extensions kept since.
    session.pop("usage", None)
    session.pop(_BESIDE, None)
    return session


def _is_hidden(metadata: Any) -> bool:
    """Whether a message is the agent's alone, as a summary is; each turn has one with the time."""
    return not metadata["userVisible"] and not metadata.get("turnContext")


async def restore(
    peer: AcpPeer, setup: AgentSetup, exported: dict[str, Any], inside: Sequence[Entry]
) -> tuple[str, dict[str, str]]:
    """Make a session of an export, with the extensions ``inside`` goose; as ``new_session``."""
    extensions = {"extensions": [one["extension"] for one in inside]}
    exported[_BESIDE] = {**dig(exported, _BESIDE), _EXTENSIONS: extensions}
    text = await asyncio.to_thread(json.dumps, exported)
    answer = await peer.request(f"{_SESSION}/import", {"input": text, "source": "json"})
    session = str(answer["sessionId"])
    try:
        return session, await _loaded(peer, setup, session, exported, inside)
    except BaseException:  # however it ends: nobody would put it away later
        with suppress(AgentError, TimeoutError):
            async with asyncio.timeout(_ARCHIVED_WITHIN):
                await peer.request(f"{_SESSION}/archive", {"sessionId": session})
        raise


async def _loaded(
    peer: AcpPeer,
    setup: AgentSetup,
    session: str,
    exported: dict[str, Any],
    inside: Sequence[Entry],
) -> dict[str, str]:
    # An imported session has no model before it is loaded, and then the one of new sessions.
    params = {"sessionId": session, "cwd": str(setup.workspace), "mcpServers": []}
    loaded = await peer.request("session/load", params)
    config = exported.get("model_config")
    model = config.get("model_name") if isinstance(config, dict) else None
    if model is not None and model != _chosen(loaded, _MODEL):
        params = {"sessionId": session, "configId": _MODEL, "value": model}
        await peer.request("session/set_config_option", params)
    return await failures_of(peer, session, loaded, inside)


def _chosen(loaded: dict[str, Any], option: str) -> Any:
    options = loaded.get("configOptions") or []
    return next((one.get("currentValue") for one in options if one.get("id") == option), None)


def _unreadable() -> HistoryFixedError:
    return HistoryFixedError("The agent's history cannot be read, or is too long to be cut.")
