"""Deletion on the real cluster, cut off at each of its calls."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from tests.cluster import real_cluster
from tests.cluster.environments import PATIENCE, accepted, reaches
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.domain.lifecycle import Observed
from greylag.domain.names import environment_names
from greylag.domain.project import Project

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CALLS = 7
"""Ingress, Service, volume claim, ConfigMap, Secret, namespace, Deployment."""


class KilledError(Exception):
    """What a worker that is killed does not survive."""


class DoomedApi(Api):
    """Ends right after so many deletions."""

    left = 0

    async def delete(self, *named: Any, **given: Any) -> bool:
        done = await super().delete(*named, **given)
        self.left -= 1
        if self.left == 0:
            raise KilledError
        return done


async def _resume(worker: KubernetesCluster, project: Project) -> None:
    """Do as a reconciler does with a project that is to go."""
    async with asyncio.timeout(PATIENCE):
        while (state := (await worker.observe(project.environment)).state) is not Observed.ABSENT:
            if state is Observed.STOPPED:
                await accepted(worker.delete, project)
            else:
                await worker.changed(project.environment, 0.2)


async def _cut_off(worker: KubernetesCluster, calls: int) -> str:
    """Cut the deletions of both projects of a user off after so many calls, and go on with them.

    Returns the namespace.
    """
    prefix = worker.namespace_prefix
    projects = []
    for number in range(2):
        new = make_project(f"p{number}", f"u{calls}")
        names = environment_names(new.user_id, new.project_id, prefix=prefix)
        projects.append(replace(new, names=names))
    await asyncio.gather(*(accepted(worker.prepare, one) for one in projects))
    for one in projects:
        api = DoomedApi(worker._api.connection)
        api.left = calls
        doomed = KubernetesCluster(api, worker._options, worker._variables, namespace_prefix=prefix)
        try:
            await reaches(doomed, one, Observed.STOPPED)
            # The first of the two leaves the namespace to the other, and so makes a call less.
            with suppress(KilledError):
                await accepted(doomed.delete, one)
        finally:
            await doomed.close()
    await asyncio.gather(*(_resume(worker, one) for one in projects))
    return projects[0].names.namespace


async def test_a_deletion_cut_off_after_any_call_is_ended_by_another_and_leaves_no_namespace() -> (
    None
):
    async with real_cluster.open_kubernetes(goose="scripted") as worker:
        async with asyncio.TaskGroup() as group:
            points = range(1, CALLS + 1)
            cut_off = [group.create_task(_cut_off(worker, calls)) for calls in points]
        for namespace in [task.result() for task in cut_off]:
            phase = ("get", "namespace", namespace, "-o", "jsonpath={.status.phase}")
            assert real_cluster.kubectl(*phase).stdout in {"", "Terminating"}, namespace
