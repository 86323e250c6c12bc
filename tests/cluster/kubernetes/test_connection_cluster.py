"""Each way to name a cluster, on the real one: a call, a watch, and what is said of a wrong one."""

import base64
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from tests.cluster.kubernetes.kubeconfigs import certificate
from tests.cluster.real_cluster import cluster_environment, kubectl
from tests.ports import free_port

from greylag.cluster.kubernetes.api import Api, server_version
from greylag.cluster.kubernetes.connection import connect
from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.options import ConnectionOptions
from greylag.domain.errors import ClusterUnavailableError, ConfigError

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@dataclass(frozen=True)
class Account:
    """A service account's token, and where it counts."""

    server: str
    ca: str
    token: str


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    given = yaml.safe_load(Path(cluster_environment()["KUBECONFIG"]).read_text())
    cluster = given["clusters"][0]["cluster"]
    ca = cluster.get("certificate-authority-data") or base64.b64encode(
        Path(cluster["certificate-authority"]).read_bytes()
    )
    name = f"test-{secrets.token_hex(3)}"
    who = f"--serviceaccount=default:{name}"
    for words in (
        ("create", "serviceaccount", name, "-n", "default"),
        ("create", "clusterrole", name, "--verb=list,watch", "--resource=namespaces"),
        ("create", "clusterrolebinding", name, f"--clusterrole={name}", who),
    ):
        done = kubectl(*words)
        assert done.returncode == 0, done.stderr
    token = kubectl("create", "token", name, "-n", "default").stdout.strip()
    encoded = ca if isinstance(ca, str) else ca.decode()
    yield Account(cluster["server"], encoded, token)
    kubectl("delete", "serviceaccount", name, "-n", "default")
    kubectl("delete", "clusterrolebinding,clusterrole", name)


def kubeconfig(account: Account, user: dict[str, Any], **changed: str) -> str:
    cluster = {"server": account.server, "certificate-authority-data": account.ca, **changed}
    whole = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    return yaml.safe_dump(whole)


def in_base64(account: Account, folder: Path) -> ConnectionOptions:
    text = kubeconfig(account, {"token": account.token})
    return ConnectionOptions(kubeconfig_base64=encoded(text))


def by_host(account: Account, folder: Path) -> ConnectionOptions:
    return ConnectionOptions(host=account.server, token=account.token, ca=account.ca)


def by_plugin(account: Account, folder: Path) -> ConnectionOptions:
    version = "client.authentication.k8s.io/v1"
    program = folder / "plugin"
    answer = {"apiVersion": version, "kind": "ExecCredential", "status": {"token": account.token}}
    program.write_text(f"#!{sys.executable}\nimport json\nprint(json.dumps({answer!r}))\n")
    program.chmod(0o700)
    asked = {"command": "./plugin", "apiVersion": version, "interactiveMode": "Never"}
    file = folder / "config"
    file.write_text(kubeconfig(account, {"exec": asked}))
    return ConnectionOptions(kubeconfig=str(file))


def by_administrator(account: Account, folder: Path) -> ConnectionOptions:
    return ConnectionOptions(kubeconfig=cluster_environment()["KUBECONFIG"])


@pytest.mark.parametrize("way", [in_base64, by_host, by_plugin, by_administrator])
async def test_it_leads_to_lists_and_watches(way: Any, account: Account, tmp_path: Path) -> None:
    connection = connect(way(account, tmp_path), {})
    assert connection is not None
    api = Api(connection)
    try:
        assert (await server_version(api)).startswith("v1.")
        found = await api.list("Namespace")
        assert "default" in {one["metadata"]["name"] for one in found.items}
        watch = api.watch(
            "Namespace", resource_version=found.resource_version, seconds=1, silence=20
        )
        async with watch as stream:
            async for event, _ in stream:
                assert event in {"ADDED", "MODIFIED", "DELETED", "BOOKMARK"}
        if way is not by_administrator:
            with pytest.raises(ApiError, match="forbidden"):
                await api.list("Secret")
    finally:
        await api.close()


@pytest.mark.parametrize("wrong", ["ca", "token", "host", "kubeconfig"])
async def test_a_wrong_setting_ends_the_start_with_a_sentence_that_names_it(
    account: Account, tmp_path: Path, wrong: str
) -> None:
    right = {"host": account.server, "token": account.token, "ca": account.ca}
    other = urlsplit(account.server)._replace(scheme="http").geturl()
    options, said = {
        "ca": ({**right, "ca": certificate(tmp_path)[0]}, "KUBE_CA does not fit .* certificate"),
        "token": ({**right, "token": "wrong"}, "KUBE_TOKEN does not fit .* 401 Unauthorized"),
        "host": ({**right, "host": other}, "KUBE_HOST must begin with https"),
        "kubeconfig": (
            {"kubeconfig_base64": encoded(kubeconfig(account, {"token": "wrong"}))},
            "KUBE_CONFIG_BASE64 does not fit .* 401 Unauthorized",
        ),
    }[wrong]
    with pytest.raises(ConfigError, match=said) as refused:
        await version_of(ConnectionOptions(**options))
    assert account.token not in str(refused.value)


async def test_a_host_where_nothing_answers_is_told_with_the_settings_name(
    account: Account,
) -> None:
    options = ConnectionOptions(
        host=f"https://127.0.0.1:{free_port()}", token=account.token, ca=account.ca
    )
    with pytest.raises(ClusterUnavailableError, match=r"KUBE_HOST: .* cannot be reached"):
        await version_of(options)


async def version_of(options: ConnectionOptions) -> str:
    connection = connect(options, {})
    assert connection is not None
    api = Api(connection)
    try:
        return await server_version(api)
    finally:
        await api.close()


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
