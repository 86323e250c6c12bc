"""What is the same on every page."""

from dataclasses import dataclass
from typing import Literal

from greylag.services.platform import Platform

Back = Literal["list", "project"]
"""The page that a form was opened on, and that its answer leads back to."""


@dataclass(frozen=True, slots=True)
class Site:
    """What every page says of this installation; ``sign_out`` when there is a sign-in to end."""

    platform: Platform
    sign_out: bool


def back_of(value: str) -> Back:
    """Read where a form was opened; anything unknown is the list."""
    return "project" if value == "project" else "list"
