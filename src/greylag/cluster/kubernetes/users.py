"""Who a kubeconfig's user is: by certificate, token, token file or program."""

import base64
import shutil
from collections.abc import Mapping
from ssl import SSLContext, SSLError
from typing import Any

from greylag.cluster.kubernetes.credentials import Credentials, Token, TokenFile
from greylag.cluster.kubernetes.exec_plugin import API_VERSIONS, ExecPlugin, Program
from greylag.cluster.kubernetes.kubeconfig import Entry
from greylag.cluster.kubernetes.tls import load_identity


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
    cluster: Entry, user: Entry, context: SSLContext | None, server: str
) -> Credentials:
    """Return what each request to ``server`` is to carry.

    A program's client certificates go into ``context``, where there is TLS.
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
        return ExecPlugin(_program(cluster, user, server), context)
    try:
        return Token(user.text("token").strip())
    except ValueError as error:
        raise user.wrong(f"has a token that is none: {error}") from error


def _program(cluster: Entry, user: Entry, server: str) -> Program:
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
    told = _told(cluster, server) if asked.get("provideClusterInfo") else None
    args = asked.get("args") or []
    if not isinstance(args, list):
        raise user.wrong("has an exec whose args are not a list")
    try:
        env = {str(one["name"]): str(one["value"]) for one in asked.get("env") or ()}
    except (KeyError, TypeError) as error:
        raise user.wrong("has an exec whose env is not a list of name and value") from error
    return Program(version, command, [str(one) for one in args], env, told)


def _told(cluster: Entry, server: str) -> Mapping[str, Any]:
    """Return what a program is told of the cluster: the fields of ``ExecCredential``'s spec."""
    ca = cluster.pem("certificate-authority")
    told = {
        "server": server,
        "tls-server-name": cluster.text("tls-server-name"),
        "insecure-skip-tls-verify": cluster.fields.get("insecure-skip-tls-verify") is True,
        "certificate-authority-data": base64.b64encode(ca.encode()).decode() if ca else "",
        "proxy-url": cluster.text("proxy-url"),
    }
    return {key: value for key, value in told.items() if value}


_NOT_DONE = {
    "as": "asks to act as another, which Greylag does not do",
    "auth-provider": "has an auth-provider, which Kubernetes has given up; use its exec plugin",
    "username": "has a user name and password, which Kubernetes takes no more; use a token",
}
