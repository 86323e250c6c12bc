"""The web for hosts that start a process for a request, freeze it after, and end it at any time.

``app`` is the ASGI application that such a host calls; ``docs/serverless.md`` tells what it needs.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from greylag.common.logs import configure_logging
from greylag.config import Settings, load_settings
from greylag.domain.errors import ConfigError, GreylagError
from greylag.web import errors
from greylag.web.app import create_app
from greylag.web.request_log import RequestLogger
from greylag.wiring import assembled_web

_log = structlog.get_logger(__name__)


class Serverless:
    """ASGI application that is assembled when the first request comes, on that request's loop.

    What is assembled belongs to one event loop; a host that runs requests on several, or on a new
    one after the last has ended, gets one for each. While it cannot be assembled, requests are told
    why, and each tries again.

    Args:
        settings: reads them; may raise ``ConfigError``.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._sites: dict[asyncio.AbstractEventLoop, _AssembledSite] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or the host's lifespan messages, on which nothing depends."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        app = await self._site().app()
        await app(scope, receive, send)

    def _site(self) -> "_AssembledSite":
        loop = asyncio.get_running_loop()
        if loop not in self._sites:
            # What belongs to a loop that has ended has ended with it, and nobody can close it.
            self._sites = {one: site for one, site in self._sites.items() if not one.is_closed()}
            self._sites[loop] = _AssembledSite(self._settings)
        return self._sites[loop]

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if site := self._sites.pop(asyncio.get_running_loop(), None):
            await site.close()
        await send({"type": "lifespan.shutdown.complete"})


class _AssembledSite:
    """The application of one event loop, once it could be assembled."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._tries = 0
        self._app: ASGIApp | None = None
        self._refusal: ASGIApp | None = None
        self._opened = AsyncExitStack()

    async def app(self) -> ASGIApp:
        """Return the application, or one that tells why there is none."""
        tries = self._tries
        while self._app is None:
            async with self._lock:
                # Whoever has waited for another's try shares what came of it.
                if self._tries == tries:
                    await self._try()
                tries = self._tries
                if self._refusal is not None:
                    return self._refusal
        return self._app

    async def close(self) -> None:
        """Close what was assembled."""
        self._app = None
        await self._opened.aclose()

    async def _try(self) -> None:
        self._refusal = None
        try:
            settings = _checked(self._settings())
            configure_logging(settings.log_format, settings.log_level)
            async with AsyncExitStack() as opened:
                use_cases = await opened.enter_async_context(assembled_web(settings))
                self._app = create_app(use_cases, settings)
                self._opened = opened.pop_all()
        except GreylagError as error:
            _log.warning("not_assembled", error=str(error))
            self._refusal = RequestLogger(_RefusedSite(error))
        except Exception as error:  # noqa: BLE001 - logged with its stack; the request is answered
            self._refusal = RequestLogger(_RefusedSite(error))
        finally:
            self._tries += 1


class _RefusedSite:
    """Answers every request with why there is no application."""

    def __init__(self, error: Exception) -> None:
        self._info = errors.translated(error)
        own_fault = isinstance(error, ConfigError) or not isinstance(error, GreylagError)
        self._status = 500 if own_fault else 503

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a problem document."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        response = errors.problem_response(self._info, status=self._status)
        await response(scope, receive, send)


def _checked(settings: Settings) -> Settings:
    """Return ``settings`` if a web that everybody can reach may run with them."""
    if settings.token is None:
        raise ConfigError("GREYLAG_TOKEN: it must be set, as everybody can reach this web.")
    if settings.mongodb_uri is None:
        raise ConfigError("MONGODB_URI: it must be set, as this web keeps nothing itself.")
    return settings


app = Serverless(load_settings)
