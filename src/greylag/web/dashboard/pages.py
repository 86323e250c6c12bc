"""From templates to responses."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from greylag.web.dashboard.text import visible
from greylag.web.dashboard.views import project_url, user_url
from greylag.web.schemas import Problem


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
