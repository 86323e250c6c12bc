"""Tokens by command line: made, kept, used and ended."""

import stat
from pathlib import Path

from tests.cli.program import call, run
from tests.cli.stack import Stack

from greylag.cli.errors import Exit


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
