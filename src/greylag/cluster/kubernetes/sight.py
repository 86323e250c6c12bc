"""One look at the objects of an environment. Pure.

Objects are the JSON of the API server as plain dictionaries (or of the watches' caches).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from greylag.cluster.kubernetes.pods import (
    Object,
    container,
    crashes,
    is_current,
    is_ready,
    is_removed,
    lives,
    mark,
)

PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)


@dataclass(frozen=True, slots=True)
class Sight:
    """What of an environment is there, ``None`` or empty where it is not.

    ``endpoint`` is where it is told to be reached, once known; ``events`` are Kubernetes' Events of
    its pods and claim, oldest first; ``last_words`` the end of a crashed container's log.
    """

    deployment: Object | None = None
    pods: Sequence[Object] = ()
    claim: Object | None = None
    service: Object | None = None
    endpoint: str | None = None
    events: Sequence[Object] = ()
    last_words: str = ""

    @property
    def wanted(self) -> bool:
        """Whether it is to run."""
        return self.deployment is not None and bool(self.deployment["spec"].get("replicas", 1))

    @property
    def pod(self) -> Object | None:
        """The newest pod of the present start that is neither ended nor being removed."""
        present = mark(self.deployment)
        alive = [pod for pod in self.pods if lives(pod) and mark(pod) == present]
        return max(
            alive, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", default=None
        )

    @property
    def failed_itself(self) -> bool:
        """Whether only another pod can help: it has none that is ready."""
        pod = self.pod
        return pod is None or not is_ready(pod)


def needs_events(sight: Sight) -> bool:
    """Tell whether Events may say more than the objects do: it waits for something."""
    pod = sight.pod
    return sight.wanted and pod is not None and not is_ready(pod)


def crashed(sight: Sight) -> str | None:
    """Return the name of the pod whose container ends again and again, ``None`` when none does."""
    pod = sight.pod
    return pod["metadata"]["name"] if pod is not None and crashes(pod) else None


def waits(sight: Sight) -> bool:
    """Tell whether the container waits for what Events or its log explain."""
    pod = sight.pod
    if pod is None:
        return False
    waiting = container(pod).get("state", {}).get("waiting") or {}
    return waiting.get("reason") in PULL_REASONS or crashes(pod)


def is_idle(sight: Sight) -> bool:
    """Tell whether nothing runs of an environment that is not to run, and nothing will."""
    if any(lives(pod) or is_removed(pod) for pod in sight.pods):
        return False
    deployment = sight.deployment
    return deployment is None or (
        is_current(deployment) and not (deployment.get("status") or {}).get("replicas")
    )
