"""Turning what the API server refuses into errors that everyone can read."""

from collections.abc import Iterator
from contextlib import contextmanager

from greylag.cluster.kubernetes import causes
from greylag.cluster.kubernetes.causes import Cause, quoted
from greylag.cluster.kubernetes.failures import ApiError
from greylag.domain.errors import ClusterError

_UNAUTHORIZED = 401
_CONFLICT = 409
_INVALID = frozenset({400, 422})


@contextmanager
def told() -> Iterator[None]:
    """Raise ``ClusterError`` for what the API server refuses inside, the cause chained."""
    try:
        yield
    except ApiError as error:
        raise cluster_error(error) from error


def cluster_error(error: ApiError) -> ClusterError:
    """Return what ``error`` means to users; ``terminal`` where trying again cannot help."""
    cause = causes.refusal(error.message)
    if cause is not None:
        return of_cause(cause)
    words = quoted(error.message) or error.reason
    if error.status == _UNAUTHORIZED:
        return ClusterError(
            "The cluster does not know Greylag's credentials any more.",
            code="cluster_unauthorized",
            hint="Renew KUBE_TOKEN or the kubeconfig, and start Greylag again.",
        )
    if error.status == _CONFLICT:
        return ClusterError(
            f"Somebody else changes the environment at the same time: {words}",
            code="cluster_conflict",
            hint="Greylag tries again by itself.",
        )
    if error.status in _INVALID:
        return ClusterError(
            f"The cluster does not take what Greylag asks for: {words}",
            code="cluster_refused",
            hint="Check settings and template; `greylag manifests` shows what is asked for.",
            terminal=True,
        )
    return ClusterError(f"The cluster refused a step: {words}")


def of_cause(cause: Cause) -> ClusterError:
    """Return ``cause`` as an error to raise."""
    info = cause.error
    return ClusterError(info.message, code=info.code, hint=info.hint, terminal=cause.final)
