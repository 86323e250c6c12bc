"""A running server, and the command line pointed at it."""

from collections.abc import AsyncIterator

import pytest
from tests.cli.program import Cli, Done, call, run
from tests.cli.stack import Stack, running_stack

from greylag.cli.client import ApiClient, ProjectPlace, Wish
from greylag.config import Settings


@pytest.fixture
def settings() -> Settings:
    return Settings(users="ann:Ann", _env_file=None)


@pytest.fixture
async def stack(settings: Settings) -> AsyncIterator[Stack]:
    """A server whose environments start by themselves."""
    async with running_stack(settings) as running:
        yield running


@pytest.fixture
def env(stack: Stack) -> dict[str, str]:
    return stack.env


@pytest.fixture
def cli(env: dict[str, str]) -> Cli:
    """Run a command line against the server in this process: ``await cli("users")``."""

    async def command(*words: str) -> Done:
        return await call(*words, env=env)

    return command


@pytest.fixture
def program(env: dict[str, str]) -> Cli:
    """Run the real program against the server: ``await program("users", stdin=b"")``."""

    async def command(*words: str, stdin: bytes = b"") -> Done:
        return await run(*words, env=env, stdin=stdin)

    return command


@pytest.fixture
async def project(stack: Stack) -> str:
    """The id of an active project."""
    async with ApiClient(stack.address, stack.token) as api:
        await api.create("ann", {"name": "Talk", "project_id": "talk"}, "key")
        await api.change(ProjectPlace("ann", "talk"), "activate", Wish())
    return "talk"
