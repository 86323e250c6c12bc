"""What of git the platform itself knows: the repository that a project starts from, and the hosts
that secrets are for.

Nothing here is ever fetched by the platform: git runs in the environment.
"""

import re
from dataclasses import dataclass, replace

from greylag.common.git import MAX_REF_LENGTH, is_ref
from greylag.domain.errors import InvalidRequestError

MAX_URL_LENGTH = 1000
MOST_COMMITS = 1_000_000
MAX_HOST_LENGTH = 255

_HIGH = r"6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_PORT = rf"(?::(?:[1-9][0-9]{{0,3}}|[1-5][0-9]{{4}}|{_HIGH}))?"
_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,238}[a-z0-9])?"
_PART = r"/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&()*+,;=:@%-]+"
HOST_FORM = rf"^{_NAME}{_PORT}$"
URL_FORM = rf"^https?://{_NAME.replace('a-z', 'A-Za-z')}{_PORT}(?:{_PART})+/?$"
"""What is taken for a host, and for the address of a repository."""

_HOST = re.compile(HOST_FORM)
_URL = re.compile(URL_FORM)


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
    """Return ``source``, its host in small letters, as secrets name hosts.

    Raises:
        InvalidRequestError: git could not clone it, or would take it for something else.
    """
    url = _checked_url(source.url)
    if source.ref is not None and not is_ref(source.ref):
        raise InvalidRequestError(
            "source.git.ref must be a branch, tag or commit id of 1 to "
            f"{MAX_REF_LENGTH} characters."
        )
    if source.depth is not None and not 1 <= source.depth <= MOST_COMMITS:
        raise InvalidRequestError(f"source.git.depth must be 1 to {MOST_COMMITS}.")
    return replace(source, url=url)


def _checked_url(url: str) -> str:
    """Return ``url``, its host in small letters."""
    field = "source.git.url"
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise InvalidRequestError(
            f"{field} must not hold a user or password.",
            hint="Keep a token as a secret of yours for that host: docs/git.md tells how.",
        )
    if len(url) > MAX_URL_LENGTH or not _URL.fullmatch(url):
        raise InvalidRequestError(
            f"{field} must be the address of a repository of at most {MAX_URL_LENGTH} characters, "
            "as https://github.com/octocat/hello-world.git, without a query."
        )
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host.lower()}/{path}"


def check_host(host: str) -> str:
    """Return ``host``: a name or an IPv4 address in small letters, with a port where it is not the
    usual one.

    Raises:
        InvalidRequestError: it is none.
    """
    if not _HOST.fullmatch(host):
        raise InvalidRequestError(
            "host must be a host's name in small letters, as github.com, with its port if need be."
        )
    return host
