"""What the platform and an environment's agentd tell each other of git: what to clone, which hosts
there are secrets for, how a clone stands, and why git failed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_REF_LENGTH = 200
REF_FORM = (
    r"^(?![-/.])(?!@$)(?!.*(?:\.\.|//|/\.|@\{|\.lock(?:/|$)))"
    r"[!-)+-9;->@-Z\]_-}]*[!-)+-\-0-9;->@-Z\]_-}]$"
)
"""What the name of a branch, a tag or a commit looks like: what git takes, and no option."""

_REF = re.compile(REF_FORM)

SETUP = "/git/setup"
"""Where, below agentd's API, the platform says what it must know; no client's way leads there."""


@dataclass(frozen=True, slots=True)
class GitCredential:
    """What a user's requests to a host are made with. agentd alone holds it, in memory.

    Attributes:
        name: what the user calls it.
        host: a host's name, with its port where it is not the usual one.
        username: whom the host is told.
        value: the token or password.
    """

    name: str
    host: str
    username: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class GitSetup:
    """All that an environment is told of git.

    Attributes:
        url, ref, depth: what its workspace starts from; without a ``url``, from nothing.
        author: the name and the address of commits, where the repository names none.
        credentials: one for each host.
    """

    url: str | None = None
    ref: str | None = None
    depth: int | None = None
    author: tuple[str, str] = ("", "")
    credentials: Sequence[GitCredential] = ()


@dataclass(frozen=True, slots=True)
class CloneState:
    """How it stands with what a workspace starts from.

    Attributes:
        status: ``none`` where there is no such thing, ``cloning``, ``done`` or ``failed``.
        detail: one plain sentence.
        code, hint: of what failed; the code is one of ``CAUSES``.
    """

    status: str
    detail: str = ""
    code: str = ""
    hint: str = ""


CAUSES: Mapping[str, str] = {
    "git_host_unknown": "Correct the address. In an environment without a network "
    "(GREYLAG_SANDBOX_NETWORK=strict) a secret for the host opens the way.",
    "git_refused": "See that the address and its port are right, and that environments may reach "
    "it: docs/git.md tells of network rules and GREYLAG_GIT_HOSTS.",
    "git_untrusted": "Whoever runs Greylag can name its authority in GREYLAG_CA_FILE.",
    "git_denied": "Keep a token that may do this as a secret of the project's owner for this host: "
    "`greylag secrets set NAME --host HOST`.",
    "git_not_found": "Correct the address. Hosts say it of private repositories too: keep a token "
    "for it as a secret, `greylag secrets set NAME --host HOST`.",
    "git_ref_missing": "Name a branch, a tag or a whole commit id that the repository has.",
    "git_no_space": "Delete files, clone fewer commits (depth), or give environments more disk.",
    "git_timeout": "Deactivate and activate the project to try again.",
    "git_not_installed": "Use an image of environments that has git.",
    "git_workspace_not_empty": "Clone in a terminal into a folder, or begin with a new project.",
    "git_no_repository": "Clone one in a terminal, or make one by `git init`.",
    "git_no_remote": "Name one in a terminal: `git remote add origin URL`.",
    "git_nothing_to_commit": "Change a file first.",
    "git_no_branch": "Say which branch is to be pushed, or check one out in a terminal.",
    "git_rejected": "Fetch and merge what the host has in a terminal, or push as another branch.",
    "git_interrupted": "Deactivate and activate the project to try again.",
    "git_failed": "`greylag shell` opens a terminal in the workspace, where git can tell more.",
}
"""What to do about each reason for which git fails."""


def is_ref(name: str) -> bool:
    """Tell whether git may take ``name`` for a branch, a tag or a commit, and for no option."""
    return len(name) <= MAX_REF_LENGTH and _REF.fullmatch(name) is not None
