"""The agent's settings as the older contract shows and changes them."""

import json
from collections.abc import Mapping
from typing import Any

from greylag.agentd.agent.errors import AgentError, AgentRefusedError
from greylag.agentd.agent.port import AgentPort
from greylag.agentd.agent.settings import (
    GOOSE_SETTINGS,
    GooseSetting,
    SettingState,
    SettingValue,
    SettingValueError,
)
from greylag.agentd.problems import RefusedError, agent_unavailable
from greylag.agentd.records.sessions import SessionRecords

_METHOD_NOT_FOUND = -32601


class SettingsService:
    """Shows and changes settings. What the environment fixes cannot be changed.

    A change goes to goose first and is kept after, so what is shown is never ahead of goose.
    goose takes it for sessions made from then on.

    Args:
        agent: who is told of changes.
        records: where changes are kept.
        overrides: what the environment fixes, as text by key.
    """

    def __init__(
        self, agent: AgentPort, records: SessionRecords, overrides: Mapping[str, str]
    ) -> None:
        self._agent = agent
        self._records = records
        self._overrides = overrides

    async def all(self) -> list[SettingState]:
        """Return every setting as it stands."""
        changed = await self._records.settings()
        return [self._state(setting, changed) for setting in GOOSE_SETTINGS.values()]

    async def get(self, key: str) -> SettingState:
        """Return one setting as it stands.

        Raises:
            RefusedError: setting_not_found.
        """
        setting = GOOSE_SETTINGS.get(key)
        if setting is None:
            raise RefusedError(
                "setting_not_found", "Setting not found", f"There is no setting {key[:100]!r}."
            )
        return self._state(setting, await self._records.settings())

    async def change(self, key: str, value: object) -> SettingState:
        """Give a setting a value.

        Raises:
            RefusedError: setting_not_found, setting_overridden, setting_invalid, or
                agent_unavailable when goose cannot be told.
        """
        setting = await self._changeable(key)
        try:
            parsed = setting.parse(value)
        except SettingValueError as error:
            raise RefusedError("setting_invalid", "Validation failed", f"{key}: {error}") from error
        await self._tell("config/upsert", {"key": key, "value": parsed})
        await self._records.set_setting(key, json.dumps(parsed))
        return SettingState(setting, parsed, None)

    async def reset(self, key: str) -> SettingState:
        """Give a setting its default again.

        Raises:
            RefusedError: setting_not_found, setting_overridden, or agent_unavailable.
        """
        setting = await self._changeable(key)
        if setting.pinned:
            await self._tell("config/upsert", {"key": key, "value": setting.default})
        else:
            await self._tell("config/remove", {"key": key})
        await self._records.set_setting(key, None)
        return SettingState(setting, setting.default, None)

    async def _changeable(self, key: str) -> GooseSetting:
        state = await self.get(key)
        if state.env_override is not None:
            raise RefusedError(
                "setting_overridden",
                "Setting overridden",
                f"{key} is fixed by the environment that agentd was started with.",
            )
        return state.setting

    async def _tell(self, method: str, params: dict[str, Any]) -> None:
        try:
            await self._agent.call(f"_goose/unstable/{method}", params)
        except AgentRefusedError as error:
            # The scripted agent has no settings; what is kept here waits for a real goose.
            if error.code != _METHOD_NOT_FOUND:
                raise RefusedError("agent_refused", "Agent refused", error.message) from error
        except AgentError as error:
            raise agent_unavailable(str(error)) from error

    def _state(self, setting: GooseSetting, changed: Mapping[str, str]) -> SettingState:
        override = self._overrides.get(setting.key)
        value: SettingValue | None = setting.default
        if override is not None:
            value = setting.parse(override)
        elif setting.key in changed:
            value = json.loads(changed[setting.key])
        return SettingState(setting, value, override)
