"""`greylag git` and `greylag secrets`, against a server over memory adapters."""

import pytest
from tests.cli.program import Cli, on_terminal

from greylag.cli.errors import Exit
from greylag.config import Settings

VALUE = "glsecret-5f0b7c1d9e"


@pytest.fixture
def settings() -> Settings:
    return Settings(users="ann:Ann", secret_key="k" * 32, _env_file=None)


async def test_a_repository_is_told_of_committed_and_pushed(cli: Cli) -> None:
    await cli("projects", "create", "Demo", "--id", "demo")
    await cli("activate", "demo")
    told = await cli("git", "status", "demo")
    assert [
        " ".join(line.split()) for line in told.out.splitlines() if line.startswith(("br", "ch"))
    ] == ["branch main", "changed 0"]
    assert (await cli("git", "status", "demo", "--json")).document["ahead"] == 1
    assert (await cli("git", "fetch", "demo", "--json")).document["ahead"] == 1
    made = await cli("git", "commit", "demo", "-m", "Add it", "--path", "src")
    assert (made.out.strip(), made.code) == ("0" * 40, Exit.OK)
    nothing = await cli("git", "commit", "demo", "-m", "nothing")
    assert nothing.code == Exit.REFUSED
    assert "git_nothing_to_commit" in nothing.err
    assert (
        "to fix of https://example.org/a.git"
        in (await cli("git", "push", "demo", "--branch", "fix")).err
    )


async def test_ctrl_c_ends_the_question_for_a_secret(env: dict[str, str]) -> None:
    async with on_terminal("secrets", "set", "hub", "--host", "github.com", env=env) as terminal:
        await terminal.until("Value: ")
        terminal.type("\x03")
        assert await terminal.end() == Exit.INTERRUPTED


async def test_a_secret_is_read_from_stdin_listed_without_its_value_and_deleted(
    cli: Cli, program: Cli
) -> None:
    words = ("secrets", "set", "hub", "--host", "github.com")
    kept = await program(*words, stdin=f"{VALUE}\n".encode())
    assert (kept.code, kept.out) == (Exit.OK, "")
    listed = await cli("secrets", "list", "--json")
    assert [one["host"] for one in listed.document["secrets"]] == ["github.com"]
    assert VALUE not in f"{listed.out}{listed.err}{kept.err}"
    assert "github.com" in (await cli("secrets", "list")).out
    assert (await cli("secrets", "delete", "hub", "--yes")).code == Exit.OK
    assert (await cli("secrets", "delete", "hub", "--yes")).code == Exit.REFUSED
