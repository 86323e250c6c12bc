"""From templates to responses."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from greylag.domain.errors import InvalidRequestError
from greylag.services.use_cases import Platform
from greylag.web.dashboard.views import project_url, user_url, visible
from greylag.web.schemas import Problem, check_metadata


@cache
def templates() -> Environment:
    """Return the templates, made when a page is first asked for."""
    environment = Environment(
        loader=PackageLoader("greylag.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    environment.globals.update(user_url=user_url, project_url=project_url)
    return environment


def is_fragment_request(request: Request) -> bool:
    """Tell whether htmx asks, for a piece of a page that is already there."""
    return request.headers.get("hx-request") == "true"


def render(template: str, **values: Any) -> str:
    """Return a template's HTML. A value that the template names and nobody gives is an error."""
    return templates().get_template(template).render(**values)


def respond(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page or a fragment. Nobody keeps it: it shows how things stand now."""
    headers = {"Cache-Control": "private, no-cache", "Vary": "HX-Request"}
    return HTMLResponse(render(template, **values), status_code=status, headers=headers)


def respond_to(
    request: Request, page: str, fragment: str, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """Return ``fragment`` when htmx asks for it, else the whole ``page`` around it."""
    template = fragment if is_fragment_request(request) else page
    return respond(template, status=status, **values)


def error_page(request: Request, problem: Problem) -> Response:
    """Return ``problem`` as a page, or, when htmx asks, as a notice for the page that is open."""
    response = respond_to(
        request, "error.html", "fragments/notice.html", status=problem.status, problem=problem
    )
    # Only htmx reads these.
    response.headers["HX-Retarget"] = "#notices"
    response.headers["HX-Reswap"] = "beforeend"
    return response


def see(url: str) -> RedirectResponse:
    """Return the answer to a form that sends the browser to ``url`` (303, with GET)."""
    return RedirectResponse(url, status_code=303)


def lead(request: Request, url: str) -> Response:
    """Return the answer to a form that ends at another page, to htmx too."""
    return Response(headers={"HX-Redirect": url}) if is_fragment_request(request) else see(url)


# What the pages' forms send, read and checked.


@dataclass(frozen=True, slots=True)
class ProjectForm:
    """The fields of the form that creates or edits a project, as they were typed.

    ``key`` makes a form that is sent twice create one project.
    """

    name: str = ""
    project_id: str = ""
    metadata: str = ""
    key: str = ""

    @classmethod
    def read(cls, form: FormData) -> "ProjectForm":
        """Take the fields from what a browser sent."""
        return cls(**{name: field(form, name) for name in cls.__slots__})

    def metadata_object(self) -> dict[str, Any]:
        """Return the metadata. Raises ``InvalidRequestError`` when it is no JSON object."""
        if not self.metadata.strip():
            return {}
        try:
            value = json.loads(self.metadata)
        except (ValueError, RecursionError) as error:
            place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
            raise InvalidRequestError(f"metadata must be a JSON object{place}.") from error
        if not isinstance(value, dict):
            raise InvalidRequestError('metadata must be a JSON object, such as {"team": "blue"}.')
        try:
            return check_metadata(value)
        except ValueError as error:
            raise InvalidRequestError(f"metadata {error}.") from error


def field(form: FormData, name: str) -> str:
    """Return a text field with plain line ends; empty when it is not there.

    Forms send line ends as CR LF (WHATWG HTML, 4.10.22.4).
    """
    value = form.get(name, "")
    return value.replace("\r\n", "\n") if isinstance(value, str) else ""


# What is the same on every page.

Back = Literal["list", "project"]
"""The page that a form was opened on, and that its answer leads back to."""


@dataclass(frozen=True, slots=True)
class Site:
    """What every page says of this installation; ``sign_out`` when there is a sign-in to end."""

    platform: Platform
    sign_out: bool


def back_of(value: str) -> Back:
    """Read where a form was opened; anything unknown is the list."""
    return "project" if value == "project" else "list"
