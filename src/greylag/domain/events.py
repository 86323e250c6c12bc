"""The activation log: what the platform did for a project, in words, as it happened."""

from dataclasses import dataclass
from datetime import datetime

from greylag.domain.project import Status


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a project's activation log.

    ``seq`` counts from 1 within the project and never repeats; ``code`` is stable and for programs,
    ``message`` one plain sentence for people, ``hint`` what to do when it tells of a failure.
    """

    seq: int
    at: datetime
    code: str
    message: str
    status: Status
    generation: int
    hint: str = ""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event before the store has given it its number."""

    code: str
    message: str
    hint: str = ""
