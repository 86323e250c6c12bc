"""What the JSON API takes and gives; OpenAPI is made from these models.

Values from outside are checked so that every store, log and answer can hold them.
"""

import math
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

from greylag.common.agent_api import Decision
from greylag.common.clock import rfc3339
from greylag.common.git import MAX_REF_LENGTH, REF_FORM
from greylag.domain.audit import Result
from greylag.domain.names import ID_FORM, MAX_ID_LENGTH, MAX_NAME_LENGTH, NAME_FORM, SEGMENT_FORM
from greylag.domain.project import (
    HOST_FORM,
    MAX_HOST_LENGTH,
    MAX_URL_LENGTH,
    MOST_COMMITS,
    URL_FORM,
    Desired,
    GitSource,
    Project,
    Status,
)
from greylag.domain.users import Limits, MemberRole, Role, Scope, User
from greylag.ports import MAX_ADDRESS, PushAddress
from greylag.services.agents import MESSAGE_ID_FORM
from greylag.services.people import UserEdit
from greylag.services.secrets import DEFAULT_USERNAME, MAX_VALUE_LENGTH, USERNAME_FORM
from greylag.services.tokens import NewToken

MAX_DEPTH = 32
MOST_TEXTS = 2_000
_INT64 = 2**63


def check_text(value: str) -> str:
    """Return ``value``, a text.

    Raises:
        ValueError: UTF-8 cannot carry it: JSON can spell half of a surrogate pair, which no file
            and no database takes.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must not hold unpaired surrogates") from None
    return value


def _email(value: str) -> str:
    if "@" not in value:
        raise ValueError("must be an email address, with an @")
    return value.lower()


def check_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``value``, JSON that everything after us can hold.

    That is: nested 32 deep at most, finite numbers, whole ones of 64 bits, text without unpaired
    surrogates.

    Raises:
        ValueError: it is not.
    """
    # A list of what is left to look at, not recursion: the depth is what is not yet known.
    left: list[tuple[Any, int]] = [(value, 1)]
    while left:
        item, depth = left.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"must not be nested deeper than {MAX_DEPTH}")
        left += [(child, depth + 1) for child in _children(item)]
    return value


def _children(item: Any) -> list[Any]:
    match item:
        case dict():
            return [*item.keys(), *item.values()]
        case list():
            return item
        case str():
            check_text(item)
        case int() if not -_INT64 <= item < _INT64:
            raise ValueError("must not hold whole numbers of more than 64 bits")
        case float() if not math.isfinite(item):
            raise ValueError("must not hold numbers that JSON cannot write")
        case _:
            pass
    return []


# The installation, its users and their projects.

Text = Annotated[str, AfterValidator(check_text)]
Metadata = Annotated[dict[str, Any], AfterValidator(check_metadata)]


def _time(value: object) -> object:
    return rfc3339(value) if isinstance(value, datetime) else value


Time = Annotated[str, BeforeValidator(_time), Field(json_schema_extra={"format": "date-time"})]

_TIME = "2026-11-23T09:15:00.000Z"


def _whole(value: object) -> object:
    """JSON Schema's whole numbers are also those that are written with a fraction of zero."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)
# Strict: neither a text nor a truth value is a number.
Count = Annotated[int, Strict(), Field(ge=0, le=_INT64 - 1), _WHOLE]
Depth = Annotated[int, Strict(), Field(ge=1, le=MOST_COMMITS), _WHOLE]
ShareSeconds = Annotated[int, Strict(), Field(ge=60, le=2_592_000), _WHOLE]


class In(BaseModel):
    """A request's body: a member that is not known is an error, not a silent loss."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Out(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    @classmethod
    def of(cls, kept: Any, **more: Any) -> Self:
        """Return what is shown of ``kept``: its attributes of the same names, and ``more``."""
        shown = {name: getattr(kept, name) for name in cls.model_fields if name not in more}
        return cls.model_validate(shown | more)


class ProblemDocument(Out):
    """What is wrong, as a problem document (RFC 9457)."""

    model_config = ConfigDict(title="Problem")

    type: str = Field(description="A URN that ends in the code.")
    title: str = Field(description="The code in words.")
    status: int = Field(description="The HTTP status.", ge=400, le=599)
    code: str = Field(description="Stable, for programs.")
    detail: str = Field(description="What is wrong, in one plain sentence.")
    hint: str = Field(description="What to do; may be empty.")
    request_id: str = Field(description="The x-request-id of the answer, for the log.")


class ModelInUseOut(Out):
    """Which model provider environments are given."""

    provider: str = Field(description="Its host.", examples=["api.openai.com"])
    problem: str | None = Field(description="What is wrong with its address or key, if known.")


class PlatformOut(Out):
    """What this installation is."""

    version: str = Field(examples=["0.1.0"])
    cluster: str = Field(description="Where environments run.", examples=["local"])
    store: str = Field(description="Where records are kept.", examples=["sqlite"])
    notice: str | None = Field(description="A sentence that every user must see.")
    demonstration: str | None = Field(description="Set when no real model answers: says so.")
    model: ModelInUseOut | None = Field(description="Null where a script plays the model.")


class UserOut(Out):
    """A user."""

    id: str = Field(examples=["me"])
    display_name: str = Field(examples=["Me"])


class UsersOut(Out):
    """All users whom the caller may act for."""

    users: list[UserOut]


class MeOut(Out):
    """Who asks."""

    id: str | None = Field(description="The user; null for the operator.", examples=["ann"])
    display_name: str = Field(examples=["Ann"])
    email: str | None
    role: Role
    groups: list[str] = Field(description="As the identity provider told at the last sign-in.")
    via: str = Field(description="The session or token that is used.", examples=["session 1f…"])


_Template = Annotated[Text, Field(min_length=1, max_length=200)]


class LimitsOut(Out):
    """How much a user may have; null: as much as they like."""

    projects: Count | None = None
    active: Count | None = Field(None, description="Active environments.")
    templates: tuple[_Template, ...] | None = Field(
        None,
        max_length=100,
        description="What their projects may name in `metadata.template`; null: any. `default` may "
        "always be used.",
        examples=[["large"]],
    )


class LimitsIn(In, LimitsOut):
    """How much a user may have; null: as much as they like."""


class AccountOut(UserOut):
    """A user with all that administrators see."""

    role: Role
    disabled: bool
    service: bool = Field(description="A service account: nobody signs in as it.")
    origin: Literal["settings", "admin", "sign_in"] = Field(description="How they became a user.")
    email: str | None
    groups: list[str]
    limits: LimitsOut
    created_at: Time | None


Email = Annotated[
    Text,
    Field(max_length=320, json_schema_extra={"pattern": "@"}),
    AfterValidator(_email),
]
_Name = Annotated[
    Text,
    Field(min_length=1, max_length=MAX_NAME_LENGTH, json_schema_extra={"pattern": NAME_FORM}),
]
_Id = Annotated[
    Text, Field(min_length=1, max_length=MAX_ID_LENGTH, json_schema_extra={"pattern": ID_FORM})
]


class NewUserIn(In):
    """A user to add."""

    id: _Id = Field(description="Names their namespace, and never changes.", examples=["ann"])
    display_name: _Name = Field(examples=["Ann"])
    role: Role = Role.USER
    email: Email | None = Field(None, description="By which they are known when they sign in.")
    service: bool = Field(default=False, description="A service account, which has tokens only.")
    limits: LimitsIn = LimitsIn()

    def user(self) -> User:
        """Return the user to add."""
        return User(**self.model_dump(exclude={"limits"}), limits=_limits(self.limits))


class UserEditIn(In):
    """What to change of a user; what is left out stays as it is."""

    display_name: _Name | None = None
    role: Role | None = None
    disabled: bool | None = None
    email: Email | None = None
    limits: LimitsIn | None = None

    def edit(self) -> UserEdit:
        """Return what is to be changed."""
        limits = _limits(self.limits) if self.limits else None
        return UserEdit(self.display_name, self.role, self.disabled, self.email, limits)


def _limits(given: LimitsIn) -> Limits:
    return Limits(**given.model_dump())


class SessionOut(Out):
    """A browser that somebody has signed in with."""

    id: str
    created_at: Time
    seen_at: Time = Field(description="To the minute.")
    expires_at: Time
    address: str = Field(description="Where it last came from.")
    current: bool = Field(description="Whether this request comes by it.")


class SessionsOut(Out):
    """A user's sessions, the newest first."""

    sessions: list[SessionOut]


class NewTokenIn(In):
    """A token to make."""

    name: _Name = Field(description="What it is for.", examples=["nightly"])
    scopes: list[Scope] = Field(min_length=1, examples=[["projects:read", "messages"]])
    projects: list[Text] | None = Field(
        None, description="The ids of the user's projects that it is for; left out: all."
    )
    expires_in_days: float | None = Field(
        None,
        gt=0,
        le=3650,
        examples=[90],
        description="GREYLAG_TOKEN_DAYS at most; left out: 90, or as many as may be.",
    )
    user: Text | None = Field(None, description="Whose; left out: of who asks.")

    def token(self) -> NewToken:
        """Return the token to make."""
        projects = None if self.projects is None else frozenset(self.projects)
        return NewToken(
            self.name, frozenset(self.scopes), self.expires_in_days, self.user, projects
        )


class TokenOut(Out):
    """What is kept of a token."""

    id: str = Field(examples=["0f1e2d3c4b5a6978"])
    user_id: str
    name: str
    scopes: list[Scope]
    projects: list[str] | None
    created_at: Time
    expires_at: Time
    used_at: Time | None = Field(description="To the minute.")
    address: str | None = Field(description="From where it was used last.")


class NewTokenOut(TokenOut):
    """A token that was made."""

    token: str = Field(description="The token itself, which is never shown again.")


class DeviceLoginIn(In):
    """A program that asks to be let in."""

    name: _Name = Field(description="How it calls itself.", examples=["greylag on laptop"])
    scopes: list[Scope] = Field(min_length=1, examples=[["projects:read", "messages"]])


class DeviceLoginOut(Out):
    """A login that waits for a person."""

    secret: str = Field(description="The program's own, by which it asks for the token.")
    code: str = Field(description="What the person is to confirm.", examples=["BCDF-GHJK"])
    url: str = Field(description="Where they do so.")
    interval: int = Field(description="Ask again after so many seconds.")
    expires_in: int = Field(description="Seconds until it is over.")


class DeviceSecretIn(In):
    """The program that asks for its token."""

    secret: Text = Field(min_length=1, max_length=200, description="As it was given.")


class TokensOut(Out):
    """A user's tokens, the newest first."""

    tokens: list[TokenOut]
    next_cursor: str | None = Field(description="Asks for the next page; null on the last one.")


class ActorOut(Out):
    """Who did something."""

    name: str
    kind: Literal["operator", "user", "anonymous", "provider", "system"]
    user: str | None = Field(description="The user's id, of a user.")
    via: str = Field(description="`session ID` or `token ID`, or nothing.")
    address: str = Field(description="Where the request came from; of IPv6 its network.")


class AuditEntryOut(Out):
    """Something that was changed or refused."""

    number: int = Field(description="One more than that of the entry before.")
    at: str
    actor: ActorOut
    action: str
    object: str = Field(description="Such as `project/ada/notes` or `user/ada`.")
    result: Result
    code: str = Field(description="Of a refusal or failure, the error's.")
    request_id: str
    changed: dict[str, Any] = Field(description="What changed: names and new values.")
    count: int = Field(description="How many equal ones it stands for.")
    previous: str = Field(description="The hash of the entry before.")
    hash: str = Field(description="SHA-256 of all other members as JSON, by their names.")


class LinkOut(Out):
    """A place of the chain."""

    number: int
    hash: str


class AuditOut(Out):
    """Entries of the audit trail, the newest first."""

    entries: list[AuditEntryOut]
    next_cursor: int | None
    start: LinkOut = Field(description="After which the chain begins: earlier ones were trimmed.")
    end: LinkOut = Field(description="The last entry.")


class SecretIn(In):
    """A secret to keep."""

    value: Text = Field(
        min_length=1,
        max_length=MAX_VALUE_LENGTH,
        json_schema_extra={"pattern": r"^[ -~]+$", "writeOnly": True},
        description="A token or password; it is never shown again.",
        repr=False,
    )
    host: Text = Field(
        min_length=1,
        max_length=MAX_HOST_LENGTH,
        json_schema_extra={"pattern": HOST_FORM},
        description="The only host that is told it, with its port where it is not 443.",
        examples=["github.com"],
    )
    username: Text = Field(
        DEFAULT_USERNAME,
        json_schema_extra={"pattern": USERNAME_FORM},
        description="Whom the host is told; for most tokens it does not matter.",
    )


class SecretOut(Out):
    """What is shown of a secret."""

    name: str = Field(examples=["github"])
    host: str = Field(examples=["github.com"])
    username: str = Field(examples=[DEFAULT_USERNAME])
    created_at: Time = Field(examples=[_TIME])
    updated_at: Time = Field(examples=[_TIME])


class SecretsOut(Out):
    """A user's secrets, by name."""

    secrets: list[SecretOut]


class NewBrowserIn(In):
    """What a browser's PushSubscription holds, and what to call the browser."""

    name: _Name = Field(examples=["Firefox on my phone"])
    endpoint: Text = Field(
        max_length=MAX_ADDRESS,
        json_schema_extra={"format": "uri"},
        examples=["https://push.example.org/send/4f1c2d3e"],
    )
    p256dh: Text = Field(max_length=100, description="Its public key, base64url.", repr=False)
    auth: Text = Field(max_length=30, description="Its secret, base64url.", repr=False)

    def address(self) -> PushAddress:
        """Return where it is told."""
        return PushAddress(self.endpoint, self.p256dh, self.auth)


class NewWebhookIn(In):
    """A webhook to tell."""

    name: _Name = Field(examples=["The team's chat"])
    url: Text = Field(
        max_length=MAX_ADDRESS,
        json_schema_extra={"format": "uri"},
        description="https; it is never shown again.",
        examples=["https://hooks.example.org/greylag"],
        repr=False,
    )


class NotificationTargetOut(Out):
    """Where a user is told of their turns: a browser or a webhook."""

    id: str = Field(examples=["0f1e2d3c4b5a6978"])
    kind: Literal["browser", "webhook"]
    name: str = Field(examples=["Firefox on my phone"])
    host: str = Field(examples=["push.example.org"])
    created_at: Time = Field(examples=[_TIME])
    last_at: Time | None = Field(description="When it was told last.", examples=[_TIME])
    last_result: str = Field(description="What came of that, in words.", examples=["delivered"])


class NotificationTargetsOut(Out):
    """Where a user is told, and what a browser is to let in before it is told."""

    public_key: str | None = Field(
        description="The key of this Greylag for push services; null: notifications are off here."
    )
    targets: list[NotificationTargetOut]


class NewWebhookOut(NotificationTargetOut):
    """A webhook that was added."""

    secret: str = Field(
        description="What its messages are signed with (Standard Webhooks); shown this once.",
        examples=["whsec_C2FVsBQIhrscChlQIMV-b5sSYspob7oD"],
    )


class NotificationTestOut(Out):
    """What came of telling a target, once."""

    delivered: bool
    result: str = Field(examples=["answered 404"])


class MemberIn(In):
    """How a project is shared."""

    role: MemberRole


class HandOverIn(In):
    """Whose a project is to be."""

    user: _Id = Field(description="The user's id.", examples=["bob"])


class MemberOut(Out):
    """Whom a project is shared with."""

    id: str = Field(validation_alias="user_id", description="The user's id.", examples=["bob"])
    role: MemberRole


class MembersOut(Out):
    """All whom a project is shared with."""

    members: list[MemberOut]


class ErrorOut(Out):
    """Why a project is in error."""

    code: str = Field(examples=["image_not_found"])
    message: str
    hint: str


_REPOSITORY = "https://github.com/octocat/hello-world.git"


class GitSourceOut(Out):
    """A repository."""

    url: str = Field(examples=[_REPOSITORY])
    ref: str | None = Field(description="A branch, a tag or a commit; null: the usual branch.")
    depth: int | None = Field(description="How many commits of its history; null: all.")


class SourceOut(Out):
    """What a project's workspace starts from."""

    git: GitSourceOut


class ProjectOut(Out):
    """A project, and its environment as it is now."""

    id: str = Field(examples=["6741a3f40c1d2e3f4a5b6c7d"])
    user_id: str = Field(examples=["me"])
    project_id: str = Field(examples=["notes"])
    name: str = Field(examples=["Notes"])
    metadata: dict[str, Any] = Field(examples=[{"team": "blue"}])
    source: SourceOut | None = Field(description="What its workspace starts from.")
    status: Status = Field(description="What is.", examples=["active"])
    desired: Desired = Field(description="What is wanted.", examples=["active"])
    endpoint: str | None = Field(description="The environment's address while it is active.")
    error: ErrorOut | None
    error_message: str | None = Field(description="The error's message alone.")
    namespace: str = Field(examples=["user-me"])
    deployment: str = Field(examples=["notes-api"])
    service: str = Field(examples=["notes-svc"])
    ingress: str = Field(examples=["notes-ingress"])
    outdated: bool = Field(
        description="Whether what runs lacks settings that a new start would give it: the image, "
        "keys, variables, limits.",
        examples=[False],
    )
    last_activated_at: Time | None = Field(examples=[_TIME])
    last_deactivated_at: Time | None = Field(examples=[None])
    created_at: Time = Field(examples=[_TIME])
    updated_at: Time = Field(examples=[_TIME])
    generation: int = Field(description="Grows with each change of what is wanted.", examples=[2])
    observed_generation: int = Field(
        description="The newest generation that was brought to its end.", examples=[2]
    )

    @classmethod
    def of(cls, kept: Project, **more: Any) -> Self:
        """Return a project as it is shown."""
        return super().of(
            kept,
            **asdict(kept.names),
            source={"git": kept.source} if kept.source else None,
            error_message=kept.error.message if kept.error else None,
            outdated=kept.outdated is not None,
            **more,
        )


class ProjectTexts:
    """Projects in JSON. That of one which is as it was when it was asked for last is not made anew:
    lists are asked for again and again.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[Project, bytes]] = {}

    def of(self, project: Project) -> bytes:
        """Return ``project`` as ``ProjectOut`` shows it."""
        known = self._made.get(project.id)
        if known is not None and (known[0] is project or known[0] == project):
            return known[1]
        text = ProjectOut.of(project).model_dump_json().encode()
        self._made.pop(project.id, None)
        self._made[project.id] = project, text
        if len(self._made) > MOST_TEXTS:
            del self._made[next(iter(self._made))]
        return text


class ProjectsOut(Out):
    """One page of a user's projects, newest first."""

    projects: list[ProjectOut]
    next_cursor: str | None = Field(description="Asks for the next page; null on the last one.")


class GitSourceIn(In):
    """A repository that is cloned when the project is activated first, in its environment."""

    url: Text = Field(
        min_length=1,
        max_length=MAX_URL_LENGTH,
        json_schema_extra={"pattern": URL_FORM},
        description="http or https, without a user or password: a secret of the owner's for the "
        "host is used where there is one.",
        examples=[_REPOSITORY],
    )
    ref: Text | None = Field(
        None,
        min_length=1,
        max_length=MAX_REF_LENGTH,
        json_schema_extra={"pattern": REF_FORM},
        description="A branch, a tag or a whole commit id; left out: the repository's own branch.",
        examples=["main"],
    )
    depth: Depth | None = Field(None, description="How many commits; left out: all.")


class SourceIn(In):
    """What a project's workspace starts from."""

    git: GitSourceIn


class NewProjectIn(In):
    """A project to create."""

    name: _Name = Field(examples=["Notes"])
    project_id: _Id | None = Field(
        None, description="Made from the name when it is left out.", examples=["notes"]
    )
    metadata: Metadata | None = Field(None, examples=[{"team": "blue"}])
    source: SourceIn | None = Field(None, description="Left out: an empty workspace.")

    @property
    def git_source(self) -> GitSource | None:
        """The repository, if one is named."""
        return GitSource(**self.source.git.model_dump()) if self.source else None


class EditIn(In):
    """What to change of a project; what is left out stays as it is."""

    name: _Name | None = Field(None, examples=["Better notes"])
    metadata: Metadata | None = Field(
        None, description="Replaces all metadata.", examples=[{"team": "red"}]
    )


class HealthOut(Out):
    """The process runs."""

    status: Literal["ok"]


# The agent of an environment, beside what is relayed (`greylag.common.agent_api`).


class AgentOut(Out):
    """What answers in the environment."""

    agent: str = Field(examples=["goose"])
    version: str = Field(examples=["1.52.0"])
    model: str = Field(examples=["scripted"])
    demonstration: str | None


_SHARE_SECONDS = Field(None, description="Any browser may open it, for so long.")


class PreviewIn(In):
    """How what a port serves is to be opened."""

    path: Text = Field(
        "/",
        description="Where the link leads.",
        max_length=1000,
        pattern=r"^/(?:[!-.0-\[\]-~][!-\[\]-~]*)?$",
        examples=["/"],
    )
    share_seconds: ShareSeconds | None = _SHARE_SECONDS


class FilePreviewIn(In):
    """Which file of the workspace is to be opened, and how."""

    path: Text = Field(
        description="Below the workspace, as the list of files has it.",
        min_length=1,
        max_length=4000,
        examples=["docs/index.html"],
    )
    share_seconds: ShareSeconds | None = _SHARE_SECONDS


class PreviewOut(Out):
    """A link that opens a preview; ``share`` names it where any browser may use it."""

    url: str
    expires_at: Time
    share: str | None = None


class ShareOut(Out):
    """A link by which anybody may open a preview."""

    share: str = Field(description="Its name, by which it is ended.")
    port: int | None = Field(description="What it shows; null: files of the workspace.")
    path: str = Field(description="Where it leads.", examples=["/"])
    by: str | None = Field(description="Who made it; null: the operator.")
    created_at: Time
    expires_at: Time
    url: str


class SharesOut(Out):
    """What is shared of a project, the newest first."""

    shares: list[ShareOut]


class MessageIn(In):
    """A message to the agent."""

    message: Text = Field(
        min_length=1,
        json_schema_extra={"pattern": r"\S"},
        examples=["What is in this folder?"],
    )
    session_id: Text | None = Field(
        None,
        description="Left out: a new session.",
        min_length=1,
        max_length=MAX_ID_LENGTH,
        json_schema_extra={"pattern": SEGMENT_FORM},
    )
    message_id: Text | None = Field(
        None,
        description="Made by the client: sent again with the same id, it is the same turn.",
        json_schema_extra={"pattern": MESSAGE_ID_FORM},
        examples=["b3c1"],
    )


class ConfirmationIn(In):
    """The answer to the agent's question whether a tool may run."""

    decision: Decision = Field(examples=["allow_once"])
