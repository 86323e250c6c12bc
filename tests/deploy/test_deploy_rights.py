"""The roles of web and worker against a real API server: every right is needed, none is missing.

All of it holds under the policy that confines them, which so hinders nothing.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from pydantic import SecretStr
from tests.cluster import real_cluster
from tests.cluster.environments import reaches
from tests.cluster.real_cluster import kubectl, open_kubernetes
from tests.contract.cluster_adapters import named_for
from tests.contract.store_adapters import make_project
from tests.deploy.manifests import (
    ACCESS,
    CONFINEMENT,
    OUTSIDE,
    confined,
    kustomize,
    of_kind,
    overlay,
    rights,
)

from greylag.agent.http import HttpAgents
from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.cluster.kubernetes.options import Template
from greylag.common.git import GitSetup
from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Observed
from greylag.domain.project import Project

KEY = SecretStr("a-key-of-the-whole-platform-" * 2)
PLAIN: dict[str, Any] = {"reach": "loadbalancer", "allow_plain_http": True}
pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@dataclass
class Access:
    """Accounts and roles of this test's own, in a namespace of its own."""

    folder: Path
    name: str
    since: datetime

    def rules(self, who: str) -> list[dict[str, Any]]:
        """Return what the role of `web` or `worker` grants."""
        roles = of_kind(kustomize(self.folder), "ClusterRole")
        (found,) = (one for one in roles if one["metadata"]["name"].startswith(f"greylag-{who}"))
        return list(found["rules"])

    def kubeconfig(self, who: str) -> Path:
        """Return a kubeconfig of this account."""
        account = f"greylag-{who}-{self.name}"
        token = _must("create", "token", account, "--namespace", self.name).strip()
        given = Path(real_cluster.cluster_environment()["KUBECONFIG"])
        whole = yaml.safe_load(given.read_text())
        whole["users"] = [{"name": whole["users"][0]["name"], "user": {"token": token}}]
        path = self.folder / f"{who}.kubeconfig"
        path.write_text(yaml.safe_dump(whole))
        return path

    def without(self, who: str, resource: str, verb: str) -> None:
        """Take one verb on one resource away from a role."""
        rules = self.rules(who)
        for rule in [one for one in rules if resource in one["resources"]]:
            left = [one for one in rule["verbs"] if one != verb]
            rules.append({**rule, "resources": [resource], "verbs": left})
            rule["resources"] = [one for one in rule["resources"] if one != resource]
        whole = [rule for rule in rules if rule["resources"] and rule["verbs"]]
        role = f"greylag-{who}-{self.name}"
        _must("patch", "clusterrole", role, "--type=merge", "-p", json.dumps({"rules": whole}))

    def used(self, who: str) -> set[tuple[str, str]]:
        """Return what the account used, as the audit log tells, and that nothing was refused."""
        account = f"system:serviceaccount:{self.name}:greylag-{who}-{self.name}"
        found = set()
        for entry in self._entries(account):
            refused = entry["responseStatus"]["code"] == 403
            assert not refused, f"a right is missing: {entry['verb']} {entry['objectRef']}"
            thing = entry["objectRef"]
            resource = "/".join(filter(None, (thing["resource"], thing.get("subresource"))))
            found.add((resource, entry["verb"]))
            if entry["verb"] == "patch" and entry["responseStatus"]["code"] == 201:
                # A server-side apply of what was not there asks for this right too.
                found.add((resource, "create"))
        return found

    def _entries(self, account: str) -> Iterator[dict[str, Any]]:
        if real_cluster.is_foreign():
            pytest.skip("RIGHTS ARE NOT COMPARED: this cluster's audit log cannot be read")
        home = Path(real_cluster.cluster_environment()["KUBECONFIG"]).parents[1]
        for file in sorted((home / "log").glob("audit*.log")):
            for line in file.read_text().splitlines():
                if account not in line:
                    continue
                entry = json.loads(line)
                began = datetime.fromisoformat(entry["requestReceivedTimestamp"])
                if began >= self.since and entry.get("objectRef", {}).get("resource"):
                    yield entry


@pytest.fixture
def access(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Access]:
    source = getattr(request, "param", ACCESS)
    name = f"rights-{secrets.token_hex(3)}"
    folder = overlay(tmp_path / "access", source, namespace=name, nameSuffix=f"-{name}")
    # The namespace is named by `namespace` alone, the cluster's own objects by the suffix.
    one = Access(folder, name, datetime.now(UTC))
    objects = [thing for thing in kustomize(folder) if thing["kind"] != "Namespace"]
    written = tmp_path / "objects.yaml"
    confinement = overlay(
        tmp_path / "confinement",
        CONFINEMENT,
        nameSuffix=f"-{name}",
        patches=confined(f"-{name}", "test-"),
    )
    objects = [one for one in objects if not one["kind"].startswith("ValidatingAdmission")]
    objects += kustomize(confinement)
    written.write_text(yaml.safe_dump_all(objects))
    _must("create", "namespace", name)
    _must("apply", "--filename", str(written))
    yield one
    kubectl("delete", "--wait=false", "--filename", str(written))
    kubectl("delete", "namespace", name, "--wait=false")


@asynccontextmanager
async def _opened(access: Access, who: str, **options: Any) -> AsyncIterator[KubernetesCluster]:
    small = Template(memory_request="16Mi", cpu_request="10m", cpu_limit="2")
    crashing = small.model_copy(update={"environment": {"GREYLAG_MODEL_URL": "nowhere"}})
    templates = {"default": small, "crashing": crashing}
    usual: dict[str, Any] = {"goose": "scripted", "templates": templates, "agent_key": (KEY,)}
    kubeconfig = access.kubeconfig(who)
    async with open_kubernetes(kubeconfig=kubeconfig, **(usual | options)) as cluster:
        yield cluster


async def _whole_life(cluster: KubernetesCluster, project: Project) -> None:
    await cluster.prepare(project.environment)
    await cluster.start(project.environment)
    await reaches(cluster, project, Observed.READY)
    assert (await cluster.reach(project.environment)).token
    assert project.ref in await cluster.inventory()


async def _changed_by_another(cluster: KubernetesCluster, project: Project) -> None:
    """Somebody else writes the Deployment right before we do, so that it has to be read anew."""
    names = project.names
    deployment = cluster._observer.objects(project.environment).deployment
    assert deployment is not None
    version = str(deployment["metadata"]["resourceVersion"])
    while True:
        told = (f"deployment/{names.deployment}", "--namespace", names.namespace)
        _must("annotate", *told, f"example.com/moment={secrets.token_hex(4)}")
        seen = cluster._observer.objects(project.environment).deployment
        assert seen is not None
        if seen["metadata"]["resourceVersion"] == version:
            return  # the watch has not been read yet
        version = str(seen["metadata"]["resourceVersion"])


async def _end(cluster: KubernetesCluster, project: Project) -> None:
    await cluster.stop(project.environment)
    await reaches(cluster, project, Observed.STOPPED)
    await cluster.delete(project.environment)
    await reaches(cluster, project, Observed.ABSENT)


async def _crash(cluster: KubernetesCluster, project: Project) -> None:
    await cluster.start(project.environment)
    async with asyncio.timeout(real_cluster.PATIENCE):
        while (await cluster.observe(project.environment)).state is not Observed.FAILED:
            await cluster.changed(project.environment, 1)
    error = (await cluster.observe(project.environment)).error
    assert error is not None
    assert error.code == "crash_loop", error


async def _as_the_web(access: Access, project: Project) -> None:
    async with _opened(access, "web", **PLAIN) as web:
        assert (await web.reach(project.environment)).token
        async with web.logs(project.environment, follow=False, tail=10) as lines:
            assert [line async for line in lines]


async def test_each_right_of_web_and_worker_is_used_and_none_is_missing(access: Access) -> None:
    domain = {"ingress_base_domain": "envs.test", **PLAIN}
    async with _opened(access, "worker", **domain) as worker:
        project = named_for(worker, make_project())
        crash = named_for(worker, make_project("crash", metadata={"template": "crashing"}))
        await asyncio.gather(_whole_life(worker, project), _crash(worker, crash))
        await _as_the_web(access, project)
        await _changed_by_another(worker, project)
        await asyncio.gather(_end(worker, project), _end(worker, crash))
    for who in ("web", "worker"):
        granted = rights(access.rules(who))
        used = access.used(who)
        assert not used - granted
        assert not granted - used, f"{who} has rights that it does not use"


def test_neither_account_may_read_a_secret() -> None:
    for who in ("web", "worker"):
        roles = of_kind(kustomize(ACCESS), "ClusterRole")
        (role,) = (one for one in roles if one["metadata"]["name"] == f"greylag-{who}")
        verbs = {verb for resource, verb in rights(role["rules"]) if resource == "secrets"}
        assert verbs <= {"create", "patch", "delete"}


def test_another_namespace_s_secret_is_refused_to_both_accounts(access: Access) -> None:
    for who in ("web", "worker"):
        words = ("--kubeconfig", str(access.kubeconfig(who)), "--namespace", "kube-system")
        asked = kubectl("get", "secrets", *words)
        assert "(Forbidden)" in asked.stderr
        assert "(Forbidden)" in kubectl("get", "secret", "any", *words).stderr


@pytest.mark.parametrize("access", [OUTSIDE], indirect=True)
async def test_from_outside_agents_are_reached_by_the_api_server_and_nothing_else_is(
    access: Access,
) -> None:
    async with _opened(access, "worker", platform_namespace=None) as worker:
        project = named_for(worker, make_project())
        await _whole_life(worker, project)
        agents = HttpAgents()
        try:
            at = await worker.reach(project.environment)
            assert not (await agents.status(at)).busy
            assert (await agents.set_up_git(at, GitSetup())).status == "none"
        finally:
            await agents.close()
        async with (
            _opened(access, "web", platform_namespace=None) as web,
            aiohttp.ClientSession() as http,
        ):
            agent = await web.reach(project.environment)
            assert agent.url.startswith("http://127.0.0.1:")
            headers = {"Authorization": f"Bearer {agent.token}"}
            async with http.get(f"{agent.url}/api/v1/sessions", headers=headers) as answer:
                assert answer.status == 200, await answer.text()
        await _end(worker, project)
    for who in ("web", "worker"):
        words = ("--kubeconfig", str(access.kubeconfig(who)), "--raw")
        path = "/api/v1/namespaces/kube-system/services/kube-dns:metrics/proxy/metrics"
        assert "Greylag keeps to its own namespaces" in kubectl("get", *words, path).stderr


@pytest.mark.parametrize(
    ("resource", "verb"), [("persistentvolumeclaims", "create"), ("networkpolicies", "patch")]
)
async def test_a_worker_that_lacks_one_right_says_which(
    access: Access, resource: str, verb: str
) -> None:
    access.without("worker", resource, verb)
    async with _opened(access, "worker") as cluster:
        project = named_for(cluster, make_project())
        with pytest.raises(ClusterError) as refused:
            await cluster.prepare(project.environment)
        assert refused.value.info.code == "cluster_forbidden", refused.value.info
        assert resource in refused.value.info.message
        assert verb in refused.value.info.message


async def test_a_web_that_lacks_one_right_says_which(access: Access) -> None:
    access.without("web", "services", "get")
    async with _opened(access, "web") as cluster:
        project = named_for(cluster, make_project())
        with pytest.raises(ClusterError) as refused:
            await cluster.reach(project.environment)
        assert refused.value.info.code == "cluster_forbidden", refused.value.info
        assert "services" in refused.value.info.message


def _must(*arguments: str) -> str:
    done = kubectl(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
