"""On the real API server, too, an activation writes only what is not as it is wanted."""

from typing import Any

import pytest
from tests.cluster import real_cluster
from tests.cluster.environments import reaches
from tests.contract.cluster_adapters import named_for
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.calls import ApiCall
from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.cluster.kubernetes.options import Toleration
from greylag.domain.lifecycle import Observed

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

RICH: dict[str, Any] = {
    "ingress_base_domain": "agents.example.org",
    "ingress_tls": True,
    "ingress_annotations": {"example.org/issuer": "ours"},
    "platform_namespace": "greylag",
    "platform_cidrs": ("203.0.113.0/24",),
    "egress_cidrs": ("0.0.0.0/0", "::/0"),
    "pod_cidrs": ("10.91.0.0/16",),
    "service_annotations": {"example.org/internal": "true"},
    "tolerations": (Toleration(key="agents", operator="Exists"),),
}
NEEDED = {
    *("resourcequotas", "limitranges", "serviceaccounts", "secrets", "configmaps", "deployments"),
}


class RecordingApi(Api):
    """Keeps what was asked."""

    asked: list[ApiCall]

    async def _ask(self, request: ApiCall) -> Any:
        self.asked.append(request)
        return await super()._ask(request)


@pytest.mark.parametrize("options", [{}, RICH], ids=["plain", "rich"])
async def test_an_activation_asks_for_six_things_and_writes_five(options: dict[str, Any]) -> None:
    async with real_cluster.open_kubernetes(goose="scripted", **options) as first:
        project = named_for(first, make_project())
        await first.prepare(project.environment)
        api = RecordingApi(first._api.connection)
        api.asked = []
        # With what the first has learned of the cluster, for which each asks once.
        known = first._applier._options
        second = KubernetesCluster(
            api, known, first._variables, namespace_prefix=first.namespace_prefix
        )
        try:
            await reaches(second, project, Observed.STOPPED)
            api.asked.clear()
            await second.start(project.environment)
            calls = [one for one in api.asked if "limit" not in one.params]
        finally:
            await second.close()
        asked = [(one.method, one.path.split("/")[-2]) for one in calls]
        assert {plural for _, plural in asked} == NEEDED, asked
        assert len(asked) == len(NEEDED)
        assert ("GET", "secrets") in asked
        await first.stop(project.environment)
        await reaches(first, project, Observed.STOPPED)
