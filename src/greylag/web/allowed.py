"""Which methods a path of the API takes, for the Allow header (RFC 9110, section 10.2.1)."""

import re
from functools import cached_property

from fastapi import FastAPI
from starlette.routing import compile_path


class AllowedMethods:
    """Knows every path of the OpenAPI document. The framework names one route's methods only, and
    a path has a route for each.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def of(self, path: str) -> str | None:
        """Return the methods of ``path`` (decoded) as the header lists them, or ``None``."""
        return next((methods for regex, methods in self._table if regex.match(path)), None)

    @cached_property
    def _table(self) -> list[tuple[re.Pattern[str], str]]:
        paths = self._app.openapi()["paths"]
        return [(compile_path(path)[0], ", ".join(paths[path]).upper()) for path in paths]
