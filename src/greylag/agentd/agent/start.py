"""What agentd says to a fresh agent process before it trusts it with work."""

from collections.abc import Mapping
from typing import Any

from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.types import AgentKind, AgentSetup

_PROTOCOL_VERSION = 1
_PREPARED = "GREYLAG_PREPARED"
_TOOLS_ON = "developer"
_INITIALIZE = {
    "protocolVersion": _PROTOCOL_VERSION,
    # Without customNotifications goose says nothing of compaction and of an overfull context.
    "clientCapabilities": {"_meta": {"goose": {"customNotifications": True}}},
    "clientInfo": {"name": "greylag", "version": "1"},
}


async def make_ready(peer: AcpPeer, setup: AgentSetup, kind: AgentKind) -> str:
    """Bring a fresh agent to where it can take sessions, and prove that it can.

    Returns:
        The agent's version.

    Raises:
        AgentRefusedError: it answered one of the steps with an error.
        AgentDiedError: it ended meanwhile.
    """
    answer = await peer.request("initialize", dict(_INITIALIZE))
    if kind == "goose":
        await _store_defaults(peer, setup.defaults)
        await _limit_extensions(peer)
    # goose's own health check says yes when nothing works; only a session that was made is proof.
    session = await new_session(peer, setup, "Readiness")
    await peer.request("session/delete", {"sessionId": session})
    info = answer.get("agentInfo") or {}
    return str(info.get("version", "unknown"))


async def new_session(peer: AcpPeer, setup: AgentSetup, title: str) -> str:
    """Make a session and return the agent's id for it; raises as `make_ready` does."""
    # With a title given, goose makes no extra model calls to find one.
    params = {"cwd": str(setup.workspace), "mcpServers": [], "_meta": {"sessionTitle": title}}
    answer = await peer.request("session/new", params)
    return str(answer["sessionId"])


async def _store_defaults(peer: AcpPeer, defaults: Mapping[str, str]) -> None:
    for key, value in defaults.items():
        if await _read(peer, key) is None:
            params = {"key": key, "value": value}
            await peer.request("_goose/unstable/config/upsert", params)


async def _limit_extensions(peer: AcpPeer) -> None:
    """Turn off, once for each HOME, the many extensions that goose has on by default.

    Once only: what the user turns on later stays on.
    """
    if await _read(peer, _PREPARED) is not None:
        return
    listed = await peer.request("_goose/unstable/config/extensions/list", {})
    for entry in listed["extensions"]:
        if entry["enabled"] and entry["configKey"] != _TOOLS_ON:
            params = {"configKey": entry["configKey"], "enabled": False}
            await peer.request("_goose/unstable/config/extensions/set-enabled", params)
    params = {"key": _PREPARED, "value": "1"}
    await peer.request("_goose/unstable/config/upsert", params)


async def _read(peer: AcpPeer, key: str) -> Any:
    answer = await peer.request("_goose/unstable/config/read", {"key": key})
    return answer.get("value")
