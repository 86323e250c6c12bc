"""One request and its answer, as the parts of the web share it through the ASGI scope."""

import time
from dataclasses import dataclass, field

from starlette.types import Scope, Send

from greylag.domain.users import Principal

_KEY = "greylag.exchange"


@dataclass(slots=True)
class Exchange:
    """One request on its way.

    Attributes:
        request_id: as it came, or as we made it.
        send: the server's own ``send``. The body of a stream goes straight to it: no layer between
            looks at one, and each would cost a call per event.
        principal: who asks, once that is known.
        status: the HTTP status, once the answer has begun.
        client_left: whether a stream ended because its client went away.
        started: when the request came, on ``time.monotonic``.
    """

    request_id: str
    send: Send
    principal: Principal | None = None
    status: int | None = None
    client_left: bool = False
    started: float = field(default_factory=time.monotonic)

    def open(self, scope: Scope) -> None:
        """Make this the exchange of ``scope``."""
        scope[_KEY] = self


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of a request that came through ``RequestLog``."""
    found: Exchange = scope[_KEY]
    return found
