"""Settings that cannot work end the start, and blanks around a secret are no part of it."""

from pathlib import Path

import pytest

from greylag.config import load_settings
from greylag.domain.errors import ConfigError
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
    ],
)
def test_a_setting_that_cannot_work_is_named(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"GREYLAG_{setting.upper()}"):
        load_settings(**{setting: value})


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
