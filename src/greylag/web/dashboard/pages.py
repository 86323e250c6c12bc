"""Pages and fragments: what the templates are given, how they become answers, what forms send.

Templates get plain values: every decision made, every address built, every character harmless.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from greylag.common import sse
from greylag.common.clock import parse_rfc3339, rfc3339
from greylag.common.typed import encodable, parse_json
from greylag.domain.errors import (
    HINTS,
    ConfirmationNotFoundError,
    ConflictError,
    ErrorInfo,
    GreylagError,
    IdempotencyConflictError,
    InvalidRequestError,
    LimitExceededError,
    MissingError,
    ProjectNotFoundError,
    SessionNotFoundError,
    UserNotFoundError,
    WaitTimeoutError,
)
from greylag.domain.names import path_segment
from greylag.domain.project import Desired, GitSource, Project, Status
from greylag.web.addresses import address, inline_url, service_worker_url, static_url, user_url
from greylag.web.schemas import ProblemDocument, check_metadata, check_text

USER_PAGE = "/users/{user}"
PROJECT_PAGE = USER_PAGE + "/projects/{project}"
FORM_REFUSALS = (InvalidRequestError, LimitExceededError, ConflictError)
"""What a form comes back with, so that what was typed can be mended or sent again."""
_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
_UNSEEN = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]")
_PLACES = (
    ("; `greylag logs`", "; the log"),
    ("and `greylag logs`", "and the log"),
    ("`greylag logs`", "The log"),
    ("`greylag shell`", "The terminal pane"),
    (", on the page or in the header x-greylag-reason;", ";"),
)
METHODS_HINT = "The Allow header lists the methods that it takes."
_HINTS: Mapping[str, str] = {
    ConfirmationNotFoundError.hint: "Open the project to see what the agent asks now.",
    ConflictError.hint: "Load the page again, then repeat the change.",
    IdempotencyConflictError.hint: "Load the page again, then repeat the change.",
    InvalidRequestError.hint: "Correct what the sentence names, and try again.",
    METHODS_HINT: "Go back, and try it from the page.",
    MissingError.hint: "See that the address is right, or begin at the projects.",
    ProjectNotFoundError.hint: "It may have been deleted, or be shared with you no more.",
    SessionNotFoundError.hint: "It may have been deleted. Open the project to see its sessions.",
    HINTS["turn_not_found"]: "It may be too old to be kept. Open the project to see its sessions.",
    UserNotFoundError.hint: "See that the address is right, or begin at the projects.",
    WaitTimeoutError.hint: "It goes on in the background, and the page shows how it stands.",
}
"""What to do on a page instead of what names requests and fields."""
_DELETE = 0x7F
_PICTURES = 0x2400
_SPANS = (
    (timedelta(days=365), "year"),
    (timedelta(days=30), "month"),
    (timedelta(days=1), "day"),
    (timedelta(hours=1), "hour"),
    (timedelta(minutes=1), "minute"),
)


def visible(text: str) -> str:
    """Return ``text`` with control characters and bidirectional overrides made visible.

    Names, events and answers are written by others: an override could make one sentence look like
    another. Tab and newline stay. ``static/js/text.js`` does the same in the browser.
    """
    return _UNSEEN.sub(lambda match: _picture(ord(match[0])), text)


def on_page(text: str) -> str:
    """Return a hint, which is for the command line too, in the words of pages."""
    for command, place in _PLACES:
        text = text.replace(command, place)
    return text


def _picture(code: int) -> str:
    if code < ord(" "):
        return chr(_PICTURES + code)
    if code == _DELETE:
        return "\u2421"
    return f"[U+{code:04X}]"


@dataclass(frozen=True, slots=True)
class Moment:
    """A time as a ``<time>`` element needs it: for machines, exact, and relative to now. Lists hold
    many that no page shows, so the words are made when they are asked for.
    """

    at: datetime
    now: datetime | None = field(default=None, compare=False, repr=False)
    """Left out of comparisons: the page itself keeps what is relative to it fresh."""

    @property
    def machine(self) -> str:
        """The time by RFC 3339."""
        return rfc3339(self.at)

    @property
    def exact(self) -> str:
        """The time for people, to the second."""
        return f"{self.at:%Y-%m-%d %H:%M:%S} UTC"

    @property
    def ago(self) -> str:
        """How long ago that was."""
        return _ago(self._passed)

    @property
    def short(self) -> str:
        """The same in a few characters."""
        return _short(self._passed)

    @property
    def _passed(self) -> timedelta:
        return (self.now or datetime.now(UTC)) - self.at


def moment(at: datetime, now: datetime | None = None) -> Moment:
    """Return how to show the aware time ``at`` (at the aware time ``now``)."""
    return Moment(at.astimezone(UTC), now)


def parsed_moment(text: str, now: datetime | None = None) -> Moment | None:
    """Return the same of an RFC 3339 time that an agent told, ``None`` when it is not one."""
    try:
        return moment(parse_rfc3339(text), now)
    except ValueError:
        return None


def _ago(passed: timedelta) -> str:
    count, word = _since(passed)
    return f"{count} {word}{'s' if count > 1 else ''} ago" if count else "just now"


def _short(passed: timedelta) -> str:
    count, word = _since(passed)
    return f"{count}{'mo' if word == 'month' else word[0]}" if count else "now"


def _since(passed: timedelta) -> tuple[int, str]:
    """Return how many of which span have passed; 0 of none also where another's clock is ahead."""
    return next(((passed // span, word) for span, word in _SPANS if passed >= span), (0, ""))


# A project and its log, as cards, headers and lines show them.

_LABELS = {
    Status.INACTIVE: "Inactive",
    Status.ACTIVATING: "Activating",
    Status.ACTIVE: "Active",
    Status.DEACTIVATING: "Deactivating",
    Status.ERROR: "Error",
}


@dataclass(frozen=True, slots=True)
class ProjectView:
    """One project as cards and headers show it. Two are equal when they look the same."""

    key: str
    """Unique and safe inside an ``id`` attribute."""
    project_id: str
    name: str
    url: str
    api: str
    status: str
    label: str
    moving: bool
    deleting: bool
    endpoint: str | None
    error: ErrorInfo | None
    can_activate: bool
    can_deactivate: bool
    source: str
    created: Moment
    last_activated: Moment | None
    seq: int = field(compare=False)
    """The number of the log's newest event: what has a lower one is older."""

    @property
    def is_active(self) -> bool:
        """Whether its agent can be asked now."""
        return self.status == Status.ACTIVE


def project_view(project: Project) -> ProjectView:
    """Return how ``project`` looks now."""
    path = project.ref.path
    deleting = project.desired is Desired.DELETED
    wants_active = project.desired is Desired.ACTIVE
    failed = project.status is Status.ERROR
    return ProjectView(
        key=project.id,
        project_id=project.project_id,
        name=project.name,
        url=address(path),
        api=address(f"/api{path}"),
        status="deleting" if deleting else project.status.value,
        label="Deleting" if deleting else _LABELS[project.status],
        moving=deleting or not project.settled,
        deleting=deleting,
        endpoint=_elsewhere(project.endpoint),
        error=project.error,
        can_activate=not deleting and (failed or not wants_active),
        can_deactivate=not deleting and (wants_active or project.status is Status.ACTIVE),
        source=project.source.url if project.source else "",
        created=moment(project.created_at),
        last_activated=moment(project.last_activated_at) if project.last_activated_at else None,
        seq=project.last_seq,
    )


def _elsewhere(endpoint: str | None) -> str | None:
    """Return an endpoint under a name of this machine that our cookie is not sent to.

    Browsers tell no ports of one host apart, and Greylag is opened at 127.0.0.1.
    """
    return endpoint and endpoint.replace("http://127.0.0.1:", "http://localhost:", 1)


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Return a project's metadata as it is read and edited. It may be long, so no view has it."""
    return json.dumps(metadata, indent=2, ensure_ascii=False) if metadata else ""


# What forms send, read and checked.

Back = Literal["list", "project"]
"""The page that a form was opened on, and that its answer leads back to."""


def back_of(value: str) -> Back:
    """Read where a form was opened; anything unknown is the list."""
    return "project" if value == "project" else "list"


@dataclass(frozen=True, slots=True)
class ProjectForm:
    """The fields of the form that creates or edits a project, as they were typed.

    ``key`` makes a form that is sent twice create one project.
    """

    name: str = ""
    project_id: str = ""
    metadata: str = ""
    git_url: str = ""
    git_ref: str = ""
    key: str = ""

    @classmethod
    def read(cls, form: FormData) -> "ProjectForm":
        """Take the fields from what a browser sent."""
        return cls(**{name: form_field(form, name) for name in cls.__slots__})

    def source(self) -> GitSource | None:
        """Return the repository that is named, if one is."""
        url, ref = self.git_url.strip(), self.git_ref.strip()
        return GitSource(url, ref or None) if url else None

    def metadata_object(self) -> dict[str, Any]:
        """Return the metadata.

        Raises:
            InvalidRequestError: it is no JSON object.
        """
        if not self.metadata.strip():
            return {}
        try:
            value = parse_json(self.metadata)
        except (ValueError, RecursionError) as error:
            place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
            raise InvalidRequestError(f"Metadata must be a JSON object{place}.") from error
        if not isinstance(value, dict):
            raise InvalidRequestError('Metadata must be a JSON object, such as {"team": "blue"}.')
        try:
            return check_metadata(value)
        except ValueError as error:
            raise InvalidRequestError(f"Metadata {error}.") from error


def form_field(form: FormData, name: str) -> str:
    """Return a text field with plain line ends; empty when it is not there.

    Forms send line ends as CR LF (WHATWG HTML, 4.10.22.4).

    Raises:
        InvalidRequestError: it holds half a character, as a form in some charsets can.
    """
    value = form.get(name, "")
    if not isinstance(value, str):
        return ""
    try:
        return check_text(value).replace("\r\n", "\n")
    except ValueError as error:
        raise InvalidRequestError(f"{name} {error}.") from error


# From templates to answers.


@cache
def templates() -> Environment:
    """Return the templates, made when a page is first asked for."""
    environment = Environment(
        loader=PackageLoader("greylag.web", "templates"),
        autoescape=True,
        auto_reload=False,  # a list asks for a row's template hundreds of times
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        visible=visible, on_page=on_page, moment=moment, parsed_moment=parsed_moment
    )
    environment.globals.update(
        address=address,
        inline_url=inline_url,
        service_worker_url=service_worker_url,
        static_url=static_url,
        user_url=user_url,
    )
    return environment


def is_segment(value: str) -> bool:
    """Tell whether what an agent calls an id can stand in an address of ours."""
    try:
        path_segment(value, "id")
    except InvalidRequestError:
        return False
    return True


def is_fragment_request(request: Request) -> bool:
    """Tell whether htmx asks, for a piece of a page that is already there."""
    return request.headers.get("hx-request") == "true"


def render(template: str, **values: Any) -> str:
    """Return a template's HTML. A value that the template names and nobody gives is an error."""
    return templates().get_template(template).render(**values)


def respond(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page or a fragment. Nobody keeps it: it shows how things stand now."""
    headers = {"Cache-Control": "private, no-cache", "Vary": "HX-Request"}
    # JSON that others wrote can spell half a character, which no page can hold.
    page = encodable(render(template, **values))
    return HTMLResponse(page, status_code=status, headers=headers)


def respond_to(
    request: Request, page: str, fragment: str, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """Return ``fragment`` when htmx asks for it, else the whole ``page`` around it."""
    template = fragment if is_fragment_request(request) else page
    return respond(template, status=status, **values)


def piece(request: Request, fragment: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return what a dialog shows: ``fragment``, or a page of it when a browser opens it alone."""
    return respond_to(request, "piece.html", fragment, status=status, piece=fragment, **values)


def words_of(error: GreylagError) -> str:
    """Return what a form says of why it came back; what is wrong in it needs no hint."""
    if isinstance(error, InvalidRequestError):
        return error.info.message
    return f"{error.info.message} {error.info.hint}".rstrip()


def form_page(
    request: Request, form: ProjectForm, error: str | None = None, **values: Any
) -> HTMLResponse:
    """Return the form that creates or edits a project, with what is wrong in it, if anything is."""
    return piece(
        request,
        "fragments/project_form.html",
        status=422 if error else 200,
        form=form,
        error=error,
        **values,
    )


def paths_hint() -> str:
    """Return what to do about a path at which nothing is."""
    return f"GET {address('/openapi.json')} lists every path of the API."


def error_page(request: Request, problem: ProblemDocument) -> Response:
    """Return ``problem`` as a page, or, when htmx asks, as a notice for the page that is open."""
    hints = {**_HINTS, paths_hint(): _HINTS[MissingError.hint]}
    shown = problem.model_copy(update={"hint": hints.get(problem.hint, problem.hint)})
    response = respond_to(
        request, "error.html", "fragments/notice.html", status=problem.status, problem=shown
    )
    # Only htmx reads these.
    response.headers["HX-Retarget"] = "#notices"
    response.headers["HX-Reswap"] = "beforeend"
    return response


class NotAFormError(GreylagError):
    """What was sent to a page is not a form."""

    code = "unsupported_media_type"
    hint = "Send it from the page, or ask the API, which takes JSON."


async def form_alone(request: Request) -> None:
    """Raise ``NotAFormError`` for a body that would be taken for an empty form."""
    if request.method != "POST":
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _FORMS and await request.body():
        raise NotAFormError("This address takes forms alone, and what was sent is none.")


def see(url: str) -> RedirectResponse:
    """Return the answer to a form that sends the browser to ``url`` (303, with GET)."""
    return RedirectResponse(url, status_code=303)


def lead(request: Request, url: str) -> Response:
    """Return the answer to a form that ends at another page, to htmx too."""
    return Response(headers={"HX-Redirect": url}) if is_fragment_request(request) else see(url)


def html_frame(html: str, seq: int | None = None) -> bytes:
    """Return a frame of a live stream: elements with ids, each of which takes the place of the one
    that the page has. ``seq`` is the number of the log's event that it goes up to.
    """
    number = None if seq is None else str(seq)
    return sse.encode({"type": "html", "content": {"html": html}}, id=number)
