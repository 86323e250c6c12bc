"""Who may do what: every use case asks first, and the one table decides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.clocks import FakeClock
from tests.contract.store_adapters import at
from tests.fakes.store import MemoryStore
from tests.harness import Harness, settings
from tests.services.house import House

from greylag.common.agent_api import COMMAND_SOCKET, LIST_TERMINALS, ForwardedRequest
from greylag.config import load_settings
from greylag.domain.audit import AuditAction
from greylag.domain.errors import (
    ConfigError,
    ConflictError,
    ForbiddenError,
    IdempotencyConflictError,
    InvalidRequestError,
    LimitExceededError,
    MissingError,
    ProjectNotFoundError,
    StoreUnavailableError,
    UnauthorizedError,
    UserNotFoundError,
)
from greylag.domain.project import Desired, Project, ProjectRef, Status
from greylag.domain.users import (
    OPERATOR,
    Action,
    ApiToken,
    DeviceLogin,
    Identity,
    Limits,
    Look,
    Member,
    MemberRole,
    NotificationTarget,
    Principal,
    Role,
    Scope,
    Session,
    Share,
    User,
    UserSecret,
    of_user,
)
from greylag.ports import (
    AgentRequest,
    AnyKept,
    AuditFilter,
    Duty,
    PageQuery,
    ProjectPage,
    RecordUnreadableError,
    has_record,
)
from greylag.services import access, notifications, secrets, sharing, tokens
from greylag.services.access import RULES, WITH_REASON, Gate, Standing
from greylag.services.agents import NewMessage
from greylag.services.people import UserEdit
from greylag.services.projects import Edit, NewProject, Projects
from greylag.services.secrets import NewSecret
from greylag.services.sharing import Members, NewShare
from greylag.services.tokens import NewToken
from greylag.services.use_cases import UseCases

ZOE = Principal("zoe", "Zoë")
WHO = (ZOE, "ada")
ASKED = ForwardedRequest("GET", "/", [])
AT = (ZOE, ProjectRef("ada", "demo"))


async def send(of: UseCases) -> None:
    async with of.agents.send(*AT, NewMessage("hello")):
        pass


CASES: list[tuple[Callable[[UseCases], Awaitable[Any]], Action]] = [
    (lambda of: of.projects.page(*WHO, PageQuery()), Action.PROJECTS_LIST),
    (lambda of: of.projects.get(*AT), Action.PROJECTS_READ),
    (lambda of: of.projects.follow(*AT, 0), Action.PROJECTS_READ),
    (lambda of: of.projects.create(*WHO, NewProject("New")), Action.PROJECTS_WRITE),
    (lambda of: of.projects.edit(*AT, Edit(name="New")), Action.PROJECTS_WRITE),
    (lambda of: of.projects.want(*AT, Desired.ACTIVE), Action.ENVIRONMENT_ACTIVATE),
    (lambda of: of.projects.want(*AT, Desired.INACTIVE), Action.ENVIRONMENT_DEACTIVATE),
    (lambda of: of.projects.want(*AT, Desired.DELETED), Action.PROJECTS_DELETE),
    (lambda of: of.agents.status(*AT), Action.AGENT_READ),
    (lambda of: of.agents.stream_turn(*AT, "t", None), Action.AGENT_READ),
    (lambda of: of.agents.cancel_turn(*AT, "t"), Action.AGENT_WRITE),
    (lambda of: of.agents.confirm(*AT, "t", "c", decision="allow_once"), Action.AGENT_WRITE),
    (lambda of: of.agents.logs(*AT, follow=False, tail=1), Action.LOGS_READ),
    (lambda of: of.agents.socket(*AT, COMMAND_SOCKET, {}), Action.TERMINAL_USE),
    (lambda of: of.agents.relay(*AT, AgentRequest(LIST_TERMINALS, {})), Action.TERMINAL_USE),
    (lambda of: of.members.of(*AT), Action.MEMBERS_READ),
    (lambda of: of.members.share(*AT, "ada", MemberRole.EDITOR), Action.MEMBERS_WRITE),
    (lambda of: of.members.unshare(*AT, "ada"), Action.MEMBERS_WRITE),
    (lambda of: of.accounts.hand_over(*AT, "ada"), Action.PROJECTS_HAND_OVER),
    (lambda of: of.accounts.show(*WHO), Action.ACCOUNT_READ),
    (lambda of: of.accounts.sessions(*WHO), Action.ACCOUNT_READ),
    (lambda of: of.accounts.end_session(*WHO, "0" * 16), Action.ACCOUNT_WRITE),
    (lambda of: of.accounts.edit(*WHO, UserEdit(disabled=True)), Action.USERS_WRITE),
    (lambda of: of.accounts.remove(*WHO), Action.USERS_WRITE),
    (lambda of: of.agents.forward(*AT, 1, ASKED), Action.PREVIEW_USE),
    (lambda of: of.agents.forward_socket(*AT, 1, ASKED, ()), Action.PREVIEW_USE),
    (send, Action.MESSAGES_SEND),
]


@pytest.mark.parametrize(("ask", "action"), CASES)
@pytest.mark.parametrize("project_id", ["demo", "another"])
async def test_who_may_not_is_refused_before_anything_is_looked_at(
    ask: Callable[[UseCases], Awaitable[Any]], action: Action, project_id: str
) -> None:
    house = House()
    made = await house.use_cases.projects.create(OPERATOR, "ada", NewProject("Demo", project_id))
    with capture_logs() as lines, pytest.raises(UserNotFoundError) as refused:
        await ask(house.use_cases)
    with pytest.raises(UserNotFoundError) as missing:
        await house.use_cases.projects.get(ZOE, ProjectRef("nobody", "demo"))
    assert refused.value.info.message == missing.value.info.message.replace("nobody", "ada")
    assert lines == [
        {
            "event": "action_refused",
            "log_level": "warning",
            "principal": "zoe",
            "action": action,
            "user_id": "ada",
        }
    ]
    assert await house.use_cases.projects.get(OPERATOR, made.project.ref) == made.project


REF = ProjectRef("ada", "demo")
ROOT = Path(__file__).parents[2]
WHO_IS = {
    Standing.OWNER: Principal("ada", "ada"),
    Standing.ADMIN: Principal("boss", "boss", role=Role.ADMIN),
    Standing.EDITOR: ZOE,
    Standing.VIEWER: ZOE,
}


async def shared(role: MemberRole = MemberRole.VIEWER) -> House:
    house = House()
    await house.use_cases.projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
    await house.use_cases.members.share(WHO_IS[Standing.OWNER], REF, "Zo\u00eb", role)
    return house


def table() -> str:
    """The rules as the documentation has them."""
    lines = [
        f"| action | {' | '.join(Standing)} | scope of a token |",
        f"|---|{'---|' * len(Standing)}---|",
    ]
    for action, (standings, scope) in RULES.items():
        cells = [
            "with a reason"
            if standing is Standing.ADMIN and action in WITH_REASON
            else "yes"
            if standing in standings
            else "no"
            for standing in Standing
        ]
        lines.append(f"| `{action}` | {' | '.join(cells)} | `{scope}` |")
    return "\n".join(lines)


def test_the_documentation_holds_the_table_by_which_it_is_decided() -> None:
    assert set(RULES) == set(Action)
    assert table() in (ROOT / "docs" / "people.md").read_text("utf-8")


@pytest.mark.parametrize("standing", Standing)
async def test_the_gate_keeps_to_the_table(standing: Standing) -> None:
    house = await shared(MemberRole.EDITOR if standing is Standing.EDITOR else MemberRole.VIEWER)
    who = WHO_IS[standing]
    for action, (standings, scope) in RULES.items():
        for asker in (who, replace(who, scopes=frozenset({scope, Scope.ADMIN}))):
            allowed = standing in standings
            if standing is Standing.ADMIN and action in WITH_REASON:
                with pytest.raises(ForbiddenError, match="reason"):
                    await house.use_cases.gate.authorize(asker, action, REF)
                allowed = True
            asks = replace(asker, reason="asked to by Ada")
            if allowed:
                assert (await house.use_cases.gate.authorize(asks, action, REF)).id == "ada"
            else:
                with pytest.raises(ForbiddenError):
                    await house.use_cases.gate.authorize(asks, action, REF)
        if standing is not Standing.ADMIN:
            lacking = replace(who, scopes=frozenset(Scope) - {scope})
            with pytest.raises(ForbiddenError):
                await house.use_cases.gate.authorize(lacking, action, REF)


async def test_what_is_shared_is_listed_and_nothing_beside_it_and_ends_with_the_project() -> None:
    house = await shared()
    of = house.use_cases
    projects, gate, members = of.projects, of.gate, of.members
    await projects.create(OPERATOR, "ada", NewProject("Other", "other"))
    assert [user.id for user in await gate.visible(ZOE)] == ["Zo\u00eb", "ada"]
    page = await projects.page(ZOE, "ada", PageQuery())
    assert [one.project_id for one in page.projects] == ["demo"]
    with pytest.raises(UserNotFoundError):
        await projects.get(ZOE, ProjectRef("ada", "other"))
    await of.people.make(User("eve", "Eve"))
    with pytest.raises(UserNotFoundError):
        await projects.page(ZOE, "eve", PageQuery())
    assert [(one.user_id, one.role) for one in await members.of(ZOE, REF)] == [
        ("Zo\u00eb", "viewer")
    ]
    async with house.working():
        gone = await projects.want(OPERATOR, REF, Desired.DELETED)
        await projects.settled(gone)
        await projects.create(OPERATOR, "ada", NewProject("Another", "demo"))
        with pytest.raises(UserNotFoundError):
            await projects.get(ZOE, REF)
        assert await members.of(OPERATOR, REF) == []


@asynccontextmanager
async def _made_anew(
    house: House, left: Member | None = None
) -> AsyncIterator[tuple[Project, Project]]:
    """Have what is shared deleted and made anew, with what is ``left`` of a member."""
    projects = house.use_cases.projects
    before = await house.store.get("ada", "demo")
    async with house.working():
        await projects.settled(await projects.want(OPERATOR, REF, Desired.DELETED))
        after = (await projects.create(OPERATOR, "ada", NewProject("Another", "demo"))).project
        if left is not None:
            assert await house.store.put(replace(left, version=0), house.clock.now())
        yield before, after


@pytest.mark.parametrize("left", ["", "demo", "gone"])
async def test_who_was_a_member_of_a_project_that_is_gone_sees_nothing_of_its_owner(
    left: str,
) -> None:
    house = await shared()
    (member,) = await house.store.labelled(Member)
    async with _made_anew(house, replace(member, project_id=left) if left else None):
        assert [user.id for user in await house.use_cases.gate.visible(ZOE)] == ["Zo\u00eb"]
        with pytest.raises(UserNotFoundError):
            await house.use_cases.projects.page(ZOE, "ada", PageQuery())
        assert len(await house.store.labelled(Member)) == bool(left)


async def test_who_was_a_member_of_a_project_that_is_gone_is_none_and_may_be_one_of_the_next() -> (
    None
):
    house = await shared()
    members = house.use_cases.members
    (member,) = await house.store.labelled(Member)
    async with _made_anew(house, member):
        with pytest.raises(MissingError):
            await members.unshare(OPERATOR, REF, "Zo\u00eb")
        await members.share(OPERATOR, REF, "Zo\u00eb", MemberRole.EDITOR)
        assert await _who(house, REF) == {"Zo\u00eb": MemberRole.EDITOR}


@pytest.mark.parametrize("does", ["share", "unshare"])
async def test_what_is_on_its_way_to_members_leaves_those_of_a_project_made_anew(
    does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await shared()
    members = house.use_cases.members
    async with _made_anew(house) as (before, after):
        new = await members.share(OPERATOR, REF, "Zo\u00eb", MemberRole.EDITOR)
        looks = iter([before])

        async def as_it_was(_owner: str, _project_id: str) -> Project:
            return next(looks, after)

        with monkeypatch.context() as late:
            late.setattr(house.store, "get", as_it_was)
            if does == "share":
                with pytest.raises(ConflictError):
                    await members.share(OPERATOR, REF, "Zo\u00eb", MemberRole.VIEWER)
            else:
                with pytest.raises(MissingError):
                    await members.unshare(OPERATOR, REF, "Zo\u00eb")
        assert await members.of(OPERATOR, REF) == [replace(new, version=1)]


async def test_a_hand_over_leaves_the_members_of_a_project_that_is_just_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    of, carry = house.use_cases, Members.carry
    theirs = ProjectRef("eve", "demo")

    async def late(
        members: Members, who: Principal, ref: ProjectRef, owner: str
    ) -> Mapping[str, MemberRole]:
        await of.projects.create(OPERATOR, "eve", NewProject("Mine", "demo"))
        await of.members.share(OPERATOR, theirs, "bob", MemberRole.VIEWER)
        return await carry(members, who, ref, owner)

    async with _shared_with_bob(house) as ref:
        monkeypatch.setattr(Members, "carry", late)
        with pytest.raises(ConflictError, match="another project"):
            await of.accounts.hand_over(OPERATOR, ref, "eve")
        assert await _who(house, theirs) == {"bob": MemberRole.VIEWER}
        assert await _who(house, ref) == {"bob": MemberRole.EDITOR}


async def test_a_share_is_changed_and_taken_back_at_once_and_whoever_has_it_may_leave() -> None:
    house = await shared()
    gate, members, ada = house.use_cases.gate, house.use_cases.members, WHO_IS[Standing.OWNER]
    with pytest.raises(ForbiddenError):
        await gate.authorize(ZOE, Action.MESSAGES_SEND, REF)
    await members.share(ada, REF, "Zo\u00eb", MemberRole.EDITOR)
    await gate.authorize(ZOE, Action.MESSAGES_SEND, REF)
    kept = await members.of(ada, REF)
    await members.share(ada, REF, "Zo\u00eb", MemberRole.EDITOR)
    assert await members.of(ada, REF) == kept
    told = await house.store.audit_entries(AuditFilter(action=AuditAction.MEMBER_SET), 9)
    assert [entry["changed"]["role"] for _, entry in told] == ["viewer", "editor"]
    with pytest.raises(ForbiddenError):
        await members.share(ZOE, REF, "Zo\u00eb", MemberRole.EDITOR)
    await members.unshare(ZOE, REF, "Zo\u00eb")
    with pytest.raises(UserNotFoundError):
        await gate.authorize(ZOE, Action.PROJECTS_READ, REF)
    with pytest.raises(InvalidRequestError):
        await members.share(ada, REF, "ada", MemberRole.EDITOR)
    with pytest.raises(UserNotFoundError):
        await members.share(ada, REF, "nobody", MemberRole.EDITOR)


async def test_an_administrator_with_whom_it_is_shared_may_do_what_its_members_may() -> None:
    house = await shared()
    gate, members, boss = house.use_cases.gate, house.use_cases.members, WHO_IS[Standing.ADMIN]
    await house.use_cases.people.make(User("boss", "Boss", Role.ADMIN))
    assert await gate.is_foreign(boss, REF)
    await members.share(boss, REF, "boss", MemberRole.EDITOR)
    for action in (Action.MESSAGES_SEND, Action.AGENT_READ, Action.PROJECTS_DELETE):
        await gate.authorize(boss, action, REF)
    assert not await gate.is_foreign(boss, REF)
    assert await gate.may(boss, Action.MESSAGES_SEND, REF)
    assert not await gate.may(ZOE, Action.MESSAGES_SEND, REF)


async def test_an_administrator_looks_at_anothers_with_a_reason_until_they_end_it() -> None:
    house = await shared()
    people, accounts, gate = (getattr(house.use_cases, n) for n in ("people", "accounts", "gate"))
    ann = Identity("https://idp", "ann", "Ann", None, (), "ann", None)
    secrets = [await people.sign_in(ann, role=Role.ADMIN, client="") for _ in range(2)]

    async def asks(secret: str = secrets[0]) -> Principal:
        found: Principal = await people.by_session(secret, "")
        return found

    for reason in ("", "asked to by Ada"):
        await accounts.look_at(await asks(), "ada", reason)
        assert (await asks()).reason_for("ada") == reason
    trail = [one for _, one in await house.store.audit_entries(AuditFilter(), 1000)]
    looks = [one for one in trail if one["action"] == "looks.start"]
    assert [one["changed"]["reason"] for one in looks] == ["", "asked to by Ada"]
    assert (await asks()).reason_for("zoe") == ""
    for allow in (gate.authorize, gate.check_again):
        await allow(await asks(), Action.AGENT_READ, REF)
        with pytest.raises(ForbiddenError, match="reason"):
            await allow(await asks(secrets[1]), Action.AGENT_READ, REF)
    await accounts.end_look(await asks())
    assert (await asks()).look is None
    over = Look("ada", "Ada", "long ago", house.clock.now() - timedelta(seconds=1))
    session = (await asks()).via.partition(" ")[2]
    await people.keep_look((await asks()).user_id, session, over)
    assert (await asks()).look is None
    for who in (OPERATOR, Principal("boss", "boss", Role.ADMIN, "token 1f"), ZOE):
        with pytest.raises((InvalidRequestError, ForbiddenError)):
            await accounts.look_at(who, "ada", "")
    with pytest.raises(InvalidRequestError):
        await accounts.look_at(await asks(), (await asks()).user_id, "")
    await accounts.end_other_sessions(await asks(), (await asks()).user_id)
    assert await people.by_session(secrets[1], "") is None
    assert (await asks()).look is None


async def test_a_token_for_some_projects_sees_those_alone() -> None:
    house = await shared()
    projects = house.use_cases.projects
    await projects.create(OPERATOR, "ada", NewProject("Other", "other"))
    token = Principal("ada", "ada", projects=frozenset({"demo", "gone"}))
    page = await projects.page(token, "ada", PageQuery())
    assert [one.project_id for one in page.projects] == ["demo"]
    with pytest.raises(ProjectNotFoundError):
        await projects.get(token, ProjectRef("ada", "other"))
    with pytest.raises(ForbiddenError):
        await projects.create(token, "ada", NewProject("New"))


async def test_a_token_for_some_projects_makes_no_administrator_and_sees_nobody_else_s() -> None:
    house = await shared()
    for one in (User("boss", "Boss", Role.ADMIN), User("bob", "Bob")):
        await house.use_cases.people.make(one)
    projects, gate, accounts = (
        getattr(house.use_cases, name) for name in ("projects", "gate", "accounts")
    )
    boss = Principal("boss", "boss", Role.ADMIN, scopes=frozenset(Scope))
    for owner in ("bob", "boss"):
        await projects.create(OPERATOR, owner, NewProject("Notes", "notes"))
    theirs = ProjectRef("bob", "notes")
    await gate.authorize(boss, Action.PROJECTS_DELETE, theirs)
    await house.use_cases.members.share(boss, theirs, "Zo\u00eb", MemberRole.EDITOR)
    for who in (boss, ZOE):
        token = replace(who, projects=frozenset({"notes"}))
        assert [one.id for one in await gate.visible(token)] == [who.user_id]
        assert await gate.only(token, "bob") == frozenset()
        for asked in (
            projects.page(token, "bob", PageQuery()),
            projects.get(token, theirs),
            projects.want(token, theirs, Desired.DELETED),
            accounts.hand_over(token, theirs, "ada"),
            accounts.show(token, "bob"),
        ):
            with pytest.raises(UserNotFoundError):
                await asked
        with pytest.raises(ForbiddenError):
            await gate.administrate(token, Action.USERS_WRITE)
    await projects.get(replace(boss, projects=frozenset({"notes"})), ProjectRef("boss", "notes"))


@pytest.mark.parametrize(
    ("groups", "own", "projects", "active"),
    [
        ((), Limits(), 2, None),
        (("others",), Limits(), 2, None),
        (("staff",), Limits(), 1, None),
        (("staff", "research"), Limits(), 5, 0),
        (("staff", "research", "makers"), Limits(), None, 0),
        (("staff", "makers"), Limits(projects=4, active=7), 4, 7),
    ],
)
async def test_limits_are_the_user_s_own_else_the_most_of_the_groups_else_everybody_s(
    groups: tuple[str, ...], own: Limits, projects: int | None, active: int | None
) -> None:
    given = (
        '{"default": {"projects": 2}, "groups": {"staff": {"projects": 1},'
        ' "research": {"projects": 5, "active": 0}, "makers": {"projects": null}}}'
    )
    house = Harness(settings(users="eve:Eve", user_limits=given))
    eve = User("eve", "Eve", groups=groups, limits=own)
    assert house.settings.default_limits.of(eve) == Limits(projects, active)
    await house.store.put(eve, at(0))
    made = 0
    with suppress(LimitExceededError):
        while made < 6:
            await house.use_cases.projects.create(OPERATOR, "eve", NewProject("P", f"p{made}"))
            made += 1
    assert made == (6 if projects is None else projects)
    if active == 0:
        with pytest.raises(LimitExceededError):
            await house.use_cases.projects.want(OPERATOR, ProjectRef("eve", "p0"), Desired.ACTIVE)


def slow(of: UseCases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let others in after what is counted was read, as a real store does."""

    def later(read: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def reading(*given: Any, **named: Any) -> Any:
            found = await read(*given, **named)
            await asyncio.sleep(0)
            return found

        return reading

    for name in ("page", "labelled"):
        monkeypatch.setattr(of.store, name, later(getattr(of.store, name)))


async def allowed(*asked: Awaitable[Any]) -> int:
    """Return how many of these were not refused as too many."""
    came = await asyncio.gather(*asked, return_exceptions=True)
    refused = [one for one in came if isinstance(one, BaseException)]
    assert {type(one) for one in refused} <= {LimitExceededError}
    return len(came) - len(refused)


async def test_a_limit_holds_for_all_who_come_at_once_to_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = Harness(
        settings(
            users="ada:Ada,eve:Eve,bob:Bob",
            user_limits='{"default": {"projects": 2, "active": 1}}',
            secret_key="k" * 32,
        )
    )
    each = [house.use_cases, house.build("w2").use_cases] * 2
    await each[0].people.edit("bob", UserEdit(limits=Limits(projects=9)), by=OPERATOR)
    async with house.working():
        for number in range(4):
            new = await each[0].projects.create(OPERATOR, "bob", NewProject("P", f"b{number}"))
            await each[0].projects.settled(new.project)
        await _all_come_at_once(each, monkeypatch)


async def _all_come_at_once(each: list[UseCases], monkeypatch: pytest.MonkeyPatch) -> None:
    slow(each[0], monkeypatch)
    for module, name in (
        (tokens, "MOST_TOKENS"),
        (sharing, "MOST_SHARES"),
        (secrets, "MOST_SECRETS"),
        (notifications, "MOST_TARGETS"),
    ):
        monkeypatch.setattr(module, name, 1)

    def all_at_once(ask: Callable[[UseCases, str], Awaitable[Any]]) -> Awaitable[int]:
        return allowed(*(ask(of, str(number)) for number, of in enumerate(each)))

    ada, eve = Principal("ada", "ada"), Principal("eve", "eve")
    made = lambda of, n: of.projects.create(OPERATOR, "ada", NewProject("P", f"p{n}"))  # noqa: E731
    assert await all_at_once(made) == 2
    given = lambda of, n: of.accounts.hand_over(OPERATOR, ProjectRef("bob", f"b{n}"), "eve")  # noqa: E731
    assert await all_at_once(given) == 2
    ref, *_ = [one.ref for one in (await each[0].projects.page(ada, "ada", PageQuery())).projects]
    woken = [one.ref for one in (await each[0].projects.page(eve, "eve", PageQuery())).projects]
    wake = lambda of, n: of.projects.want(eve, woken[int(n) % 2], Desired.ACTIVE)  # noqa: E731
    assert await all_at_once(wake) == 2
    running = (await each[0].projects.page(eve, "eve", PageQuery())).projects
    assert sorted(one.desired for one in running) == [Desired.ACTIVE, Desired.INACTIVE]
    asks: list[Callable[[UseCases, str], Awaitable[Any]]] = [
        lambda of, n: of.tokens.make(ada, NewToken(n, frozenset({Scope.FILES}))),
        lambda of, n: of.shares.make(ada, ref, NewShare(80 + int(n), "/", "https://here", 60)),
        lambda of, n: of.secrets.put(ada, "ada", NewSecret(n, f"h{n}.example", "word")),
        lambda of, n: of.notifications.add_webhook(
            ada, "ada", n, "https://here", f"https://{n}.example/"
        ),
    ]
    for ask in asks:
        assert await all_at_once(ask) == 1


async def test_who_died_while_counting_holds_nobody_up_for_good() -> None:
    clock = FakeClock()
    given = settings(users="ada:Ada", user_limits='{"default": {"projects": 1, "active": 1}}')
    house = Harness(given, clock=clock)
    began = clock.monotonic()
    now = clock.now()
    for slot in range(access.COUNTED_AT_ONCE):
        name = f"{access.COUNTING} {slot}"
        await house.store.take_duty(name, "dead", since=now, now=now, seconds=5)
    made = await house.use_cases.projects.create(OPERATOR, "ada", NewProject("P"))
    assert 5 <= clock.monotonic() - began < 6
    await house.use_cases.projects.want(OPERATOR, made.project.ref, Desired.ACTIVE)
    for slot in range(access.COUNTED_AT_ONCE):
        name, far = f"{access.COUNTING} {slot}", clock.now() + timedelta(minutes=10)
        await house.store.take_duty(name, "slow", since=far, now=clock.now(), seconds=600)
    with pytest.raises(ConflictError, match="go first"):
        await house.use_cases.projects.create(OPERATOR, "ada", NewProject("P"))
    # What runs already is counted: a message to it waits for nobody.
    await house.use_cases.projects.want(OPERATOR, made.project.ref, Desired.ACTIVE)


@pytest.mark.parametrize("written", ["before", "after"])
async def test_who_leaves_while_it_is_becoming_their_turn_holds_nobody_up(
    written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    of = Harness(settings(users="ada:Ada"), clock=clock).use_cases
    gate, ada, new = of.gate, Principal("ada", "ada"), NewToken("t", frozenset({Scope.FILES}))
    asked, go_on = asyncio.Event(), asyncio.Event()
    take = gate._projects.take_duty

    async def taking(*about: Any, **more: Any) -> Duty:
        taken = await take(*about, **more) if written == "before" else None
        asked.set()
        await go_on.wait()
        return taken or await take(*about, **more)

    monkeypatch.setattr(gate._projects, "take_duty", taking)
    leaving = asyncio.create_task(of.tokens.make(ada, new))
    await asyncio.wait_for(asked.wait(), 5)
    leaving.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    began = clock.monotonic()
    await of.tokens.make(ada, new)
    assert (clock.monotonic(), len(await of.tokens.listed(ada, None))) == (began, 1)


def _in_a_browser(store: MemoryStore, clock: FakeClock) -> tuple[Principal, Awaitable[bool]]:
    """Return the operator as they have signed in, and what ends that."""
    name, signed = "cookie c", clock.now()
    principal = replace(OPERATOR, sign_in=f"{name} {int(signed.timestamp())}")
    return principal, store.revoke(name, signed + timedelta(days=30), signed)


async def test_what_may_not_be_any_more_after_a_wait_is_not_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    given = settings(
        users="ada:Ada,bob:Bob",
        secret_key="k" * 32,
        user_limits='{"default": {"projects": 9, "active": 1}}',
    )
    house = Harness(given, clock=clock)
    of, store = house.use_cases, house.store
    ref = (await of.projects.create(OPERATOR, "ada", NewProject("P", "p"))).project.ref
    everything, ada = frozenset(Scope), Principal("ada", "ada")
    text, token = await of.tokens.make(ada, NewToken("t", everything))
    thief, take = await of.tokens.principal(text, "192.0.2.1"), store.take_duty
    assert thief is not None
    bob, eve = Principal("bob", "bob"), Principal("eve", "eve", Role.ADMIN)

    async def refused(waiting: Awaitable[Any], meanwhile: Awaitable[Any], kind: type) -> None:
        """Wait behind one that died, while something happens."""
        now, began = clock.now(), clock.monotonic()
        for slot in range(access.COUNTED_AT_ONCE):
            later = now + timedelta(seconds=1)
            await take(f"{access.COUNTING} {slot}", "dead", since=later, now=now, seconds=5)

        async def taking(*about: Any, **more: Any) -> Duty:
            monkeypatch.setattr(store, "take_duty", take)
            await meanwhile
            return await take(*about, **more)

        monkeypatch.setattr(store, "take_duty", taking)
        with pytest.raises(kind):
            await waiting
        assert clock.monotonic() - began >= 5

    revoked = of.tokens.revoke(OPERATOR, token.id)
    await refused(of.tokens.make(thief, NewToken("u", everything)), revoked, UnauthorizedError)
    operator, signed_out = _in_a_browser(store, clock)
    await refused(of.projects.want(operator, ref, Desired.ACTIVE), signed_out, UnauthorizedError)
    waiting: Awaitable[Any]
    for waiting in (
        of.projects.want(bob, ref, Desired.ACTIVE),
        of.shares.make(bob, ref, NewShare(8080, "/", "https://here", 60)),
    ):
        await of.members.share(OPERATOR, ref, "bob", MemberRole.EDITOR)
        await refused(waiting, of.members.unshare(OPERATOR, ref, "bob"), UserNotFoundError)
    await of.accounts.make(OPERATOR, User("eve", "Eve", role=Role.ADMIN))
    for waiting in (
        of.secrets.put(eve, "bob", NewSecret("n", "h.example", "word")),
        of.projects.create(eve, "bob", NewProject("Q")),
        of.accounts.hand_over(eve, ref, "bob"),
    ):
        await of.people.edit("eve", UserEdit(role=Role.ADMIN), by=OPERATOR)
        demoted = of.people.edit("eve", UserEdit(role=Role.USER), by=OPERATOR)
        await refused(waiting, demoted, UserNotFoundError)
        clock.advance(1)
    put = of.secrets.put(bob, "bob", NewSecret("n", "h.example", "word"))
    disabled = UserEdit(disabled=True)
    await refused(put, of.people.edit("bob", disabled, by=OPERATOR), UnauthorizedError)
    assert (await of.projects.get(OPERATOR, ref)).desired is Desired.INACTIVE
    assert not await of.tokens.listed(OPERATOR, None)
    assert not await of.secrets.listed(OPERATOR, "bob")


async def test_a_token_for_administration_hands_over_to_whom_a_limit_is_set() -> None:
    given = settings(users="ada:Ada,bob:Bob", user_limits='{"default": {"projects": 1}}')
    house = Harness(given)
    of = house.use_cases
    boss = Principal("boss", None, Role.ADMIN, "token 1", frozenset({Scope.ADMIN}))
    async with house.working():
        made = (await of.projects.create(OPERATOR, "ada", NewProject("P", "p"))).project
        await of.projects.settled(made)
        assert (await of.accounts.hand_over(boss, made.ref, "bob")).user_id == "bob"


async def test_a_creation_again_is_answered_though_no_more_may_be_made_by_now() -> None:
    given = settings(users="eve:Eve", user_limits='{"default": {"projects": 1}}')
    of = Harness(given).use_cases
    new = NewProject("P", metadata={"template": "large"})
    made = await of.projects.create(OPERATOR, "eve", new, "key")
    again = await of.projects.create(OPERATOR, "eve", new, "key")
    assert (again.project, again.new) == (made.project, False)
    await of.accounts.edit(OPERATOR, "eve", UserEdit(limits=Limits(templates=())))
    assert (await of.projects.create(OPERATOR, "eve", new, "key")).project == made.project
    with pytest.raises(IdempotencyConflictError):
        await of.projects.create(OPERATOR, "eve", replace(new, name="Q"), "key")
    with pytest.raises(LimitExceededError):
        await of.projects.create(OPERATOR, "eve", new, "another")
    refused = await of.store.audit_entries(AuditFilter(result="refused"), 9)
    assert len(refused) == 1


async def test_what_is_stopped_as_a_message_comes_is_counted_when_it_is_woken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = Harness(settings(users="eve:Eve", user_limits='{"default": {"active": 1}}'))
    of, running, other = house.use_cases, ProjectRef("eve", "a"), ProjectRef("eve", "b")
    for ref in (running, other):
        await of.projects.create(OPERATOR, "eve", NewProject("P", ref.project_id))
    await of.projects.want(OPERATOR, running, Desired.ACTIVE)
    write = house.store.change

    async def overtaken(*given: Any) -> Project:
        monkeypatch.setattr(house.store, "change", write)
        await of.projects.want(OPERATOR, running, Desired.INACTIVE)
        await of.projects.want(OPERATOR, other, Desired.ACTIVE)
        return await write(*given)

    monkeypatch.setattr(house.store, "change", overtaken)
    with pytest.raises(LimitExceededError):
        async with of.agents.send(OPERATOR, running, NewMessage("hello")):
            pass
    there = (await of.projects.page(OPERATOR, "eve", PageQuery())).projects
    assert [one.ref for one in there if one.desired is Desired.ACTIVE] == [other]


async def test_only_templates_that_a_user_is_allowed_are_taken() -> None:
    given = (
        '{"default": {"templates": []}, "groups": {"staff": {"templates": ["small"]},'
        ' "research": {"templates": ["large"]}, "makers": {"templates": null}}}'
    )
    house = Harness(settings(users="eve:Eve,bob:Bob", user_limits=given))
    of, limits, ref = house.use_cases, house.settings.default_limits, ProjectRef("eve", "a")
    eve = User("eve", "Eve", groups=("staff", "research"))
    assert limits.of(eve).templates == ("large", "small")
    assert limits.of(replace(eve, groups=("staff", "makers"))).templates is None
    assert limits.of(replace(eve, limits=Limits(templates=("own",)))).templates == ("own",)
    await house.store.put(eve, at(0))

    def new(template: object) -> NewProject:
        return NewProject("A", "a", {"template": template})

    for refused in ("huge", None, ["large"]):
        with pytest.raises(LimitExceededError, match="may not use the template"):
            await of.projects.create(OPERATOR, "eve", new(refused))
    await of.projects.create(OPERATOR, "eve", new("large"))
    with pytest.raises(LimitExceededError) as told:
        await of.projects.edit(OPERATOR, ref, Edit(metadata={"template": "huge"}))
    assert "one of: default, large, small;" in told.value.info.hint
    with pytest.raises(LimitExceededError):
        await of.accounts.hand_over(OPERATOR, ref, "bob")
    # What is allowed no more is not started any more, and can be changed.
    await of.accounts.edit(OPERATOR, "eve", UserEdit(limits=Limits(templates=("small",))))
    with pytest.raises(LimitExceededError):
        await of.projects.want(OPERATOR, ref, Desired.ACTIVE)
    limits_told = await house.store.audit_entries(AuditFilter(result="refused"), 99)
    assert {(one["action"], one["object"], one["code"]) for _, one in limits_told} == {
        ("projects.write", "user/eve", "limit_exceeded"),
        ("projects.write", "project/eve/a", "limit_exceeded"),
        ("projects.hand_over", "project/eve/a", "limit_exceeded"),
        ("environment.activate", "project/eve/a", "limit_exceeded"),
    }
    await of.projects.edit(OPERATOR, ref, Edit(name="B"))
    await of.projects.edit(OPERATOR, ref, Edit(metadata={}))
    await of.projects.want(OPERATOR, ref, Desired.ACTIVE)


async def test_only_so_many_previews_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "MOST_SHARES", 1)
    house, new = await shared(), NewShare(8080, "/", "https://here", 60)
    of, ada = house.use_cases, WHO_IS[Standing.OWNER]
    await of.shares.make(ada, REF, new)
    with pytest.raises(LimitExceededError):
        await of.shares.make(ada, REF, new)
    (refused,) = await house.store.audit_entries(AuditFilter(result="refused"), 9)
    assert refused[1]["action"] == AuditAction.PREVIEW_LINK


@pytest.mark.parametrize(
    "given", ["{", "[]", '{"default": {"projects": -1}}', '{"groups": {"a": {"more": 1}}}']
)
def test_limits_that_cannot_be_read_are_told_of_at_the_start(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_USER_LIMITS", given)
    with pytest.raises(ConfigError, match="GREYLAG_USER_LIMITS"):
        load_settings()


async def test_a_user_is_made_limited_disabled_and_removed() -> None:
    house = House()
    projects, accounts = house.use_cases.projects, house.use_cases.accounts
    boss = WHO_IS[Standing.ADMIN]
    with pytest.raises(ForbiddenError):
        await accounts.make(ZOE, User("eve", "Eve"))
    await accounts.make(boss, User("eve", "Eve", limits=Limits(projects=2, active=1)))
    with pytest.raises(ConflictError):
        await accounts.make(boss, User("ada", "Twin"))
    for impossible in (User("a/b", "Eve"), User("adam", "")):
        with pytest.raises(InvalidRequestError):
            await accounts.make(boss, impossible)
    eve = Principal("eve", "eve")
    refs = [(await projects.create(eve, "eve", NewProject("P", name))).project.ref for name in "ab"]
    with pytest.raises(LimitExceededError):
        await projects.create(eve, "eve", NewProject("P", "c"))
    await projects.want(eve, refs[0], Desired.ACTIVE)
    await projects.want(eve, refs[0], Desired.ACTIVE)
    with pytest.raises(InvalidRequestError):
        await accounts.edit(boss, "eve", UserEdit(display_name=""))
    await accounts.edit(boss, "eve", UserEdit(display_name="Eva"))
    assert (await projects.get(boss, refs[0])).desired is Desired.ACTIVE
    (told,) = await house.store.audit_entries(AuditFilter(action=AuditAction.USER_EDIT), 9)
    assert told[1]["changed"] == {"name": "Eva"}
    with pytest.raises(LimitExceededError):
        await projects.want(eve, refs[1], Desired.ACTIVE)
    with pytest.raises(ConflictError):
        await accounts.remove(boss, "eve")
    await accounts.edit(boss, "eve", UserEdit(disabled=True))
    with pytest.raises(ConflictError, match="disable yourself"):
        await accounts.edit(Principal("eve", "eve", Role.ADMIN), "eve", UserEdit(disabled=True))
    assert (await projects.get(boss, refs[0])).desired is Desired.INACTIVE
    with pytest.raises(ForbiddenError):
        await projects.want(boss, refs[0], Desired.ACTIVE)
    async with house.working():
        for ref in refs:
            await projects.settled(await projects.want(boss, ref, Desired.DELETED))
        await accounts.remove(boss, "eve")
        with pytest.raises(UserNotFoundError):
            await accounts.show(boss, "eve")
        with pytest.raises(ConflictError, match="settings name"):
            await accounts.remove(boss, "ada")


async def _owned(house: House, user_id: str) -> list[int]:
    """Return how many there are of each kind of what a user has."""
    of = house.use_cases
    return [
        len(await of.people.sessions(user_id)),
        len(await of.tokens.listed(OPERATOR, user_id)),
        len(await of.secrets.listed(OPERATOR, user_id)),
        len(await of.notifications.of(user_id)),
        len(await house.store.labelled(Member, of_user(user_id))),
    ]


async def _furnished(house: House, user_id: str) -> tuple[str, str]:
    """Give a user one of each kind; return the secret of the session and the token."""
    of, who = house.use_cases, Principal(user_id, user_id)
    await of.people.edit(user_id, UserEdit(email=f"{user_id}@x.y"))
    by = Identity("https://idp", user_id, user_id, f"{user_id}@x.y", (), user_id, None)
    secret = await of.people.sign_in(by, role=None, client="")
    token, _ = await of.tokens.make(who, NewToken("t", frozenset({Scope.FILES})))
    await of.secrets.put(who, user_id, NewSecret("s", "github.com", "value"))
    await of.notifications.add_webhook(who, user_id, "w", "https://here", "https://hooks.example")
    ref = ProjectRef("Zo\u00eb", "theirs")
    await of.projects.create(ZOE, ref.user_id, NewProject("T", ref.project_id))
    await of.members.share(ZOE, ref, user_id, MemberRole.VIEWER)
    return secret, token


@pytest.mark.parametrize("user_id", ["ada", "eve"])
async def test_who_is_not_removed_after_all_keeps_everything(
    user_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House()
    of, boss = house.use_cases, WHO_IS[Standing.ADMIN]
    await of.accounts.make(boss, User("eve", "Eve"))
    secret, token = await _furnished(house, user_id)
    has_any, disabled = of.projects.has_any, []

    async def made_meanwhile(_: Projects, user_id: str) -> bool:
        disabled.append((await of.people.get(user_id)).disabled)
        return len(disabled) > 1 or await has_any(user_id)

    monkeypatch.setattr(Projects, "has_any", made_meanwhile)
    with pytest.raises(ConflictError):
        await of.accounts.remove(boss, user_id)
    assert disabled == ([False, True] if user_id == "eve" else [False])
    assert await _owned(house, user_id) == [1] * 5
    assert await of.people.by_session(secret, "") is not None
    assert await of.tokens.principal(token, "") is not None


async def test_nothing_of_a_removed_user_is_another_s_of_the_same_id() -> None:
    house = House()
    of, boss = house.use_cases, WHO_IS[Standing.ADMIN]
    await of.accounts.make(boss, User("eve", "Eve"))
    secret, token = await _furnished(house, "eve")
    (session,) = await house.store.labelled(Session, of_user("eve"))
    (kept,) = await house.store.labelled(ApiToken, of_user("eve"))
    await of.accounts.remove(boss, "eve")
    await of.accounts.make(boss, User("eve", "Another"))
    assert await _owned(house, "eve") == [0] * 5
    # Written by a request that was under way meanwhile.
    for late in (session, kept):
        await house.store.put(replace(late, version=0), house.clock.now())
    assert len(await of.tokens.listed(OPERATOR, "eve")) == 1
    assert await of.people.by_session(secret, "") is None
    assert await of.tokens.principal(token, "") is None
    with pytest.raises(ConflictError, match="remove yourself"):
        await of.accounts.remove(Principal("eve", "eve", Role.ADMIN), "eve")


@pytest.mark.parametrize(
    "kind", [Session, ApiToken, UserSecret, NotificationTarget, Member, DeviceLogin, Share]
)
async def test_a_user_of_whom_something_cannot_be_read_is_not_removed_and_keeps_everything(
    kind: type[AnyKept],
) -> None:
    house = House()
    of, boss = house.use_cases, WHO_IS[Standing.ADMIN]
    await of.accounts.make(boss, User("eve", "Eve"))
    _, token = await _furnished(house, "eve")
    link = Share("s" * 16, *("Zo\u00eb", "theirs", "record"), None, "/", "", "eve", at(0), at(0))
    await house.store.put(link, at(0))
    login = DeviceLogin("k", "CODE", "n", (), "", at(0), user_id="eve")
    await house.store.put(login, at(0))
    (one,) = await house.store.labelled(kind)
    row = house.store._tables.people[kind, one.key]
    sound = dict(row)
    row["version"] = "newer"
    with pytest.raises(RecordUnreadableError, match="cannot be read"):
        await of.accounts.remove(boss, "eve")
    assert not (await of.people.get("eve")).disabled
    row |= sound
    assert await _owned(house, "eve") == [1] * 5
    assert await of.tokens.principal(token, "") is not None
    await of.accounts.remove(boss, "eve")
    assert not await house.store.labelled(kind)


async def test_a_user_one_of_whose_projects_cannot_be_read_has_projects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    of, boss = house.use_cases, WHO_IS[Standing.ADMIN]
    await of.accounts.make(boss, User("eve", "Eve"))
    await of.projects.create(Principal("eve", "eve"), "eve", NewProject("Demo", "demo"))

    async def page(*_: Any) -> ProjectPage:
        return ProjectPage([])

    monkeypatch.setattr(house.store, "page", page)
    with pytest.raises(ConflictError, match="has a project that cannot be read"):
        await of.accounts.remove(boss, "eve")


async def test_a_link_that_a_removed_user_made_is_not_good_with_another_s_rights() -> None:
    house = House()
    of, ref = house.use_cases, ProjectRef("ada", "demo")
    ada, eve = Principal("ada", "ada"), Principal("eve", "eve")
    await of.projects.create(ada, "ada", NewProject("Demo", "demo"))
    await of.accounts.make(OPERATOR, User("eve", "Eve"))
    await of.members.share(ada, ref, "eve", MemberRole.EDITOR)
    link = await of.shares.make(eve, ref, NewShare(8080, "/", "https://here", 60))
    own = await of.shares.make(ada, ref, NewShare(8080, "/", "https://here", 60))
    await of.accounts.remove(OPERATOR, "eve")
    await of.accounts.make(OPERATOR, User("eve", "Another"))
    await of.members.share(ada, ref, "eve", MemberRole.EDITOR)
    with pytest.raises(UnauthorizedError):
        await of.shares.check(eve, ref, link.key)
    await of.shares.check(ada, ref, own.key)


async def test_what_is_left_of_a_user_of_the_settings_is_nobody_s_and_is_removed() -> None:
    house = House()
    of, boss = house.use_cases, WHO_IS[Standing.ADMIN]
    secret, token = await _furnished(house, "ada")
    (user,) = await house.store.labelled(User)
    # As if never changed, so that the settings alone know them, and then taken out of those.
    await house.store.remove(User, user.id)
    house.settings = settings(users="Zo\u00eb:Zo\u00eb")
    of = house.build("later").use_cases
    assert await of.tokens.principal(token, "") is None
    with pytest.raises(ConflictError, match="left of a user 'ada'"):
        await of.accounts.make(boss, User("ada", "Another"))
    # Written by a version that asked nothing, or that knows the settings as they were.
    await of.people.make(User("ada", "Another"))
    assert await of.tokens.principal(token, "") is None
    assert await of.people.by_session(secret, "") is None
    await house.store.remove(User, "ada")
    of = house.build("after that").use_cases
    with pytest.raises(UserNotFoundError):
        await of.accounts.remove(ZOE, "ada")
    await of.accounts.remove(boss, "ada")
    await of.accounts.make(boss, User("ada", "Another"))
    assert await _owned(house, "ada") == [0] * 5


async def test_projects_that_are_left_of_a_user_of_the_settings_are_nobody_else_s() -> None:
    house = House()
    boss, projects = WHO_IS[Standing.ADMIN], house.use_cases.projects
    async with house.working():
        made = (await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))).project
        await projects.settled(made)
        house.settings = settings(users="Zo\u00eb:Zo\u00eb")
        later = house.build("later").use_cases.accounts
        make = partial(later.make, boss, User("ada", "Another"))
        for refused in (make, partial(later.remove, boss, "ada")):
            with pytest.raises(ConflictError, match="Projects are left of a user 'ada'") as found:
                await refused()
            assert "GREYLAG_USERS" in found.value.info.hint
        house.settings = settings(users="Zo\u00eb:Zo\u00eb,ada:Ada")
        named = house.build("named again").use_cases.accounts
        assert (await named.hand_over(OPERATOR, made.ref, "Zo\u00eb")).user_id == "Zo\u00eb"
        assert (await make()).id == "ada"


async def test_a_token_from_before_users_were_told_apart_counts_for_whom_it_was_made() -> None:
    house = House()
    of, boss = house.use_cases, WHO_IS[Standing.ADMIN]
    await of.accounts.make(boss, User("eve", "Eve"))
    _, token = await _furnished(house, "eve")
    (kept,) = await house.store.labelled(ApiToken, of_user("eve"))
    await house.store.put(replace(kept, user_since=None), house.clock.now())
    assert await of.tokens.principal(token, "") is not None


async def test_what_runs_of_the_disabled_is_stopped_though_nobody_came_to_it() -> None:
    house = House()
    of, ref = house.use_cases, ProjectRef("ada", "demo")
    await of.projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
    async with house.working():
        await of.projects.settled(await of.projects.want(OPERATOR, ref, Desired.ACTIVE))
        # As if killed before the next step, and as an activation that came after it.
        await of.people.edit("ada", UserEdit(disabled=True))
        await house.store.poke(ref, house.clock.now())
        async with asyncio.timeout(10):
            with of.projects.changes(ref) as news:
                while (now := await house.store.get("ada", "demo")).status is not Status.INACTIVE:
                    await news.changed(1)
        assert now.desired is Desired.INACTIVE
        (told, *_) = await house.store.audit_entries(
            AuditFilter(action="environment.deactivate"), 9
        )
        assert told[1]["actor"]["kind"] == "system"


async def _is_not_handed_to_the_disabled_or_who_has_such(
    of: UseCases, ref: ProjectRef, bob: Principal
) -> None:
    theirs = ProjectRef("bob", ref.project_id)
    await of.projects.create(bob, "bob", NewProject("Mine", ref.project_id))
    await of.members.share(bob, theirs, "eve", MemberRole.VIEWER)
    link = await of.shares.make(bob, theirs, NewShare(8080, "/", "https://here", 60))
    await of.accounts.edit(OPERATOR, "bob", UserEdit(limits=Limits(projects=2), disabled=True))
    with pytest.raises(ConflictError, match="'bob' is disabled"):
        await of.accounts.hand_over(WHO_IS[Standing.ADMIN], ref, "bob")
    await of.accounts.edit(OPERATOR, "bob", UserEdit(disabled=False))
    with pytest.raises(ConflictError, match="has a project"):
        await of.accounts.hand_over(WHO_IS[Standing.ADMIN], ref, "bob")
    assert [one.role for one in await of.members.of(bob, theirs)] == [MemberRole.VIEWER]
    assert [one.key for one in await of.shares.listed(bob, theirs)] == [link.key]
    await of.projects.settled(await of.projects.want(bob, theirs, Desired.DELETED))
    await of.accounts.edit(OPERATOR, "bob", UserEdit(limits=Limits(projects=1)))


async def _handed_over_while_its_log_is_followed(
    house: House, ref: ProjectRef, user_id: str
) -> Project:
    of, owner = house.use_cases, Principal(ref.user_id, ref.user_id)
    async with await of.agents.logs(owner, ref, follow=True, tail=9) as lines:
        following = asyncio.create_task(_whole(lines), name="log")
        given = await of.accounts.hand_over(WHO_IS[Standing.ADMIN], ref, user_id)
        # It ends by itself, before the new owner can have woken the environment.
        async with asyncio.timeout(10):
            assert await following == b""
        house.cluster.say(ref, b"of the new owner")
        assert [line async for line in lines] == []
    return given


async def _whole(lines: AsyncIterator[bytes]) -> bytes:
    return b"".join([line async for line in lines])


async def test_a_project_is_handed_over_with_its_members_and_nothing_of_its_owner_stays() -> None:
    house, ref = House(), ProjectRef("ada", "demo")
    of, boss, ada = house.use_cases, WHO_IS[Standing.ADMIN], Principal("ada", "ada")
    await of.accounts.make(OPERATOR, User(boss.user_id or "", "Boss", role=Role.ADMIN))
    for name in ("eve", "bob"):
        await of.accounts.make(boss, User(name, name, limits=Limits(projects=1)))
    made = (await of.projects.create(ada, "ada", NewProject("Demo", "demo"))).project
    async with house.working():
        await of.projects.settled(made)
        for name in ("eve", "bob"):
            await of.members.share(ada, ref, name, MemberRole.EDITOR)
        link = await of.shares.make(ada, ref, NewShare(8080, "/", "https://here", 60))
        running = await of.projects.settled(await of.projects.want(ada, ref, Desired.ACTIVE))
        assert running is not None
        with pytest.raises(ConflictError, match="not inactive"):
            await of.accounts.hand_over(boss, ref, "bob")
        await of.projects.settled(await of.projects.want(ada, ref, Desired.INACTIVE))
        with pytest.raises(ForbiddenError):
            await of.accounts.hand_over(ada, ref, "bob")
        with pytest.raises(ConflictError, match="already"):
            await of.accounts.hand_over(boss, ref, "ada")
        bob = Principal("bob", "bob")
        await _is_not_handed_to_the_disabled_or_who_has_such(of, ref, bob)
        given = await _handed_over_while_its_log_is_followed(house, ref, "bob")
        assert [one.user_id for one in await of.members.of(bob, given.ref)] == ["eve"]
        assert await house.store.find(Share, link.key) is None
        with pytest.raises(ProjectNotFoundError):
            await of.projects.get(ada, ref)
        with pytest.raises(UserNotFoundError):
            await of.projects.get(ada, given.ref)
        with pytest.raises(LimitExceededError):
            await of.projects.create(bob, "bob", NewProject("More"))
        again = await of.projects.settled(await of.projects.want(bob, given.ref, Desired.ACTIVE))
        assert again is not None
        assert again.names == made.names
        assert list(await house.cluster.inventory()) == [ref]
        assert await has_record(house.store, ref)
        # Its environment is found by what the cluster calls it.
        await of.projects.settled(await of.projects.want(bob, given.ref, Desired.DELETED))
        assert not await house.cluster.inventory()
        await of.projects.create(ada, "ada", NewProject("Demo", "demo"))
        (told,) = await house.store.audit_entries(
            AuditFilter(action="projects.hand_over", result="done"), 9
        )
        assert told[1]["object"] == "project/ada/demo"
        assert told[1]["changed"] == {"owner": "bob"}


@asynccontextmanager
async def _shared_with_bob(house: House) -> AsyncIterator[ProjectRef]:
    of, ada, ref = house.use_cases, Principal("ada", "ada"), ProjectRef("ada", "demo")
    for name in ("eve", "bob", "cid"):
        await of.accounts.make(OPERATOR, User(name, name))
    made = (await of.projects.create(ada, "ada", NewProject("Demo", "demo"))).project
    async with house.working():
        await of.projects.settled(made)
        await of.members.share(ada, ref, "bob", MemberRole.EDITOR)
        yield ref


async def _away(*_asked: Any, **_more: Any) -> Any:
    raise StoreUnavailableError("away")


async def _who(house: House, ref: ProjectRef) -> dict[str, MemberRole]:
    found = await house.use_cases.members.of(OPERATOR, ref)
    return {one.user_id: one.role for one in found}


async def test_who_was_taken_out_after_a_hand_over_was_cut_off_is_not_carried_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    of = house.use_cases
    async with _shared_with_bob(house) as ref:
        with monkeypatch.context() as cut:
            cut.setattr(house.store, "change", _away)
            with pytest.raises(StoreUnavailableError):
                await of.accounts.hand_over(OPERATOR, ref, "eve")
        await of.members.unshare(OPERATOR, ref, "bob")
        await of.members.share(OPERATOR, ref, "cid", MemberRole.VIEWER)
        given = await of.accounts.hand_over(OPERATOR, ref, "eve")
        assert await _who(house, given.ref) == {"cid": MemberRole.VIEWER}


async def test_what_changes_of_members_while_their_project_is_handed_over_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    members, change = house.use_cases.members, house.store.change

    async def late(*asked: Any) -> Project:
        await members.unshare(OPERATOR, ref, "bob")
        await members.share(OPERATOR, ref, "cid", MemberRole.VIEWER)
        await members.share(OPERATOR, ref, "Zoë", MemberRole.VIEWER)
        return await change(*asked)

    async with _shared_with_bob(house) as ref:
        await members.share(OPERATOR, ref, "cid", MemberRole.EDITOR)
        monkeypatch.setattr(house.store, "change", late)
        given = await house.use_cases.accounts.hand_over(OPERATOR, ref, "eve")
        expected = {"cid": MemberRole.VIEWER, "Zoë": MemberRole.VIEWER}
        assert await _who(house, given.ref) == expected


async def test_nothing_of_a_hand_over_that_was_cut_off_comes_back_with_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    of = house.use_cases
    async with _shared_with_bob(house) as ref:
        link = await of.shares.make(OPERATOR, ref, NewShare(8080, "/", "https://here", 60))
        with monkeypatch.context() as cut:
            cut.setattr(Members, "settle", _away)
            with pytest.raises(StoreUnavailableError):
                await of.accounts.hand_over(OPERATOR, ref, "eve")
        there = (await house.store.get("eve", "demo")).ref
        await of.members.unshare(OPERATOR, there, "bob")
        back = await of.accounts.hand_over(OPERATOR, there, "ada")
        assert await _who(house, back.ref) == {}
        assert await house.store.find(Share, link.key) is None


async def test_of_two_hand_overs_at_once_the_later_takes_no_member_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house, members = House(), Members._members

    async def late(of: Members, ref: ProjectRef, record_id: str) -> Sequence[Member]:
        if asyncio.current_task() is second:
            await asyncio.wait({first})
        return await members(of, ref, record_id)

    async with _shared_with_bob(house) as ref:
        give = partial(house.use_cases.accounts.hand_over, OPERATOR, ref, "eve")
        first, second = (asyncio.create_task(give(), name=name) for name in ("one", "two"))
        monkeypatch.setattr(Members, "_members", late)
        with pytest.raises(ConflictError, match="has a project"):
            await second
        assert await _who(house, (await first).ref) == {"bob": MemberRole.EDITOR}


async def test_a_project_is_read_while_the_gate_asks_for_who_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    projects, ada = house.use_cases.projects, Principal("ada", "ada")
    ref = (await projects.create(ada, "ada", NewProject("P"))).project.ref
    both, get, authorize = asyncio.Barrier(2), MemoryStore.get, Gate.authorize

    async def read(*about: Any) -> Project:
        await both.wait()
        return await get(*about)

    async def asked(*about: Any) -> User:
        await both.wait()
        return await authorize(*about)

    monkeypatch.setattr(MemoryStore, "get", read)
    monkeypatch.setattr(Gate, "authorize", asked)
    async with asyncio.timeout(60):
        assert (await projects.get(ada, ref)).ref == ref
        with pytest.raises(UserNotFoundError):  # not that there is no such project
            await projects.get(ada, ProjectRef("nobody", "none"))


async def test_the_projects_of_a_token_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    projects, ada = house.use_cases.projects, Principal("ada", "ada")
    made = [(await projects.create(ada, "ada", NewProject("P"))).project for _ in range(3)]
    all_three, get = asyncio.Barrier(3), MemoryStore.get

    async def read(*about: Any) -> Project:
        await all_three.wait()
        return await get(*about)

    monkeypatch.setattr(MemoryStore, "get", read)
    some = replace(ada, projects=frozenset(one.project_id for one in made))
    async with asyncio.timeout(60):
        page = await projects.page(some, "ada", PageQuery(limit=10))
    assert {one.id for one in page.projects} == {one.id for one in made}
