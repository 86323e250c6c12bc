"""What a reconciler is told of time, and what one pass remembers while it holds its claim."""

from dataclasses import dataclass
from datetime import datetime

from greylag.domain.errors import LeaseLostError
from greylag.domain.events import NewEvent
from greylag.domain.lifecycle import Observation, Step, Verb
from greylag.domain.project import Project
from greylag.ports.store import Claim


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take, in seconds.

    ``lease`` bounds how long a dead worker's projects rest; one step of a pass takes at most half
    of it. ``resync`` is how often an active environment is looked at without a reason.
    """

    lease: float
    resync: float
    activation_timeout: float

    @property
    def step(self) -> float:
        """The longest that one call of the cluster may take."""
        return self.lease / 2


class Pass:
    """One claim's work: its record as last written, and what was done and told already."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.started = False
        self.announced: set[Verb] = set()
        self._told: set[Step] = set()

    @property
    def project(self) -> Project:
        """The record as last read or written."""
        return self.claim.project

    def renew(self, claim: Claim) -> None:
        """Go on with the record as it is now; a changed wish makes the log begin anew."""
        if claim.project.generation != self.project.generation:
            self.started = False
            self.announced.clear()
            self._told.clear()
        self.claim = claim

    def check_lease(self, now: datetime) -> None:
        """Raise ``LeaseLostError`` when the lease has run out, as after this process was paused."""
        lease = self.project.lease
        if lease is not None and now >= lease.until:
            raise LeaseLostError("The lease ran out before the next step.")

    def new_steps(self, seen: Observation) -> list[NewEvent]:
        """Return the steps that the log has not heard of in this pass."""
        if not self.started:
            return []
        fresh = [step for step in seen.steps if step not in self._told]
        self._told.update(fresh)
        return [NewEvent(step.code, step.message) for step in fresh]
