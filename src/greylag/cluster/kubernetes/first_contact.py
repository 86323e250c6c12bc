"""Whether the settings lead to an API server that takes us, to be asked at start."""

import socket

import aiohttp

from greylag.cluster.kubernetes import tls
from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.connection import Connection
from greylag.cluster.kubernetes.failures import ApiError
from greylag.domain.errors import ClusterUnavailableError, ConfigError

_UNAUTHORIZED = 401
# Where one thing is in several settings: which holds the authority, and which the credentials.
_PARTS = {"KUBE_HOST": ("KUBE_CA", "KUBE_TOKEN")}


async def server_version(api: Api) -> str:
    """Return the API server's version.

    Raises ``ConfigError`` when the settings lead to something that will not take us, and
    ``ClusterUnavailableError`` when nothing answers: that may pass.
    """
    to = api.connection
    try:
        return str((await api.get("/version"))["gitVersion"])
    except ClusterUnavailableError as error:
        if (wrong := _wrong_way(to, error.__cause__)) is not None:
            raise wrong from error
        raise ClusterUnavailableError(f"{to.source}: {error}", hint=error.info.hint) from error
    except ApiError as error:
        setting = _PARTS[to.source][1] if _is_unknown(to, error) else to.source
        raise ConfigError(
            f"{setting} does not fit the API server {to.server}: it answers {error}."
        ) from error
    except (KeyError, TypeError) as error:
        message = f"{to.source}: what answers at {to.server} is no Kubernetes API server."
        raise ConfigError(message) from error


def _is_unknown(to: Connection, error: ApiError) -> bool:
    return error.status == _UNAUTHORIZED and to.source in _PARTS


def _wrong_way(to: Connection, cause: BaseException | None) -> ConfigError | None:
    """Return what is wrong with the settings for good, ``None`` for what may pass."""
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        setting = to.source if tls.is_other_name(cause) else _PARTS.get(to.source, (to.source,))[0]
        return ConfigError(
            f"{setting} does not fit the API server {to.server}: "
            f"its certificate is refused ({tls.why_refused(cause)})."
        )
    if isinstance(cause, aiohttp.ClientConnectorSSLError):
        return ConfigError(
            f"{to.source}: there is no TLS with what answers at {to.server} "
            f"({tls.why_refused(cause)})."
        )
    dns = cause if isinstance(cause, aiohttp.ClientConnectorDNSError) else None
    if dns is not None and dns.os_error.errno == socket.EAI_NONAME:
        return ConfigError(f"{to.source}: no host of the name in {to.server} is known.")
    return None
