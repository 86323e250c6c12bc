"""Where users are told of their turns away from the desk, and the words of it. Nothing is told to
anybody before they have turned it on: with a browser, by Web Push, or with a webhook.

What they are told names project and session, and never holds what was said. Addresses and keys are
sealed, and shown to nobody.
"""

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from weakref import WeakValueDictionary

import structlog

from greylag.common.clock import rfc3339
from greylag.common.sealing import SealError, Sealing
from greylag.domain.audit import SYSTEM, Actor, AuditAction, AuditEvent, name_of
from greylag.domain.errors import (
    InvalidRequestError,
    LimitExceededError,
    MissingError,
    NotificationsOffError,
    StoreUnavailableError,
)
from greylag.domain.names import check_name
from greylag.domain.project import Project
from greylag.domain.users import Action, NotificationTarget, Principal, PushKey, User, of_user
from greylag.ports import (
    Attempts,
    Clock,
    Delivered,
    Delivery,
    DeliveryResult,
    PeopleStore,
    PushAddress,
    PushMessage,
    WebhookAddress,
)
from greylag.services.access import Gate

MOST_TARGETS = 20
MOST_OF_USER_AT_ONCE = 4
"""How many places of a user are told at the same moment, by one process."""
MAX_SITE = 300
SECRET_PREFIX = "whsec_"  # noqa: S105 - what stands before one (Standard Webhooks)
_SECRET_BYTES = 24
_ID_DIGITS = 16
_LONGEST_WORDS = 100

_log = structlog.get_logger(__name__)


class What(StrEnum):
    """What users are told of."""

    ASKS = "turn.asks"
    ENDED = "turn.ended"
    FAILED = "turn.failed"
    TEST = "test"


_WORDS: Mapping[What, str] = {
    What.ASKS: "A tool call waits for your answer.",
    What.ENDED: "The agent has answered.",
    What.FAILED: "The turn failed.",
    What.TEST: "Notifications reach this device.",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to tell. ``id`` is the same for the same, whoever tells it and however often.

    ``project`` is ``None`` for a test, which is about none.
    """

    what: What
    id: str
    at: datetime
    project: Project | None = None
    session_id: str = ""
    session: str = ""
    turn_id: str = ""
    confirmation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Notifications:
    """The use cases of notifications. Each takes the principal, and authorizes first.

    ``sealing`` is ``None`` where nothing can be sealed. Whom push services may turn to is
    ``contact``, else the site of whoever is told.
    """

    people: PeopleStore
    gate: Gate
    clock: Clock
    delivery: Delivery
    sealing: Sealing | None
    contact: str = ""
    # Whose places never answer wait for each other, and hold nobody else's back.
    _ways: WeakValueDictionary[str, asyncio.Semaphore] = field(
        init=False, repr=False, compare=False, default_factory=WeakValueDictionary
    )

    async def listed(self, principal: Principal, user_id: str) -> Sequence[NotificationTarget]:
        """Return where a user is told, the oldest first."""
        user = await self.gate.authorize(principal, Action.ACCOUNT_READ, user_id)
        return await self.of(user.id)

    async def public_key(self) -> str | None:
        """Return what browsers are to let in; ``None`` where nothing can be sealed."""
        return None if self.sealing is None else self.delivery.public_key(await self._push_key())

    async def add_browser(
        self, principal: Principal, user_id: str, name: str, site: str, address: PushAddress
    ) -> NotificationTarget:
        """Tell a user in a browser from now on, and nobody else who was told there.

        Raises:
            InvalidRequestError: the name or the address can be none.
            LimitExceededError: there are too many.
            NotificationsOffError: nothing can be sealed here.
        """
        user = await self.gate.authorize(principal, Action.NOTIFICATIONS_WRITE, user_id)
        target_id = hashlib.sha256(address.endpoint.encode()).hexdigest()[:_ID_DIGITS]
        return await self._add(principal, user, target_id, name, site, address)

    async def add_webhook(
        self, principal: Principal, user_id: str, name: str, site: str, url: str
    ) -> tuple[str, NotificationTarget]:
        """Tell a webhook from now on; return what it knows us by, which is shown this once.

        It fails as ``add_browser`` does.
        """
        user = await self.gate.authorize(principal, Action.NOTIFICATIONS_WRITE, user_id)
        secret = base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
        address = WebhookAddress(url, secret)
        target_id = secrets.token_hex(_ID_DIGITS // 2)
        target = await self._add(principal, user, target_id, name, site, address)
        return SECRET_PREFIX + secret, target

    async def _add(  # noqa: PLR0913, PLR0917 - what a target is made of
        self,
        principal: Principal,
        user: User,
        target_id: str,
        name: str,
        site: str,
        address: PushAddress | WebhookAddress,
    ) -> NotificationTarget:
        host = self.delivery.check(address)
        if self.sealing is None:
            raise NotificationsOffError("Notifications cannot be turned on here.")
        if len(site) > MAX_SITE:
            raise InvalidRequestError("The address of this Greylag is too long.")
        new = NotificationTarget(
            id=target_id,
            user_id=user.id,
            kind="browser" if isinstance(address, PushAddress) else "webhook",
            name=check_name(name, "name"),
            host=host,
            site=site,
            sealed=self.sealing.seal(json.dumps(asdict(address)), _purpose(target_id, user.id)),
            created_at=self.clock.now(),
        )
        action = AuditAction.NOTIFICATION_ADD
        told = self._event(principal, action, new)
        right = Action.NOTIFICATIONS_WRITE
        async with self.gate.limited(principal, action, user.id, right=right, counted=user.id):
            attempts = Attempts("where the user is told")
            while True:
                before = await self.people.find(NotificationTarget, target_id)
                _check_room(await self.of(user.id), target_id)
                one = replace(new, version=before.version) if before else new
                if await self.people.put(one, new.created_at, audit=told):
                    return one
                attempts.failed()

    async def test(
        self, principal: Principal, user_id: str, target_id: str
    ) -> tuple[NotificationTarget, Delivered]:
        """Tell a target that it is told, once, and return what came of it.

        Raises:
            MissingError: there is none of this id.
        """
        await self.gate.authorize(principal, Action.NOTIFICATIONS_WRITE, user_id)
        target = await self._found(user_id, target_id)
        await self.gate.audit.append(self._event(principal, AuditAction.NOTIFICATION_TEST, target))
        notice = Notice(What.TEST, f"msg_{secrets.token_hex(16)}", self.clock.now())
        return target, await self.send(target, notice)

    async def remove(self, principal: Principal, user_id: str, target_id: str) -> None:
        """Tell nothing there any more.

        Raises:
            MissingError: there is none of this id.
        """
        await self.gate.authorize(principal, Action.ACCOUNT_WRITE, user_id)
        target = await self._found(user_id, target_id)
        await self._remove(principal, target)

    async def remove_all(self, principal: Principal, user_id: str) -> None:
        """Tell nothing to a user who is being removed; whoever calls it has authorized that.

        Raises:
            RecordUnreadableError: something of theirs cannot be read.
        """
        label = of_user(user_id)
        for target in await self.people.labelled(NotificationTarget, label, strict=True):
            await self._remove(principal, target)

    async def _remove(self, who: Principal | Actor, target: NotificationTarget) -> None:
        told = self._event(who, AuditAction.NOTIFICATION_REMOVE, target)
        await self.people.remove(NotificationTarget, target.id, audit=told)

    async def of(self, user_id: str | None) -> Sequence[NotificationTarget]:
        """Return where a user (``None``: anybody) is told; for those who tell."""
        label = None if user_id is None else of_user(user_id)
        found = await self.people.labelled(NotificationTarget, label)
        return sorted(found, key=lambda one: (one.created_at, one.id))

    async def send(self, target: NotificationTarget, notice: Notice) -> Delivered:
        """Tell a target, once, and keep what came of it; one that is gone for good is removed.

        Raises:
            StoreUnavailableError: nothing was sent.
        """
        room = asyncio.Semaphore(MOST_OF_USER_AT_ONCE)
        async with self._ways.setdefault(target.user_id, room):
            kept = await self.people.find(NotificationTarget, target.id)
            if kept is None or kept.user_id != target.user_id:
                return Delivered(DeliveryResult.REFUSED, "it was removed before its turn")
            delivered = await self._delivered(target, notice)
        try:
            await self._keep_result(target, delivered)
        except StoreUnavailableError as error:
            # Who failed here would be asked to send it again.
            _log.warning("notification_result_not_kept", target=target.id, reason=str(error))
        return delivered

    async def _keep_result(self, target: NotificationTarget, delivered: Delivered) -> None:
        now = self.clock.now()
        if delivered.result is DeliveryResult.GONE:
            await self._remove(SYSTEM, target)
        elif (kept := await self.people.find(NotificationTarget, target.id)) is not None:
            # Only the newest counts: what another process has written meanwhile is as good.
            told = replace(kept, last_at=now, last_result=delivered.words)
            await self.people.put(told, now)

    async def _delivered(self, target: NotificationTarget, notice: Notice) -> Delivered:
        if self.sealing is None:
            return Delivered(DeliveryResult.REFUSED, "there is no key to open its address")
        try:
            purpose = _purpose(target.id, target.user_id)
            opened = json.loads(self.sealing.open(target.sealed, purpose))
        except SealError as error:
            return Delivered(DeliveryResult.REFUSED, f"its address cannot be opened: {error}")
        if target.kind == "webhook":
            body = _plain(_for_webhook(target, notice))
            return await self.delivery.post(
                WebhookAddress(**opened), notice.id, self.clock.now(), body
            )
        message = PushMessage(
            _plain(_for_browser(target, notice)),
            topic=_digest(notice.turn_id)[:32],
            urgent=notice.what is What.ASKS,
            contact=self.contact or _contact(target.site),
        )
        return await self.delivery.push(PushAddress(**opened), await self._push_key(), message)

    async def _push_key(self) -> str:
        """Return the private key for pushes; whoever needs it first makes it, for all processes."""
        assert self.sealing is not None  # noqa: S101 - its callers have looked
        attempts = Attempts("the key for pushes")
        while True:
            kept = await self.people.find(PushKey, "push")
            if kept is not None:
                try:
                    return self.sealing.open(kept.sealed, "push key")
                except SealError:
                    # Nobody can use it any more, nor what browsers gave out for it.
                    _log.warning("push_key_unreadable", meaning="browsers must turn on anew")
            key = self.delivery.new_key()
            new = PushKey(self.sealing.seal(key, "push key"), kept.version if kept else 0)
            if await self.people.put(new, self.clock.now()):
                return key
            attempts.failed()

    async def _found(self, user_id: str, target_id: str) -> NotificationTarget:
        found = await self.people.find(NotificationTarget, target_id)
        if found is None or found.user_id != user_id:
            raise MissingError(f"The user is told nothing at {target_id!r}.")
        return found

    def _event(
        self, who: Principal | Actor, action: AuditAction, target: NotificationTarget
    ) -> AuditEvent:
        about = {"target": target.id, "kind": target.kind, "host": target.host}
        return self.gate.audit.event(who, action, name_of(target.user_id), **about)


def _check_room(known: Sequence[NotificationTarget], target_id: str) -> None:
    if len(known) >= MOST_TARGETS and target_id not in {one.id for one in known}:
        raise LimitExceededError(f"A user is told in {MOST_TARGETS} places.", hint="Remove one.")


def notice_id(*names: str) -> str:
    """Return the id of what is told about these."""
    return f"msg_{_digest(*names)[:32]}"


def _digest(*names: str) -> str:
    return hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest()


def _purpose(target_id: str, user_id: str) -> str:
    return f"notification target {target_id} of {user_id}"


def _contact(site: str) -> str:
    # Push services want to know one; some take no address without TLS for it.
    return site if site.startswith("https:") else "mailto:operator@localhost"


def _for_browser(target: NotificationTarget, notice: Notice) -> dict[str, Any]:
    project = notice.project
    words = _WORDS[notice.what]
    session = _shown(notice.session)
    return {
        "title": _shown(project.name) if project else "Greylag",
        "body": f"{words}\n{session}" if session else words,
        "project": target.site + project.ref.path if project else target.site + "/account",
        "session": notice.session_id,
        "turn": notice.turn_id,
        "asks": notice.what is What.ASKS,
    }


def _shown(text: str) -> str:
    """Return a name, which others may have given, as a device can show it: on one line, short."""
    return "".join(one if one.isprintable() else " " for one in text[:_LONGEST_WORDS])


def _for_webhook(target: NotificationTarget, notice: Notice) -> dict[str, Any]:
    data: dict[str, Any] = {"user": target.user_id, "text": _WORDS[notice.what]}
    if notice.project is not None:
        url = target.site + notice.project.ref.path
        data |= {
            "project": notice.project.project_id,
            "project_name": notice.project.name,
            "session": notice.session_id,
            "session_title": notice.session,
            "turn": notice.turn_id,
            "confirmation": notice.confirmation_id,
            "url": f"{url}/turns/{notice.turn_id}/answer" if notice.confirmation_id else url,
        }
    return {"type": notice.what.value, "timestamp": rfc3339(notice.at), "data": data}


def _plain(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said, ensure_ascii=False).encode(errors="replace")
