"""The settings that the older contract offers, and what values each may take."""

import math
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

SettingValue = str | int | float


class SettingValueError(ValueError):
    """A value is not one that the setting may take; the message says which ones are."""


@dataclass(frozen=True, slots=True)
class GooseSetting:
    """One setting of the agent.

    Attributes:
        key: its name, in the environment and in goose's own configuration alike.
        description: one sentence for people.
        default: the value when nothing else says (None: there is none).
        number: True for a number, False for text.
        whole: only whole numbers.
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
    number: bool = False
    whole: bool = False
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
        """Return `value` (JSON, or text from the environment) as this setting's own type.

        Raises:
            SettingValueError: the value breaks one of the rules.
        """
        return self._number(value) if self.number else self._text(value)

    def _number(self, value: object) -> SettingValue:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise SettingValueError("the value must be a number.")
        try:
            number = float(value)
        except (ValueError, OverflowError) as error:
            raise SettingValueError("the value must be a number.") from error
        if not math.isfinite(number) or (self.whole and not number.is_integer()):
            raise SettingValueError(f"the value must be a {'whole ' if self.whole else ''}number.")
        if self.least is not None and number < self.least:
            raise SettingValueError(f"the value must be at least {self.least:g}.")
        if self.most is not None and number > self.most:
            raise SettingValueError(f"the value must be at most {self.most:g}.")
        return int(number) if self.whole else number

    def _text(self, value: object) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise SettingValueError("the value must be text on one line.")
        if self.allowed and value not in self.allowed:
            raise SettingValueError(f"the value must be one of {', '.join(self.allowed)}.")
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            raise SettingValueError(f"the value must match {self.pattern}.")
        return value


@dataclass(frozen=True, slots=True)
class SettingState:
    """A setting with the value that holds now, and what the environment fixes (or None)."""

    setting: GooseSetting
    value: SettingValue | None
    env_override: str | None


_ALL = (
    GooseSetting(
        "GOOSE_MODEL",
        "Name of the model that answers.",
        "gpt-4o",
        restart_required=True,
        pinned=True,
    ),
    GooseSetting(
        "GOOSE_TEMPERATURE",
        "How freely the model chooses its words.",
        0.7,
        number=True,
        least=0,
        most=2,
    ),
    GooseSetting(
        "GOOSE_MODE",
        "When the agent asks before it runs a tool.",
        "smart_approve",
        allowed=("auto", "approve", "smart_approve", "chat"),
        pinned=True,
    ),
    GooseSetting(
        "GOOSE_MAX_TURNS",
        "How many steps the agent may take for one message.",
        1000,
        number=True,
        whole=True,
        least=1,
    ),
    GooseSetting(
        "GOOSE_CLI_MIN_PRIORITY",
        "Smallest priority of tool output that is shown.",
        0.0,
        number=True,
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
        number=True,
        least=0,
        most=1,
    ),
)

GOOSE_SETTINGS = MappingProxyType({setting.key: setting for setting in _ALL})
