"""The Prefer header (RFC 7240), as far as we honour it: ``respond-async`` and ``wait``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_WAIT_SECONDS = 3600
_WAIT = re.compile(r'wait\s*=\s*"?(\d+)"?')


@dataclass(frozen=True, slots=True)
class Prefer:
    """What a client would like: an answer at once, and how long to wait, in seconds."""

    respond_async: bool = False
    wait: float | None = None

    @property
    def applied(self) -> str:
        """The value of Preference-Applied that says so; empty when there is nothing to say."""
        said = ["respond-async"] if self.respond_async else []
        if self.wait is not None:
            said.append(f"wait={self.wait:.0f}")
        return ", ".join(said)


def parse_prefer(headers: Sequence[str]) -> Prefer:
    """Return the preferences in the request's Prefer headers.

    What we do not know or cannot read is passed over, as section 2 of the RFC demands; of one given
    twice the first counts. ``wait`` is cut to an hour.
    """
    respond_async = False
    wait: float | None = None
    for part in ",".join(headers).split(","):
        preference = part.partition(";")[0].strip().lower()
        if preference == "respond-async":
            respond_async = True
        elif wait is None and (found := _WAIT.fullmatch(preference)):
            # Digits are compared by their number first: a huge one is not worth converting.
            digits = found[1].lstrip("0") or "0"
            wait = min(int(digits[:5]), MAX_WAIT_SECONDS)
    return Prefer(respond_async, wait)
