"""Whether the settings lead to an API server that takes us, to be asked at start."""

import aiohttp

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.failures import ApiError
from greylag.domain.errors import ClusterUnavailableError, ConfigError


async def server_version(api: Api) -> str:
    """Return the API server's version.

    Raises ``ConfigError`` when the settings lead to something that will not take us, and
    ``ClusterUnavailableError`` when nothing answers: that may pass.
    """
    to = api.connection
    try:
        return str((await api.get("/version"))["gitVersion"])
    except ClusterUnavailableError as error:
        if isinstance(error.__cause__, aiohttp.ClientSSLError):
            raise ConfigError(
                f"{to.source} does not fit the API server {to.server}: its certificate "
                "is not from the authority that is given."
            ) from error
        raise
    except ApiError as error:
        raise ConfigError(
            f"{to.source} does not fit the API server {to.server}: it answers {error}."
        ) from error
    except (KeyError, TypeError) as error:
        message = f"{to.source}: what answers at {to.server} is no Kubernetes API server."
        raise ConfigError(message) from error
