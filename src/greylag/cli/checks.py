"""One finding of `greylag doctor`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, and what to do about it (empty: nothing)."""

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return asdict(self)
