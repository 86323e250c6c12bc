"""Each way to name a cluster, on the real one: a call, a watch, and what is said of a wrong one."""

import base64
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.real_cluster import cluster_environment, kubectl

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.connection import ConnectionOptions, connect
from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.first_contact import server_version
from greylag.domain.errors import ConfigError

pytestmark = pytest.mark.cluster


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
    return ConnectionOptions(kubeconfig_base64=base64.b64encode(text.encode()).decode())


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
    api = Api.open(connection)
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


async def test_a_wrong_authority_and_a_wrong_token_end_the_start_with_the_settings_name(
    account: Account, tmp_path: Path
) -> None:
    for options, said in (
        (ConnectionOptions(host=account.server, token=account.token), "not from the authority"),
        (ConnectionOptions(host=account.server, token="wrong", ca=account.ca), "401 Unauthorized"),
    ):
        connection = connect(options, {})
        assert connection is not None
        api = Api.open(connection)
        try:
            with pytest.raises(ConfigError, match=said) as refused:
                await server_version(api)
            assert "KUBE_HOST" in str(refused.value)
        finally:
            await api.close()
