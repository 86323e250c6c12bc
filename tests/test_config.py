"""Settings that cannot work end the start, and blanks around a secret are no part of it."""

import json
from pathlib import Path

import pytest

from greylag.config import load_settings
from greylag.domain.errors import ConfigError
from greylag.domain.users import User
from greylag.programs import _limits


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("uncounted_addresses", "nonsense"),
        ("uncounted_addresses", "10.0.0.1; 10.0.0.2"),
        ("uncounted_addresses", "10.0.0.1/8"),
        ("trusted_proxies", "10.0.0.0/33"),
        ("audit_copy", "syslog://127.0.0.1:99999"),
        ("audit_copy", "syslog://127.0.0.1:0"),
        ("oidc_issuer", "https://login.example.org:99999"),
        ("oidc_issuer", "https://login.example.org:x"),
        ("token", " 0123456789abcde\n"),
        ("secret_key", "31-characters-are-not-enough---"),
        ("secret_key", f"{'x' * 32}, {'x' * 31} "),
        ("git_hosts", "git.example, Git.example"),
        ("notification_hosts", "https://hooks.example"),
        ("sandbox_memory", "511MiB"),
        ("users", "ada,bob,ada:Ada"),
        ("users", "ada:Ada,:Bob"),
    ],
)
def test_a_setting_that_cannot_work_is_named(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"GREYLAG_{setting.upper()}"):
        load_settings(**{setting: value})


@pytest.mark.parametrize("prefix", ["", "1team-", "-team", "Team-", "té.am", "team_", "t" * 31])
def test_a_prefix_with_which_no_namespace_can_begin_is_refused(
    monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv("KUBE_NAMESPACE_PREFIX", prefix)
    with pytest.raises(ConfigError, match="KUBE_NAMESPACE_PREFIX"):
        load_settings()


def test_what_is_just_long_and_large_enough_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBE_NAMESPACE_PREFIX", f"t-2{'x' * 27}")
    given = load_settings(
        secret_key=f"{'x' * 32},{'y' * 32}",
        sandbox_memory="512MiB",
        git_hosts="git.test, ,http://localhost:3000",
    )
    assert (given.namespace_prefix, given.sandbox_memory) == (f"t-2{'x' * 27}", 512 * 1024**2)
    assert given.git_hosts == "git.test,http://localhost:3000"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"auth": "none", "token": "0123456789abcdef"}, "GREYLAG_TOKEN contradict"),
        ({"auth": "none", "oidc_issuer": "https://login.test"}, "GREYLAG_OIDC_ISSUER contradict"),
        ({"auth": "none", "host": "0.0.0.0"}, "needs GREYLAG_TOKEN"),  # noqa: S104 - refused
        ({"host": "192.0.2.1"}, "needs GREYLAG_TOKEN"),
    ],
    ids=str,
)
def test_settings_that_would_let_anybody_in_are_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_settings(**given)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '["ada"]', '[{"id": ""}]', '[{"id": 1}]', '[{"id": "ada"}, {"id": "ada"}]'],
)
def test_a_file_that_names_no_users_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "users.json").write_text(content)
    with pytest.raises(ConfigError, match="GREYLAG_USERS_FILE"):
        load_settings(users_file="users.json")


def test_users_are_those_of_the_file_or_else_of_the_list(tmp_path: Path) -> None:
    said = [{"id": "ada", "display_name": "Ada", "email": "Ada@Example.org"}, {"id": "bob"}]
    (tmp_path / "users.json").write_text(json.dumps(said))
    listed = {"users": " cyd : Cyd ,dan"}
    users = load_settings(users_file="users.json", **listed).user_list
    assert users == (User("ada", "Ada", email="ada@example.org"), User("bob", "bob"))
    assert load_settings(**listed).user_list == (User("cyd", "Cyd"), User("dan", "dan"))
    assert load_settings().user_list == (User("me", "Me"),)


def test_proxies_that_are_not_counted_are_addresses_and_networks() -> None:
    limits = _limits(load_settings(uncounted_addresses="203.0.113.1, ::ffff:10.0.0.0/104,"))
    assert [str(one) for one in limits.proxies] == ["203.0.113.1/32", "10.0.0.0/8"]
    assert _limits(load_settings()).proxies == ()
    assert load_settings(audit_copy="syslog://127.0.0.1:514").audit_copy


def test_blanks_around_a_secret_are_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYLAG_TOKEN", " 0123456789abcdef\n")
    monkeypatch.setenv("GREYLAG_MODEL_KEY", "sk-1\r\n")
    monkeypatch.setenv("GREYLAG_OIDC_CLIENT_SECRET", " \n")
    given = load_settings()
    assert given.token is not None
    assert given.token.get_secret_value() == "0123456789abcdef"
    assert given.model_key is not None
    assert given.model_key.get_secret_value() == "sk-1"
    assert given.oidc_client_secret is None
