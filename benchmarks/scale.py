"""Many projects activated at once on simulated nodes: by hand, on the cluster of the tests.

    python -m benchmarks.scale --projects 500 [--per-user 100]

It prints how long that took, what the API server was asked for it, and the memory of Greylag. The
nodes are simulated, so the environments do not answer (`GREYLAG_KUBE_PROBE=false`).
"""

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml
from tests.cluster.real_cluster import CLUSTER, cluster_environment, kubectl, remove_namespaces
from tests.e2e.product import Product

NODES = 10
AT_ONCE = 16
PATIENCE = 1200
IDLE_SECONDS = 60
ROOM = {"ephemeral-storage": "10Ti"}
FAKE = [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]


class Fleet:
    """So many projects of so many users, on one `greylag up`."""

    def __init__(self, up: Product, prefix: str, users: list[str], count: int) -> None:
        self.up = up
        self.prefix = prefix
        self.users = users
        each = -(-count // len(users))
        self.paths = [
            f"/api/users/{users[number // each]}/projects/p{number}" for number in range(count)
        ]

    async def make(self) -> None:
        """Create all projects."""
        await self._all("POST", lambda path: path.rpartition("/")[0], body=True)

    async def ask(self, verb: str) -> None:
        """Ask for the same of all, waiting for none."""
        await self._all("POST", lambda path: f"{path}/{verb}")

    async def reach(self, status: str) -> Counter[str]:
        """Return how all stand once all are ``status``, or when patience ends."""
        end = time.monotonic() + PATIENCE
        while (found := await self.standing())[status] < len(self.paths):
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.5)
        return found

    async def standing(self) -> Counter[str]:
        """Return how many projects have each status."""
        found: Counter[str] = Counter()
        for user in self.users:
            async for one in self._listed(user):
                settled = one["observed_generation"] >= one["generation"]
                found[one["status"] if settled else "on its way"] += 1
        return found

    async def _listed(self, user: str) -> AsyncIterator[dict[str, Any]]:
        more = ""
        while True:
            url = f"/api/users/{user}/projects?limit=100{more}"
            _, page = await self.up.call("GET", url)
            for one in page["projects"]:
                yield one
            if page["next_cursor"] is None:
                return
            more = f"&cursor={page['next_cursor']}"

    def megabytes(self) -> float:
        """Return the memory of the process (PSS)."""
        pid = self.up.programs["up"].pid
        return float(psutil.Process(pid).memory_full_info().pss) / 1e6

    async def _all(self, method: str, url: Any, *, body: bool = False) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(path: str) -> None:
            name = path.rpartition("/")[2]
            said = {"name": name, "project_id": name} if body else None
            async with room:
                status, answer = await self.up.call(method, url(path), said, prefer="respond-async")
            assert status in {200, 201, 202}, answer

        await asyncio.gather(*(one(path) for path in self.paths))


class Calls:
    """What one account asked of the API server, as its audit log tells."""

    def __init__(self, account: str) -> None:
        self._user = f"system:serviceaccount:default:{account}"
        self._since = datetime.now(UTC)

    def restart(self) -> None:
        """Count from now on."""
        self._since = datetime.now(UTC)

    def count(self) -> Counter[str]:
        """Return how often each verb was used on each kind."""
        found: Counter[str] = Counter()
        for entry in self._entries():
            kind = entry.get("objectRef", {}).get("resource", "other")
            found[f"{entry['verb']} {kind}"] += 1
        return found

    def _entries(self) -> Iterator[dict[str, Any]]:
        folder = Path(cluster_environment()["KUBECONFIG"]).parents[1] / "log"
        for file in sorted(folder.glob("audit*.log")):
            with file.open() as lines:
                for line in lines:
                    if self._user not in line:
                        continue
                    entry = json.loads(line)
                    began = datetime.fromisoformat(entry["requestReceivedTimestamp"])
                    # A watch is told of twice: when it has begun, and when it has ended.
                    once = "ResponseStarted" if entry["verb"] == "watch" else "ResponseComplete"
                    if began >= self._since and entry["stage"] == once:
                        yield entry


async def heartbeat(folder: Path) -> None:
    """Renew the leases of the simulated nodes until cancelled: nobody else does it often enough for
    a cluster that takes a node for lost after 20 s.
    """
    file = folder / "leases.yaml"
    while True:
        leases = [
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": f"fake-{number}", "namespace": "kube-node-lease"},
                "spec": {
                    "holderIdentity": f"fake-{number}",
                    "leaseDurationSeconds": 40,
                    "renewTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                },
            }
            for number in range(NODES)
        ]
        file.write_text(yaml.safe_dump_all(leases))
        await asyncio.to_thread(_must, "apply", "--server-side", "--filename", str(file))
        await asyncio.sleep(4)


@asynccontextmanager
async def greylag(folder: Path, name: str, count: int, per_user: int) -> AsyncIterator[Fleet]:
    """Run `greylag up` under an account of its own, with simulated nodes and volumes."""
    prefix = f"{name}-"
    subprocess.run([str(CLUSTER), "fake-nodes", str(NODES)], check=True, timeout=180)  # noqa: S603, ASYNC221 - the cluster's own program, before anything else runs
    for number in range(NODES):
        # They say nothing of the storage that pods ask for beside their volumes.
        room = json.dumps({"status": {"allocatable": ROOM, "capacity": ROOM}})
        _must("patch", "node", f"fake-{number}", "--subresource=status", "--patch", room)
    beating = asyncio.create_task(heartbeat(folder), name="heartbeat")
    volumes = folder / "volumes.yaml"
    volumes.write_text(yaml.safe_dump_all(_volume(name, number) for number in range(count)))
    _must("create", "--filename", str(volumes))
    _must("create", "serviceaccount", name)
    binding = ("clusterrolebinding", name, "--clusterrole=cluster-admin")
    _must("create", *binding, f"--serviceaccount=default:{name}")
    users = [f"u{number}" for number in range(-(-count // per_user))]
    settings = {
        "KUBECONFIG": str(_kubeconfig(folder, name)),
        "KUBE_NAMESPACE_PREFIX": prefix,
        "ACR_IMAGE": "simulated:1",
        "GREYLAG_USERS": ",".join(users),
        "GREYLAG_ACTIVATION_TIMEOUT": str(PATIENCE),
        "GREYLAG_KUBE_PROBE": "false",
        "GREYLAG_KUBE_SERVICE_TYPE": "ClusterIP",
        "GREYLAG_KUBE_STORAGE_CLASS": name,
        "GREYLAG_KUBE_VOLUME_SIZE": "1Mi",
        "GREYLAG_KUBE_TOLERATIONS": json.dumps(FAKE),
        "GREYLAG_KUBE_NODE_SELECTOR": "type=kwok",
        "GREYLAG_KUBE_QUOTA_VOLUMES": str(per_user),
        "GREYLAG_KUBE_QUOTA_CPU_REQUESTS": str(2 * per_user),
        "GREYLAG_KUBE_QUOTA_CPU_LIMITS": str(2 * per_user),
        "GREYLAG_KUBE_QUOTA_MEMORY_REQUESTS": f"{2 * per_user}Gi",
        "GREYLAG_KUBE_QUOTA_MEMORY_LIMITS": f"{2 * per_user}Gi",
    }
    up = Product(folder, settings)
    try:
        await up.start()
        yield Fleet(up, prefix, users, count)
        assert not beating.done(), "the nodes were lost"
    finally:
        beating.cancel()
        await up.http.close()
        await up.end()
        remove_namespaces(prefix)
        kubectl("delete", "persistentvolume", "--selector", f"scale={name}", "--wait=false")
        kubectl("delete", "clusterrolebinding", name)
        kubectl("delete", "serviceaccount", name)
        kubectl("delete", "node", "--selector", "type=kwok")
        subprocess.run([str(CLUSTER), "stop", "kwok"], check=False, timeout=60)  # noqa: S603, ASYNC221 - as above


def _must(*arguments: str) -> str:
    done = kubectl(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _volume(name: str, number: int) -> dict[str, Any]:
    """Return a volume that any node may have: those of the cluster's own class are on one node."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{name}-{number}", "labels": {"scale": name}},
        "spec": {
            "capacity": {"storage": "1Mi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": name,
            "hostPath": {"path": f"/nowhere/{number}"},
        },
    }


def _kubeconfig(folder: Path, account: str) -> Path:
    given = yaml.safe_load(Path(cluster_environment()["KUBECONFIG"]).read_text())
    token = _must("create", "token", account, "--duration=2h").strip()
    given["users"] = [{"name": given["users"][0]["name"], "user": {"token": token}}]
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(given))
    return path


def tell(what: str, took: float, found: Counter[str], calls: Counter[str], fleet: Fleet) -> None:
    """Print one phase."""
    count = len(fleet.paths)
    watches = sum(number for name, number in calls.items() if name.startswith("watch "))
    asked = sum(calls.values()) - watches
    print(f"{what}: {took:.1f} s, {dict(found)}")
    print(f"  calls {asked} ({asked / count:.1f} each), watches opened {watches}")
    most = ", ".join(f"{name} {number}" for name, number in calls.most_common(12))
    print(f"  {most}; memory {fleet.megabytes():.0f} MB", flush=True)


async def by_kubectl(fleet: Fleet) -> float:
    """Return how long kubectl takes to scale all up and to wait until they are available.

    Greylag leaves them alone meanwhile: an inactive project is looked at when it is asked for.
    """

    def scaled(user: str) -> None:
        where = ("deployment", "--all", "--namespace", f"{fleet.prefix}{user}")
        _must("scale", *where, "--replicas=1")

    def waited(user: str) -> None:
        where = ("deployment", "--all", "--namespace", f"{fleet.prefix}{user}")
        _must("wait", *where, "--for=condition=Available", "--timeout=290s")

    began = time.monotonic()
    await asyncio.gather(*(asyncio.to_thread(scaled, user) for user in fleet.users))
    for user in fleet.users:
        await asyncio.to_thread(waited, user)
    return time.monotonic() - began


async def measure(count: int, per_user: int) -> None:
    """Create, activate, rest, deactivate; print what each cost."""
    name = f"scale-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as folder:
        async with greylag(Path(folder), name, count, per_user) as fleet:
            calls = Calls(name)
            print(f"at the start: memory {fleet.megabytes():.0f} MB", flush=True)
            for what, step, wanted in (
                ("created", fleet.make(), "inactive"),
                ("activated", fleet.ask("activate"), "active"),
                ("a minute of rest", asyncio.sleep(IDLE_SECONDS), "active"),
                ("deactivated", fleet.ask("deactivate"), "inactive"),
            ):
                calls.restart()
                began = time.monotonic()
                await step
                found = await fleet.reach(wanted)
                tell(what, time.monotonic() - began, found, calls.count(), fleet)
            print(f"kubectl, the same Deployments: {await by_kubectl(fleet):.1f} s", flush=True)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--projects", type=int, default=500)
    parser.add_argument("--per-user", type=int, default=20)
    given = parser.parse_args()
    asyncio.run(measure(given.projects, given.per_user))
    return 0


if __name__ == "__main__":
    sys.exit(main())
