"""The cluster: where environments run."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from greylag.domain.lifecycle import Observation
from greylag.domain.project import Project, ProjectRef
from greylag.ports.agent import AgentAddress


class Cluster(Protocol):
    """Where environments run.

    Every method may raise ``ClusterError`` (``terminal`` when a retry cannot help) or
    ``ClusterUnavailableError`` (nothing is known). Verbs are idempotent, return as soon as the wish
    is handed over, and may be killed and repeated at any point; ``observe`` tells what came of it.
    A verb under an older claim than the newest that the environment has seen (``Project.fence``)
    raises ``LeaseLostError`` and does nothing.
    """

    kind: str
    """``kubernetes``, ``local`` or ``memory``."""

    notice: str | None
    """A sentence that users must see (such as: environments are not isolated), or ``None``."""

    async def observe(self, project: Project) -> Observation:
        """Return the environment's state. What cannot be told is ``UNKNOWN``, never ``ABSENT``."""

    async def prepare(self, project: Project) -> None:
        """Make all that the environment needs, not running: then it is ``STOPPED``. Nothing of an
        environment that exists is changed.
        """

    async def start(self, project: Project) -> None:
        """Prepare it and make it run: ``STARTING``, then ``READY`` or ``FAILED``. A running one is
        left alone; a failed one is started anew.
        """

    async def stop(self, project: Project) -> None:
        """End all its processes and keep its volume: ``STOPPING``, then ``STOPPED``."""

    async def delete(self, project: Project) -> None:
        """Remove a stopped environment with its volume: then it is ``ABSENT``."""

    async def changed(self, project: Project, timeout: float) -> None:  # noqa: ASYNC109 - see Subscription
        """Return when the environment may have changed, at the latest after ``timeout`` seconds."""

    def changes(self) -> AsyncIterator[ProjectRef]:
        """Yield projects whose environments changed unasked (ended, were deleted), until closed."""

    async def reach(self, project: Project) -> AgentAddress:
        """Return where a running environment's agent answers, else raise ``NotActiveError``."""

    def logs(
        self, project: Project, *, follow: bool, tail: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the environment's log: its last ``tail`` lines, then, with ``follow``, what comes.
        An environment that never ran has an empty log.
        """

    async def inventory(self) -> Sequence[ProjectRef]:
        """Return every environment of ours that exists, whether it has a record or not."""

    async def close(self) -> None:
        """Let go of the cluster; environments go on running."""
