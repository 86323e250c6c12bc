"""Tokens by command line: made, kept, used and ended."""

import stat
from datetime import UTC, datetime
from pathlib import Path

from tests.cli.program import call, run
from tests.cli.stack import Stack

from greylag.cli.errors import Exit
from greylag.domain.users import User


async def test_a_token_is_made_kept_used_and_ended(stack: Stack, tmp_path: Path) -> None:
    operator = stack.env
    env = {"GREYLAG_SERVER": stack.address, "GREYLAG_DATA": "/nowhere"}
    env["XDG_CONFIG_HOME"] = str(tmp_path)
    assert (await call("whoami", "--json", env=operator)).document["id"] is None
    made = await call(
        *("tokens", "create", "nightly", "--user", "ann", "--scope", "projects:read"),
        *("--scope", "admin", "--days", "3"),
        env=operator,
    )
    assert made.code == 0, made.err
    token = made.out.strip()

    wrong = await run("login", "--token", env=env, stdin=b"glg_wrong\n")
    assert wrong.code == Exit.UNAUTHORIZED
    kept = tmp_path / "greylag" / "token"
    assert not kept.exists()
    came_in = await run("login", "--token", "--json", env=env, stdin=f"{token}\n".encode())
    assert came_in.code == 0, came_in.err
    assert token not in came_in.out + came_in.err
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600

    me = (await call("whoami", "--json", env=env)).document
    assert (me["id"], me["role"]) == ("ann", "user")
    listed = (await call("tokens", "list", "--json", env=env)).document["tokens"]
    assert [(one["name"], one["scopes"]) for one in listed] == [
        ("nightly", ["admin", "projects:read"])
    ]
    assert (await call("projects", "list", env=env)).code == 0
    refused = await call("projects", "create", "New", env=env)
    assert refused.code == Exit.REFUSED

    assert (await call("logout", env=env)).code == 0
    assert not kept.exists()
    assert (await call("tokens", "list", "--user", "ann", "--json", env=operator)).document == {
        "tokens": []
    }
    assert (await call("whoami", env=env)).code == Exit.UNAUTHORIZED
    assert (await call("logout", env=env)).code == 0


async def test_an_administrator_hands_a_project_over_and_is_asked_before(stack: Stack) -> None:
    env = stack.env | {"GREYLAG_USER": "ann"}
    await stack.store.put(User("bob", "Bob"), datetime.now(UTC))
    assert (await call("projects", "create", "Talk", "--id", "talk", env=env)).code == 0
    assert (await call("deactivate", "talk", env=env)).code == 0
    command = ("projects", "hand-over", "talk", "bob")
    assert "--yes" in (await call(*command, env=env)).err
    given = await call(*command, "--yes", "--json", env=env)
    assert given.document["user_id"] == "bob"
    assert given.document["namespace"] == "user-ann"
    again = await call(*command, "--yes", env=env)
    assert again.code == Exit.REFUSED
    refused = await call("projects", "create", "Talk", "--id", "talk", env=env)
    assert "handed over" in refused.err
