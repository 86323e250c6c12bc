"""What every command that asks the server shares: its options, its user, its project."""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import click

from greylag.cli.client import ApiClient, ProjectJson, ProjectPlace
from greylag.cli.errors import ServerRefusedError, starting
from greylag.cli.kept_token import KeptToken, KeyringError
from greylag.cli.output import Output, json_option
from greylag.common.net import is_loopback
from greylag.common.token_file import NAME, read_token
from greylag.domain.errors import InvalidRequestError
from greylag.domain.names import check_id

DEFAULT_SERVER = "http://127.0.0.1:8700"

paths_option = click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATH",
    help="Only this, with all below it; repeatable.",
)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Access:
    """Whom a command asks, for which user, and where its output goes.

    ``api`` is the client of the server; it is to be entered before it is used. ``withheld`` is the
    server whose the kept token is, where that is another: it is not sent.
    """

    server: str
    user: str | None
    output: Output
    token: str | None = field(repr=False)
    api: ApiClient
    withheld: str | None = None

    def run(self, command: Callable[[], Awaitable[R]]) -> R:
        """Run a command to its end, with the client entered."""

        async def whole() -> R:
            self.tell_withheld()
            async with self.api:
                return await command()

        return asyncio.run(whole())

    def tell_withheld(self) -> None:
        """Say so if the kept token is not sent."""
        if self.withheld is not None:
            self.output.note(f"The kept token is not sent: it is that of {self.withheld}.")

    async def user_id(self) -> str:
        """Return the user to act for: the one given, else the only one, else ourselves."""
        if self.user is not None:
            if not _can_be_id(self.user):
                raise click.UsageError("--user: this cannot be a user's id.")
            return self.user
        users = [user["id"] for user in await self.api.users()]
        if len(users) == 1:
            return users[0]
        # Others share with us, or we administrate: without a word it is for ourselves.
        if (own := (await self.api.get("me"))["id"]) is not None:
            return str(own)
        names = ", ".join(users) or "none"
        raise click.UsageError(f"Say which user, with --user or GREYLAG_USER. There are: {names}.")

    async def project(self, wanted: str) -> ProjectJson:
        """Return the project with this id, else the only one with this name."""
        user_id = await self.user_id()
        refused: ServerRefusedError | None = None
        if _can_be_id(wanted):
            try:
                return await self.api.project(ProjectPlace(user_id, wanted))
            except ServerRefusedError as error:
                if error.problem.code != "project_not_found":
                    raise
                refused = error
        named = [
            project async for project in self.api.projects(user_id) if project["name"] == wanted
        ]
        if len(named) == 1:
            return named[0]
        if named:
            ids = ", ".join(project["project_id"] for project in named)
            raise click.UsageError(
                f"Several projects are named {wanted}; say which by its id: {ids}."
            )
        raise refused or click.UsageError("PROJECT: no project has this id or name.")

    async def place(self, wanted: str) -> ProjectPlace:
        """Return where the project that ``wanted`` means is found."""
        return place_of(await self.project(wanted))


def place_of(project: ProjectJson) -> ProjectPlace:
    """Return where a project is found."""
    return ProjectPlace(project["user_id"], project["project_id"])


def api_options(command: Callable[Concatenate[Access, P], R]) -> Callable[..., R]:
    """Give a command the options that say whom it asks, and an ``Access`` as its first argument."""

    @click.option(
        "--server",
        metavar="ADDRESS",
        envvar="GREYLAG_SERVER",
        default=DEFAULT_SERVER,
        callback=_checked_server,
        help=f"The server (GREYLAG_SERVER; default {DEFAULT_SERVER}).",
    )
    @click.option(
        "--data",
        metavar="FOLDER",
        envvar="GREYLAG_DATA",
        default="data",
        type=click.Path(path_type=Path),
        help="The data folder of a server on this machine, for its token (GREYLAG_DATA; default"
        " ./data).",
    )
    @click.option(
        "--user", metavar="ID", envvar="GREYLAG_USER", help="Act for this user (GREYLAG_USER)."
    )
    @json_option
    @functools.wraps(command)
    def with_access(
        *args: Any, server: str, data: Path, user: str | None, as_json: bool, **kwargs: Any
    ) -> R:
        output = Output(as_json=as_json)
        token, withheld = _token(server, data, output)
        access = Access(server, user or None, output, token, ApiClient(server, token), withheld)
        return command(access, *args, **kwargs)

    return with_access


def api_command(
    command: Callable[Concatenate[Access, P], Awaitable[R]],
) -> Callable[..., R]:
    """Give an async command the options of ``api_options``, and ``Access.run`` it."""

    @api_options
    @functools.wraps(command)
    def run(access: Access, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return access.run(lambda: command(access, *args, **kwargs))

    return run


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a task group whose first failure comes out as it is, not wrapped in a group.

    A command ends with one sentence and one exit code, so the first failure is the one to tell.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


def _token(server: str, data: Path, output: Output) -> tuple[str | None, str | None]:
    """Return the token for ``server``: GREYLAG_TOKEN, else that of the data folder, else the one
    that the person keeps. It is no option: that would show in the list of processes.

    A data folder's token is for the server of this machine, and a kept one for that which has
    given it: they go to no other. Where a kept one is for another, that is returned too.
    """
    token = os.environ.get("GREYLAG_TOKEN", "").strip()
    if not (token.isascii() and token.replace(" ", "").isprintable()):
        raise click.UsageError("GREYLAG_TOKEN must be printable ASCII characters.")
    if token:
        return token, None
    here = is_loopback(urlsplit(server).hostname or "")
    try:
        with starting():
            if here and (found := read_token(data / NAME)) is not None:
                return found, None
            kept = KeptToken.of(os.environ)
            found = kept.read()
            whose = kept.server_of(found) if found else None
            return (found, None) if whose in {None, server} else (None, whose)
    except KeyringError as error:
        output.note(f"warning: the token cannot be read: {error}.", "yellow")
        return None, None


def _checked_server(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise click.BadParameter(f"it is not an address ({error}).") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise click.BadParameter(f"it must be an address like {DEFAULT_SERVER}.")
    if parts.query or parts.fragment or parts.username is not None:
        # Addresses are shown in errors: no password may stand in one.
        raise click.BadParameter("it must hold no user, password, question or fragment.")
    return value.rstrip("/")


def _can_be_id(text: str) -> bool:
    try:
        check_id(text, "id")
    except InvalidRequestError:
        return False
    return True
