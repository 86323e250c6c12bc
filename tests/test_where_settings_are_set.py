"""Each setting counts the same in the process's environment and in `.env`; the process wins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings
from tests.cluster.kubernetes.kubeconfigs import certificate

from greylag.cluster.kubernetes.options import (
    ConnectionSettings,
    OptionsSettings,
    load_connection_options,
    load_options,
)
from greylag.common.settings import variable_of
from greylag.config import Settings, agent_environment, authorities, load_settings, oidc_secret
from greylag.domain.errors import ConfigError
from greylag.wiring import assembled_web

LOADERS: dict[type[BaseSettings], Callable[[], Any]] = {
    Settings: load_settings,
    OptionsSettings: load_options,
    ConnectionSettings: load_connection_options,
}
SETTINGS = {
    variable_of(model, field): (model, field) for model in LOADERS for field in model.model_fields
}
VALUES = {
    "ACR_IMAGE": "goose:1",
    "ALL_PROXY": "http://proxy.test:3128",
    "HTTPS_PROXY": "http://ann:secret@proxy.test:3128",
    "HTTP_PROXY": "proxy.test:3128",
    "NO_PROXY": "10.0.0.0/8,.test",
    "REQUESTS_CA_BUNDLE": "/some/ca.crt",
    "SSL_CERT_FILE": "/some/ca.crt",
    "GREYLAG_CA_FILE": "/some/ca.crt",
    "GREYLAG_KUBE_AUTHORITIES": "-----BEGIN CERTIFICATE-----",
    "GREYLAG_MODEL_TIMEOUT": "7",
    "GOOSE_API_PORT": "4001",
    "GOOSE_MODE": "approve",
    "GREYLAG_ACTIVATION_TIMEOUT": "7",
    "GREYLAG_AGENT_KEY": "a-key-of-the-whole-platform-of-agents",
    "GREYLAG_ALLOW_PLAIN_HTTP": "true",
    "GREYLAG_ALLOWED_HOSTS": "a.test",
    "GREYLAG_AUTH": "none",
    "GREYLAG_BODY_LIMIT": "2048",
    "GREYLAG_CLUSTER": "kubernetes",
    "GREYLAG_CONFIRMATION_TIMEOUT": "7",
    "GREYLAG_CONNECTIONS_PER_ADDRESS": "9",
    "GREYLAG_CONNECTION_LIMIT": "99",
    "GREYLAG_DATA": "elsewhere",
    "GREYLAG_NOTIFICATION_CONTACT": "mailto:ops@greylag.test",
    "GREYLAG_NOTIFICATION_HOSTS": "hooks.test,http://localhost:3000",
    "GREYLAG_GIT_HOSTS": "git.test:3000,http://localhost:3000",
    "GREYLAG_SECRET_KEY": "a-key-that-seals-the-secrets-of-users",
    "GREYLAG_GOOSE": "scripted",
    "GREYLAG_HEADER_LIMIT": "50",
    "GREYLAG_HEALTH_PORT": "9000",
    "GREYLAG_HEARTBEAT_SECONDS": "7",
    "GREYLAG_HOST": "localhost",
    "GREYLAG_IDLE_HOURS": "8",
    "GREYLAG_METRICS_PORT": "9100",
    "GREYLAG_KUBE_CLUSTER_CIDRS": "10.91.0.0/16",
    "GREYLAG_KUBE_DNS_LABELS": "a=b",
    "GREYLAG_KUBE_DNS_NAMESPACE": "dns",
    "GREYLAG_KUBE_EGRESS_CIDRS": "203.0.113.0/24",
    "GREYLAG_KUBE_USER": "20001",
    "GREYLAG_KUBE_SHARED_CPU": "true",
    "GREYLAG_KUBE_HOST_USERS": "false",
    "GREYLAG_KUBE_IMAGE_PULL_POLICY": "Always",
    "GREYLAG_KUBE_IMAGE_PULL_SECRET": "registry",
    "GREYLAG_KUBE_INGRESS_ANNOTATIONS": "a=b",
    "GREYLAG_KUBE_INGRESS_CLASS": "nginx",
    "GREYLAG_KUBE_INGRESS_NAMESPACE": "ingress",
    "GREYLAG_KUBE_INGRESS_ROUTING": "path",
    "GREYLAG_KUBE_INGRESS_TLS": "true",
    "GREYLAG_KUBE_INGRESS_TLS_SECRET": "wildcard",
    "GREYLAG_KUBE_LOADBALANCER_SOURCE_RANGES": "203.0.113.0/24",
    "GREYLAG_KUBE_NODE_SELECTOR": "a=b",
    "GREYLAG_KUBE_PLATFORM_CIDRS": "203.0.113.0/24",
    "GREYLAG_KUBE_PLATFORM_LABELS": "a=b",
    "GREYLAG_KUBE_PLATFORM_NAMESPACE": "here",
    "GREYLAG_KUBE_POD_CIDRS": "10.91.0.0/16",
    "GREYLAG_KUBE_PRIORITY_CLASS": "low",
    "GREYLAG_KUBE_PROBE": "false",
    "GREYLAG_KUBE_QUOTA_CPU_LIMITS": "9",
    "GREYLAG_KUBE_QUOTA_CPU_REQUESTS": "9",
    "GREYLAG_KUBE_QUOTA_EPHEMERAL_STORAGE": "9Gi",
    "GREYLAG_KUBE_QUOTA_LOAD_BALANCERS": "9",
    "GREYLAG_KUBE_QUOTA_MEMORY_LIMITS": "9Gi",
    "GREYLAG_KUBE_QUOTA_MEMORY_REQUESTS": "9Gi",
    "GREYLAG_KUBE_QUOTA_NODE_PORTS": "9",
    "GREYLAG_KUBE_QUOTA_OBJECTS": "9",
    "GREYLAG_KUBE_QUOTA_STORAGE": "9Gi",
    "GREYLAG_KUBE_QUOTA_VOLUMES": "9",
    "GREYLAG_KUBE_REACH": "proxy",
    "GREYLAG_KUBE_RUNTIME_CLASS": "gvisor",
    "GREYLAG_KUBE_SERVICE_ANNOTATIONS": "a=b",
    "GREYLAG_KUBE_SERVICE_TYPE": "ClusterIP",
    "GREYLAG_KUBE_STORAGE_CLASS": "fast",
    "GREYLAG_KUBE_TEMPLATES": '{"large": {"cpu_limit": "2"}}',
    "GREYLAG_KUBE_TOLERATIONS": '[{"key": "agents"}]',
    "GREYLAG_KUBE_VOLUME_SIZE": "9Gi",
    "GREYLAG_HSTS_SECONDS": "7",
    "GREYLAG_SIGN_UP": "invited",
    "GREYLAG_TOKEN_DAYS": "7.0",
    "GREYLAG_AUDIT_DAYS": "30.0",
    "GREYLAG_AUDIT_COPY": "stdout",
    "GREYLAG_SESSION_DAYS": "7.0",
    "GREYLAG_USER_LIMITS": '{"default": {"projects": 3}, "groups": {"staff": {"active": null}}}',
    "GREYLAG_SESSION_IDLE_HOURS": "7.0",
    "GREYLAG_LEASE_SECONDS": "7",
    "GREYLAG_LEGACY_API": "true",
    "GREYLAG_LOG_FORMAT": "json",
    "GREYLAG_LOG_LEVEL": "debug",
    "GREYLAG_MODEL": "a-model",
    "GREYLAG_MODEL_KEY": "a-key",
    "GREYLAG_MODEL_URL": "https://model.test",
    "GREYLAG_MONGODB_CONNECTIONS": "7",
    "GREYLAG_MONGODB_TIMEOUT": "7",
    "GREYLAG_OIDC_ADMIN_GROUPS": "admins",
    "GREYLAG_OIDC_ALLOWED_DOMAINS": "example.org",
    "GREYLAG_OIDC_ALLOWED_GROUPS": "staff",
    "GREYLAG_OIDC_CLIENT_ID": "greylag",
    "GREYLAG_OIDC_CLIENT_SECRET": "a-secret",
    "GREYLAG_OIDC_CLIENT_SECRET_FILE": "/some/secret",
    "GREYLAG_OIDC_GROUPS_CLAIM": "roles",
    "GREYLAG_OIDC_ISSUER": "https://login.test",
    "GREYLAG_OIDC_NAME": "Ourselves",
    "GREYLAG_OIDC_NAME_CLAIM": "nickname",
    "GREYLAG_OIDC_SCOPES": "openid groups",
    "GREYLAG_OIDC_USER_CLAIM": "email",
    "GREYLAG_OIDC_USER_GROUPS": "staff",
    "GREYLAG_PORT": "8000",
    "GREYLAG_RESYNC_SECONDS": "7",
    "GREYLAG_ROOT_PATH": "/tools/greylag",
    "GREYLAG_PREVIEW_DOMAIN": "previews.test",
    "GREYLAG_SANDBOX": "none",
    "GREYLAG_SANDBOX_MEMORY": "4GiB",
    "GREYLAG_SANDBOX_NETWORK": "strict",
    "GREYLAG_SNAPSHOT_LIMIT": "7000000",
    "GREYLAG_STARTUP_RECONCILE_TIMEOUT": "7",
    "GREYLAG_STREAMS_PER_PROJECT": "7",
    "GREYLAG_STREAM_SECONDS": "7",
    "GREYLAG_TERMINAL": "off",
    "GREYLAG_TRANSCRIPTS": "off",
    "GREYLAG_TOKEN": "0123456789abcdef",
    "GREYLAG_TRUSTED_PROXIES": "10.0.0.0/8, ::1",
    "GREYLAG_UNCOUNTED_ADDRESSES": "203.0.113.1",
    "GREYLAG_USERS": "ada:Ada",
    "GREYLAG_USERS_FILE": "users.json",
    "GREYLAG_WORKER_CONCURRENCY": "7",
    "INGRESS_BASE_DOMAIN": "example.org",
    "KUBECONFIG": "/some/config",
    "KUBE_CA": "/some/ca.crt",
    "KUBE_CONFIG_BASE64": "eA==",
    "KUBE_CONTEXT": "other",
    "KUBE_HOST": "https://kube.test",
    "KUBE_NAMESPACE_PREFIX": "team-",
    "KUBE_TOKEN": "a-token",
    "MONGODB_DB": "other",
    "MONGODB_URI": "mongodb://db.test",
}


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is set, and the account has no kubeconfig."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "users.json").write_text('[{"id": "ada"}]')
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def test_there_is_a_value_for_each_setting() -> None:
    assert VALUES.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_counts_the_same_in_the_process_and_in_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    model, field = SETTINGS[name]

    def loaded() -> Any:
        return getattr(LOADERS[model](), field)

    unset = loaded()
    (tmp_path / ".env").write_text(f"{name}='{VALUES[name]}'\n")
    in_file = loaded()
    (tmp_path / ".env").write_text(f"{name}=another\n")
    monkeypatch.setenv(name, VALUES[name])

    assert in_file != unset
    assert loaded() == in_file, "the process wins"


async def _refusal() -> str:
    """Return what a web says that cannot begin."""
    with pytest.raises(ConfigError) as refused:
        async with assembled_web(load_settings()):
            pass
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GREYLAG_AUDIT_COPY", "udp://x", "must be stdout, syslog or syslog://HOST:PORT"),
        ("GREYLAG_NOTIFICATION_CONTACT", "ops", "must be an address such as mailto:"),
        ("GREYLAG_PREVIEW_DOMAIN", "localhost", "must be a domain in small letters"),
        ("INGRESS_BASE_DOMAIN", "Agents", "must be a domain in small letters"),
        ("GREYLAG_SNAPSHOT_LIMIT", "much", "must be a size such as 2GiB"),
        ("GREYLAG_USER_LIMITS", '{"default": {"x": 1}}', "(default.x): is not known"),
    ],
)
def test_what_a_setting_must_be_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        LOADERS[SETTINGS[name][0]]()
    assert str(refused.value).startswith(name)
    assert words in str(refused.value)


def test_each_setting_with_a_pattern_says_what_it_must_be() -> None:
    for name, (model, field) in SETTINGS.items():
        about = model.model_fields[field]
        patterns = [one for one in about.metadata if getattr(one, "pattern", None)]
        assert not patterns or about.description, name


def test_a_file_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"GREYLAG_PORT=8700 # \xff\n")
    with pytest.raises(ConfigError, match=r"\.env of .* cannot be read: it is not UTF-8"):
        load_settings()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("ACR_IMAGE=goose:1", "no setting says on which cluster"),
        ("KUBE_HOST=https://kube.test", "ACR_IMAGE is not set"),
        ("KUBE_CONFIG_BASE64=eA==", "ACR_IMAGE is not set"),
    ],
)
@pytest.mark.parametrize("in_file", [True, False], ids=["file", "process"])
async def test_the_cluster_is_chosen_by_a_setting_wherever_it_was_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, sentence: str, *, in_file: bool
) -> None:
    if in_file:
        (tmp_path / ".env").write_text(f"{line}\n")
    else:
        monkeypatch.setenv(*line.split("=", 1))

    assert sentence in await _refusal()


@pytest.mark.parametrize("name", [name for name in SETTINGS if SETTINGS[name][1].upper() != name])
def test_a_field_s_bare_name_sets_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, field = SETTINGS[name]
    unset = getattr(LOADERS[model](), field)

    monkeypatch.setenv(field.upper(), VALUES[name])

    assert getattr(LOADERS[model](), field) == unset


def test_what_environments_get_of_the_way_to_the_world(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("https_proxy", "http://ann:hunter2@p.test:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    settings = load_settings()
    assert "hunter2" not in repr(settings)
    given = agent_environment(settings)
    assert given["HTTPS_PROXY"] == "http://ann:hunter2@p.test:3128"
    assert given["NO_PROXY"] == "10.0.0.0/8"
    assert authorities(settings) == ""

    pem, _ = certificate(tmp_path)
    monkeypatch.setenv("GREYLAG_CA_FILE", "crt.pem")
    assert authorities(load_settings()).endswith(pem)
    monkeypatch.setenv("SSL_CERT_FILE", "crt.pem")
    assert authorities(load_settings()) == f"{pem}\n{pem}"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "users.json")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ConfigError, match=r"REQUESTS_CA_BUNDLE: users\.json is no readable file"):
        authorities(load_settings())


def test_a_proxy_that_is_none_for_http_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://ann:hunter2@p.test")
    with pytest.raises(ConfigError, match="ALL_PROXY: must be an http or https") as refused:
        load_settings()
    assert "hunter2" not in str(refused.value)


def test_a_proxy_for_socks_is_passed_over_where_those_for_http_and_https_are_named_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("all_proxy", "socks://127.0.0.1:1080/")
    monkeypatch.setenv("http_proxy", "http://p.test:3128/")
    with pytest.raises(ConfigError, match="ALL_PROXY"):
        load_settings()
    monkeypatch.setenv("https_proxy", "http://p.test:3128/")
    given = agent_environment(load_settings())
    assert (given["HTTPS_PROXY"], "ALL_PROXY" in given) == ("http://p.test:3128/", False)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"ISSUER": "http://login.test"}, "GREYLAG_OIDC_ISSUER: must be the provider's own"),
        ({"ISSUER": "https://login.test/?a=b"}, "GREYLAG_OIDC_ISSUER: must be the provider's own"),
        ({"ISSUER": "https://a@login.test"}, "GREYLAG_OIDC_ISSUER: must be the provider's own"),
        ({"ISSUER": "https://login.test"}, "GREYLAG_OIDC_CLIENT_ID does not say"),
        ({"SCOPES": "profile"}, "GREYLAG_OIDC_SCOPES: must hold openid"),
        ({"CLIENT_SECRET": "a", "CLIENT_SECRET_FILE": "secret"}, "are both set"),
        ({"CLIENT_SECRET_FILE": "nowhere"}, "nowhere cannot be read"),
        ({"CLIENT_SECRET_FILE": "empty"}, "empty is empty"),
    ],
    ids=str,
)
async def test_a_provider_that_cannot_work_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str], sentence: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "secret").write_text("of the file\n")
    if "CLIENT_SECRET_FILE" in given:
        given = {"ISSUER": "https://login.test", "CLIENT_ID": "greylag", **given}
    for name, value in given.items():
        monkeypatch.setenv(f"GREYLAG_OIDC_{name}", value)
    assert sentence in await _refusal()


def test_the_provider_s_secret_may_stand_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the file\n")
    monkeypatch.setenv("GREYLAG_OIDC_CLIENT_SECRET_FILE", "secret")
    assert oidc_secret(load_settings()) == "of the file"
