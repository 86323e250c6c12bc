"""A user's projects: which of them a page shows, and how it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from greylag.domain.errors import InvalidRequestError
from greylag.domain.project import Status
from greylag.ports import PageQuery
from greylag.web.api.deps import Call
from greylag.web.dashboard.views import ProjectView, project_view, user_url

STEP = 50
MOST = 500


@dataclass(frozen=True, slots=True)
class Window:
    """What an address asks to see: ``show`` projects of a status, from ``cursor`` on."""

    status: Status | None = None
    show: int = STEP
    cursor: str | None = None

    def url(self, user_id: str, path: str = "") -> str:
        """Return the address that asks for this window."""
        query = {
            "status": self.status.value if self.status else None,
            "show": self.show if self.show != STEP else None,
            "cursor": self.cursor,
        }
        return user_url(user_id, path, **query)


@dataclass(frozen=True, slots=True)
class ProjectList:
    """The projects of a window, and the addresses of more."""

    user_id: str
    window: Window
    projects: tuple[ProjectView, ...]
    more_url: str | None
    older_url: str | None

    @property
    def live_url(self) -> str:
        """Where the changes of exactly these projects stream from."""
        return self.window.url(self.user_id, "/live")


def parse_window(query: Mapping[str, str]) -> Window:
    """Read a window from an address. Raises ``InvalidRequestError``."""
    try:
        status = Status(query["status"]) if query.get("status") else None
    except ValueError:
        raise InvalidRequestError("status must be one of the five statuses.") from None
    shown = query.get("show", str(STEP))
    if not (shown.isascii() and shown.isdecimal() and 1 <= int(shown[:9]) <= MOST):
        raise InvalidRequestError(f"show must be a number from 1 to {MOST}.")
    return Window(status, int(shown), query.get("cursor") or None)


async def read_list(call: Call, user_id: str, window: Window) -> ProjectList:
    """Return the projects of ``window`` as they are now; raises what ``Projects.page`` raises."""
    asked = PageQuery(limit=window.show, cursor=window.cursor, status=window.status)
    page = await call.use_cases.projects.page(call.principal, user_id, asked)
    now = datetime.now(UTC)
    more = older = None
    if page.cursor and window.show + STEP <= MOST:
        more = replace(window, show=window.show + STEP).url(user_id)
    elif page.cursor:
        older = Window(window.status, cursor=page.cursor).url(user_id)
    return ProjectList(
        user_id=user_id,
        window=window,
        projects=tuple(project_view(project, now) for project in page.projects),
        more_url=more,
        older_url=older,
    )


# The pages of a user: the selector, the projects, a new one.
