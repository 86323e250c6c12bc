"""The ways to an agent on a real cluster: the API server's service proxy, and an Ingress."""

import asyncio
import base64
import json
from pathlib import Path

import aiohttp
import pytest
from tests.cluster import real_cluster
from tests.cluster.real_cluster import kubectl
from tests.e2e.product import PATIENCE, product, text_of, types_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CHUNKS = "[[delay ms=5]] [[chunks n=200 size=20]]"


async def test_by_the_service_proxy_of_the_api_server(tmp_path: Path) -> None:
    settings = real_cluster.settings(
        GREYLAG_KUBE_REACH="proxy", GREYLAG_KUBE_SERVICE_TYPE="ClusterIP"
    )
    try:
        async with product(tmp_path, **settings) as up:
            path = await up.project("demo")
            whole = await up.say(path, CHUNKS)
            assert text_of(whole).split()[-1].endswith("0199")
            first = await up.first(path, "message", CHUNKS)
            assert first.id is not None
            turn, _, _ = first.id.rpartition("-")
            rest = await up.rest_of(path, turn, after=first.id)
            assert text_of(rest).split()[-1].endswith("0199")
            assert types_of(rest)[-1] == "complete"
    finally:
        real_cluster.remove_namespaces(settings["KUBE_NAMESPACE_PREFIX"])


@pytest.mark.parametrize("routing", ["host", "path"])
async def test_by_an_ingress_which_streams(tmp_path: Path, routing: str) -> None:
    address = real_cluster.ingress_address()
    settings = real_cluster.settings(
        INGRESS_BASE_DOMAIN="envs.test",
        GREYLAG_KUBE_INGRESS_ROUTING=routing,
        # Names of a test's domain cannot be resolved, so the platform itself goes another way.
        GREYLAG_KUBE_SERVICE_TYPE="LoadBalancer",
        GREYLAG_KUBE_REACH="proxy",
    )
    prefix = settings["KUBE_NAMESPACE_PREFIX"]
    try:
        async with product(tmp_path, **settings) as up:
            path = await up.project("demo")
            _, project = await up.call("GET", path)
            host, _, folder = project["endpoint"].removeprefix("http://").partition("/")
            assert host.endswith("envs.test")
            root = f"http://{address}/{folder}".rstrip("/")
            await _read_while_it_is_written(root, host, _token(f"{prefix}me"))
    finally:
        real_cluster.remove_namespaces(prefix)


def _token(namespace: str) -> str:
    secret = json.loads(kubectl("get", "secret", "-n", namespace, "-o", "json").stdout)
    return base64.b64decode(secret["items"][0]["data"]["GREYLAG_AGENT_TOKEN"]).decode()


async def _read_while_it_is_written(root: str, host: str, token: str) -> None:
    """Send the agent a message through the Ingress; read of an answer that has not ended, end it.

    The whole answer takes longer than the patience for its beginning.
    """
    headers = {"Host": host, "Authorization": f"Bearer {token}"}
    message = {"message": "[[delay ms=400]] [[chunks n=500 size=20]]"}
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{root}/api/v1/health", headers=headers) as answer:
                if answer.status == 200:
                    break
            await asyncio.sleep(0.2)
        url = f"{root}/api/v1/sessions"
        async with http.post(url, json={}, headers={"Host": host}) as refused:
            assert refused.status == 401
        async with http.post(url, json={}, headers=headers) as made:
            session = (await made.json())["session_id"]
        url = f"{root}/api/v1/sessions/{session}/messages"
        async with http.post(url, json=message, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            said = b""
            while b"0000" not in said:
                said += (piece := await answer.content.readany())
                assert piece, said
            url = f"{root}/api/v1/sessions/{session}/cancel"
            async with http.post(url, headers=headers) as cancelled:
                assert (await cancelled.json())["cancelled"], said
            assert b'"stop_reason":"cancelled"' in await answer.read()
