"""The agent's settings as the older contract shows and changes them, and those that a session may
have of its own.
"""

import asyncio
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from greylag.agentd.agent.types import AgentError, AgentPort
from greylag.agentd.problems import RequestError, agent_failed, not_found
from greylag.agentd.records import Records, SessionRecord
from greylag.common.agent_api import AgentSetting, SettingValue


class SettingValueError(ValueError):
    """A value is not one that the setting may take; the message says which ones are."""


@dataclass(frozen=True, slots=True)
class GooseSetting:
    """One setting of the agent.

    Attributes:
        key: its name, in the environment and in goose's own configuration alike.
        description: one sentence for people.
        default: the value when nothing else says (None: there is none). Where it is a number, all
            values are; where it is a whole one, too.
        least: smallest number allowed.
        most: largest number allowed.
        allowed: the only texts allowed, empty for any.
        pattern: regular expression that a text must match in whole.
        restart_required: a change is seen only after agentd has been started again.
        pinned: goose has another default or none, so ours is always written out.
    """

    key: str
    description: str
    default: SettingValue | None
    least: float | None = None
    most: float | None = None
    allowed: tuple[str, ...] = ()
    pattern: str | None = None
    restart_required: bool = False
    pinned: bool = False

    @property
    def validation(self) -> dict[str, Any]:
        """The rules as the contract shows them (only those that are there)."""
        rules = {
            "min": self.least,
            "max": self.most,
            "allowed_values": list(self.allowed) or None,
            "pattern": self.pattern,
        }
        return {name: rule for name, rule in rules.items() if rule is not None}

    def parse(self, value: object) -> SettingValue:
        """Return ``value`` (JSON, or text from the environment) as this setting's own type.

        Raises:
            SettingValueError: the value breaks one of the rules.
        """
        return self._number(value) if isinstance(self.default, int | float) else self._text(value)

    def allows(self, value: object) -> bool:
        """Tell whether the setting may have this value."""
        try:
            self.parse(value)
        except SettingValueError:
            return False
        return True

    def _number(self, value: object) -> SettingValue:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise SettingValueError("the value must be a number.")
        try:
            number = float(value)
        except (ValueError, OverflowError) as error:
            raise SettingValueError("the value must be a number.") from error
        whole = isinstance(self.default, int)
        if not math.isfinite(number) or (whole and not number.is_integer()):
            raise SettingValueError(f"the value must be a {'whole ' if whole else ''}number.")
        if self.least is not None and number < self.least:
            raise SettingValueError(f"the value must be at least {self.least:g}.")
        if self.most is not None and number > self.most:
            raise SettingValueError(f"the value must be at most {self.most:g}.")
        return int(number) if whole else number

    def _text(self, value: object) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise SettingValueError("the value must be text on one line.")
        if self.allowed and value not in self.allowed:
            raise SettingValueError(f"the value must be one of {', '.join(self.allowed)}.")
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            raise SettingValueError(f"the value must match {self.pattern}.")
        return value

    def shown(self, value: SettingValue | None, override: str | None) -> AgentSetting:
        """Return the setting as the contract shows it.

        Args:
            value: what holds now.
            override: what the environment fixes, None when it fixes nothing.
        """
        return AgentSetting(
            key=self.key,
            value=value,
            default_value=self.default,
            description=self.description,
            value_type="number" if isinstance(self.default, int | float) else "string",
            validation=self.validation,
            env_override=override,
            restart_required=self.restart_required,
        )


_ALL = (
    GooseSetting(
        "GOOSE_MODEL",
        "Name of the model that answers.",
        "gpt-4o",
        restart_required=True,
        pinned=True,
    ),
    GooseSetting(
        "GOOSE_TEMPERATURE", "How freely the model chooses its words.", 0.7, least=0, most=2
    ),
    GooseSetting(
        "GOOSE_MODE",
        "When the agent asks before it runs a tool.",
        "smart_approve",
        allowed=("auto", "approve", "smart_approve", "chat"),
        pinned=True,
    ),
    GooseSetting(
        "GOOSE_MAX_TURNS", "How many steps the agent may take for one message.", 1000, least=1
    ),
    GooseSetting(
        "GOOSE_CLI_MIN_PRIORITY",
        "Smallest priority of tool output that is shown.",
        0.0,
        least=0,
        most=1,
    ),
    GooseSetting(
        "GOOSE_RECIPE_GITHUB_REPO",
        "GitHub repository that recipes are read from.",
        None,
        pattern=r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+",
    ),
    GooseSetting(
        "GOOSE_AUTO_COMPACT_THRESHOLD",
        "How full the context may be before it is compacted.",
        0.8,
        least=0,
        most=1,
    ),
)

GOOSE_SETTINGS = MappingProxyType({setting.key: setting for setting in _ALL})
_MODEL = "GOOSE_MODEL"
_OF_SESSIONS: Mapping[str, Literal["mode", "model"]] = {"GOOSE_MODE": "mode", _MODEL: "model"}
"""What goose calls, in a session, the settings that it may have of its own."""
_OFFERED = "_goose/unstable/providers/supported-models/list"
_MODELS_SECONDS = 20.0
_MOST_MODELS = 1000
_MOST_MODEL_NAME = 200


def _parsed(setting: GooseSetting, value: object) -> SettingValue:
    try:
        return setting.parse(value)
    except SettingValueError as error:
        reason = f"{setting.key}: {error}"
        raise RequestError("setting_invalid", reason, "Validation failed") from error


class SettingsService:
    """Shows and changes settings. What the environment fixes cannot be changed.

    A change goes to goose first and is kept after, so what is shown is never ahead of goose.
    goose takes it for sessions made from then on, mode and model for all, from their next message
    on: there the environment's word counts, then the session's own, then the setting.

    Args:
        agent: who is told of changes.
        records: where changes are kept.
        overrides: what the environment fixes, as text by key.
        models: the models that there are to choose from, the first one by default; one alone is
            fixed, with none it is left to the provider.
    """

    def __init__(
        self,
        agent: AgentPort,
        records: Records,
        overrides: Mapping[str, str],
        models: Sequence[str] = (),
    ) -> None:
        self._agent = agent
        self._records = records.settings
        self._sessions = records.sessions
        self._overrides = {**overrides, **({_MODEL: models[0]} if len(models) == 1 else {})}
        self._settings = dict(GOOSE_SETTINGS)
        if len(models) > 1:
            some = replace(GOOSE_SETTINGS[_MODEL], default=models[0], allowed=tuple(models))
            self._settings[_MODEL] = some

    async def all(self) -> list[AgentSetting]:
        """Return every setting as it stands."""
        changed = await self._records.all()
        return [self._state(setting, changed) for setting in self._settings.values()]

    async def get(self, key: str) -> AgentSetting:
        """Return one setting as it stands."""
        setting = self._settings.get(key)
        if setting is None:
            raise not_found("setting", key)
        return self._state(setting, await self._records.all())

    async def change(self, key: str, value: object) -> AgentSetting:
        """Give a setting a value.

        Raises:
            RequestError: setting_not_found, setting_overridden, setting_invalid, or
                agent_unavailable when goose cannot be told.
        """
        setting = await self._changeable(key)
        parsed = _parsed(setting, value)
        await self._tell("config/upsert", {"key": key, "value": parsed})
        await self._records.keep(key, json.dumps(parsed))
        return setting.shown(parsed, None)

    async def reset(self, key: str) -> AgentSetting:
        """Give a setting its default again.

        Raises:
            RequestError: setting_not_found, setting_overridden, or agent_unavailable.
        """
        setting = await self._changeable(key)
        if setting.pinned:
            await self._tell("config/upsert", {"key": key, "value": setting.default})
        else:
            await self._tell("config/remove", {"key": key})
        await self._records.forget(key)
        return setting.shown(setting.default, None)

    async def configure(self, session_id: str, agent_session_id: str) -> None:
        """Have the agent work in a session with the mode and the model that hold there.

        Raises:
            AgentError: it does not.
        """
        session = await self._sessions.get(session_id)
        if session is not None:
            await self._agent.configure(agent_session_id, await self._of_session(session))

    async def choose(self, session_id: str, key: str, value: object) -> AgentSetting:
        """Give a session a mode or a model of its own, from its next message on; "" gives it the
        setting's again.

        Raises:
            RequestError: session_not_found, setting_not_found, setting_overridden, or
                setting_invalid.
        """
        if key not in _OF_SESSIONS:
            raise not_found("setting", key)
        setting = await self._changeable(key)
        own = None if value == "" else str(_parsed(setting, value))
        if await self._sessions.get(session_id) is None:
            raise not_found("session", session_id)
        await self._sessions.choose(session_id, _OF_SESSIONS[key], own)
        shown = await self.get(key)
        return replace(shown, value=own or shown.value)

    async def models(self) -> list[str]:
        """Return the models that there are to choose from; none where the provider does not tell.

        Raises:
            RequestError: agent_unavailable or agent_refused.
        """
        if some := self._settings[_MODEL].allowed:
            return list(some)
        try:
            async with asyncio.timeout(_MODELS_SECONDS):
                told = await self._agent.call(_OFFERED, {"providerId": "openai"})
        except TimeoutError as error:
            reason = f"The provider did not tell its models within {_MODELS_SECONDS:g} seconds."
            raise RequestError("agent_unavailable", reason) from error
        except AgentError as error:
            if error.unknown_method:
                return []
            raise agent_failed(error, "") from error
        found = told.get("models") if isinstance(told, dict) else None
        names = {one for one in found or [] if isinstance(one, str) and one.isprintable()}
        return sorted(one for one in names if 0 < len(one) <= _MOST_MODEL_NAME)[:_MOST_MODELS]

    async def _of_session(self, session: SessionRecord) -> dict[str, str]:
        changed = await self._records.all()
        found: dict[str, str] = {}
        for key, name in _OF_SESSIONS.items():
            setting, own = self._settings[key], getattr(session, name)
            shown = self._state(setting, changed)
            free = shown.env_override is None and own and setting.allows(own)
            found[name] = str(own if free else shown.value)
        return found

    async def _changeable(self, key: str) -> GooseSetting:
        if (await self.get(key)).env_override is not None:
            reason = f"{key} is fixed by the environment that agentd was started with."
            raise RequestError("setting_overridden", reason)
        return self._settings[key]

    async def _tell(self, method: str, params: dict[str, Any]) -> None:
        try:
            await self._agent.call(f"_goose/unstable/{method}", params)
        except AgentError as error:
            # The scripted agent has no settings; what is kept here waits for a real goose.
            if not error.unknown_method:
                raise agent_failed(error, "The agent has no settings.") from error

    def _state(self, setting: GooseSetting, changed: Mapping[str, str]) -> AgentSetting:
        override = self._overrides.get(setting.key)
        value: SettingValue | None = setting.default
        if override is not None:
            value = setting.parse(override)
        elif setting.key in changed:
            kept = json.loads(changed[setting.key])
            value = kept if setting.allows(kept) else value
        return setting.shown(value, override)
