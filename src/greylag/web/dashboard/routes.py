"""The dashboard's addresses: each handler reads the request, asks once and answers."""

from fastapi import APIRouter

from greylag.config import Settings
from greylag.services.use_cases import UseCases
from greylag.web.dashboard.conversations import add_agent_routes
from greylag.web.dashboard.pages import Site
from greylag.web.dashboard.projects import add_project_routes
from greylag.web.dashboard.users import add_user_routes


def dashboard_routes(use_cases: UseCases, settings: Settings) -> APIRouter:
    """Return the routes of all pages; none of them is part of the JSON API's description."""
    router = APIRouter(include_in_schema=False)
    site = Site(use_cases.platform, sign_out=settings.token is not None)
    add_user_routes(router, site)
    add_agent_routes(router)
    add_project_routes(router, site)
    return router
