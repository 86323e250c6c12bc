"""Admission webhooks beside a real cluster: they change what passes, are slow, or not there."""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from tests.cluster.kubernetes.kubeconfigs import certificate
from tests.cluster.real_cluster import kubectl

HERE = "10.90.0.1"
"""Where the cluster finds the tests' machine."""
MACHINES = {"Pod": ("", "pods"), "Deployment": ("apps", "deployments")}

Patch = list[dict[str, Any]]
Mutation = Callable[[dict[str, Any]], Patch]
"""Takes an object as it is asked for; returns a JSON patch."""


class Webhooks:
    """Serves mutations, each for one kind of one project's objects in one namespace."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self._namespace = namespace
        self._mutations: dict[str, tuple[str, Mutation, float]] = {}
        self._down: set[str] = set()

    def add(
        self,
        project: str,
        kind: str,
        mutation: Mutation = lambda _: [],
        *,
        slow: float = 0.0,
        down: bool = False,
    ) -> None:
        """Let ``mutation`` change this kind of objects, ``slow`` seconds late; ``down``: never."""
        self._mutations[project] = (kind, mutation, slow)
        if down:
            self._down.add(project)

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[None]:
        """Run them."""
        pem, _ = certificate(folder, "-addext", f"subjectAltName=IP:{HERE}")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "crt.pem", folder / "key.pem")
        app = web.Application()
        app.router.add_post("/{project}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, HERE, 0, ssl_context=context).start()
        port = runner.addresses[0][1]
        try:
            given = json.dumps(self._configuration(port, pem))
            done = await asyncio.to_thread(kubectl, "apply", "-f", "-", input=given)
            assert done.returncode == 0, done.stderr
            yield
        finally:
            await asyncio.to_thread(kubectl, "delete", "mutatingwebhookconfiguration", self.name)
            await runner.cleanup()

    def _configuration(self, port: int, pem: str) -> dict[str, Any]:
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": self.name},
            "webhooks": [
                self._webhook(project, kind, self._url(project, port), pem)
                for project, (kind, _, _) in self._mutations.items()
            ],
        }

    def _url(self, project: str, port: int) -> str:
        return f"https://{HERE}:{9 if project in self._down else port}/{project}"

    def _webhook(self, project: str, kind: str, url: str, pem: str) -> dict[str, Any]:
        group, plural = MACHINES[kind]
        rule = {"apiGroups": [group], "apiVersions": ["v1"], "resources": [plural]}
        return {
            "name": f"{project}.greylag.test",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 15,
            "failurePolicy": "Fail",
            "clientConfig": {"url": url, "caBundle": base64.b64encode(pem.encode()).decode()},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self._namespace}},
            "objectSelector": {"matchLabels": {"greylag.dev/project": project}},
            "rules": [{**rule, "operations": ["CREATE", "UPDATE"]}],
        }

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        project = request.match_info["project"]
        asked: Mapping[str, Any] = (await request.json())["request"]
        _, mutation, slow = self._mutations[project]
        await asyncio.sleep(slow)
        patch = json.dumps(mutation(asked["object"])).encode()
        response = {
            "uid": asked["uid"],
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": base64.b64encode(patch).decode(),
        }
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
        return web.json_response({**review, "response": response})
