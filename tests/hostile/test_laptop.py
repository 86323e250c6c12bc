"""A hostile agent on a laptop: each attack is a tool call of the real goose, in bubblewrap."""

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import structlog
from tests.agentd.conftest import serve
from tests.e2e.product import Event, Product, real_goose, types_of
from tests.hostile.attacks import ANSWER, COMMON, GIT_SECRET, ON_LAPTOP, Attack

import greylag
from greylag.agentd.model import scripted
from greylag.cluster.local.folders import Folder
from greylag.cluster.local.processes import is_alive
from greylag.cluster.local.sandbox import choose_sandbox

KEY = "sk-very-secret-key-of-the-provider"
NEVER = "greylag-was-here"
BUILD = Path(__file__).parents[2] / "build"
NO_BUBBLEWRAP = choose_sandbox("auto", hidden=(), needed=()).bwrap is None

pytestmark = [
    *real_goose,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(NO_BUBBLEWRAP, reason="NOT TESTED: bubblewrap does not work here"),
]


@dataclass
class Target:
    """A running Greylag with two environments, and all that an attacker could know of it."""

    up: Product
    path: str
    folder: Folder
    other: Folder
    start: Path

    def secrets(self) -> tuple[str, ...]:
        """Return what must never be printed."""
        records = [folder.read() for folder in (self.folder, self.other)]
        return (KEY, GIT_SECRET, "of-the-other", *(record.token for record in records if record))

    def agentd(self) -> int:
        """Return agentd's process id, on the host."""
        record = self.folder.read()
        assert record is not None
        assert record.process is not None
        assert is_alive(record.process)
        return record.process.pid

    def facts(self) -> dict[str, str]:
        """Return what fills in the words of an attack."""
        listening = json.loads((self.folder.volume / "state" / "listening.json").read_bytes())
        facts = {
            "agentd": self.agentd(),
            "agentd_port": listening["port"],
            "web": self.up.port,
            "python": sys.executable,
            "start": self.start,
            "data": self.up.data,
            "home": Path.home(),
            "folder": self.folder.path,
            "volume": self.folder.volume,
            "state": self.folder.volume / "state",
            "other": self.other.volume,
            "structlog": structlog.__file__,
            "greylag": greylag.__file__,
            "key_start": "sk-",
            "searched": f"{self.up.data} {self.start} {Path.home()} /tmp /run /var/tmp",
        }
        return {name: str(value) for name, value in facts.items()}

    async def tool(self, command: str) -> str:
        """Let the agent run a command; return what it printed."""
        events = await self.up.say(self.path, f"[[tool {command}]]")
        results = [one.content["result"] for one in events if one.type == "tool_response"]
        assert results, events
        return json.dumps(results)


@asynccontextmanager
async def target(url: str, **settings: str) -> AsyncIterator[Target]:
    """Run Greylag from a folder with a `.env`, with two active projects.

    It lies where nothing is hidden for another reason, as in a temporary folder.
    """
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        async with _target(Path(folder), url, settings) as one:
            yield one


@asynccontextmanager
async def _target(start: Path, url: str, settings: dict[str, str]) -> AsyncIterator[Target]:
    (start / ".env").write_text(f"GREYLAG_MODEL_KEY={KEY}\nGREYLAG_MODEL_URL={url}\n")
    (start / "notes").write_text(KEY)
    up = Product(start, {"GREYLAG_SANDBOX": "bubblewrap", **settings}, start_folder=start)
    try:
        await up.start()
        secret = {"value": GIT_SECRET, "host": "git.invalid"}
        assert (await up.call("PUT", "/api/users/me/secrets/git", secret))[0] < 300
        path = await up.project("mine")
        await up.project("other")
        by_name = {one.deployment: one for one in up.folders()}
        mine, other = by_name["mine-api"], by_name["other-api"]
        (other.volume / "workspace" / "secret").write_text("of-the-other")
        yield Target(up, path, mine, other, start)
    finally:
        await up.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider() -> AsyncIterator[str]:
    """Run the scripted model as a provider that has a key."""
    async with serve(scripted.app()) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(provider: str) -> AsyncIterator[Target]:
    """Give a Greylag whose environments have no network and whose tools need no confirmation."""
    settings = {
        "GREYLAG_SANDBOX_NETWORK": "strict",
        "GREYLAG_SANDBOX_MEMORY": "1GiB",
        "GOOSE_MODE": "auto",
    }
    async with target(provider, **settings) as one:
        yield one


@pytest.mark.parametrize(
    "attack", [*COMMON, *ON_LAPTOP], ids=lambda attack: attack.name.replace(" ", "-")
)
async def test_an_attack_is_refused(strict: Target, attack: Attack) -> None:
    agentd = strict.agentd()
    printed = await strict.tool(attack.command.format(**strict.facts()))
    assert re.search(attack.refusal, printed), printed
    assert not [secret for secret in strict.secrets() if secret in printed]
    assert strict.agentd() == agentd
    assert (await strict.up.call("GET", strict.path))[1]["status"] == "active"


async def test_what_a_tool_leaves_is_never_run_by_agentd(strict: Target) -> None:
    volume = strict.folder.volume
    code = f'open(\\"{volume}/home/{NEVER}\\", \\"a\\")'
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = f"home/.local/lib/{version}/site-packages"
    names = ("structlog.py", "usercustomize.py", "sitecustomize.py", "greylag/__init__.py")
    places = [f"{folder}/{name}" for folder in ("workspace", "home", "tmp", site) for name in names]
    written = "; ".join(
        f"mkdir -p $(dirname {volume}/{place}); echo '{code}' > {volume}/{place}"
        for place in places
    )
    # Where it may not write, it tries too.
    beside = "; ".join(f"cp workspace/structlog.py {volume}/{name}" for name in ("", "state/"))
    await strict.tool(f"{written}; cd ..; {beside}".replace('\\"', '"'))
    assert [place for place in places if not (volume / place).exists()] == []
    for verb in ("deactivate", "activate"):
        assert (await strict.up.call("POST", f"{strict.path}/{verb}"))[0] == 200
    assert "still here" in await strict.tool("echo still here")
    assert not (volume / "home" / NEVER).exists()


@pytest_asyncio.fixture(loop_scope="module")
async def asking(provider: str) -> AsyncIterator[Target]:
    """Give a Greylag whose tools ask first, and share the machine's network."""
    async with target(provider, GOOSE_MODE="approve") as one:
        yield one


async def test_a_tool_cannot_answer_its_own_confirmation(asking: Target) -> None:
    up, workspace = asking.up, asking.folder.volume / "workspace"
    (workspace / "attack.py").write_text(ANSWER)
    background = f"{sys.executable} -I attack.py >/dev/null 2>&1 & echo begun"
    first = await up.first(asking.path, "tool_confirmation", f"[[tool {background}]]")
    turn = str(first.id).rpartition("-")[0]
    await _decide(asking, turn, first, "allow_once")
    await up.rest_of(asking.path, turn)
    second = await up.first(asking.path, "tool_confirmation", "[[tool touch allowed]]")
    port = asking.facts()["agentd_port"]
    turn = str(second.id).rpartition("-")[0]
    url = f"http://127.0.0.1:{port}/api/v1/turns/{turn}/confirmations/{second.content['id']}"
    staged = workspace / "question.new"
    staged.write_text(json.dumps({"url": url}))
    staged.rename(workspace / "question")
    answers = workspace / "answers"
    async with asyncio.timeout(30):
        while not answers.exists():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.05)
    assert json.loads(answers.read_text()) == ["401"]
    assert not (workspace / "allowed").exists()
    await _decide(asking, turn, second, "reject_once")
    assert types_of(await up.rest_of(asking.path, turn))[-1] == "complete"
    assert not (workspace / "allowed").exists()


async def _decide(asking: Target, turn: str, asked: Event, decision: str) -> None:
    path = f"{asking.path}/turns/{turn}/confirmations/{asked.content['id']}"
    status, body = await asking.up.call("POST", path, {"decision": decision})
    assert status in {200, 204}, body
