"""Which API server it is, and who Greylag is to it. Wrong settings fail here, at start."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext, SSLError
from urllib.parse import urlsplit

from greylag.cluster.kubernetes.credentials import (
    Credentials,
    Token,
    TokenFile,
    client_context,
    pem_of,
    pem_of_base64,
)
from greylag.cluster.kubernetes.kubeconfig import (
    Entry,
    Kubeconfig,
    credentials_of,
    expanded,
    from_base64,
    from_files,
    show_certificate,
)
from greylag.cluster.kubernetes.options import ConnectionOptions
from greylag.common.net import is_loopback
from greylag.domain.errors import ConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


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

    Raises:
        ConfigError: it names the setting that is wrong, and says why.
    """
    if options.kubeconfig_base64:
        setting = "KUBE_CONFIG_BASE64"
        read = from_base64(setting, options.kubeconfig_base64, options.context)
        return _of_kubeconfig(setting, read)
    if options.host or options.token:
        return _of_token(options)
    if environ.get("KUBERNETES_SERVICE_HOST") and (service_account / "token").exists():
        return _in_cluster(environ, service_account)
    if options.kubeconfig:
        paths = [expanded(one) for one in options.kubeconfig.split(":") if one]
        read = from_files("KUBECONFIG", paths, options.context)
        return _of_kubeconfig("KUBECONFIG", read)
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


def _of_kubeconfig(setting: str, read: Kubeconfig) -> Connection:
    cluster, user = read.cluster, read.user
    context: SSLContext | None = None
    server = _server(setting, cluster.text("server"), secret=bool(user.fields))
    if server.startswith("https:"):
        verify = cluster.fields.get("insecure-skip-tls-verify") is not True
        ca = cluster.pem("certificate-authority") if verify else None
        context = _context(setting, ca, verify=verify)
        show_certificate(context, user)
    return Connection(
        setting,
        server,
        context,
        credentials_of(cluster, user, context, server),
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
