"""What is kept of a local environment, beside its volume."""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from greylag.cluster.processes import ProcessId
from greylag.domain.project import ProjectRef


class Phase(StrEnum):
    """What is meant to be, as the last verb left it."""

    STOPPED = "stopped"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The record of one environment, in ``environment.json``.

    ``mark`` is in the environment variables of all its processes. ``process`` is the one that we
    started (agentd, or the sandbox around it) and ``boxed`` tells which; ``exit_code`` is set when
    it ended unasked and we could tell. ``log_start`` is where its lines begin in the log, in bytes.
    Times are seconds since the epoch.
    """

    ref: ProjectRef
    mark: str
    token: str = field(repr=False)
    phase: Phase = Phase.STOPPED
    process: ProcessId | None = None
    boxed: bool = False
    started_at: float | None = None
    stopping_since: float | None = None
    exit_code: int | None = None
    log_start: int = 0

    def to_json(self) -> bytes:
        """Return the record as a file's content."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Record":
        """Read a file's content.

        Raises:
            ValueError, KeyError, TypeError: it is none of ours.
        """
        raw = json.loads(content)
        process = raw.pop("process")
        return cls(
            **{
                **raw,
                "ref": ProjectRef(**raw["ref"]),
                "phase": Phase(raw["phase"]),
                "process": None if process is None else ProcessId(**process),
            }
        )
