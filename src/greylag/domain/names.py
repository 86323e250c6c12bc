"""Ids and the DNS-safe names made from them.

Kubernetes takes DNS labels (RFC 1123) for namespaces and Deployments, and those of RFC 1035
for Services: lower-case letters, digits and hyphens, a letter first, at most 63 characters. An id
may be any text, so one that is not such a label gets a readable slug and a hash of the whole id.

Two ids never share a name: an id is used as it stands only if it does not look like a slug with its
hash, so a plain name and a hashed one differ, and two hashed ones differ by 65 bits of SHA-256.
"""

import base64
import hashlib
import re
import secrets
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote

from greylag.domain.errors import InvalidRequestError

MAX_ID_LENGTH = 300
MAX_NAME_LENGTH = 200
MAX_LABEL_LENGTH = 63

_CONTROL = r"\x00-\x1f\x7f-\x9f"
ID_FORM = rf"^(?!\.{{1,2}}$)[^/{_CONTROL}]+$"
SEGMENT_FORM = rf"^(?!\.{{1,2}}$)[^/%\\{_CONTROL}]+$"
NAME_FORM = rf"^[^{_CONTROL}]*[^\s{_CONTROL}][^{_CONTROL}]*$"
"""What the checks below let pass, for those who are told it by a pattern."""

_LABEL = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_HASH_LENGTH = 13
_LOOKS_HASHED = re.compile(rf".*-[a-z2-7]{{{_HASH_LENGTH}}}")
_LONGEST_SUFFIX = "-ingress"


@dataclass(frozen=True, slots=True)
class EnvironmentNames:
    """The cluster objects' names of one project, stored with it and never recomputed."""

    namespace: str
    deployment: str
    service: str
    ingress: str


def environment_names(user_id: str, project_id: str, *, prefix: str = "user-") -> EnvironmentNames:
    """Return the names for ``project_id`` of ``user_id``; ``prefix`` begins each namespace.

    Each is a DNS label; no two (user, project) pairs share a (namespace, deployment) pair.
    """
    project = label(project_id, MAX_LABEL_LENGTH - len(_LONGEST_SUFFIX))
    return EnvironmentNames(
        namespace=prefix + label(user_id, MAX_LABEL_LENGTH - len(prefix)),
        deployment=f"{project}-api",
        service=f"{project}-svc",
        ingress=f"{project}{_LONGEST_SUFFIX}",
    )


def label(identifier: str, max_length: int = MAX_LABEL_LENGTH) -> str:
    """Return a DNS label of at most ``max_length`` characters that only this id can have."""
    fits = len(identifier) <= max_length and _LABEL.fullmatch(identifier)
    if fits and not _LOOKS_HASHED.fullmatch(identifier):
        return identifier
    digest = hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).digest()
    tail = base64.b32encode(digest).decode("ascii").lower()[:_HASH_LENGTH]
    return f"{slug(identifier, max_length - _HASH_LENGTH - 1)}-{tail}"


def slug(text: str, max_length: int) -> str:
    """Return what can be kept of ``text`` as a DNS label; it is readable, not unique."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if not words[:1].isalpha():
        words = f"x-{words}" if words else "x"
    return words[:max_length].rstrip("-")


def new_project_id(name: str) -> str:
    """Return a fresh project id that begins with a slug of ``name``."""
    return f"{slug(name, 30)}-{secrets.token_hex(3)}"


def check_id(value: str, field: str) -> str:
    """Return ``value``, which any text can be of 1 to 300 characters that a URL's segment carries.

    Raises:
        InvalidRequestError: it cannot be an id; the error names ``field``.
    """
    if not 1 <= len(value) <= MAX_ID_LENGTH:
        raise InvalidRequestError(f"{field} must have 1 to {MAX_ID_LENGTH} characters.")
    if value in {".", ".."} or "/" in value or not _is_clean(value):
        raise InvalidRequestError(
            f'{field} must not be "." or "..", nor hold "/", control or unpaired characters.'
        )
    return value


def path_segment(value: str, field: str) -> str:
    """Return an id as one percent-encoded segment of a URL's path.

    Beside what no id may be, nothing passes that a second decoding on the way, or a lenient server,
    could read as the end of a segment.

    Args:
        value: the id.
        field: what it is the id of, for the error.

    Raises:
        InvalidRequestError: the id cannot stand in a path.
    """
    check_id(value, field)
    if "%" in value or "\\" in value:
        raise InvalidRequestError(f'{field} must not hold "%" or "\\".')
    return quote(value, safe="")


def check_name(value: str, field: str = "name") -> str:
    """Return ``value``.

    Raises:
        InvalidRequestError: it cannot be a display name.
    """
    if not 1 <= len(value) <= MAX_NAME_LENGTH or not value.strip():
        raise InvalidRequestError(
            f"{field} must have 1 to {MAX_NAME_LENGTH} characters, not only spaces."
        )
    if not _is_clean(value):
        raise InvalidRequestError(f"{field} must not hold control or unpaired characters.")
    return value


def _is_clean(text: str) -> bool:
    """Tell whether ``text`` is free of control characters and lone surrogates."""
    return not any(unicodedata.category(char) in {"Cc", "Cs"} for char in text)
