"""A hostile agent in a pod of a real cluster: each attack is a tool call of the real goose."""

import asyncio
import json
import re
import socket
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from tests.cluster import real_cluster
from tests.cluster.real_cluster import kubectl
from tests.e2e.product import PATIENCE, Event, Product, RefusedError, product, text_of, types_of
from tests.hostile.attacks import ANSWER, COMMON, DENIED, GIT_SECRET, IN_POD, READ_ONLY, Attack

KEY = "sk-very-secret-key-of-the-provider"
ATTACKS = (*COMMON, *IN_POD)
AT_ONCE = 8
PLATFORM = "10.90.0.1"  # where pods find the machine that runs the tests
SITE = "/usr/local/lib/python3.13/dist-packages"
# The key lies in the environments; it is the scripted model that answers all the same.
SCRIPTED = {"GREYLAG_MODEL_URL": ""}
SHAPES = {
    "default": {"cpu_limit": "2", "environment": {"GOOSE_MODE": "auto", **SCRIPTED}},
    "asking": {"environment": {"GOOSE_MODE": "approve", **SCRIPTED}},
}

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]


@dataclass
class Target:
    """A Greylag with two environments on the cluster, and all that an attacker could know."""

    up: Product
    namespace: str
    mine: str
    asking: str
    facts: Mapping[str, str]
    secrets: tuple[str, ...]

    async def tool(self, command: str) -> str:
        """Let the agent run a command; return what it printed."""
        events = await self.up.say(self.mine, f"[[tool {command}]]")
        results = [one.content["result"] for one in events if one.type == "tool_response"]
        assert results, events
        return json.dumps(results)

    async def inside(
        self, project: str, *command: str, container: str = "execd", **options: Any
    ) -> str:
        """Run a command in a container of the pod, as a test and not as the agent."""
        name = (await self.pod(project))["metadata"]["name"]
        where = ("-n", self.namespace, name, "-c", container)
        ran = await asyncio.to_thread(kubectl, "exec", "-i", *where, "--", *command, **options)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    async def pod(self, project: str) -> dict[str, Any]:
        """Return the pod of a project."""
        (pod,) = await read(self.namespace, "pods", f"greylag.dev/project={project}")
        return pod


async def read(namespace: str, kind: str, selector: str = "") -> list[dict[str, Any]]:
    """Return objects of the cluster."""
    words = ["--selector", selector] if selector else []
    ran = await asyncio.to_thread(kubectl, "get", kind, "-n", namespace, "-o", "json", *words)
    found: list[dict[str, Any]] = json.loads(ran.stdout)["items"]
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """Give a Greylag with two environments, one of which asks before it runs a tool."""
    settings = real_cluster.settings(
        GREYLAG_MODEL_KEY=KEY,
        GREYLAG_MODEL_URL="http://127.0.0.1:9/v1",
        GREYLAG_KUBE_TEMPLATES=json.dumps(SHAPES),
    )
    del settings["GOOSE_MODE"]
    namespace = f"{settings['KUBE_NAMESPACE_PREFIX']}me"
    folder = tmp_path_factory.mktemp("hostile")
    try:
        with socket.create_server(("0.0.0.0", 0)) as store:  # noqa: S104 - pods could see it
            async with product(folder, **settings) as up:
                secret = {"value": GIT_SECRET, "host": "git.invalid"}
                assert (await up.call("PUT", "/api/users/me/secrets/git", secret))[0] < 300
                mine, asking = await asyncio.gather(
                    up.project("mine"), up.project("other", metadata={"template": "asking"})
                )
                facts = await known(namespace, store.getsockname()[1])
                values = await secret_values(namespace)
                yield Target(up, namespace, mine, asking, facts, (*values, GIT_SECRET))
    finally:
        real_cluster.remove_namespaces(settings["KUBE_NAMESPACE_PREFIX"])


async def known(namespace: str, store_port: int) -> dict[str, str]:
    """Return what fills in the words of an attack."""
    services = {one["metadata"]["name"]: one for one in await read(namespace, "services")}
    (other,) = await read(namespace, "pods", "greylag.dev/project=other")
    (api,) = await read("default", "services", "component=apiserver")
    facts = {
        "agentd_port": 3001,
        "python": "python3",
        "volume": "/environment",
        "state": "/environment/state",
        "structlog": f"{SITE}/structlog/__init__.py",
        "greylag": f"{SITE}/greylag/__init__.py",
        "key_start": "sk-",
        "searched": "/environment /tmp /run /var /etc /home /root /opt/greylag/execd",
        "socket": "/run/greylag/execd",
        "other_pod": other["status"]["podIP"],
        "other_service": services["other-svc"]["spec"]["clusterIP"],
        "other_balancer": services["other-svc"]["status"]["loadBalancer"]["ingress"][0]["ip"],
        "api": api["spec"]["clusterIP"],
        "node": other["status"]["hostIP"],
        "platform": PLATFORM,
        "store_port": store_port,
    }
    return {name: str(value) for name, value in facts.items()}


async def secret_values(namespace: str) -> tuple[str, ...]:
    """Return what must never be printed."""
    found = await read(namespace, "secrets")
    values = {b64decode(value).decode() for one in found for value in one["data"].values()}
    assert KEY in values
    assert len(values) == 3
    return tuple(values)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def printed(target: Target) -> dict[str, str]:
    """Let the agent try everything, some at once; return what each attack printed."""
    free = asyncio.Semaphore(AT_ONCE)

    async def tried(attack: Attack) -> tuple[str, str]:
        async with free:
            return attack.name, await target.tool(attack.command.format(**target.facts))

    return dict(await asyncio.gather(*(tried(attack) for attack in ATTACKS)))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))
async def test_an_attack_is_refused(
    target: Target, printed: Mapping[str, str], attack: Attack
) -> None:
    said = printed[attack.name]
    # What belongs to another user is refused for that before it is refused as read-only.
    refusal = attack.refusal.replace(READ_ONLY, f"{READ_ONLY}|{DENIED}")
    assert re.search(refusal, said), said
    assert not [secret for secret in target.secrets if secret in said]


async def test_nothing_of_it_has_ended_either_side(
    target: Target, printed: Mapping[str, str]
) -> None:
    assert len(printed) == len(ATTACKS)
    statuses = (await target.pod("mine"))["status"]["containerStatuses"]
    assert [one["restartCount"] for one in statuses] == [0, 0]
    assert (await target.up.call("GET", target.mine))[1]["status"] == "active"


async def test_a_tool_cannot_answer_its_own_confirmation(target: Target) -> None:
    up, path = target.up, target.asking
    await target.inside("other", "tee", "/environment/workspace/attack.py", input=ANSWER)
    background = "python3 -I attack.py >/dev/null 2>&1 & echo begun"
    first = await up.first(path, "tool_confirmation", f"[[tool {background}]]")
    await decide(target, first, "allow_once")
    second = await up.first(path, "tool_confirmation", "[[tool touch allowed]]")
    turn = str(second.id).rpartition("-")[0]
    url = f"http://127.0.0.1:3001/api/v1/turns/{turn}/confirmations/{second.content['id']}"
    question = "cat >question.new && mv question.new question"
    script = f"cd /environment/workspace && {question} && until cat answers; do sleep 0.1; done"
    said = await target.inside(
        "other", "timeout", "30", "sh", "-c", script, input=json.dumps({"url": url})
    )
    assert json.loads(said) == ["401"]
    assert types_of(await decide(target, second, "reject_once"))[-1] == "complete"
    assert "allowed" not in (await target.inside("other", "ls", "/environment/workspace")).split()


async def decide(target: Target, asked: Event, decision: str) -> list[Event]:
    """Answer a confirmation as its user; return the rest of its turn."""
    turn = str(asked.id).rpartition("-")[0]
    path = f"{target.asking}/turns/{turn}/confirmations/{asked.content['id']}"
    status, body = await target.up.call("POST", path, {"decision": decision})
    assert status in {200, 204}, body
    return await target.up.rest_of(target.asking, turn)


async def test_a_tool_that_puts_itself_in_execd_s_place_is_put_out(target: Target) -> None:
    up, path = target.up, target.asking
    fake = "cd /run/greylag && mv execd was && mkdir execd && ln -s /environment/state execd/s"
    asked = await up.first(path, "tool_confirmation", f"[[tool {fake}]]")
    await decide(target, asked, "allow_once")
    await restarted(target, "other", "execd")
    await works(target, path)


async def test_when_execd_ends_the_turn_is_told_and_goes_on_anew(target: Target) -> None:
    events = await target.up.say(target.mine, "[[tool kill 1; sleep 0.5; kill 1; sleep 600]]")
    assert types_of(events)[-2:] == ["error", "complete"], events
    assert [e.content["code"] for e in events if e.type == "error"] == ["agent_restarted"]
    await restarted(target, "mine", "execd")
    await works(target, target.mine)


TAKE = """
import socket
while True:
    try:
        server = socket.create_server(("", 3001))
    except OSError:
        continue
    open("taken", "wb").write(server.accept()[0].recv(9999))
"""


async def test_when_agentd_dies_all_tools_end_at_once(target: Target) -> None:
    # One forgets whose it is, one waits for the port.
    await target.inside("mine", "tee", "/environment/workspace/take.py", input=TAKE)
    hides = "(env -i setsid /bin/sleep 988 >/dev/null 2>&1 &)"
    await target.tool(f"{hides}; python3 take.py >/dev/null 2>&1 & echo begun")
    listed = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    seen = await target.inside("mine", "sh", "-c", listed)
    assert "sleep 988" in seen
    assert "take.py" in seen
    started = await target.up.first(target.mine, "tool_request", "[[tool sleep 600]]")
    kill = "kill -9 $(cat /proc/1/task/1/children)"
    await target.inside("mine", "sh", "-c", kill, container="agentd")
    await restarted(target, "mine", "agentd")
    seen = await target.inside("mine", "sh", "-c", listed)
    assert "sleep" not in seen
    assert "take.py" not in seen
    rest = await target.up.rest_of(target.mine, str(started.id).rpartition("-")[0])
    assert [e.content["code"] for e in rest if e.type == "error"] == ["agent_restarted"]
    taken = await target.inside("mine", "sh", "-c", "cat /environment/workspace/taken || true")
    assert not [secret for secret in target.secrets if secret in taken]
    await works(target, target.mine)


async def restarted(target: Target, project: str, name: str) -> None:
    """Return once a container has been started again, and all of the pod is ready."""
    async with asyncio.timeout(PATIENCE):
        while True:
            every = (await target.pod(project))["status"]["containerStatuses"]
            (one,) = [each for each in every if each["name"] == name]
            if one["restartCount"] == 1 and all(each["ready"] for each in every):
                return
            await asyncio.sleep(0.2)


async def works(target: Target, path: str) -> None:
    """Wait until the agent answers again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                said = text_of(await target.up.say(path, "[[text here again]]"))
            except RefusedError as error:
                said = str(error)
            if said == "here again":
                return
            await asyncio.sleep(0.2)
