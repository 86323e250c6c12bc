"""What use cases and the reconciler need of the world: time, people, agents, a cluster, a store.

Each method says what holds before, after, and when it is called twice.
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from greylag.common.agent_api import (
    Decision,
    ForwardedAnswer,
    ForwardedRequest,
    ForwardedSocket,
    OpenSocket,
    Operation,
    Socket,
    Turn,
)
from greylag.common.git import CloneState, GitSetup
from greylag.domain.audit import AuditBounds, AuditEntry, AuditEvent
from greylag.domain.errors import (
    AgentFailedError,
    ConfigError,
    ConflictError,
    ErrorInfo,
    GreylagError,
    InvalidRequestError,
    ProjectNotFoundError,
    StoreUnavailableError,
)
from greylag.domain.lifecycle import Observation
from greylag.domain.names import EnvironmentNames
from greylag.domain.project import (
    DEFAULT_TEMPLATE,
    Environment,
    Event,
    NewEvent,
    Project,
    ProjectRecord,
    ProjectRef,
    Status,
)
from greylag.domain.users import (
    ApiToken,
    DeviceLogin,
    Member,
    NotificationTarget,
    PushKey,
    Session,
    Share,
    User,
    UserSecret,
)

_T = TypeVar("_T")
_LONG = 64 * 1024


class Clock(Protocol):
    """Time, so that tests can own it."""

    def now(self) -> datetime:
        """Return the time, aware, in UTC, cut to milliseconds (what every store can keep)."""

    def monotonic(self) -> float:
        """Return seconds that never go back, for deadlines."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""


RECENT_SECONDS = 0.5
"""How long a process may go on with what it read of people: what changes counts after that."""


AnyKept = (
    User
    | Session
    | ApiToken
    | Member
    | DeviceLogin
    | Share
    | UserSecret
    | NotificationTarget
    | PushKey
)
"""What ``PeopleStore`` keeps: each has a ``key``, ``labels`` to be found by, and a ``version``."""
Kept = TypeVar("Kept", bound=AnyKept)


class PeopleStore(Protocol):
    """Users, their sessions, tokens and secrets, whom projects and previews are shared with, and
    where users are told of their turns.

    Every method may raise ``StoreUnavailableError``. What has an ``expires_at`` before ``now`` may
    be forgotten.
    """

    async def find(self, kind: type[Kept], key: str) -> Kept | None:
        """Return what is kept under ``key``.

        Raises:
            RecordUnreadableError: it cannot be read.
        """

    async def labelled(
        self, kind: type[Kept], label: str | None = None, *, strict: bool = False
    ) -> Sequence[Kept]:
        """Return all of a kind that have this label (``None``: all), by their keys. What cannot be
        read is left out, and the log tells of it.

        Args:
            kind: what is asked for.
            label: the label.
            strict: nothing may be left out, as by whoever removes all that there is.

        Raises:
            RecordUnreadableError: one cannot be read, and ``strict`` asks for all; or it is a user
                who is asked for by a label: who cannot be read must not be taken for somebody new.
        """

    async def put(self, one: AnyKept, now: datetime, *, audit: AuditEvent | None = None) -> bool:
        """Write ``one`` over what was read as it, in one atomic step; its version grows by one.

        Returns:
            False, with nothing written, when what is kept under its key is of another version
            (0: when anything is kept there).
        """

    async def remove(
        self,
        kind: type[Kept],
        key: str,
        *,
        only: Mapping[str, str] | None = None,
        audit: AuditEvent | None = None,
    ) -> bool:
        """Remove what is kept under ``key``, with ``only`` if it has these values; return whether
        there was something.
        """


class Attempts:
    """The attempts at changing one thing of those that ``PeopleStore.put`` keeps.

    Args:
        what: the thing, as people call it.
        error: what the last failure raises.
    """

    def __init__(self, what: str, error: type[GreylagError] = ConflictError) -> None:
        self._what = what
        self._error = error
        self._left = 5

    def failed(self) -> None:
        """Count an attempt for which others were too fast.

        Raises:
            GreylagError: that was the last one.
        """
        self._left -= 1
        if not self._left:
            raise self._error(f"Others changed {self._what} again and again.", hint="Try again.")


# Who people are, by the word of an OpenID Connect provider.


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """One sign-in under way: what the provider is asked with, and its answer must match.

    Attributes:
        redirect_uri: where on this site the provider's answer comes to.
        state: names the sign-in in the answer.
        nonce: names it in the ID token.
        verifier: shows that whoever redeems the code is who asked for it (PKCE).
    """

    redirect_uri: str
    state: str
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProviderClaims:
    """What the provider has said of a person who signed in, all of it verified.

    ``id_token`` is that word as it was given, for the provider's own eyes when they sign out.
    """

    claims: Mapping[str, Any]
    id_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProviderSignOut:
    """Somebody has signed out at the provider: a person (``subject``), or one session of theirs."""

    subject: str | None
    session: str | None


class IdentityProvider(Protocol):
    """An OpenID Connect provider. Every method may raise ``IdentityProviderUnavailableError``; what
    is wrong with a person's sign-in, or is not from this provider, is a ``SignInFailedError``.
    """

    issuer: str
    name: str
    """What people know it as."""

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        """Return where the browser is to go to sign in."""

    async def redeem(
        self,
        answer: Mapping[str, str],
        request: AuthorizationRequest,
        wanted: Collection[str],
    ) -> ProviderClaims:
        """Return who has signed in, by the answer that the browser brought back from there. It can
        be redeemed once. The provider is asked for ``wanted`` claims where the ID token lacks them.
        """

    async def sign_out_url(self, back_to: str, id_token: str | None) -> str | None:
        """Return where the browser is to go to sign out there too, and come back to ``back_to``;
        ``None`` where the provider has no such page.
        """

    async def read_sign_out(self, logout_token: str) -> ProviderSignOut:
        """Return whose sign-out the provider tells of (back-channel logout)."""

    async def close(self) -> None:
        """Close all connections."""


# The way to the agent in an environment.


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """Where an environment's agent answers, and the token that it demands (never shown).

    ``anew`` finds the same once more, for whom the agent refuses the token; ``None`` where it can
    be no other. It raises as ``Cluster.reach``.
    """

    url: str
    token: str = field(repr=False)
    anew: "Callable[[], Awaitable[AgentAddress]] | None" = field(
        default=None, repr=False, compare=False
    )


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What answers in an environment; ``demonstration`` says so when no real model is set, ``busy``
    that a turn is going on, or that somebody is at a terminal; ``idle_seconds`` for how long nobody
    has used it, ``None``: it does not know.
    """

    agent: str
    version: str
    model: str
    demonstration: str | None = None
    busy: bool = False
    idle_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """One of the operations of ``greylag.common.agent_api``, asked of an agent.

    Attributes:
        operation: which one.
        parts: what the client gives for each ``{name}`` of the path, not percent-encoded.
        query: what the client gives of the query; only the operation's own members pass.
        headers: what the client sent, by lower-case name; only those about content pass.
        body: the request's body, taken as it is sent on; only where the operation has one.
        told: what it says with what the operation is done, for the audit trail.
    """

    operation: Operation[Any]
    parts: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: AsyncIterator[bytes] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgentAnswer:
    """An agent's success: its status, the headers that may be passed on, and its body."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]

    async def read(self, most: int, shape: Callable[[bytes], _T]) -> _T:
        """Return what ``shape`` makes of the body, in ``answer_of_its_form``. Of a long one it does
        so in a thread.

        Raises:
            AgentFailedError: the body has more than ``most`` bytes, of which no more are read then;
                or it is of another form.
        """
        body = bytearray()
        async for chunk in self.body:
            body += chunk
            if len(body) > most:
                raise AgentFailedError("The agent's answer is too large.")
        with answer_of_its_form():
            if len(body) > _LONG:
                return await asyncio.to_thread(shape, bytes(body))
            return shape(bytes(body))


@contextmanager
def answer_of_its_form() -> Iterator[None]:
    """Read what an agent, which may tell anything, has answered.

    Raises:
        AgentFailedError: for what reading it raises when it is not what it must be.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, OverflowError, InvalidRequestError) as error:
        raise AgentFailedError("The agent's answer is not of the form it must have.") from error


class AgentGateway(Protocol):
    """The way to the agent in an environment.

    Typed is what the platform itself must understand; all else of the agent's API is relayed.
    Every method may raise ``AgentUnreachableError`` or ``AgentFailedError``, and
    ``InvalidRequestError`` for an id that no path can hold. The request id of
    ``greylag.common.logs`` passes through to the agent's log.
    """

    async def status(self, at: AgentAddress) -> AgentStatus:
        """Return what answers there."""

    async def set_up_git(self, at: AgentAddress, setup: GitSetup) -> CloneState:
        """Tell the environment what its git is to have from now on, and begin to clone what it
        starts from, unless that is there, goes on, or has failed with the same setup. Return how
        that stands. Idempotent.
        """

    def relay(
        self, at: AgentAddress, request: AgentRequest
    ) -> AbstractAsyncContextManager[AgentAnswer]:
        """Ask for an operation; request and answer pass in constant memory. Leaving closes the
        connection.

        Raises:
            GreylagError: on entering: what the agent's refusal means, such as ``MissingError``.
            TooLargeError: on entering: the body has more bytes than the operation takes.
            AgentFailedError: on reading: the answer's body goes past its limit.
        """

    def socket(
        self, at: AgentAddress, socket: Socket, parts: Mapping[str, str]
    ) -> AbstractAsyncContextManager[OpenSocket]:
        """Open a WebSocket of the agent's; leaving closes it.

        Args:
            at: where the agent is.
            socket: which one.
            parts: what stands in its path.

        Raises:
            GreylagError: on entering: as ``relay``.
        """

    def forward(
        self, at: AgentAddress, port: int, request: ForwardedRequest
    ) -> AbstractAsyncContextManager[ForwardedAnswer]:
        """Hand a whole HTTP request on to a port of the environment, in constant memory.

        Raises:
            RefusalError: on entering: ``port_silent``: nobody of the environment answers there.
        """

    def forward_socket(
        self, at: AgentAddress, port: int, request: ForwardedRequest, protocols: Sequence[str]
    ) -> AbstractAsyncContextManager[ForwardedSocket]:
        """Open a WebSocket to a port of the environment, offering these subprotocols; it fails as
        ``forward`` does.
        """

    async def start_turn(
        self,
        at: AgentAddress,
        session_id: str | None,
        message: str,
        message_id: str,
        author: str | None = None,
    ) -> Turn:
        """Give the agent a message; without ``session_id`` in a new session. The same message id
        again is the same turn. ``author`` is the name of whoever sends it, for people.

        Raises:
            SessionNotFoundError: there is no such session.
            RefusalError: ``session_busy``: a turn of it runs.
            ConflictError: this ``message_id`` was used in another session.
            TooLargeError: the message is too long.
        """

    def stream_turn(
        self, at: AgentAddress, turn_id: str, after: str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a turn's events: whole SSE frames as bytes, one or more at a time, from the event
        after id ``after`` (``None``: from the first), live until ``complete``. Leaving closes the
        connection at once; the turn goes on.

        Raises:
            RefusalError: ``turn_not_found``: on entering: there is no such turn.
            InvalidRequestError: on entering: ``after`` is not of this turn.
            TurnOverError: on entering: nothing follows ``after`` any more.
            StreamCutError: on iterating: the stream ends before ``complete``.
        """

    async def cancel_turn(self, at: AgentAddress, turn_id: str) -> Turn:
        """Ask the turn to end; one that has ended stays so.

        Raises:
            RefusalError: ``turn_not_found``: there is no such turn.
        """

    async def confirm(
        self, at: AgentAddress, turn_id: str, confirmation_id: str, decision: Decision
    ) -> None:
        """Answer a confirmation. The same answer again is accepted.

        Raises:
            RefusalError: ``turn_not_found``: there is no such turn.
            ConfirmationNotFoundError: it did not ask this.
            ConfirmationSettledError: it was settled otherwise.
        """

    async def close(self) -> None:
        """Close all connections."""


# The way to whom users are told of their turns by: push services and webhooks.

MAX_ADDRESS = 2000
"""How many characters such an address may have."""


@dataclass(frozen=True, slots=True)
class PushAddress:
    """What a browser gives out for pushes to it (RFC 8030 and 8291); all of it is secret.

    Attributes:
        endpoint: where its push service takes them.
        p256dh: its public key, base64url.
        auth: its secret for encryption, base64url.
    """

    endpoint: str = field(repr=False)
    p256dh: str = field(repr=False)
    auth: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookAddress:
    """A user's webhook, and what its messages are signed with (base64)."""

    url: str = field(repr=False)
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PushMessage:
    """What a browser is told.

    Attributes:
        body: for the service worker; 3,900 bytes at most.
        topic: of two that wait for the browser under one, the newer is enough.
        urgent: whether a device that saves power is to be woken for it.
        contact: whom the push service may turn to, as a URI.
    """

    body: bytes
    topic: str
    urgent: bool
    contact: str


class DeliveryResult(StrEnum):
    """What came of telling. ``GONE``: nobody is there for good; ``LATER``: another try may help."""

    DONE = "done"
    GONE = "gone"
    REFUSED = "refused"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class Delivered:
    """What came of telling, and in a few words."""

    result: DeliveryResult
    words: str


class Delivery(Protocol):
    """The way to push services and webhooks. No address that a user gives leads into a network that
    is not public, unless the operator has named the host; no redirect is followed.
    """

    def new_key(self) -> str:
        """Return a new private key for pushes, as text."""

    def public_key(self, key: str) -> str:
        """Return what browsers are told of a private key."""

    def check(self, address: PushAddress | WebhookAddress) -> str:
        """Return the host of an address that may be told something.

        Raises:
            InvalidRequestError: it may not, or is none; it is not repeated.
        """

    async def push(self, to: PushAddress, key: str, message: PushMessage) -> Delivered:
        """Give a message, encrypted, to a browser's push service, once."""

    async def post(
        self, to: WebhookAddress, message_id: str, at: datetime, body: bytes
    ) -> Delivered:
        """Send a signed message to a webhook, once (Standard Webhooks)."""

    async def close(self) -> None:
        """Close all connections."""


# The cluster: where environments run.


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundEnvironment:
    """What an environment says of itself: enough to make a record of it anew.

    Attributes:
        ref: whose it is.
        names: what its objects are called.
        record_id: of the record that it was made for, on which its token may depend; ``None`` where
            only a volume is left.
        claim: the newest that it has seen.
        name: the project's when the environment was last worked on; empty where it is not known.
        template: the shape that it has.
        wanted: whether it is to run.
        instance: the id of the other Greylag that it belongs to, ``None`` where it is ours.
    """

    ref: ProjectRef
    names: EnvironmentNames
    record_id: str | None = None
    claim: int = 0
    name: str = ""
    template: object = DEFAULT_TEMPLATE
    wanted: bool = False
    instance: str | None = None


class Cluster(Protocol):
    """Where environments run.

    Every method may raise ``ClusterError`` (``terminal`` when a retry cannot help) or
    ``ClusterUnavailableError`` (nothing is known). Verbs are idempotent, return as soon as the wish
    is handed over, and may be killed and repeated at any point; ``observe`` tells what came of it.
    A verb under an older claim (``Environment.fence``) than the newest that the environment has
    seen raises ``LeaseLostError`` and does nothing.
    """

    kind: str
    """``kubernetes``, ``local`` or ``memory``."""

    notice: str | None
    """A sentence that users must see (such as: environments are not isolated), or ``None``."""

    async def observe(self, environment: Environment) -> Observation:
        """Return the environment's state. What cannot be told is ``UNKNOWN``, never ``ABSENT``."""

    async def prepare(self, environment: Environment) -> None:
        """Make all that the environment needs, not running: then it is ``STOPPED``. Nothing of an
        environment that exists is changed.
        """

    async def start(self, environment: Environment) -> None:
        """Prepare it and make it run: ``STARTING``, then ``READY`` or ``FAILED``. A running one is
        left alone; a failed one is started anew.
        """

    async def stop(self, environment: Environment) -> None:
        """End all its processes and keep its volume: ``STOPPING``, then ``STOPPED``."""

    async def delete(self, environment: Environment) -> None:
        """Remove a stopped environment with its volume: then it is ``ABSENT``."""

    async def changed(self, environment: Environment, timeout: float) -> None:  # noqa: ASYNC109 - see Subscription
        """Return when the environment may have changed, at the latest after ``timeout`` seconds."""

    def changes(self) -> AsyncIterator[ProjectRef]:
        """Yield projects whose environments ended, came or were changed unasked, until closed."""

    async def reach(self, environment: Environment) -> AgentAddress:
        """Return where a running environment's agent answers.

        Raises:
            NotActiveError: it does not run.
        """

    def logs(
        self, environment: Environment, *, follow: bool, tail: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the environment's log: its last ``tail`` lines, then, with ``follow``, what comes.
        An environment that never ran has an empty log.
        """

    async def inventory(self) -> Sequence[ProjectRef]:
        """Return every environment of ours that exists, whether it has a record or not."""

    async def found(self) -> Sequence[FoundEnvironment]:
        """Return every environment that exists where ours do, another Greylag's too."""

    async def take_over(self, found: FoundEnvironment) -> None:
        """Make ours what belongs to another Greylag, with all that this user has there; nothing of
        it is changed besides. What is ours already is left alone.
        """

    async def close(self) -> None:
        """Let go of the cluster; environments go on running."""


# The store of records, as the use cases and the reconciler see it.


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's key for a creation, with a digest of what it asked for. Kept for a day."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Created:
    """``new`` is false when the same key had created the project before."""

    project: Project
    new: bool


CURSOR_FORM = r"^-?[0-9]{1,15}\.([0-9A-Za-z]{1,64}|_([0-9a-f]{2}){0,1024})$"
"""What every cursor looks like: any other text is refused, and nothing of this form is."""


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which of a user's projects: ``limit`` at most, after ``cursor`` (opaque, from a page)."""

    limit: int = 50
    cursor: str | None = None
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class ProjectPage:
    """Projects by creation, newest first; ``cursor`` asks for the next page (``None``: no more).

    Several callers may be given the same one: nobody changes what is in it.
    """

    projects: Sequence[Project]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on one project until ``project.lease.until``; fenced by its number."""

    project: Project

    @property
    def number(self) -> int:
        """The claim's fencing number."""
        return self.project.lease.number if self.project.lease else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the reconciler found and did: the whole observed half of the record, and its due time.

    ``events`` are appended to the activation log in the same transaction.
    """

    status: Status
    endpoint: str | None = None
    error: ErrorInfo | None = None
    error_terminal: bool = False
    observed_generation: int = 0
    attempts: int = 0
    last_activated_at: datetime | None = None
    last_deactivated_at: datetime | None = None
    outdated: str | None = None
    deadline_at: datetime | None = None
    due_at: datetime | None = None
    events: Sequence[NewEvent] = field(default=())


OBSERVED = frozenset(one.name for one in fields(Outcome)) - {"events"}
"""The fields of a project that an outcome has."""


class Duty(StrEnum):
    """What a worker is told that asks for work which one does for all."""

    MINE = "mine"
    HELD = "held"
    DONE = "done"


class Subscription(Protocol):
    """Hears of changes. Level-triggered: one that comes between two waits is not lost."""

    async def changed(self, timeout: float) -> bool:  # noqa: ASYNC109 - a wait for news ends without it
        """Return ``True`` as soon as something has changed, ``False`` after ``timeout`` seconds."""


LONGEST_SIGNED = timedelta(days=31)
"""Nothing that is signed lives longer."""


class Revocations(Protocol):
    """What must not count any more though its signature is good: sign-ins that were ended, links
    that were used. Every method may raise ``StoreUnavailableError``.
    """

    async def revoke(
        self, name: str, until: datetime, now: datetime, *, audit: AuditEvent | None = None
    ) -> bool:
        """Keep ``name`` until then, for every process on this store, in one atomic step.

        Returns:
            Whether nobody had done so before. What was kept until before ``now`` may be forgotten.
        """

    async def is_revoked(self, name: str, signed_at: datetime | None = None) -> bool:
        """Tell whether ``name`` is kept, or was ``signed_at`` a moment before an import into the
        store: what was ended or used is in no export, so nothing of before then counts.
        """


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries of the audit trail; ``None``: all.

    Attributes:
        user: what this user did.
        action: exactly this one.
        object: what was done with this, or with what is below it.
        result: what came of it.
        since: not before.
        until: before.
    """

    user: str | None = None
    action: str | None = None
    object: str | None = None
    result: str | None = None
    since: datetime | None = None
    until: datetime | None = None


NumberedEntry = tuple[int, Mapping[str, Any]]
"""An entry by the number under which it is kept, in JSON's terms, as it is now: somebody may have
damaged it."""


TRIMMED_AT_ONCE = 5_000
"""How many entries of the audit trail are removed in one step, which holds nobody up for long."""


class AuditReading(Protocol):
    """The audit trail as it can be read. Every method may raise ``StoreUnavailableError``."""

    async def audit_entries(
        self, asked: AuditFilter, limit: int, *, before: int | None = None, after: int = 0
    ) -> Sequence[NumberedEntry]:
        """Return entries, ``limit`` at most: with ``before`` those with lower numbers, the newest
        first; else those above ``after``, the oldest first.
        """

    async def audit_bounds(self) -> AuditBounds:
        """Return where the chain that is kept begins and ends; what an import that has not ended
        has brought of one does not count.
        """


class AuditStore(AuditReading, Protocol):
    """The audit trail, one chain for all processes on a store.

    Every method may raise ``StoreUnavailableError``. Where a method of the other ports takes an
    ``audit``, it is appended in the same atomic step as the change, and only if something was
    changed. Where the store has no such step, an entry that says ``begun`` is durable before the
    change, and another tells how it ended.
    """

    async def append_audit(self, event: AuditEvent) -> AuditEntry:
        """Append an entry. It is durable, has a number that no other has, and follows the last."""

    async def trim_audit(self, before: datetime, limit: int = TRIMMED_AT_ONCE) -> int:
        """Remove the oldest entries, ``limit`` at most, up to the first that is not from before
        then; return how many. The chain begins after them from now on.
        """

    def on_audit(self, told: Callable[[AuditEntry], None]) -> None:
        """Call ``told``, on the event loop, with each entry that this process appends from now on,
        once it is durable.
        """


class TranscriptStore(Protocol):
    """Copies of what was said in environments (``greylag.domain.transcript``), in parts.

    Every method may raise ``StoreUnavailableError``. A copy goes with its project's record; no
    export holds any.
    """

    async def transcript(self, owner: str, project_id: str, part: str) -> bytes | None:
        """Return a part of the project's copy, if that is kept."""

    async def keep_transcript(
        self, claim: Claim, parts: Mapping[str, bytes], *, only: Collection[str] | None = None
    ) -> None:
        """Keep these parts over those of the same names, and with ``only`` no others than these
        names. Idempotent. Cut off, some parts may be kept and the rest as they were.
        """


class ProjectStore(Revocations, PeopleStore, AuditStore, TranscriptStore, Protocol):
    """The records, their activation logs, and who works on which.

    Every method may raise ``StoreUnavailableError``; then nothing was changed, or, when a server
    was lost as it answered, all of it: each may be called again. What has returned is durable.
    Methods that serve requests take the owner: other users' projects do not exist for them
    (``ProjectNotFoundError``). Reconciler writes take their claim and raise ``LeaseLostError``,
    changing nothing, once another claim was made. A record that something else has written, and
    that cannot be read, is a ``RecordUnreadableError`` to whoever asks for it; pages and claims
    pass it over, and the log tells of it.
    """

    async def create(
        self,
        project: Project,
        key: IdempotencyKey | None = None,
        *,
        audit: AuditEvent | None = None,
    ) -> Created:
        """Insert ``project``. A second call with the same key and fingerprint returns the first's
        project.

        Raises:
            IdempotencyConflictError: the key came with another fingerprint, or what it has created
                was handed over.
            ProjectExistsError: the owner has a project of this id, or the environment that it
                would have is that of one which was handed over.
        """

    async def created(self, owner: str, key: IdempotencyKey, now: datetime) -> Project | None:
        """Return what ``create`` has made of this key of the owner's, if that is there.

        Raises:
            IdempotencyConflictError: as ``create``.
        """

    async def get(self, owner: str, project_id: str) -> Project:
        """Return the project as it is now."""

    async def page(self, owner: str, query: PageQuery) -> ProjectPage:
        """Return one page of this owner's projects.

        Raises:
            InvalidRequestError: the cursor is not one of ours.
        """

    async def has_projects(self, owner: str) -> bool:
        """Tell whether this owner has a project, readable or not."""

    async def change(
        self,
        ref: ProjectRef,
        rule: Callable[[ProjectRecord], ProjectRecord],
        audit: AuditEvent | None,
    ) -> Project:
        """Make of a record what ``rule`` makes of it, such as ``greylag.domain.project.wanted``, in
        one atomic step, and return its project.

        ``rule`` may be called more than once, refuses by raising, and returns the same record where
        nothing changes.

        Raises:
            ProjectExistsError: it gives the project to a user who has one of this id.
        """

    async def of_environment(self, ref: ProjectRef) -> Project:
        """Return the project whose environment a cluster knows by ``ref`` (``Project.made_for``).

        Raises:
            ProjectNotFoundError: there is none.
        """

    async def events(self, owner: str, project_id: str, after: int, limit: int) -> Sequence[Event]:
        """Return the log's events with ``seq > after``, oldest first, ``limit`` at most. The log
        keeps the newest 500 of a project.
        """

    async def claim_due(self, worker: str, now: datetime, lease_seconds: float) -> Claim | None:
        """Claim, in one atomic step, the project that is next; ``None`` when nothing is due that
        nobody's lease holds. Of two simultaneous calls one gets it.

        It is fair between users: first come the due projects of the users who have the fewest
        others under leases that have not run out; among those, what has been due longest; among
        those, the lowest id. So one user's thousand due projects do not hold back another's one.
        """

    async def next_due(self) -> datetime | None:
        """Return when the next claim can succeed (the past: now), ``None``: not before a change."""

    async def renew(
        self, claim: Claim, now: datetime, lease_seconds: float, *, above: int = 0
    ) -> Claim:
        """Extend the claim's lease; the claim returned carries the record as it is now, so a
        changed ``desired`` is seen. With ``above``, a number that the environment has seen and
        that is higher than the claim's, the claim goes on, in one atomic step, under a number
        higher than that.
        """

    async def record(
        self, claim: Claim, outcome: Outcome, now: datetime, *, release: bool
    ) -> Project:
        """Write what is. With ``release`` the lease ends, and if ``desired`` was changed since the
        claim was read the project is due at once, whatever the outcome says.
        """

    async def forget(self, claim: Claim) -> None:
        """Remove the record and its log for good."""

    async def poke(self, ref: ProjectRef, now: datetime) -> None:
        """Make the project due whose environment a cluster knows by ``ref``. One that does not
        exist is passed over.
        """

    async def poke_unsettled(self, now: datetime) -> int:
        """Make due every project that runs, should run, or is not settled; return how many. Leases
        of dead workers are left to run out, but for those of a clock that was ahead (``MOST_AHEAD``
        in ``domain/project.py``), which would last until it is as late as that.
        """

    async def count_by_status(self) -> Mapping[Status, int]:
        """Return how many projects of all users there are in each status, 0 where there is none."""

    async def instance(self) -> str:
        """Return this Greylag's id, the same for all processes on this store and for good: it is
        made once, in one atomic step, and goes with an export into the store that it fills.
        """

    async def take_duty(
        self, name: str, worker: str, *, since: datetime, now: datetime, seconds: float
    ) -> Duty:
        """Take on, in one atomic step, work that one worker at a time does for all.

        ``MINE``: do it, for ``seconds`` (the holder may take it again, and holds it longer).
        ``HELD``: another is at it. ``DONE``: somebody has finished it at ``since`` or later. What
        lies further ahead of ``now`` than ``MOST_AHEAD`` tells neither.
        """

    async def finish_duty(self, name: str, worker: str, now: datetime) -> None:
        """Say that a duty is done. One that another has taken over meanwhile is left as it is."""

    def subscribe(self, to: ProjectRef | str | None = None) -> AbstractContextManager[Subscription]:
        """Hear of changes to one project, to any of a user's, or to any, from inside the ``with``
        block.
        """

    async def ping(self) -> None:
        """Return when the store can be read and written."""

    async def close(self) -> None:
        """Release everything; nothing else may be called after. A second call does nothing."""


# Matching environments with records: what a start does, and the search for orphans.


class RecordUnreadableError(StoreUnavailableError):
    """A record of the store is not of the form that it must have."""

    hint = "Correct the record, or remove it; `greylag doctor` finds and explains such records."


async def has_record(store: ProjectStore, ref: ProjectRef) -> bool:
    """Tell whether the project that an environment says it is of has a record now, readable or not.

    Raises:
        StoreUnavailableError: a store that does not answer is no proof that there is none.
    """
    try:
        await store.of_environment(ref)
    except ProjectNotFoundError:
        return False
    except RecordUnreadableError:
        return True
    return True


# A store as a whole: what export, import and `greylag doctor` see of it.


class StoreMissingError(ConfigError):
    """Where the settings say that the records are kept there is nothing yet."""


class StoreNotEmptyError(GreylagError):
    """The store that an import is to fill holds something."""

    code = "store_not_empty"
    hint = "With --replace the file's projects take the place of all that is there."


class StoreInUseError(GreylagError):
    """Somebody works on the store that an import is to fill."""

    code = "store_in_use"
    hint = "Stop each `greylag up`, `serve` and `worker` on it, then run the same command again."


class StoreIncompleteError(GreylagError):
    """An import into the store has not ended, so that it holds only a part of its records."""

    code = "store_incomplete"
    hint = "Run the same `greylag import` again: it begins anew and makes the store whole."


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An idempotency key as it is kept."""

    user_id: str
    key: str
    fingerprint: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProject:
    """All that a store holds of one project.

    Attributes:
        claims: how many claims there were.
        events: the newest 500 of ``project.last_seq``.
        extra: what others keep in the record, as JSON; only stores that say so keep it.
    """

    project: Project
    claims: int = 0
    events: Sequence[Event] = ()
    keys: Sequence[StoredKey] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a store that an operator must see to: where, one sentence, and what to do."""

    place: str
    sentence: str
    hint: str


EXPORTED_KINDS = frozenset(
    {"users", "tokens", "members", "shares", "secrets", "notifications", "push_keys"}
)
"""What exports hold of people, what is sealed as it is: whoever has signed in does so again."""


@dataclass(frozen=True, slots=True)
class StoredPerson:
    """One of the ``EXPORTED_KINDS`` as a store keeps it: of which kind, and all of it as JSON."""

    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One entry of the audit trail, as it is kept under its number."""

    number: int
    body: Mapping[str, Any]


Stored = StoredProject | StoredPerson | StoredEntry
Fill = Callable[[Sequence[Stored | AuditEvent]], Awaitable[None]]
"""Puts records into a store that is being replaced. A project takes the place of an earlier one
with the same user and project id; an event is appended to the audit trail, after all else."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What an export says of the store that it is of.

    Attributes:
        instance: the Greylag's id, ``None`` where it names none.
        people: how many it holds.
        trail: where the audit trail begins and ends, ``None`` where it holds none.
    """

    instance: str | None = None
    people: int = 0
    trail: AuditBounds | None = None


NO_EXPORT = Origin()
"""The origin of records that come from nowhere: id, people and audit trail stay as they are."""


class Archive(AuditReading, Protocol):
    """A store opened as a whole. Every method may raise ``StoreUnavailableError``."""

    place: str
    """Where it is, for people; without a password."""

    keeps_extra: bool
    """Whether it keeps what others keep in records."""

    def read(self) -> AsyncIterator[Sequence[StoredProject | Finding]]:
        """Yield all projects by their ids, some at a time, each as it is at one moment; for one
        that cannot be read, what is wrong with it. The store may be worked on meanwhile.
        """

    async def count(self) -> int:
        """Return how many projects there are, readable or not."""

    def people(self) -> AsyncIterator[Sequence[StoredPerson | Finding]]:
        """Yield all of the ``EXPORTED_KINDS``, some at a time, as ``read`` does projects."""

    async def count_people(self) -> int:
        """Return how many of these there are."""

    async def at_work(self, now: datetime) -> ProjectRef | None:
        """Return a project whose lease has not run out at ``now``, if there is one."""

    async def instance(self) -> str | None:
        """Return the id of the Greylag whose store it is, ``None`` where it has none yet."""

    async def incomplete(self) -> bool:
        """Tell whether an import into this store was begun and has not ended."""

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Keep what is read in the ``with`` block as it is until it ends, where the store can: then
        nobody else writes meanwhile. ``replacing`` stands inside it.
        """

    def replacing(
        self, origin: Origin = NO_EXPORT, at: datetime | None = None
    ) -> AbstractAsyncContextManager[Fill]:
        """Empty the store, and fill it inside the ``with`` block; on leaving it is whole, and of
        the Greylag that the ``origin`` names (``None``: the same as before). The ``EXPORTED_KINDS``
        stay as they are unless people come too; then sessions end as well. The audit trail stays
        unless the entries of another come, with its bounds. What was signed before ``at``, an
        import's moment, is revoked.

        Cut off, or left by an error, it is as it was before, or ``incomplete``: then no store opens
        on it until it has been replaced. Of two that do so at once the one that has begun first is
        refused; where both may have written, the other is, too, and the store is ``incomplete``.

        Raises:
            StoreInUseError: two did so at once; as it is filled, or on leaving.
        """

    async def findings(self) -> Sequence[Finding]:
        """Return what is wrong with the store as such, such as its indexes; nothing is changed."""

    async def close(self) -> None:
        """Release everything. A second call does nothing."""
