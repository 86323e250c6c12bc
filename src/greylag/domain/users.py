"""Who uses Greylag: users, how they sign in, their tokens, whom they share with, and who asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal


class Role(StrEnum):
    """What somebody may do beyond their own projects."""

    ADMIN = "admin"
    USER = "user"


class MemberRole(StrEnum):
    """What somebody may do with a project that was shared with them."""

    EDITOR = "editor"
    VIEWER = "viewer"


class Scope(StrEnum):
    """What a token may be used for, at most as far as its user may."""

    PROJECTS_READ = "projects:read"
    PROJECTS_WRITE = "projects:write"
    MESSAGES = "messages"
    FILES = "files"
    ADMIN = "admin"


class SignUp(StrEnum):
    """Who becomes a user by signing in.

    ``AUTO``: whoever the provider lets in. ``INVITED``: those whom an administrator has entered
    with their email address. ``CLOSED``: nobody; only those who have signed in before come in.
    """

    AUTO = "auto"
    INVITED = "invited"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is by the word of an identity provider, which has been checked already.

    Attributes:
        issuer: the provider.
        subject: who it is, for good, by the claim that the settings name.
        name: what to call them.
        email: only one that the provider vouches for, in small letters.
        groups: what they are in.
        provider_subject: its own id for them (``sub``), by which it tells of their sign-out.
        provider_session: its own id for their session (``sid``).
    """

    issuer: str
    subject: str
    name: str
    email: str | None
    groups: tuple[str, ...]
    provider_subject: str
    provider_session: str | None

    @property
    def key(self) -> str:
        """What a user who signs in so is found by."""
        return f"{self.issuer} {self.subject}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a user may have; ``None``: what ``DefaultLimits`` say, else as much as they like.

    ``templates`` are those that their projects may have beside the default one.
    """

    projects: int | None = None
    active: int | None = None
    templates: tuple[str, ...] | None = None


def of_identity(key: str) -> str:
    """Return the label of the user who signs in by this ``Identity.key``."""
    return f"identity {key}"


def of_user(user_id: str) -> str:
    """Return the label of what is a user's, or is shared with them."""
    return f"user {user_id}"


def of_project(owner: str, project_id: str) -> str:
    """Return the label of what is about a project."""
    return f"project {owner}/{project_id}"


def member_key(owner: str, project_id: str, user_id: str) -> str:
    """Return the key of a project's being shared with a user: no id holds a slash."""
    return f"{owner}/{project_id}/{user_id}"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody, or with ``service`` something, that owns projects.

    Attributes:
        id: names namespaces and never changes.
        display_name: what people call them.
        role: of their own; an administrator by groups is one as long as the groups say so.
        disabled: comes in by no session and no token, and nothing of theirs runs.
        service: a service account: nobody signs in as it; it has tokens.
        origin: the settings, an administrator, or their own first sign-in.
        email: by which an invited user is recognized at their first sign-in.
        identity: ``Identity.key`` of how they sign in, once they have.
        groups: as the provider told at the last sign-in.
        version: how often it was written; 0 for one that is not in the store.
    """

    id: str
    display_name: str
    role: Role = Role.USER
    disabled: bool = False
    service: bool = False
    origin: Literal["settings", "admin", "sign_in"] = "settings"
    email: str | None = None
    identity: str | None = None
    groups: tuple[str, ...] = ()
    limits: Limits = Limits()
    created_at: datetime | None = None
    version: int = 0

    @property
    def key(self) -> str:
        """Its key in the store."""
        return self.id

    @property
    def labels(self) -> Sequence[str]:
        """What else it is found by."""
        return [of_identity(self.identity)] if self.identity else []


@dataclass(frozen=True, slots=True)
class Look:
    """An administrator's look at another's projects, which they have begun and may end.

    Attributes:
        user_id: whose.
        name: theirs, for the page.
        reason: why, if they read conversations and files too.
        until: when it ends at the latest.
    """

    user_id: str
    name: str
    reason: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that somebody has signed in with. ``key`` is the hash of its secret.

    Attributes:
        role: by the groups of the user; ``None`` where groups do not say it.
        seen_at: when it last asked for something, to the minute.
        expires_at: when it ends at the latest; it ends earlier when it is not used.
        address: where it last came from.
        provider: by which of its names the provider may end it.
        look: whose projects the administrator looks at who has signed in.
        user_since: ``User.created_at`` of whose it is: another of the same id does not come in.
    """

    key: str
    user_id: str
    role: Role | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    address: str
    provider: tuple[str, ...] = ()
    look: Look | None = None
    user_since: datetime | None = None
    version: int = 0

    @property
    def id(self) -> str:
        """What people call it by: enough of its key to tell it from others."""
        return self.key[:16]

    @property
    def labels(self) -> Sequence[str]:
        """What else it is found by."""
        return [of_user(self.user_id), *self.provider]


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token for programs. ``key`` is its hash; the token itself is kept nowhere.

    Attributes:
        id: what people call it by.
        projects: the ids of its user's projects that it is for; ``None``: all.
        used_at: when it was last used, to the minute, and from where.
        user_since: as of a session.
    """

    key: str
    id: str
    user_id: str
    name: str
    scopes: tuple[Scope, ...]
    projects: tuple[str, ...] | None
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    address: str | None = None
    user_since: datetime | None = None
    version: int = 0

    @property
    def labels(self) -> Sequence[str]:
        """What else it is found by."""
        return [of_user(self.user_id), f"id {self.id}"]


LOGIN_LASTS = timedelta(minutes=10)
"""How long a program waits to be let in."""


def of_code(code: str) -> str:
    """Return the label of the program that shows a code."""
    return f"code {code}"


@dataclass(frozen=True, slots=True)
class DeviceLogin:
    """A program without a browser that waits to be let in. ``key`` is the hash of its secret.

    Attributes:
        code: what it shows, for a person to confirm.
        name: how it calls itself.
        scopes: what it would like to do.
        address: where it is.
        user_id: as whom it is let in; ``None``: nobody has answered.
        user_since: as of a session.
    """

    key: str
    code: str
    name: str
    scopes: tuple[Scope, ...]
    address: str
    expires_at: datetime
    user_id: str | None = None
    user_since: datetime | None = None
    version: int = 0

    @property
    def created_at(self) -> datetime:
        """When it began."""
        return self.expires_at - LOGIN_LASTS

    @property
    def labels(self) -> Sequence[str]:
        """What else it is found by."""
        answered = [] if self.user_id is None else [of_user(self.user_id)]
        return [of_code(self.code), *answered]


@dataclass(frozen=True, slots=True)
class UserSecret:
    """What a user's git is to tell a host. Its value is kept sealed, and shown to nobody.

    Attributes:
        name: what the user calls it.
        host: the only one that is told it.
        username: whom the host is told.
        sealed: the value, which nobody can read without the platform's key.
    """

    user_id: str
    name: str
    host: str
    username: str
    sealed: str = field(repr=False)
    created_at: datetime
    updated_at: datetime
    version: int = 0

    @property
    def key(self) -> str:
        """Its key in the store: no id holds a slash."""
        return f"{self.user_id}/{self.name}"

    @property
    def labels(self) -> Sequence[str]:
        """What else it is found by."""
        return [of_user(self.user_id)]


@dataclass(frozen=True, slots=True)
class NotificationTarget:
    """Where a user is told of their turns: a browser of theirs, or a webhook.

    Attributes:
        id: what people call it by; a browser has the same one for whoever uses it.
        name: what the user calls it.
        host: of its address, which is kept sealed with its keys.
        site: where the user reaches this Greylag, for links.
        sealed: what nobody can read without the platform's key.
        last_at: when it was told last, and what came of that.
    """

    id: str
    user_id: str
    kind: Literal["browser", "webhook"]
    name: str
    host: str
    site: str
    sealed: str = field(repr=False)
    created_at: datetime
    last_at: datetime | None = None
    last_result: str = ""
    version: int = 0

    @property
    def key(self) -> str:
        """Its key in the store."""
        return self.id

    @property
    def labels(self) -> Sequence[str]:
        """What else it is found by."""
        return [of_user(self.user_id)]


@dataclass(frozen=True, slots=True)
class PushKey:
    """What push services know this Greylag by (VAPID), for good: browsers take no other's word."""

    sealed: str = field(repr=False)
    version: int = 0
    key: str = "push"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A project that is shared with somebody.

    ``record_id`` is the project's own: another one of the same name later is not shared.
    """

    owner: str
    project_id: str
    record_id: str
    user_id: str
    role: MemberRole
    version: int = 0

    @property
    def key(self) -> str:
        """Its key in the store."""
        return member_key(self.owner, self.project_id, self.user_id)

    @property
    def labels(self) -> Sequence[str]:
        """What else it is found by."""
        return [of_project(self.owner, self.project_id), of_user(self.user_id)]


@dataclass(frozen=True, slots=True)
class DefaultLimits:
    """How much users may have of whom nobody has said it: what their groups may, else everybody.

    Attributes:
        everybody: what holds for users of whose groups none says anything.
        groups: what each group says, by the names of ``Limits``; ``None`` for no limit.
    """

    everybody: Limits = Limits()
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, user: User) -> Limits:
        """Return what holds for a user: of several groups the most."""
        templates = self._said(user, "templates")
        return Limits(
            projects=max(self._said(user, "projects") or [None]),
            active=max(self._said(user, "active") or [None]),
            templates=tuple(sorted({name for names in templates for name in names}))
            if templates
            else None,
        )

    def _said(self, user: User, name: str) -> Sequence[Any]:
        """Return what counts for a user of one limit; nothing where there is none."""
        own = getattr(user.limits, name)
        of_groups = [self.groups[one] for one in user.groups if one in self.groups]
        named = [limits[name] for limits in of_groups if name in limits]
        said = [own] if own is not None else named or [getattr(self.everybody, name)]
        return [] if None in said else said


@dataclass(frozen=True, slots=True)
class Share:
    """A link that opens a preview for anybody who has it. ``key`` names it in the link.

    ``record_id`` is the project's own, as a member's.

    Attributes:
        port: what is shown; ``None``: files of the workspace.
        path: where the link leads, as an address's path.
        origin: where whoever made it reached us.
        by: the user with whose rights it is good; ``None``: the operator.
    """

    key: str
    owner: str
    project_id: str
    record_id: str
    port: int | None
    path: str
    origin: str
    by: str | None
    created_at: datetime
    expires_at: datetime
    version: int = 0

    @property
    def labels(self) -> Sequence[str]:
        """What else it is found by."""
        return [of_project(self.owner, self.project_id)]


class Action(StrEnum):
    """What a principal may or may not do with what a user owns."""

    PROJECTS_LIST = "projects.list"
    PROJECTS_READ = "projects.read"
    PROJECTS_WRITE = "projects.write"
    PROJECTS_DELETE = "projects.delete"
    PROJECTS_HAND_OVER = "projects.hand_over"
    ENVIRONMENT_ACTIVATE = "environment.activate"
    ENVIRONMENT_DEACTIVATE = "environment.deactivate"
    MESSAGES_SEND = "messages.send"
    AGENT_READ = "agent.read"
    AGENT_WRITE = "agent.write"
    FILES_READ = "files.read"
    FILES_WRITE = "files.write"
    LOGS_READ = "logs.read"
    TERMINAL_USE = "terminal.use"
    PREVIEW_USE = "preview.use"
    MEMBERS_READ = "members.read"
    MEMBERS_WRITE = "members.write"
    ACCOUNT_READ = "account.read"
    ACCOUNT_WRITE = "account.write"
    SECRETS_WRITE = "secrets.write"
    NOTIFICATIONS_WRITE = "notifications.write"
    USERS_WRITE = "users.write"
    AUDIT_READ = "audit.read"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request. Every use case takes one; ``services/access.py`` decides by it.

    The operator has no ``user_id`` and may act for every user.

    Attributes:
        name: for logs.
        user_id: the user who asks.
        role: theirs; of the operator, administrator.
        via: the session or token that it comes by: ``session ID``, ``token ID``, or ``""``.
        scopes: what a token may be used for; ``None``: all that its user may.
        projects: the ids of its user's projects that a token is for; ``None``: all.
        sign_in: the same, by its key in the store: ``session KEY``, ``token KEY``, or ``""``; of
            the operator in a browser ``cookie ID SECONDS``, with when it was signed (Unix).
        address: where the request comes from.
        reason: why an administrator looks at what is another's.
        look: at whose projects they look in their browser now.
    """

    name: str
    user_id: str | None = None
    role: Role = Role.USER
    via: str = ""
    scopes: frozenset[Scope] | None = None
    projects: frozenset[str] | None = None
    sign_in: str = field(default="", compare=False, repr=False)
    address: str = field(default="", compare=False)
    reason: str = field(default="", compare=False)
    look: Look | None = field(default=None, compare=False)

    @property
    def session_id(self) -> str | None:
        """The session that they come by, by its id; ``None`` when they come otherwise."""
        kind, _, found = self.via.partition(" ")
        return found if kind == "session" else None

    def reason_for(self, user_id: str) -> str:
        """Return why they read what is this user's; empty when they do not say."""
        if self.reason or self.look is None or self.look.user_id != user_id:
            return self.reason
        return self.look.reason

    @property
    def is_admin(self) -> bool:
        """Whether it may administrate: a token may only with the scope for it, and when it is not
        for some of its user's own projects alone.
        """
        scoped = self.scopes is None or Scope.ADMIN in self.scopes
        return self.role is Role.ADMIN and self.projects is None and scoped


OPERATOR = Principal("operator", role=Role.ADMIN)
