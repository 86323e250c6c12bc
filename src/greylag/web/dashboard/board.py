"""What every handler of the dashboard works with."""

from dataclasses import dataclass
from typing import Literal

from greylag.config import Settings
from greylag.services.platform import Platform
from greylag.services.use_cases import UseCases
from greylag.web.stream import Streams

Back = Literal["list", "project"]
"""The page that a form was opened on, and that its answer leads back to."""


@dataclass(frozen=True, slots=True)
class Site:
    """What every page says of this installation; ``sign_out`` when there is a sign-in to end."""

    platform: Platform
    sign_out: bool


@dataclass(frozen=True, slots=True)
class Board:
    """The use cases that handlers ask, and the streams that they open."""

    use_cases: UseCases
    streams: Streams
    site: Site

    @classmethod
    def of(cls, use_cases: UseCases, settings: Settings) -> "Board":
        """Return the board of one application."""
        site = Site(use_cases.platform, sign_out=settings.token is not None)
        return cls(use_cases, Streams(settings), site)


def back_of(value: str | None) -> Back:
    """Read where a form was opened; anything unknown is the list."""
    return "project" if value == "project" else "list"
