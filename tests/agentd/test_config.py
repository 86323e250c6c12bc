from pathlib import Path

import pytest

from greylag.agentd.config import AgentdConfigError, AgentdSettings
from greylag.agentd.settings import GOOSE_SETTINGS, SettingValueError
from greylag.common.net import is_loopback

FOLDER = {"GREYLAG_AGENT_FOLDER": "/data"}


def test_only_the_folder_must_be_given() -> None:
    settings = AgentdSettings.from_env(FOLDER)
    assert settings == AgentdSettings(folder=Path("/data"))
    assert (settings.host, settings.port) == ("127.0.0.1", 3001)


def test_everything_can_be_given() -> None:
    settings = AgentdSettings.from_env(
        {
            **FOLDER,
            "GOOSE_API_HOST": "192.0.2.7",
            "GOOSE_API_PORT": "0",
            "GREYLAG_AGENT_TOKEN": "tok",
            "GREYLAG_EXECD": '["box", "execd"]',
            "GREYLAG_EXECD_SOCKET": "/run/execd/s",
            "GREYLAG_GOOSE": "scripted",
            "GREYLAG_MODEL_URL": "https://api.openai.com/",
            "GREYLAG_MODEL_KEY": "sk-1",
            "GREYLAG_MODEL": "m",
            "GREYLAG_MODEL_RETRIES": "0.5, 2",
            "GREYLAG_MODEL_TIMEOUT": "900",
            "https_proxy": "http://p.test:3128",
            "NO_PROXY": "10.0.0.0/8",
            "GOOSE_MODE": "auto",
            "GOOSE_MODEL": "ignored: the model has its own variable",
            "GREYLAG_CONFIRMATION_TIMEOUT": "1.5",
            "GREYLAG_MESSAGE_LIMIT": "4096",
            "GREYLAG_ENVIRONMENT": "env-1",
            "GREYLAG_LOG_FORMAT": "console",
            "GREYLAG_LEGACY_API": "1",
        }
    )
    assert settings.legacy_api
    assert (settings.execd, settings.execd_socket) == (("box", "execd"), Path("/run/execd/s"))
    assert settings.model_url == "https://api.openai.com"
    assert dict(settings.goose_settings) == {"GOOSE_MODE": "auto"}
    assert (settings.confirmation_timeout, settings.message_limit) == (1.5, 4096)
    assert settings.model_retries == (0.5, 2.0)
    assert settings.model_timeout == 900
    assert settings.proxies == {"HTTPS_PROXY": "http://p.test:3128", "NO_PROXY": "10.0.0.0/8"}
    assert settings.token is not None
    assert settings.token.value == "tok"


def test_no_secret_shows_in_a_repr() -> None:
    secrets = {"GREYLAG_AGENT_TOKEN": "tok-1234", "GREYLAG_MODEL_KEY": "sk-5678"}
    secrets["ALL_PROXY"] = "http://ann:sk-5678@p.test"
    shown = repr(AgentdSettings.from_env({**FOLDER, **secrets}))
    assert "1234" not in shown
    assert "5678" not in shown


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {**FOLDER, "GOOSE_API_PORT": "65536"},
        {**FOLDER, "GOOSE_API_PORT": "-1"},
        {**FOLDER, "GREYLAG_EXECD": "execd"},
        {**FOLDER, "GREYLAG_EXECD": "[]"},
        {**FOLDER, "GREYLAG_EXECD": "[1]"},
        {**FOLDER, "GREYLAG_EXECD_SOCKET": "run/s"},
        {**FOLDER, "GREYLAG_EXECD_SOCKET": "/run/" + "s" * 100},
        {**FOLDER, "GOOSE_API_PORT": "http"},
        {**FOLDER, "GOOSE_API_HOST": "192.0.2.7"},
        {**FOLDER, "GOOSE_API_HOST": "agent.example"},
        {**FOLDER, "GREYLAG_MODEL_URL": "api.openai.com"},
        {**FOLDER, "GREYLAG_MODEL_URL": "ftp://x"},
        {**FOLDER, "GREYLAG_MODEL_URL": "http://h:99999"},
        {**FOLDER, "GREYLAG_MODEL_URL": "https://[x"},
        {**FOLDER, "GREYLAG_MODEL_URL": "https://name:sk-1@api.openai.com"},
        {**FOLDER, "GREYLAG_MODEL_URL": "https://api.openai.com/v1/chat/completions"},
        {**FOLDER, "GREYLAG_MODEL_TIMEOUT": "-1"},
        {**FOLDER, "ALL_PROXY": "socks5://ann:sk-1@p.test"},
        {**FOLDER, "SSL_CERT_FILE": "/no/such/file"},
        {**FOLDER, "GREYLAG_MODEL_RETRIES": "often"},
        {**FOLDER, "GREYLAG_MODEL_RETRIES": "1,-1"},
        {**FOLDER, "GREYLAG_MODEL_RETRIES": "nan"},
        {**FOLDER, "GREYLAG_MODEL_RETRIES": "31"},
        {**FOLDER, "GOOSE_MODE": "yolo"},
        {**FOLDER, "GREYLAG_CONFIRMATION_TIMEOUT": "0"},
        {**FOLDER, "GREYLAG_CONFIRMATION_TIMEOUT": "nan"},
        {**FOLDER, "GREYLAG_JOURNAL_LIMIT": "many"},
        {**FOLDER, "GREYLAG_LOG_FORMAT": "xml"},
        {**FOLDER, "GREYLAG_LEGACY_API": "yes", "GREYLAG_AGENT_TOKEN": "tok"},
        {**FOLDER, "GREYLAG_LEGACY_API": "1"},
    ],
)
def test_settings_that_make_no_sense_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(AgentdConfigError) as refused:
        AgentdSettings.from_env(environ)
    assert "sk-1" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("192.0.2.7", False),
        ("::", False),
        ("127.0.0.1.example", False),
        ("", False),
    ],
)
def test_loopback_is_recognised(host: str, *, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("GOOSE_TEMPERATURE", 2.5),
        ("GOOSE_TEMPERATURE", True),
        ("GOOSE_TEMPERATURE", "warm"),
        ("GOOSE_TEMPERATURE", float("nan")),
        ("GOOSE_MAX_TURNS", 0),
        ("GOOSE_MAX_TURNS", 1.5),
        ("GOOSE_MODE", 1),
        ("GOOSE_MODEL", " "),
        ("GOOSE_MODEL", "a\nb"),
        ("GOOSE_RECIPE_GITHUB_REPO", "no-slash"),
        ("GOOSE_TEMPERATURE", 10**400),
    ],
)
def test_values_that_a_setting_may_not_take_are_refused(key: str, value: object) -> None:
    with pytest.raises(SettingValueError):
        GOOSE_SETTINGS[key].parse(value)


def test_numbers_may_come_as_text() -> None:
    assert GOOSE_SETTINGS["GOOSE_MAX_TURNS"].parse("12") == 12
    assert GOOSE_SETTINGS["GOOSE_TEMPERATURE"].parse("0.5") == 0.5
