"""The main path on a real cluster, with the real goose in the environment's own image."""

import asyncio
import socket
import textwrap
from pathlib import Path

import pytest
from tests.cluster.real_cluster import kubectl
from tests.e2e.on_cluster import greylag
from tests.e2e.product import PATIENCE, Product, text_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

AGENT = ("-c", "execd", "--")


def objects(namespace: str, kinds: str) -> list[str]:
    """Return the names of all objects of these kinds in a namespace."""
    return kubectl("get", kinds, "-n", namespace, "-o", "name").stdout.split()


async def test_the_main_path_on_a_real_cluster(tmp_path: Path) -> None:
    async with greylag(tmp_path) as (up, prefix):
        namespace = f"{prefix}me"
        path = await up.project("demo")
        assert len(objects(namespace, "pods")) == 1
        codes = [event.content["code"] for event in await up.log(path, "active")]
        assert codes.index("scheduled") < codes.index("process_started")
        assert codes.index("process_started") < codes.index("agent_ready")
        said = await up.say(path, "[[tool echo kept > kept.txt]] [[text written]]")
        assert text_of(said) == "written"
        status, project = await up.call("POST", f"{path}/deactivate")
        assert (status, project["status"], project["endpoint"]) == (200, "inactive", None)
        assert objects(namespace, "pods") == []
        woken = await up.say(path, "[[tool cat kept.txt]] [[text still there]]")
        result = next(event.content for event in woken if event.type == "tool_response")
        assert result["result"]["Ok"][0]["text"].startswith("kept")
        assert text_of(woken) == "still there"
        content = f"{path}/files/content?path=kept.txt"
        async with up.http.get(content) as answer:
            assert await answer.read() == b"kept\n"
        async with up.http.put(content, data=b"from outside\n") as answer:
            assert answer.status == 200
        said = await up.say(path, "[[tool cat kept.txt]]")
        result = next(event.content for event in said if event.type == "tool_response")
        assert result["result"]["Ok"][0]["text"].startswith("from outside")
        async with up.http.get(f"{path}/logs") as answer:
            assert answer.status == 200
            assert await answer.read()
        assert (await up.call("DELETE", path))[0] == 204
        everything = "deployments,pods,services,secrets,configmaps,persistentvolumeclaims,ingresses"
        await asyncio.to_thread(
            kubectl, "wait", "--for=delete", f"namespace/{namespace}", f"--timeout={PATIENCE}s"
        )
        assert objects(namespace, everything) == []


async def test_what_is_deleted_by_hand_is_made_anew(tmp_path: Path) -> None:
    async with greylag(tmp_path) as (up, prefix):
        path = await up.project("demo")
        namespace = f"{prefix}me"
        for gone in ("deployment/demo-api", "networkpolicy/greylag-agent", "service/demo-svc"):
            assert kubectl("delete", "-n", namespace, gone).returncode == 0
            await _is_back(up, path, namespace, gone)
        (pod,) = objects(namespace, "pods")
        kubectl("delete", "-n", namespace, pod)
        await _is_back(up, path, namespace, "deployment/demo-api")
        kubectl("delete", "namespace", namespace)
        await _is_back(up, path, namespace, "deployment/demo-api")
        said = await up.say(path, "[[text hello again]]")
        assert text_of(said) == "hello again"


async def _is_back(up: Product, path: str, namespace: str, name: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while kubectl("get", "-n", namespace, name).returncode != 0:  # noqa: ASYNC110 - asks anew
            await asyncio.sleep(0.2)
    assert await up.settled(path) == "active"


PROBE = textwrap.dedent("""
    import os, socket
    def open_(host, port):
        try:
            socket.create_connection((host, port), 1.5).close()
            return "open"
        except OSError as error:
            return type(error).__name__
    def writes(path):
        try:
            open(path, "w").close()
            return "written"
        except OSError as error:
            return type(error).__name__
    def rises():
        try:
            os.setuid(0)
            return "root"
        except OSError as error:
            return type(error).__name__
    status = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines())
""")


def probe(namespace: str, pod: str, expression: str) -> str:
    """Return what a Python expression says inside the pod."""
    code = f"{PROBE}\nprint(({expression}))"
    ran = kubectl("exec", "-n", namespace, pod, *AGENT, "python3", "-c", code)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


async def test_an_environment_reaches_nobody_it_should_not(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as store:  # noqa: S104 - the pod must be able to see it
        port = store.getsockname()[1]
        async with greylag(tmp_path, GREYLAG_USERS="me,bob") as (up, prefix):
            hers, theirs = await _two_environments(up, prefix)
            other = _json(theirs, "pods", "{.items[0].status.podIP}")
            service = _json(theirs, "services", "{.items[0].spec.clusterIP}")
            api = kubectl("get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}").stdout
            node = _json(theirs, "pods", "{.items[0].status.hostIP}")
            outside = _json(theirs, "services", "{.items[0].status.loadBalancer.ingress[0].ip}")
            pod = objects(hers, "pods")[0]
            targets: dict[str, tuple[str, int]] = {
                "pod of another user": (other, 3001),
                "Service of another user": (service, 3001),
                "load balancer of another user": (outside, 3001),
                "API server": (api, 443),
                "API server on its node": (node, 6443),
                "kubelet": (node, 10250),
                "metadata": ("169.254.169.254", 80),
                "store of Greylag": ("10.90.0.1", port),
            }
            asked = ", ".join(
                f"{name!r}: open_({at[0]!r}, {at[1]})" for name, at in targets.items()
            )
            found = probe(hers, pod, f"{{{asked}}}")
            assert found.count("TimeoutError") == len(targets), found
            # The probe itself works: the agent's own port, and the cluster's DNS.
            assert probe(hers, pod, "open_('127.0.0.1', 3001)") == "open"
            named = "socket.gethostbyname('kubernetes.default.svc.cluster.local')"
            assert probe(hers, pod, named) == api


async def test_an_environment_has_no_more_rights_than_it_needs(tmp_path: Path) -> None:
    async with greylag(tmp_path) as (up, prefix):
        await up.project("demo")
        namespace = f"{prefix}me"
        pod = objects(namespace, "pods")[0]
        assert probe(namespace, pod, "os.getuid(), os.getgid()") == "(10001, 10002)"
        assert probe(namespace, pod, "rises()") == "PermissionError"
        for path in ("/etc/motd", "/usr/bin/x", "/x", "/opt/x"):
            assert probe(namespace, pod, f"writes({path!r})") == "OSError", path
        assert probe(namespace, pod, "writes('/environment/workspace/x')") == "written"
        assert probe(namespace, pod, "int(status['CapEff'], 16), int(status['CapBnd'], 16)") == (
            "(0, 0)"
        )
        assert probe(namespace, pod, "status['NoNewPrivs'].strip()") == "1"
        assert probe(namespace, pod, "os.path.exists('/var/run/secrets')") == "False"


async def _two_environments(up: Product, prefix: str) -> tuple[str, str]:
    for user in ("me", "bob"):
        path = f"/api/users/{user}/projects"
        assert (await up.call("POST", path, {"name": "X", "project_id": "demo"}))[0] == 201
        status, made = await up.call("POST", f"{path}/demo/activate")
        assert (status, made["status"]) == (200, "active"), made
        said = await up.say(f"{path}/demo", f"[[text hello {user}]]")
        assert text_of(said) == f"hello {user}"
    return f"{prefix}me", f"{prefix}bob"


def _json(namespace: str, kind: str, path: str) -> str:
    return kubectl("get", kind, "-n", namespace, "-o", f"jsonpath={path}").stdout
