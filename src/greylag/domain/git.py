"""What of git the platform itself knows: the repository that a project starts from, and the hosts
that secrets are for.

Nothing here is ever fetched by the platform: git runs in the environment.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from greylag.common.git import MAX_REF_LENGTH, is_ref
from greylag.domain.errors import InvalidRequestError

MAX_URL_LENGTH = 1000
MOST_COMMITS = 1_000_000
MAX_HOST_LENGTH = 255

URL_FORM = r"^https?://[!-.0->A-~]+/[!-~]*[!-.0-~]/?$"
HOST_FORM = r"^(?![-.])[a-z0-9.-]{1,240}(?<![-.])(?::[1-9][0-9]{0,4})?$"
"""What the checks below let pass at most, for those who are told it by a pattern."""

_HOST = re.compile(HOST_FORM)
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class GitSource:
    """The repository that a project starts from.

    Attributes:
        url: http or https, without a user or password.
        ref: a branch, a tag, or a whole commit id; ``None``: the repository's own branch.
        depth: how many commits of its history; ``None``: all.
    """

    url: str
    ref: str | None = None
    depth: int | None = None


def check_source(source: GitSource) -> GitSource:
    """Return ``source``.

    Raises:
        InvalidRequestError: git could not clone it, or would take it for something else.
    """
    check_url(source.url)
    if source.ref is not None:
        check_ref(source.ref, "source.git.ref")
    if source.depth is not None and not 1 <= source.depth <= MOST_COMMITS:
        raise InvalidRequestError(f"source.git.depth must be 1 to {MOST_COMMITS}.")
    return source


def check_url(url: str) -> str:
    """Return ``url``.

    Raises:
        InvalidRequestError: it is no address of a repository over http or https.
    """
    field = "source.git.url"
    plain = url.isascii() and url.isprintable() and not set(url) & set(" \\\"'<>`{}|^")
    if not 1 <= len(url) <= MAX_URL_LENGTH or not plain:
        raise InvalidRequestError(
            f"{field} must have 1 to {MAX_URL_LENGTH} characters that an address may hold."
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidRequestError(f"{field} is no address.") from error
    if parts.scheme not in {"http", "https"}:
        raise InvalidRequestError(f"{field} must begin with https:// (or http://).")
    if "@" in parts.netloc:
        raise InvalidRequestError(
            f"{field} must not hold a user or password.",
            hint="Keep a token as a secret of yours for that host: docs/git.md tells how.",
        )
    numbered = host.startswith("[") or ":" in host
    if port == 0 or not (numbered or _HOST.fullmatch(host)):
        raise InvalidRequestError(f"{field} names no host.")
    if parts.query or parts.fragment or not parts.path.strip("/"):
        raise InvalidRequestError(f"{field} must name a repository by its path alone.")
    if any(part in {".", ".."} for part in parts.path.split("/")):
        raise InvalidRequestError(f'{field} must not hold "." or ".." in its path.')
    return url


def check_ref(ref: str, field: str) -> str:
    """Return ``ref``, which git may take for a branch, a tag or a commit, and for no option.

    Raises:
        InvalidRequestError: it can be none (``git check-ref-format``).
    """
    if not is_ref(ref):
        raise InvalidRequestError(
            f"{field} must be a branch, tag or commit id of 1 to {MAX_REF_LENGTH} characters."
        )
    return ref


def check_host(host: str) -> str:
    """Return ``host``: a name or an IPv4 address in small letters, with a port where it is not the
    usual one.

    Raises:
        InvalidRequestError: it is none.
    """
    _, _, port = host.partition(":")
    known = _HOST.fullmatch(host) and len(host) <= MAX_HOST_LENGTH
    if not known or (port and int(port) > _MAX_PORT):
        raise InvalidRequestError(
            "host must be a host's name in small letters, as github.com, with its port if need be."
        )
    return host
