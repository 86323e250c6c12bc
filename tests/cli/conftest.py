"""A running server, and the command line pointed at it."""

from collections.abc import AsyncIterator

import pytest
from tests.cli.program import Cli, Done, run
from tests.cli.stack import Stack, running_stack

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
    return {"GREYLAG_SERVER": stack.address}


@pytest.fixture
def cli(env: dict[str, str]) -> Cli:
    """Run the program against the server: ``await cli("users", stdin=b"")``."""

    async def call(*words: str, stdin: bytes = b"") -> Done:
        return await run(*words, env=env, stdin=stdin)

    return call
