"""What a file of a workspace is sent as: what its name says, where no browser can do harm by it."""

import mimetypes

from greylag.common.agent_api import BYTES

SAVED = (
    "application/json",
    "application/x-tar",
    "application/zip",
    "audio/*",
    "image/*",
    "text/csv",
    "text/markdown",
    "text/plain",
    "text/tab-separated-values",
    "text/x-python",
    "video/*",
)
"""What files may be sent as on our own origin, to be saved: nothing that a browser there runs, lays
out pages by, or shows as a page. A picture that is a document (SVG) is none of these.
"""
_TYPES = mimetypes.MimeTypes()  # Python's own, whatever the machine has
for _ending, _media in (
    (".avif", "image/avif"),
    (".js", "text/javascript"),
    (".md", "text/markdown"),
    (".mjs", "text/javascript"),
    (".webp", "image/webp"),
):
    _TYPES.add_type(_media, _ending)
_TEXTS = frozenset({"application/json", "image/svg+xml"})


def saved_as(path: str) -> str:
    """Return the content type of a file on our own origin: one of ``SAVED``, or that of any."""
    media = _named(path)
    harmless = media in SAVED or f"{media.partition('/')[0]}/*" in SAVED
    return media if harmless and not media.endswith("+xml") else BYTES


def shown_as(path: str) -> str:
    """Return the content type of a file on an origin of its own, where it is shown."""
    media = _named(path)
    media = "text/plain" if media == "text/markdown" else media  # browsers would save it
    return f"{media}; charset=utf-8" if media.startswith("text/") or media in _TEXTS else media


def _named(path: str) -> str:
    # Without the dot a name might be taken for an address, which says its type itself.
    media, packed = _TYPES.guess_type(f"./{path}", strict=False)
    return BYTES if media is None or packed else media
