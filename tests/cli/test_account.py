"""Tokens by command line: made, kept, used and ended."""

import asyncio
import io
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked
from tests.cli.program import call, run
from tests.cli.stack import Stack, running_stack

from greylag.cli import kept_token
from greylag.cli.errors import Exit
from greylag.cli.kept_token import KeptToken
from greylag.config import Settings
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

    wrong = await run("login", "--token", env=env, stdin=b"glg_wrong_but_long_enough\n")
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


async def test_a_kept_token_goes_to_the_server_that_gave_it_alone(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"GREYLAG_SERVER": stack.address, "GREYLAG_DATA": "/nowhere"}
    env["XDG_CONFIG_HOME"] = str(tmp_path)
    made = await call(
        *("tokens", "create", "here", "--user", "ann", "--scope", "projects:read"), env=stack.env
    )
    token = made.out.strip()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    came_in = await call("login", "--token", env=env)
    assert came_in.code == 0, came_in.err
    heard = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 503 Away\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        elsewhere = env | {"GREYLAG_SERVER": f"http://127.0.0.1:{port}"}
        asked = await call("whoami", env=elsewhere)
        assert f"it is that of {stack.address}." in asked.err
        # It is revoked where it counts, whatever server is the one of now.
        assert (await call("logout", env=elsewhere)).code == 0
    assert len(heard) == 1
    assert token.encode() not in heard[0]
    listed = await call("tokens", "list", "--user", "ann", "--json", env=stack.env)
    assert listed.document == {"tokens": []}


def test_a_token_that_was_put_there_or_whose_successor_was_not_is_no_other_server_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptToken(tmp_path / "token", tmp_path / "keyring", tmp_path / "server")
    old, new = "o" * 20, "n" * 20
    kept.write(old, "https://a.test")
    with monkeypatch.context() as patch:
        patch.setattr(KeptToken, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            kept.write(new, "https://b.test")
    assert (kept.read(), kept.server_of(old)) == (old, "https://a.test")
    kept.write(new, "https://b.test")
    assert (kept.server_of(old), kept.server_of(new)) == (None, "https://b.test")
    assert kept.server_of("of my own hand, as it is") is None
    assert new not in kept.servers.read_text()


async def test_a_token_is_kept_if_it_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(users="ann", token="correct horse battery staple", _env_file=None)
    async with running_stack(settings) as stack:
        env = {"GREYLAG_SERVER": stack.address, "GREYLAG_DATA": "/nowhere"}
        env["XDG_CONFIG_HOME"] = str(tmp_path)
        monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
        assert (await call("login", "--token", env=env)).code == Exit.USAGE
        folder = tmp_path / "greylag"
        assert not folder.exists()
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{stack.token}\n"))
        kept = await call("login", "--token", env=env)
        assert kept.code == 0, kept.err
        assert (await call("whoami", env=env)).code == 0


async def test_a_token_that_its_server_does_not_know_is_forgotten_and_that_is_said(
    stack: Stack, tmp_path: Path
) -> None:
    folder = tmp_path / "greylag"
    folder.mkdir()
    (folder / "token").write_text("glg_of_another_server\n")
    env = {"GREYLAG_SERVER": stack.address, "GREYLAG_DATA": "/nowhere"}
    left = await call("logout", env=env | {"XDG_CONFIG_HOME": str(tmp_path)})
    assert left.code == 0
    assert f"It was not revoked: {stack.address} does not know it" in left.err
    assert list(folder.iterdir()) == []


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


class FakeKeyring(KeyringBackend):
    """A keyring of the library's own kind, which a test has fail or hang."""

    priority = 9

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the library's own
        self.held: dict[tuple[str, str], str] = {}
        self.fault: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()

    def _ask(self) -> None:
        self.answers.wait()
        if self.fault is not None:
            raise self.fault

    def get_password(self, service: str, username: str) -> str | None:
        self._ask()
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._ask()
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._ask()
        del self.held[service, username]


@pytest.fixture
def fake_keyring() -> Iterator[FakeKeyring]:
    before, fake = keyring.get_keyring(), FakeKeyring()
    keyring.set_keyring(fake)
    yield fake
    fake.answers.set()
    keyring.set_keyring(before)


async def test_a_keyring_keeps_the_token_where_there_is_a_real_one(
    stack: Stack, tmp_path: Path, fake_keyring: FakeKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_token, "SECONDS_ALONE", 0.2)
    folder = tmp_path / "greylag"
    env = {"GREYLAG_SERVER": stack.address, "GREYLAG_DATA": "/nowhere"}
    env["XDG_CONFIG_HOME"] = str(tmp_path)

    async def login() -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{stack.token}\n"))
        done = await call("login", "--token", env=env)
        assert done.code == 0, done.err
        assert stack.token not in done.out + done.err
        return done.err

    # It is locked or hangs: the file will do, and it is said why.
    fake_keyring.fault = KeyringLocked("locked")
    assert "in a file: the keyring refused (KeyringLocked)." in await login()
    fake_keyring.fault = None
    fake_keyring.answers.clear()
    assert "did not answer within 0.2 seconds" in await login()
    fake_keyring.answers.set()
    # What it took up after all is found by whoever signs out.
    assert {one.name for one in folder.iterdir()} == {"token", "keyring", "server"}
    assert (await call("logout", env=env)).code == 0
    assert (fake_keyring.held, list(folder.iterdir())) == ({}, [])
    # It answers: the file is gone, and every command finds the token.
    fake_keyring.held.clear()
    assert "kept in the system's keyring (" in await login()
    fake_keyring.held.clear()  # a person removed it there
    assert (await call("logout", env=env)).code == 0
    assert "kept in the system's keyring (" in await login()
    assert {one.name for one in folder.iterdir()} == {"keyring", "server"}
    assert list(fake_keyring.held) == [("greylag", "token")]
    assert all(stack.token not in one.read_text() for one in folder.iterdir())
    assert (await call("whoami", env=env)).code == 0
    fake_keyring.fault = KeyringLocked("locked")
    refused = await call("whoami", env=env)
    assert refused.code == Exit.UNAUTHORIZED
    assert "warning: the token cannot be read: the keyring refused" in refused.err
    kept = await call("logout", env=env)
    assert kept.code == Exit.USAGE
    assert "The token stays where it is" in kept.err
    fake_keyring.fault = None
    assert (await call("logout", env=env)).code == 0
    assert (fake_keyring.held, list(folder.iterdir())) == ({}, [])


@pytest.mark.parametrize("priority", [0.5, 0, -1])
def test_what_keeps_secrets_in_clear_or_not_at_all_is_no_keyring(
    tmp_path: Path, fake_keyring: FakeKeyring, priority: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeKeyring, "priority", priority)
    kept = KeptToken(tmp_path / "token", tmp_path / "keyring", tmp_path / "server")
    assert kept.write("x" * 20, "http://127.0.0.1:1") == (str(tmp_path / "token"), None)
    assert (kept.read(), fake_keyring.held) == ("x" * 20, {})


def test_who_keeps_a_token_in_a_file_signs_out_though_the_keyring_of_before_is_gone(
    tmp_path: Path, fake_keyring: FakeKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptToken(tmp_path / "token", tmp_path / "keyring", tmp_path / "server")
    kept.write("o" * 20, "https://a.test")
    assert list(fake_keyring.held.values()) == ["o" * 20]
    monkeypatch.setattr(kept_token, "is_installed", lambda: False)
    kept.write("n" * 20, "https://a.test")
    kept.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_token_s_file_may_be_a_link_to_where_its_person_keeps_it(tmp_path: Path) -> None:
    kept = KeptToken(tmp_path / "token", tmp_path / "keyring", tmp_path / "server")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("x" * 20)
    elsewhere.chmod(0o600)
    kept.file.symlink_to(elsewhere)
    assert kept.read() == "x" * 20
