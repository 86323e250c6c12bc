"""Serving below a path: for proxies that route by it and pass it on as it came."""

from starlette.types import ASGIApp, Receive, Scope, Send


class Prefix:
    """ASGI middleware that takes ``prefix`` off the path of requests that have it.

    Requests without it are served as well: who is inside the cluster comes without a proxy.

    Args:
        app: what answers.
        prefix: begins with a slash and does not end in one; None: nothing is taken off.
    """

    def __init__(self, app: ASGIApp, prefix: str | None) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and self._prefix is not None:
            scope = _below(scope, self._prefix)
        await self._app(scope, receive, send)


def _below(scope: Scope, prefix: str) -> Scope:
    path = scope["path"]
    if path != prefix and not path.startswith(f"{prefix}/"):
        return scope
    rest = path[len(prefix) :] or "/"
    raw = scope.get("raw_path") or path.encode()
    return {**scope, "path": rest, "raw_path": raw[len(prefix.encode()) :] or b"/"}
