"""The dashboard: server-rendered pages of users and projects, live without a reload."""

from greylag.web.dashboard.pages import error_page
from greylag.web.dashboard.routes import dashboard_routes

__all__ = ["dashboard_routes", "error_page"]
