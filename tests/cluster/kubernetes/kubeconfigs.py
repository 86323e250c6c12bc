"""Kubeconfigs for tests, and what comes of them."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from greylag.cluster.kubernetes.connection import Connection, connect
from greylag.cluster.kubernetes.options import ConnectionOptions

SERVER = "https://cluster.test:6443"


def kubeconfig(
    user: Mapping[str, Any] | None = None,
    cluster: Mapping[str, Any] | None = None,
    **whole: Any,
) -> dict[str, Any]:
    """Return a kubeconfig with this user and cluster; ``whole`` replaces its parts."""
    return {
        "clusters": [{"name": "c", "cluster": {"server": SERVER, **(cluster or {})}}],
        "users": [{"name": "u", "user": dict(user or {"token": "t0ken"})}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
        **whole,
    }


def written(folder: Path, config: Any, name: str = "config") -> str:
    """Write it to a file and return that."""
    path = folder / name
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return str(path)


def connected(**options: str) -> Connection:
    """Return the connection of these options."""
    found = connect(ConnectionOptions(**options), {})
    assert found is not None
    return found


async def headers(connection: Connection) -> Mapping[str, str]:
    """Return what its credentials send."""
    return await connection.credentials.headers()


def bearer(token: str) -> dict[str, str]:
    """Return the header of a token."""
    return {"Authorization": f"Bearer {token}"}


def certificate(folder: Path, *words: str) -> tuple[str, str]:
    """Return a certificate of itself and its key, made by openssl in ``folder``."""
    made = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "crt.pem"))
    subprocess.run(  # noqa: S603 - openssl, fixed words
        ["/usr/bin/env", "openssl", *made, *files, "-subj", "/CN=test", "-days", "2", *words],
        check=True,
        capture_output=True,
    )
    return (folder / "crt.pem").read_text(), (folder / "key.pem").read_text()
