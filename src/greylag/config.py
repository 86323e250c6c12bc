"""All settings, parsed once into one frozen object by whoever starts a program; never at import."""

import json
import re
import ssl
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    Json,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from greylag.common.net import Proxy, is_confidential, is_loopback, network_of
from greylag.common.settings import read_settings
from greylag.domain.errors import ConfigError, InvalidRequestError
from greylag.domain.names import check_id, check_name
from greylag.domain.project import check_host
from greylag.domain.users import DefaultLimits, Limits, User

DEFAULT_PORT = 8700
_USUAL_AUTHORITIES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)
DEFAULT_USERS = (User("me", "Me"),)
# Nothing, standard output, this machine's syslog, or another's by UDP.
_COPY_FORM = r"^(|stdout|syslog|syslog://[A-Za-z0-9.-]+:[0-9]{1,5})$"
_SOCKS = re.compile(r"\s*socks", re.IGNORECASE)
_LEAST_KEY = 32
_LEAST_MEMORY = 512 * 1024 * 1024
OWN_PATHS = frozenset(
    {
        *("api", "audit", "auth", "device", "healthz", "openapi.json", "readyz"),
        *("sign-in", "sign-out", "static", "users"),
    }
)
"""What the paths of the web begin with. Below a root path that begins so, some mean two things."""
_ROOT_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*")

_T = TypeVar("_T")
Unset = Annotated[_T | None, BeforeValidator(lambda value: value or None)]
"""What may be left out, and is when it is empty."""


class GivenLimits(BaseModel, extra="forbid"):
    """What a group may have, or everybody; null: as much as they like."""

    projects: int | None = Field(None, ge=0)
    active: int | None = Field(None, ge=0)
    templates: tuple[str, ...] | None = None


class UserLimits(BaseModel, extra="forbid"):
    """What users may have of whom no administrator has said it."""

    default: GivenLimits = GivenLimits()
    groups: dict[str, GivenLimits] = {}


class Settings(BaseSettings):
    """Settings of `greylag up`, `serve` and `worker`; `docs/settings.md` lists them for operators.

    Each is read from the environment (or ``.env``) as ``GREYLAG_<NAME>``, and may be given as an
    argument, which wins.
    """

    model_config = SettingsConfigDict(
        env_prefix="GREYLAG_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    host: str = "127.0.0.1"
    port: int = Field(DEFAULT_PORT, ge=0, le=65535)
    data: Path = Path("data")
    token: SecretStr | None = None
    auth: Literal["token", "none"] = "token"
    allowed_hosts: str = ""
    trusted_proxies: str = ""
    root_path: str = Field("", max_length=200)
    hsts_seconds: int = Field(0, ge=0, le=63_072_000)
    users: str = ""
    users_file: Path | None = None
    user_limits: Json[UserLimits] = Field("{}")  # type: ignore[assignment] # it is read as any other
    sign_up: Literal["auto", "invited", "closed"] = "auto"
    session_idle_hours: float = Field(168.0, gt=0, le=8760)
    token_days: float = Field(365.0, gt=0, le=3650)
    session_days: float = Field(30.0, gt=0, le=365)
    audit_days: float = Field(365.0, gt=0, le=36_500)
    audit_copy: str = Field(
        "", pattern=_COPY_FORM, description="must be stdout, syslog or syslog://HOST:PORT"
    )
    log_format: Literal["auto", "console", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    oidc_issuer: Unset[str] = None
    oidc_name: Unset[Annotated[str, Field(max_length=60)]] = None
    oidc_client_id: Unset[str] = None
    oidc_client_secret: Unset[SecretStr] = None
    oidc_client_secret_file: Unset[Path] = None
    oidc_scopes: str = "openid profile email"
    oidc_user_claim: str = Field("sub", min_length=1)
    oidc_name_claim: str = Field("name", min_length=1)
    oidc_groups_claim: str = Field("groups", min_length=1)
    oidc_allowed_groups: str = ""
    oidc_allowed_domains: str = ""
    oidc_admin_groups: str = ""
    oidc_user_groups: str = ""

    namespace_prefix: str = Field("user-", validation_alias="KUBE_NAMESPACE_PREFIX")
    goose: Unset[str] = None
    model_url: Unset[str] = None
    model_key: Unset[SecretStr] = None
    model: Unset[str] = None
    model_timeout: float = Field(600.0, ge=1, le=86_400)
    https_proxy: SecretStr | None = Field(None, validation_alias="HTTPS_PROXY")
    http_proxy: SecretStr | None = Field(None, validation_alias="HTTP_PROXY")
    all_proxy: SecretStr | None = Field(None, validation_alias="ALL_PROXY")
    no_proxy: Unset[str] = Field(None, validation_alias="NO_PROXY")
    ca_file: Unset[Path] = None
    ssl_cert_file: Unset[Path] = Field(None, validation_alias="SSL_CERT_FILE")
    requests_ca_bundle: Unset[Path] = Field(None, validation_alias="REQUESTS_CA_BUNDLE")
    sandbox: Literal["auto", "bubblewrap", "none"] = "auto"
    sandbox_network: Literal["auto", "shared", "strict"] = "auto"
    sandbox_memory: Literal["auto", "none"] | ByteSize = "auto"
    goose_mode: Literal["auto", "approve", "smart_approve", "chat"] | None = Field(
        None, validation_alias="GOOSE_MODE"
    )
    confirmation_timeout: float = Field(600.0, gt=0, le=86_400)
    git_hosts: str = Field("", max_length=4000)
    secret_key: Unset[SecretStr] = None
    notification_hosts: str = Field("", max_length=4000)
    notification_contact: str = Field(
        "",
        max_length=300,
        pattern=r"^((mailto:|https://)[!-~]+)?$",
        description="must be an address such as mailto:ops@example.org or https://example.org",
    )
    snapshot_limit: ByteSize = Field(ByteSize(2 * 1024**3), ge=1024**2)
    legacy_api: bool = False
    terminal: Literal["on", "off"] = "on"
    transcripts: Literal["on", "off"] = "on"
    preview_domain: str = Field(
        "",
        max_length=180,
        pattern=r"^([a-z0-9-]+(\.[a-z0-9-]+)+)?$",
        description="must be a domain in small letters, such as previews.example.net",
    )

    mongodb_uri: SecretStr | None = Field(None, validation_alias="MONGODB_URI")
    mongodb_db: str = Field("goose", validation_alias="MONGODB_DB")
    mongodb_timeout: float = Field(5.0, gt=0, le=60)
    mongodb_connections: int = Field(50, ge=1, le=10_000)

    activation_timeout: float = Field(120.0, gt=0, le=3600)
    lease_seconds: float = Field(15.0, ge=1, le=300)
    resync_seconds: float = Field(60.0, ge=1, le=3600)
    health_port: int | None = Field(None, ge=0, le=65535)
    idle_hours: float | None = Field(None, gt=0, le=8760)
    metrics_port: int | None = Field(None, ge=0, le=65535)
    worker_concurrency: int = Field(64, ge=1, le=10_000)
    cluster: Literal["auto", "local", "kubernetes"] = "auto"
    startup_reconcile_timeout: float = Field(10.0, ge=0, le=600)

    heartbeat_seconds: float = Field(15.0, gt=0, le=300)
    stream_seconds: float | None = Field(None, ge=0.25, le=86_400)
    body_limit: int = Field(1_048_576, ge=1024)
    header_limit: int = Field(100, ge=10)
    streams_per_project: int = Field(32, ge=1)
    connection_limit: int = Field(1024, ge=16, le=1_000_000)
    connections_per_address: int = Field(256, ge=1)
    uncounted_addresses: str = ""

    @field_validator("namespace_prefix")
    @classmethod
    def _prefix_is_a_label_start(cls, value: str) -> str:
        plain = value.replace("-", "a")
        if len(value) > 30 or not (value[:1].isalpha() and plain.isalnum() and value.islower()):  # noqa: PLR2004 - leaves 33 of 63 characters to the user's label
            raise ValueError("must begin a DNS label: a-z, 0-9, -, a letter first, 30 at most")
        return value

    @field_validator("git_hosts", "notification_hosts")
    @classmethod
    def _named_hosts_are_hosts(cls, value: str) -> str:
        hosts = [one.strip() for one in value.split(",") if one.strip()]
        try:
            for one in hosts:
                check_host(one.removeprefix("http://"))
        except InvalidRequestError as error:
            raise ValueError(
                "must be hosts such as git.corp.example:3000, with http:// before those without TLS"
            ) from error
        return ",".join(hosts)

    @field_validator("secret_key")
    @classmethod
    def _secret_key_is_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and any(
            len(one.strip()) < _LEAST_KEY for one in value.get_secret_value().split(",")
        ):
            raise ValueError("must be one or more keys of 32 or more characters, between commas")
        return value

    @field_validator("sandbox_memory")
    @classmethod
    def _goose_fits(cls, value: str | ByteSize) -> str | ByteSize:
        if isinstance(value, ByteSize) and value < _LEAST_MEMORY:
            raise ValueError("must be at least 512MiB, auto or none")
        return value

    @field_validator("user_limits", mode="before")
    @classmethod
    def _empty_limits_are_none(cls, value: object) -> object:
        return value or "{}"

    @field_validator("root_path")
    @classmethod
    def _root_path_is_a_path(cls, value: str) -> str:
        path = value.rstrip("/")
        if not _ROOT_PATH.fullmatch(path):
            raise ValueError(
                "must be a path such as /tools/greylag: a slash before each part, and in the parts"
                " letters, digits and . _ ~ - alone"
            )
        first = path.partition("/")[2].partition("/")[0]
        if first in OWN_PATHS:
            raise ValueError(f"must not begin with /{first}, which is a path of Greylag's own")
        return path

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer_is_an_address(cls, value: str | None) -> str | None:
        if value is not None and (
            not is_confidential(value) or not value.isprintable() or set(value) & set("?#@ ")
        ):
            raise ValueError(
                "must be the provider's own address, as https://login.example.org; http is taken on"
                " loopback only"
            )
        return value

    @field_validator("oidc_scopes")
    @classmethod
    def _scopes_hold_openid(cls, value: str) -> str:
        if "openid" not in value.split():
            raise ValueError("must hold openid")
        return value

    @field_validator("https_proxy", "http_proxy", "all_proxy")
    @classmethod
    def _proxies_are_for_http(
        cls, value: SecretStr | None, info: ValidationInfo
    ) -> SecretStr | None:
        if value is None or not value.get_secret_value().strip():
            return None
        # Desktops name one for SOCKS beside those for http and https: then nothing asks for it.
        spare = info.data.get("https_proxy") and info.data.get("http_proxy")
        if info.field_name == "all_proxy" and spare and _SOCKS.match(value.get_secret_value()):
            return None
        Proxy.parse(value.get_secret_value())
        return value

    @field_validator("token", "model_key", "oidc_client_secret", mode="before")
    @classmethod
    def _blanks_are_no_part_of_it(cls, value: object) -> object:
        # As a file's last line ends; whoever comes by it sends it without.
        return value.strip() if isinstance(value, str) else value

    @field_validator("audit_copy")
    @classmethod
    def _copy_goes_to_a_port(cls, value: str) -> str:
        if value.startswith("syslog://") and not 1 <= int(value.rpartition(":")[2]) <= 65_535:  # noqa: PLR2004 - said in the sentence
            raise ValueError("must have a port from 1 to 65535")
        return value

    @field_validator("trusted_proxies", "uncounted_addresses")
    @classmethod
    def _proxies_are_networks(cls, value: str) -> str:
        networks = [one.strip() for one in value.split(",") if one.strip()]
        try:
            return ",".join(str(network_of(one)) for one in networks)
        except ValueError as error:
            raise ValueError(
                f"must be addresses or networks such as 10.0.0.0/8: {error}"
            ) from error

    @model_validator(mode="after")
    def _open_bind_needs_a_token(self) -> Self:
        if self.token is not None and len(self.token.get_secret_value()) < 16:  # noqa: PLR2004 - said in the sentence
            raise ValueError("GREYLAG_TOKEN must have at least 16 characters")
        if self.auth == "none" and self.token is not None:
            raise ValueError("GREYLAG_AUTH=none and GREYLAG_TOKEN contradict each other: unset one")
        if self.auth == "none" and self.oidc_issuer is not None:
            raise ValueError(
                "GREYLAG_AUTH=none and GREYLAG_OIDC_ISSUER contradict each other: unset one"
            )
        if not is_loopback(self.host) and self.token is None:
            raise ValueError(
                f"binding to {self.host}, which others can reach, needs GREYLAG_TOKEN to be set"
            )
        return self

    @property
    def default_limits(self) -> DefaultLimits:
        """How much users may have of whom no administrator has said it."""
        given = self.user_limits
        groups = {name: one.model_dump(exclude_unset=True) for name, one in given.groups.items()}
        return DefaultLimits(Limits(**given.default.model_dump()), groups)

    @cached_property
    def user_list(self) -> tuple[User, ...]:
        """The users: from the file, else from the list, else one."""
        if self.users_file is not None:
            return _users_from_file(self.users_file)
        if self.users:
            return _checked(
                [_user_from_pair(pair) for pair in self.users.split(",")], "GREYLAG_USERS"
            )
        return DEFAULT_USERS


def load_settings(**arguments: object) -> Settings:
    """Parse the settings; ``arguments`` that are not ``None`` win over the environment.

    Raises:
        ConfigError: it names the first setting that is wrong.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    settings = read_settings(Settings, **given)
    _ = settings.user_list
    return settings


def _user_from_pair(pair: str) -> User:
    user_id, _, display_name = pair.strip().partition(":")
    return User(user_id.strip(), display_name.strip() or user_id.strip())


def _users_from_file(path: Path) -> tuple[User, ...]:
    try:
        entries = json.loads(path.read_text("utf-8"))
        users = [
            User(
                entry["id"],
                entry.get("display_name") or entry["id"],
                email=(entry.get("email") or "").lower() or None,
            )
            for entry in entries
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f'GREYLAG_USERS_FILE: {path} is not a readable JSON list of {{"id", "display_name"}}.'
        ) from error
    return _checked(users, "GREYLAG_USERS_FILE")


def _checked(users: list[User], setting: str) -> tuple[User, ...]:
    try:
        for user in users:
            check_id(user.id, "user id")
            check_name(user.display_name, "display name")
    except (InvalidRequestError, TypeError) as error:
        raise ConfigError(f"{setting}: {error}") from error
    if len({user.id for user in users}) != len(users) or not users:
        raise ConfigError(f"{setting}: it must name at least one user, and none twice.")
    return tuple(users)


def agent_environment(settings: Settings) -> dict[str, str]:
    """Return agentd's environment variables in any environment, the model provider's key too."""
    given = {
        "GREYLAG_MODEL_URL": settings.model_url,
        "GREYLAG_MODEL_KEY": settings.model_key,
        "GREYLAG_MODEL": settings.model,
        "GREYLAG_MODEL_TIMEOUT": f"{settings.model_timeout:g}",
        "HTTPS_PROXY": settings.https_proxy,
        "HTTP_PROXY": settings.http_proxy,
        "ALL_PROXY": settings.all_proxy,
        "NO_PROXY": settings.no_proxy,
        "GOOSE_MODE": settings.goose_mode,
        "GREYLAG_CONFIRMATION_TIMEOUT": str(settings.confirmation_timeout),
        "GREYLAG_GIT_HOSTS": settings.git_hosts,
        "GREYLAG_SNAPSHOT_LIMIT": str(int(settings.snapshot_limit)),
        "GREYLAG_LEGACY_API": "1" if settings.legacy_api else None,
    }
    plain = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in given.items()
    }
    return {name: value for name, value in plain.items() if value}


def authorities(settings: Settings) -> str:
    """Return the certificates (PEM) of whom environments are to trust; "": whom they know anyway.

    Those are this machine's, or the file's that ``SSL_CERT_FILE`` or ``REQUESTS_CA_BUNDLE`` names
    in their place, and those of ``GREYLAG_CA_FILE``.

    Raises:
        ConfigError: a file cannot be read, or holds no certificate.
    """
    instead = {
        "SSL_CERT_FILE": settings.ssl_cert_file,
        "REQUESTS_CA_BUNDLE": settings.requests_ca_bundle,
    }
    chosen = next(((name, path) for name, path in instead.items() if path), None)
    if chosen is None and settings.ca_file is None:
        return ""
    usual = (Path(str(ssl.get_default_verify_paths().cafile)), *_USUAL_AUTHORITIES)
    found = next((path for path in usual if path.is_file()), None)
    files = [chosen or ("The system's file of authorities", found)]
    files.append(("GREYLAG_CA_FILE", settings.ca_file))
    return "\n".join(_certificates(name, path) for name, path in files if path)


def oidc_secret(settings: Settings) -> str | None:
    """Return the secret that the identity provider knows us by, ``None`` for a public client.

    Raises:
        ConfigError: it is given twice, or its file cannot be read or is empty.
    """
    given, path = settings.oidc_client_secret, settings.oidc_client_secret_file
    if path is None:
        return None if given is None else given.get_secret_value()
    if given is not None:
        raise ConfigError("GREYLAG_OIDC_CLIENT_SECRET and ..._SECRET_FILE are both set: unset one.")
    try:
        secret = path.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"GREYLAG_OIDC_CLIENT_SECRET_FILE: {path} cannot be read.") from error
    if not secret:
        raise ConfigError(f"GREYLAG_OIDC_CLIENT_SECRET_FILE: {path} is empty.")
    return secret


def _certificates(name: str, path: Path) -> str:
    try:
        text = path.read_text("utf-8")
        ssl.create_default_context(cadata=text)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"{name}: {path} is no readable file of certificates (PEM).") from error
    return text
