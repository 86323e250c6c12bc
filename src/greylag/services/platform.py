"""What this installation is, for pages, clients and `greylag doctor`."""

from dataclasses import dataclass

DEMONSTRATION = (
    "This is a demonstration: no model provider is set, so a built-in script answers. Set"
    " GREYLAG_MODEL_URL, GREYLAG_MODEL_KEY and GREYLAG_MODEL, and activate the project again."
)


@dataclass(frozen=True, slots=True)
class Platform:
    """``notice`` and ``demonstration`` are sentences that every user must see, or ``None``."""

    version: str
    cluster: str
    store: str
    notice: str | None
    demonstration: str | None
