"""Which API server it is, and who Greylag is to it. Wrong settings fail here, at start."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLContext, SSLError
from urllib.parse import urlsplit

from greylag.cluster.kubernetes import kubeconfig
from greylag.cluster.kubernetes.credentials import Credentials, Token, TokenFile
from greylag.cluster.kubernetes.exec_plugin import API_VERSIONS, ExecPlugin, Program
from greylag.cluster.kubernetes.kubeconfig import Entry
from greylag.cluster.kubernetes.tls import client_context, load_identity
from greylag.domain.errors import ConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The settings that may name a cluster; the first that is given is taken, in this order.

    ``ca`` is PEM, PEM in base64, or a file's path; empty: the system's authorities.
    ``kubeconfig`` is one path or several with colons between, as in ``KUBECONFIG``.
    """

    kubeconfig_base64: str = field(default="", repr=False)
    host: str = ""
    token: str = field(default="", repr=False)
    ca: str = field(default="", repr=False)
    kubeconfig: str = ""
    context: str = ""


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


def connect(
    options: ConnectionOptions,
    environ: Mapping[str, str],
    service_account: Path = SERVICE_ACCOUNT,
) -> Connection | None:
    """Return the way to the cluster that the settings name, ``None`` when they name none.

    ``environ`` is asked for what Kubernetes tells a pod. Nothing is connected yet; files are read.
    Raises ``ConfigError`` naming the setting that is wrong, and why.
    """
    if options.kubeconfig_base64:
        setting = "KUBE_CONFIG_BASE64"
        return _of_kubeconfig(setting, kubeconfig.from_base64(setting, options.kubeconfig_base64))
    if options.host or options.token:
        return _of_token(options)
    if environ.get("KUBERNETES_SERVICE_HOST") and (service_account / "token").exists():
        return _in_cluster(environ, service_account)
    if options.kubeconfig:
        paths = [Path(one).expanduser() for one in options.kubeconfig.split(":") if one]
        read = kubeconfig.from_files("KUBECONFIG", paths, options.context)
        return _of_kubeconfig("KUBECONFIG", read)
    return None


def _of_token(options: ConnectionOptions) -> Connection:
    for setting, value, other in (
        ("KUBE_HOST", options.host, "KUBE_TOKEN"),
        ("KUBE_TOKEN", options.token, "KUBE_HOST"),
    ):
        if not value:
            raise ConfigError(f"{setting} is missing: {other} is of no use without it.")
    host = options.host if "://" in options.host else f"https://{options.host}"
    server = _server("KUBE_HOST", host, secret=True)
    context = None
    if server.startswith("https:"):
        context = _context("KUBE_CA", _ca_text(options.ca) if options.ca else None)
    return Connection("KUBE_HOST", server, context, Token(options.token.strip()))


def _ca_text(ca: str) -> str:
    if "-----BEGIN" in ca:
        return ca
    entry = Entry("KUBE_CA", "it", {"ca-data": ca}, Path.cwd())
    if "/" in ca and Path(ca).expanduser().is_file():
        entry = Entry("KUBE_CA", "it", {"ca": ca}, Path.cwd())
    pem = entry.pem("ca") or ""
    if "-----BEGIN" not in pem:
        raise ConfigError("KUBE_CA is neither PEM, nor PEM in base64, nor a file that is there.")
    return pem


def _in_cluster(environ: Mapping[str, str], account: Path) -> Connection:
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    setting = "The pod's service account"
    try:
        ca = (account / "ca.crt").read_text()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting} has no readable {account / 'ca.crt'}.") from error
    host = f"[{host}]" if ":" in host else host
    server = f"https://{host}:{port}"
    return Connection(setting, server, _context(setting, ca), TokenFile(account / "token"))


def _of_kubeconfig(setting: str, read: kubeconfig.Kubeconfig) -> Connection:
    cluster, user = read.cluster, read.user
    context: SSLContext | None = None
    server = _server(setting, cluster.text("server"), secret=bool(user.fields))
    if server.startswith("https:"):
        verify = cluster.fields.get("insecure-skip-tls-verify") is not True
        ca = cluster.pem("certificate-authority") if verify else None
        context = _context(setting, ca, verify=verify)
        _show_certificate(context, user)
    proxy = cluster.text("proxy-url")
    if proxy and urlsplit(proxy).scheme not in {"http", "https"}:
        raise cluster.wrong("has a proxy-url that is not http or https")
    return Connection(
        setting,
        server,
        context,
        _credentials(cluster, user, context, server),
        server_name=cluster.text("tls-server-name") or None,
        proxy=proxy or None,
    )


def _show_certificate(context: SSLContext, user: Entry) -> None:
    certificate, key = user.pem("client-certificate"), user.pem("client-key")
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise user.wrong("has only one of client-certificate and client-key")
    try:
        load_identity(context, certificate, key)
    except (SSLError, ValueError) as error:
        raise user.wrong("has a client-certificate and a client-key that do not fit") from error


def _credentials(
    cluster: Entry, user: Entry, context: SSLContext | None, server: str
) -> Credentials:
    for key, why in _NOT_DONE.items():
        if user.fields.get(key):
            raise user.wrong(why)
    if token := user.text("token"):
        return Token(token.strip())
    if name := user.text("tokenFile"):
        path = user.path(name)
        if not path.is_file():
            raise user.wrong(f"names the tokenFile {path}, which is not there")
        return TokenFile(path)
    if "exec" in user.fields:
        return ExecPlugin(_program(cluster, user, server), context)
    return Token("")


def _program(cluster: Entry, user: Entry, server: str) -> Program:
    asked = user.fields["exec"]
    if not isinstance(asked, dict) or not isinstance(asked.get("command"), str):
        raise user.wrong("has an exec without a command")
    version = asked.get("apiVersion")
    if version not in API_VERSIONS:
        raise user.wrong(f"has an exec of the apiVersion {version}; known are v1 and v1beta1")
    if asked.get("interactiveMode") == "Always":
        raise user.wrong("has an exec that must ask somebody at a terminal")
    command = str(asked["command"])
    command = str(user.path(command)) if "/" in command else command
    if shutil.which(command) is None:
        hint = " ".join(str(asked.get("installHint") or "").split())
        raise user.wrong(f"needs the program {command}, which is not there. {hint}".rstrip(" ."))
    told = None
    if asked.get("provideClusterInfo"):
        told = {key: cluster.fields[key] for key in _TOLD if key in cluster.fields}
        told["server"] = server
    try:
        env = {str(one["name"]): str(one["value"]) for one in asked.get("env") or ()}
    except (KeyError, TypeError) as error:
        raise user.wrong("has an exec whose env is not a list of name and value") from error
    args = [str(one) for one in asked.get("args") or ()]
    return Program(version, command, args, env, told)


def _server(setting: str, url: str, *, secret: bool) -> str:
    wrong = ConfigError(f"{setting} does not give the API server as https://HOST[:PORT].")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise wrong from error
    if not valid or parts.username or parts.query or parts.fragment:
        raise wrong
    if parts.scheme == "http" and secret and not _is_loopback(parts.hostname or ""):
        raise ConfigError(f"{setting} must begin with https:// as credentials are sent there.")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(setting: str, ca: str | None, *, verify: bool = True) -> SSLContext:
    try:
        return client_context(ca, verify=verify)
    except (SSLError, ValueError) as error:
        raise ConfigError(f"{setting} has a certificate authority that cannot be read.") from error


_NOT_DONE = {
    "as": "asks to act as another, which Greylag does not do",
    "auth-provider": "has an auth-provider, which Kubernetes has given up; use its exec plugin",
    "username": "has a user name and password, which Kubernetes takes no more; use a token",
}
_TOLD = ("tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
