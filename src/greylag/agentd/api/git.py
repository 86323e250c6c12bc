"""git over HTTP: what the platform says of it, status, fetches, commits and pushes."""

from dataclasses import asdict, astuple
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from greylag.agentd.api.requests import answer, read_object, relayed, text
from greylag.agentd.git.service import GitService
from greylag.agentd.problems import invalid
from greylag.common import agent_api
from greylag.common.agent_api import MOST_GIT_MESSAGE
from greylag.common.git import SETUP, GitCredential, GitSetup, is_ref
from greylag.common.typed import is_encodable

_MOST_SETUP = 1024 * 1024
_MOST_CREDENTIALS = 100


class GitRoutes:
    """Handlers for git; ``agent_api`` describes those that the platform relays."""

    def __init__(self, git: GitService) -> None:
        self._git = git

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(agent_api.ROOT + SETUP, self._set_up, methods=["PUT"]),
            relayed(agent_api.GIT_STATUS, self._status),
            relayed(agent_api.GIT_FETCH, self._fetch),
            relayed(agent_api.GIT_COMMIT, self._commit),
            relayed(agent_api.GIT_PUSH, self._push),
        ]

    async def _set_up(self, request: Request) -> Response:
        members = ("url", "ref", "depth", "author", "credentials")
        body = await read_object(request, _MOST_SETUP, *members)
        return JSONResponse(asdict(await self._git.set_up(_setup(body))))

    async def _status(self, _request: Request) -> Response:
        return answer(await self._git.status())

    async def _fetch(self, _request: Request) -> Response:
        return answer(await self._git.fetch())

    async def _commit(self, request: Request) -> Response:
        operation = agent_api.GIT_COMMIT
        body = await read_object(request, operation.body_limit, "message", "paths")
        message, paths = text(body, "message") or "", body.get("paths")
        if not message.strip() or len(message) > MOST_GIT_MESSAGE or "\0" in message:
            raise invalid(f"message must be a text of 1 to {MOST_GIT_MESSAGE} characters.")
        if paths is not None and not (_are_paths(paths) and paths):
            raise invalid("paths must be a list of paths.")
        return answer(await self._git.commit(message, paths), operation.status)

    async def _push(self, request: Request) -> Response:
        body = await read_object(request, agent_api.GIT_PUSH.body_limit, "branch")
        branch = text(body, "branch")
        if branch is not None and not is_ref(branch):
            raise invalid("branch must be the name of a branch.")
        return answer(await self._git.push(branch))


def _are_paths(paths: Any) -> bool:
    return isinstance(paths, list) and all(
        isinstance(one, str) and one and "\0" not in one and is_encodable(one) for one in paths
    )


def _setup(body: dict[str, Any]) -> GitSetup:
    """Return what the platform says; it alone has the token that lets it in here."""
    depth = body.get("depth")
    try:
        name, address = body.get("author") or ("", "")
        given = tuple(GitCredential(**one) for one in body.get("credentials") or ())
    except (TypeError, ValueError):
        # Not repeated, nor chained: what is wrong may be a secret.
        raise invalid("This is no setup of git.") from None
    texts = [name, address, *(part for one in given for part in astuple(one))]
    if not all(isinstance(one, str) for one in texts) or type(depth) not in {int, type(None)}:
        raise invalid("This is no setup of git.")
    if len(given) > _MOST_CREDENTIALS:
        raise invalid(f"There are more than {_MOST_CREDENTIALS} credentials.")
    return GitSetup(text(body, "url"), text(body, "ref"), depth, (name, address), given)
