"""The agent's part of a project's page: its sessions, their messages, and forms that do without
scripts what the console does by the JSON API.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from greylag.common import agent_api, sse
from greylag.common.agent_api import MOST_BEFORE, AgentSetting, ChatMessage, Session, Turn
from greylag.common.clock import parse_rfc3339
from greylag.common.concurrent import beside
from greylag.common.typed import encodable, parse_json
from greylag.domain.errors import AgentUnreachableError, ErrorInfo, GreylagError, NotActiveError
from greylag.domain.project import ProjectRef
from greylag.domain.transcript import KeptSession
from greylag.services.agents import NewMessage
from greylag.web.addresses import project_url
from greylag.web.api.relay import ask
from greylag.web.dashboard.pages import (
    PROJECT_PAGE,
    Moment,
    ProjectView,
    form_field,
    is_fragment_request,
    is_segment,
    moment,
    piece,
    project_view,
    respond,
    see,
)
from greylag.web.dashboard.rail import PATIENCE_SECONDS, read_rail, read_sessions
from greylag.web.deps import ProjectCallDep, RequestContext, pages_router

NEW_SESSION = "new"
"""What an address says in place of a session id to begin a new one."""
RUNNING = "running"
TURNS_SHOWN = 30
EARLIER_SHOWN = 100
_SET_UP_SECONDS = 1.0
_MOST_FAILING = 5
_MOST_NAME = 60
_MOST_VALUE = 200
_MODES = {
    "auto": "Acts by itself",
    "approve": "Asks before it acts",
    "smart_approve": "Asks before risks",
    "chat": "Only talks",
}
_MOST_PAGES = 16
_MOST_SHOWN = 10_000

router = pages_router()


@dataclass(frozen=True, slots=True)
class AnsweredMessage:
    """A message and the text that answered it; ``turn`` is ``None`` when its record is not kept;
    ``forgotten``: an undo cut it out of the agent's history; ``index``: its place among all of the
    session's messages; ``has_steps``: what its turn did can be asked for; ``cut_off``: a copy ends
    with it, and has no answer.
    """

    message: str
    answer: str
    turn: Turn | None
    author: str | None = None
    forgotten: bool = False
    index: int = 0
    has_steps: bool = True
    cut_off: bool = False

    @property
    def changes(self) -> str | None:
        """What is known of the turn's changes, as the page's script reads it."""
        known = None if self.turn is None else self.turn.changes
        return None if known is None else json.dumps(asdict(known))


@dataclass(frozen=True, slots=True)
class ConversationView:
    """All that a page shows of an agent. ``sessions`` are ``None`` where they cannot be told,
    ``selected`` is ``None`` before a session's first message; ``error`` tells why the agent's part
    is missing; ``shared``: messages may be of several people; ``mode`` says when the agent asks
    before it acts, ``fixed`` names what of model and mode cannot be chosen; ``failing`` names
    extensions that do not work. ``before``: the index of the first message that shows, where there
    are earlier ones. ``kept_at``: of when the copy is that shows, which lacks the first
    ``left_out`` messages.
    """

    sessions: Sequence[Session] | None = None
    selected: str | None = None
    turns: tuple[AnsweredMessage, ...] = ()
    before: int = 0
    demonstration: str | None = None
    error: ErrorInfo | None = None
    shared: bool = False
    kept_at: Moment | None = None
    left_out: int = 0
    model: str = ""
    mode: str = ""
    fixed: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()

    @property
    def modes(self) -> Sequence[tuple[str, str]]:
        """The modes that there are, each with what it is to people."""
        return tuple(_MODES.items())

    @property
    def earlier_shown(self) -> int:
        """How many turns more a page shows that is asked for earlier ones."""
        return EARLIER_SHOWN

    @property
    def running(self) -> Turn | None:
        """The turn that the selected session works on."""
        last = self.turns[-1].turn if self.turns else None
        return last if last is not None and last.status == RUNNING else None


@router.get(PROJECT_PAGE + "/conversation")
async def show_conversation(
    call: ProjectCallDep,
    session: str | None = None,
    turns: int = TURNS_SHOWN,
    before: int = MOST_BEFORE,
) -> Response:
    """Show one session's last ``turns`` turns alone; some of those before the message ``before``
    for a page that has the others.
    """
    limit = bounded(turns)
    view = project_view(await call.use_cases.projects.get(*call.at))
    asked = limit if before >= MOST_BEFORE else EARLIER_SHOWN
    shown = await read_conversation(call, view, session, asked, max(1, min(before, MOST_BEFORE)))
    return respond(
        "fragments/conversation.html", project=view, conversation=shown, turns_shown=limit
    )


@router.post(PROJECT_PAGE + "/messages")
async def send_message(request: Request, call: ProjectCallDep) -> Response:
    """Send a message and lead to its session as soon as the turn is known to run."""
    form = await request.form()
    new = sent_message(form, form_field(form, "session") or None)
    session = await start_turn(call, call.ref, new)
    return see(project_url(call.ref, session))


@router.post(PROJECT_PAGE + "/turns/{turn}/cancel")
async def cancel_turn(call: ProjectCallDep, turn: str) -> Response:
    """Ask a turn to end, and lead back to its session."""
    ended = await call.use_cases.agents.cancel_turn(*call.at, turn)
    return see(project_url(call.ref, ended.session_id))


@router.get(PROJECT_PAGE + "/sessions/{session}/rename")
async def ask_for_title(request: Request, call: ProjectCallDep, session: str) -> Response:
    """Show the form with what the session is called."""
    found = await ask(call, agent_api.SHOW_SESSION, session=session)
    view = project_view(await call.use_cases.projects.get(*call.at))
    return piece(
        request,
        "fragments/session_form.html",
        site=call.site,
        rail=await read_rail(call),
        project=view,
        session=replace(found, session_id=session),  # the agent may tell any
        most=agent_api.MOST_TITLE,
    )


@router.post(PROJECT_PAGE + "/sessions/{session}/rename")
async def rename_session(request: Request, call: ProjectCallDep, session: str) -> Response:
    """Call a session so. An open page hears of it as of every change."""
    name = {"title": form_field(await request.form(), "title")}
    await ask(call, agent_api.RENAME_SESSION, sent=name, session=session)
    if is_fragment_request(request):
        return Response(status_code=204, headers={"HX-Trigger": "close-dialog"})
    return see(project_url(call.ref, session))


@router.post(PROJECT_PAGE + "/sessions/{session}/delete")
async def delete_session(request: Request, call: ProjectCallDep, session: str) -> Response:
    """End a session for good. Who has it open is led to the newest of the others."""
    await ask(call, agent_api.DELETE_SESSION, session=session)
    if is_fragment_request(request):
        return Response(status_code=204, headers={"HX-Trigger": "session-deleted"})
    return see(project_url(call.ref))


def sent_message(form: FormData, session: str | None = None) -> NewMessage:
    """Return the message that a form sent: sent again it is the same one.

    A page that a browser goes back to has the form's ``key`` of before: another text is another.
    """
    message, key = form_field(form, "message"), form_field(form, "key")
    said = "\0".join((key, session or "", message)).encode(errors="replace")
    return NewMessage(message, session, hashlib.sha256(said).hexdigest()[:32] if key else None)


async def start_turn(call: RequestContext, ref: ProjectRef, new: NewMessage) -> str | None:
    """Send a message and return its turn's session as soon as the turn is known to run; it goes on
    without us. ``None`` when it ended before that.
    """
    splitter = sse.FrameSplitter()
    async with call.use_cases.agents.send(call.principal, ref, new) as runs:
        async for run in runs:
            for raw in splitter.feed(run):
                session = _turn_session(sse.parse(raw))
                if session is not None:
                    return session
    return None


def _turn_session(frame: sse.Frame | None) -> str | None:
    """Return the session that a frame of an environment, which may hold anything, says it is of."""
    if frame is None:
        return None
    try:
        event = parse_json(frame.data)
        session = event["content"]["session_id"] if event["type"] == "turn" else None
    except (ValueError, KeyError, TypeError):
        return None
    return encodable(session) if isinstance(session, str) else None


# What the page shows of a session.


def bounded(turns: int) -> int:
    """Return how many turns are shown to who asks for ``turns``."""
    return max(1, min(turns, _MOST_SHOWN))


async def read_conversation(
    call: RequestContext,
    project: ProjectView,
    wanted: str | None,
    shown: int,
    before: int = MOST_BEFORE,
) -> ConversationView:
    """Return the session ``wanted`` (``None``: the newest) with its last ``shown`` turns, of those
    that begin before the message ``before``.

    Of a project that is not active it is what a copy holds; an agent that fails or takes longer
    than a page may is an ``error`` of the result, so that the rest of the page stands.
    """
    read = _read if project.is_active else _read_kept
    async with beside(call.use_cases.members.of(*call.at), "members of a page") as members:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                said = await read(call, wanted, shown, before)
        except GreylagError as error:
            said = ConversationView(selected=_chosen(wanted, ()), error=error.info)
        except TimeoutError:
            late = AgentUnreachableError("The agent did not answer in time.")
            said = ConversationView(selected=_chosen(wanted, ()), error=late.info)
        return replace(said, shared=bool(await members))


async def _read(
    call: RequestContext, wanted: str | None, shown: int, before: int
) -> ConversationView:
    async with (
        beside(call.use_cases.agents.status(*call.at), "agent of a page") as answers,
        beside(_set_up(call), "settings of a page") as set_up,
    ):
        sessions = await read_sessions(call)
        status, (settings, failing) = await answers, await set_up
    selected = _chosen(wanted, sessions)
    own = next((one for one in sessions if one.session_id == selected), None)
    model = _held(settings.get("GOOSE_MODEL"), own.model if own else None)
    mode = _held(settings.get("GOOSE_MODE"), own.mode if own else None)
    fixed = tuple(
        name
        for name, key in (("model", "GOOSE_MODEL"), ("mode", "GOOSE_MODE"))
        if key not in settings or settings[key].env_override is not None
    )
    found: list[AnsweredMessage] = []
    error = None
    if selected is not None:
        try:
            found = await _last_said(call, selected, shown, before)
        except GreylagError as problem:
            error, selected = problem.info, None
    return ConversationView(
        sessions=sessions,
        selected=selected,
        turns=tuple(found),
        before=found[0].index if found else 0,
        demonstration=status.demonstration,
        error=error,
        model=status.model if status.demonstration or not model else model,
        mode=mode if mode in _MODES else "",
        fixed=("model", *fixed) if status.demonstration else fixed,
        failing=failing,
    )


async def _read_kept(
    call: RequestContext, wanted: str | None, shown: int, before: int
) -> ConversationView:
    sessions: Sequence[Session] | None = None
    try:
        sessions = await read_sessions(call)
        selected = _chosen(wanted, sessions)
        if selected is None:
            return ConversationView(sessions=sessions)
        said = (await ask(call, agent_api.LIST_MESSAGES, session=selected)).messages
        kept = await call.use_cases.agents.kept(*call.at, selected)
    except NotActiveError:
        return ConversationView(sessions=sessions, selected=_chosen(wanted, sessions or ()))
    told = pair(said, await _kept_turns(call, kept, selected))
    steps = kept.turns if kept else {}
    told = [replace(one, has_steps=bool(one.turn and steps.get(one.turn.turn_id))) for one in told]
    if told and not (told[-1].turn or told[-1].answer):
        told[-1] = replace(told[-1], cut_off=True)
    found = [one for one in told if one.index < before]
    return ConversationView(
        sessions=sessions,
        selected=selected,
        turns=tuple(found[-shown:]),
        before=found[-shown].index if len(found) > shown else 0,
        kept_at=moment(parse_rfc3339(kept.copied_at)) if kept and kept.copied_at else None,
        left_out=said[0].message_index if said else 0,
    )


async def _kept_turns(
    call: RequestContext, kept: KeptSession | None, session: str
) -> Sequence[Turn]:
    """Return the turns of a session that the copy has, which have all ended."""
    if kept is None or not kept.turns:
        return ()
    newest = {"limit": str(agent_api.MOST_TURNS)}
    try:
        turns = (await ask(call, agent_api.LIST_TURNS, newest, session=session)).turns
    except GreylagError:  # what was said is shown all the same
        return ()
    return [one for one in turns if one.status != RUNNING]  # one that runs has woken it meanwhile


async def _set_up(call: RequestContext) -> tuple[Mapping[str, AgentSetting], tuple[str, ...]]:
    """Return the agent's settings, and which extensions fail, as far as it tells soon."""
    settings: Mapping[str, AgentSetting] = {}
    failing: tuple[str, ...] = ()
    with suppress(GreylagError, TimeoutError):
        async with (
            asyncio.timeout(_SET_UP_SECONDS),
            beside(ask(call, agent_api.LIST_EXTENSIONS), "extensions of a page") as extensions,
        ):
            known = (await ask(call, agent_api.LIST_SETTINGS)).settings
            settings = {one.key: one for one in known}
            listed = (await extensions).extensions
            bad = [one.name for one in listed if one.enabled and one.state == "failed"]
            failing = tuple(name[:_MOST_NAME] for name in bad[:_MOST_FAILING])
    return settings, failing


def _held(setting: AgentSetting | None, own: str | None) -> str:
    """Return what holds in a session that may have a value of its own."""
    if setting is None:
        return (own or "")[:_MOST_VALUE]
    allowed = setting.validation.get("allowed_values")
    free = setting.env_override is None and (not isinstance(allowed, list) or own in allowed)
    return str((own if own and free else setting.value) or "")[:_MOST_VALUE]


async def _last_said(
    call: RequestContext, session: str, shown: int, before: int
) -> list[AnsweredMessage]:
    """Return a session's last ``shown`` turns before the message ``before``."""
    messages = await _last_messages(call, session, shown, before)
    # There are records of the newest turns only: earlier ones are found among as many as can be.
    earlier = before < MOST_BEFORE
    newest = {"limit": str(agent_api.MOST_TURNS if earlier else min(shown, agent_api.MOST_TURNS))}
    turns = (await ask(call, agent_api.LIST_TURNS, newest, session=session)).turns
    known = [one for one in turns if is_segment(one.turn_id)]
    found = pair(messages, [one for one in known if not (earlier and one.status == RUNNING)])
    if len(found) > 1 and found[0].index and not found[0].message:
        del found[0]  # cut by the page's edge: it comes whole with the earlier ones
    return found[-shown:]


async def _last_messages(
    call: RequestContext, session: str, shown: int, before: int
) -> list[ChatMessage]:
    """Return the messages of the last ``shown`` turns before the message ``before``.

    An agent's page is as long as it likes to make it, so the more turns are asked for the more
    pages are read, and never more than ``_MOST_PAGES``.
    """
    pages = min(_MOST_PAGES, 1 + shown // TURNS_SHOWN)
    messages: list[ChatMessage] = []
    while True:
        most = min(2 * shown - len(messages), agent_api.MOST_MESSAGES)
        asked = {"limit": str(most), "before": str(before)}
        history = await ask(call, agent_api.LIST_MESSAGES, asked, session=session)
        messages = [*history.messages, *messages]
        pages -= 1
        before = messages[0].message_index if history.messages else 0
        if not pages or before < 1 or len(messages) >= 2 * shown:
            return messages


def pair(messages: Sequence[ChatMessage], turns: Sequence[Turn]) -> list[AnsweredMessage]:
    """Return what was said and answered, oldest first, each with its turn where that is known.

    ``messages`` come oldest first and ``turns`` newest first, as an agent tells them. A turn that
    began between the two questions is there too, without an answer.
    """
    known = {turn.turn_id: turn for turn in turns}
    pairs: list[AnsweredMessage] = []
    last: str | None = None
    for one in messages:
        asked = one.role.lower() == "user"
        if asked or not pairs or one.turn_id != last:
            said = (one.content, "") if asked else ("", one.content)
            turn = known.pop(one.turn_id or "", None)
            pairs.append(AnsweredMessage(*said, turn, one.author, one.forgotten, one.message_index))
        else:
            joined = "\n\n".join(filter(None, (pairs[-1].answer, one.content)))
            pairs[-1] = replace(pairs[-1], answer=joined)
        last = one.turn_id
    running = [turn for turn in known.values() if turn.status == RUNNING]
    end = messages[-1].message_index + 1 if messages else 0
    return pairs + [
        AnsweredMessage(turn.message, "", turn, turn.author, index=end)
        for turn in reversed(running)
    ]


def _chosen(wanted: str | None, sessions: Sequence[Session]) -> str | None:
    if wanted == NEW_SESSION:
        return None
    return wanted or (sessions[0].session_id if sessions else None)
