"""Which API server it is, and who Greylag is to it. Wrong settings fail here, at start.

A kubeconfig's form: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
"""

import base64
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from ssl import SSLContext, SSLError
from typing import Any
from urllib.parse import urlsplit

import yaml

from greylag.cluster.kubernetes.credentials import (
    API_VERSIONS,
    Credentials,
    ExecConfig,
    ExecPlugin,
    Token,
    TokenFile,
    client_context,
    load_identity,
    of_base64,
    pem_of,
    pem_of_base64,
)
from greylag.cluster.kubernetes.options import ConnectionOptions
from greylag.common.net import is_loopback
from greylag.domain.errors import ConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_NOT_DONE = {
    "as": "asks to act as another, which Greylag does not do",
    "auth-provider": "has an auth-provider, which Kubernetes has given up; use its exec plugin",
    "username": "has a user name and password, which Kubernetes takes no more; use a token",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A cluster or a user of a kubeconfig. ``folder``: what its relative paths begin from."""

    setting: str
    what: str
    fields: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None

    def wrong(self, why: str) -> ConfigError:
        """Return the error that this entry ``why``."""
        return ConfigError(f"{self.setting}: {self.what} {why}.")

    def text(self, key: str) -> str:
        """Return a field's text, "" when it has none."""
        value = self.fields.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"has a {key} that is not a text")
        return value or ""

    def path(self, name: str) -> Path:
        """Return the file ``name`` as this kubeconfig means it."""
        path = expanded(name)
        if path.is_absolute():
            return path
        if self.folder is None:
            raise self.wrong(
                f"names the file {name}, which is not in it; embed files with "
                "`kubectl config view --flatten --minify`"
            )
        return self.folder / path

    def pem(self, key: str) -> str | None:
        """Return what ``key``-data holds, or the file that ``key`` names; ``None`` for neither."""
        if data := self.text(f"{key}-data"):
            if (found := pem_of_base64(data)) is None:
                raise self.wrong(f"has a {key}-data that is not PEM in base64")
            return found
        if not (name := self.text(key)):
            return None
        path = self.path(name)
        try:
            found = pem_of(path.read_bytes())
        except (OSError, ValueError) as error:
            raise self.wrong(f"names the {key} {path}, which cannot be read") from error
        if found is None:
            raise self.wrong(f"names the {key} {path}, which is not PEM")
        return found


@dataclass(frozen=True, slots=True)
class Connection:
    """A way to an API server. ``source`` is the setting that named it, for messages.

    ``server`` is its URL without a slash at the end; ``server_name`` the name its certificate must
    have, ``None`` for the URL's; ``proxy`` the URL of an HTTP proxy on the way.
    """

    source: str
    server: str
    ssl: SSLContext | None = field(repr=False)
    credentials: Credentials = field(repr=False)
    server_name: str | None = None
    proxy: str | None = field(default=None, repr=False)

    @property
    def tls(self) -> SSLContext | bool:
        """How a request is to be sent: only by connections that were made with just this."""
        return self.credentials.context or self.ssl or True


def connect(
    options: ConnectionOptions,
    environ: Mapping[str, str],
    service_account: Path = SERVICE_ACCOUNT,
) -> Connection | None:
    """Return the way to the cluster that the settings name, ``None`` when they name none.

    ``environ`` is asked for what Kubernetes tells a pod. Nothing is connected yet; files are read.

    Raises:
        ConfigError: it names the setting that is wrong, and says why.
    """
    if options.kubeconfig_base64:
        return _of_kubeconfig(*from_base64(options.kubeconfig_base64, options.context))
    if options.host or options.token:
        return _of_token(options)
    if environ.get("KUBERNETES_SERVICE_HOST") and (service_account / "token").exists():
        return _in_cluster(environ, service_account)
    if options.kubeconfig:
        paths = [expanded(one) for one in options.kubeconfig.split(":") if one]
        return _of_kubeconfig(*from_files(paths, options.context))
    return None


def _of_token(options: ConnectionOptions) -> Connection:
    for setting, value, other in (
        ("KUBE_HOST", options.host, "KUBE_TOKEN"),
        ("KUBE_TOKEN", options.token, "KUBE_HOST"),
    ):
        if not value:
            raise ConfigError(f"{setting} is missing: {other} is of no use without it.")
    try:
        token = Token(options.token.strip())
    except ValueError as error:
        raise ConfigError(f"KUBE_TOKEN is not a token: {error}.") from error
    host = options.host if "://" in options.host else f"https://{options.host.strip()}"
    server = _server("KUBE_HOST", host, secret=True)
    context = None
    if server.startswith("https:"):
        context = _context("KUBE_CA", _ca_text(options.ca) if options.ca else None)
    return Connection("KUBE_HOST", server, context, token)


def _ca_text(ca: str) -> str:
    found = pem_of(ca.encode("utf-8", "replace")) or pem_of_base64(ca)
    if found is None:
        with suppress(OSError, ValueError):
            found = pem_of(expanded(ca).read_bytes())
    if found is None:
        raise ConfigError(
            "KUBE_CA is neither PEM, nor PEM in base64, nor a file of it that can be read."
        )
    return found


def _in_cluster(environ: Mapping[str, str], account: Path) -> Connection:
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    setting = "The pod's service account"
    wrong = ConfigError(f"{setting} has no readable {account / 'ca.crt'}.")
    try:
        ca = pem_of((account / "ca.crt").read_bytes())
    except OSError as error:
        raise wrong from error
    if ca is None:
        raise wrong
    host = f"[{host}]" if ":" in host else host
    server = f"https://{host}:{port}"
    return Connection(setting, server, _context(setting, ca), TokenFile(account / "token"))


def _of_kubeconfig(cluster: Entry, user: Entry) -> Connection:
    setting = cluster.setting
    context: SSLContext | None = None
    trusting: Callable[[], SSLContext] | None = None
    server = _server(setting, cluster.text("server"), secret=bool(user.fields))
    if server.startswith("https:"):
        verify = cluster.fields.get("insecure-skip-tls-verify") is not True
        ca = cluster.pem("certificate-authority") if verify else None
        trusting = partial(_context, setting, ca, verify=verify)
        context = trusting()
        show_certificate(context, user)
    return Connection(
        setting,
        server,
        context,
        credentials_of(cluster, user, trusting, server),
        server_name=cluster.text("tls-server-name") or None,
        proxy=_proxy(cluster),
    )


def _proxy(cluster: Entry) -> str | None:
    if not (proxy := cluster.text("proxy-url")):
        return None
    with suppress(ValueError):
        parts = urlsplit(proxy)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return proxy
    raise cluster.wrong("has a proxy-url that is not http or https")


def _server(setting: str, url: str, *, secret: bool) -> str:
    wrong = ConfigError(f"{setting} does not give the API server as https://HOST[:PORT].")
    url = url.strip()
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        valid = valid and url.isprintable() and " " not in url
        (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise wrong from error
    if not valid or parts.username or parts.query or parts.fragment:
        raise wrong
    if parts.scheme == "http" and secret and not is_loopback(parts.hostname or ""):
        raise ConfigError(f"{setting} must begin with https:// as credentials are sent there.")
    return url.rstrip("/")


def _context(setting: str, ca: str | None, *, verify: bool = True) -> SSLContext:
    try:
        return client_context(ca, verify=verify)
    except (SSLError, ValueError) as error:
        raise ConfigError(f"{setting} has a certificate authority that cannot be read.") from error


def expanded(name: str) -> Path:
    """Return the path ``name``, with ``~`` as the shell means it where it can be told."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path's own raises for an unknown user


def from_base64(text: str, context: str) -> tuple[Entry, Entry]:
    """Return the cluster and the user of a kubeconfig in base64.

    ``context`` is taken instead of the current one.
    """
    setting = "KUBE_CONFIG_BASE64"
    try:
        content = of_base64(text).decode()
    except ValueError:
        # Not chained: the cause holds what was given.
        raise ConfigError(f"{setting} is not a text in base64.") from None
    return _chosen(setting, [_Source(_parsed(setting, content), None)], context)


def from_files(paths: Sequence[Path], context: str) -> tuple[Entry, Entry]:
    """Return the cluster and the user, found as by kubectl: the first file with a name decides.

    Of several some may be missing. ``context`` is taken instead of the current one.
    """
    setting = "KUBECONFIG"
    sources = []
    missing: ConfigError | None = None
    for path in paths:
        try:
            content = path.read_text()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not a text"
            wrong = ConfigError(f"{setting} names {path}, which cannot be read: {why}.")
            if not isinstance(error, FileNotFoundError):
                raise wrong from error
            missing = missing or wrong
            continue
        sources.append(_Source(_parsed(f"{setting} ({path})", content), path.absolute().parent))
    if missing is not None and not sources:
        raise missing
    return _chosen(setting, sources, context)


@dataclass(frozen=True, slots=True)
class _Source:
    content: Mapping[str, Any] = field(repr=False)
    folder: Path | None

    def named(self, kind: str) -> Sequence[Any]:
        """Return the contexts, clusters or users."""
        found = self.content.get(f"{kind}s")
        return found if isinstance(found, list) else ()


def _parsed(setting: str, content: str) -> Mapping[str, Any]:
    try:
        parsed = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        # Not chained: the parser quotes the lines around the fault, which may hold a token. It
        # raises more than its own errors for what is tagged as a time or number and is none.
        raise ConfigError(f"{setting} is not YAML.") from None
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise ConfigError(f"{setting} is not a kubeconfig.")
    return parsed


def _chosen(setting: str, sources: Sequence[_Source], context: str) -> tuple[Entry, Entry]:
    if not any(source.named("cluster") for source in sources):
        raise ConfigError(f"{setting} is not a kubeconfig: it lists no clusters.")
    if context and not any(_find(source, "context", context) for source in sources):
        raise ConfigError(f'KUBE_CONTEXT: {setting} has no context "{context}".')
    name = context or next(
        (one.content["current-context"] for one in sources if one.content.get("current-context")),
        "",
    )
    if not name:
        raise ConfigError(f"{setting} has no current-context.")
    chosen = _entry(setting, sources, "context", name)
    cluster = _entry(setting, sources, "cluster", chosen.text("cluster"))
    user = chosen.text("user")
    if not user:
        return cluster, Entry(setting, "no user", {})
    return cluster, _entry(setting, sources, "user", user)


def _entry(setting: str, sources: Sequence[_Source], kind: str, name: str) -> Entry:
    for source in sources:
        if (found := _find(source, kind, name)) is not None:
            return Entry(setting, f'the {kind} "{name}"', found, source.folder)
    raise ConfigError(f'{setting}: the {kind} "{name}" is named and is not there.')


def _find(source: _Source, kind: str, name: str) -> Mapping[str, Any] | None:
    for one in source.named(kind):
        if isinstance(one, dict) and one.get("name") == name and isinstance(one.get(kind), dict):
            found: Mapping[str, Any] = one[kind]
            return found
    return None


def show_certificate(context: SSLContext, user: Entry) -> None:
    """Make connections of ``context`` show the user's client certificate, if there is one."""
    certificate, key = user.pem("client-certificate"), user.pem("client-key")
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise user.wrong("has only one of client-certificate and client-key")
    try:
        load_identity(context, certificate, key)
    except (SSLError, ValueError) as error:
        raise user.wrong("has a client-certificate and a client-key that do not fit") from error


def credentials_of(
    cluster: Entry, user: Entry, trusting: Callable[[], SSLContext] | None, server: str
) -> Credentials:
    """Return what each request to ``server`` is to carry.

    A program's client certificates go into contexts of ``trusting``, where there is TLS.
    """
    for key, why in _NOT_DONE.items():
        if user.fields.get(key):
            raise user.wrong(why)
    # kubectl too prefers the file to the token.
    if name := user.text("tokenFile"):
        path = user.path(name)
        try:
            path.read_bytes()
        except (OSError, ValueError) as error:
            raise user.wrong(f"names the tokenFile {path}, which cannot be read") from error
        return TokenFile(path)
    if user.fields.get("exec") is not None:
        return ExecPlugin(_program(cluster, user, server), trusting)
    try:
        return Token(user.text("token").strip())
    except ValueError as error:
        raise user.wrong(f"has a token that is none: {error}") from error


def _program(cluster: Entry, user: Entry, server: str) -> ExecConfig:
    asked = user.fields["exec"]
    if not isinstance(asked, dict) or not isinstance(asked.get("command"), str):
        raise user.wrong("has an exec without a command")
    version = asked.get("apiVersion")
    if not isinstance(version, str) or version not in API_VERSIONS:
        raise user.wrong(f"has an exec of the apiVersion {version}; known are v1 and v1beta1")
    if asked.get("interactiveMode") == "Always":
        raise user.wrong("has an exec that must ask somebody at a terminal")
    command = str(asked["command"])
    command = str(user.path(command)) if "/" in command else command
    if shutil.which(command) is None:
        hint = " ".join(str(asked.get("installHint") or "").split())
        raise user.wrong(f"needs the program {command}, which is not there. {hint}".rstrip(" ."))
    about = _about(cluster, server) if asked.get("provideClusterInfo") else None
    args = asked.get("args") or []
    if not isinstance(args, list):
        raise user.wrong("has an exec whose args are not a list")
    try:
        env = {str(one["name"]): str(one["value"]) for one in asked.get("env") or ()}
    except (KeyError, TypeError) as error:
        raise user.wrong("has an exec whose env is not a list of name and value") from error
    return ExecConfig(version, command, [str(one) for one in args], env, about)


def _about(cluster: Entry, server: str) -> Mapping[str, Any]:
    """Return what a program is told of the cluster: the fields of ``ExecCredential``'s spec."""
    ca = cluster.pem("certificate-authority")
    about = {
        "server": server,
        "tls-server-name": cluster.text("tls-server-name"),
        "insecure-skip-tls-verify": cluster.fields.get("insecure-skip-tls-verify") is True,
        "certificate-authority-data": base64.b64encode(ca.encode()).decode() if ca else "",
        "proxy-url": cluster.text("proxy-url"),
    }
    return {key: value for key, value in about.items() if value}
