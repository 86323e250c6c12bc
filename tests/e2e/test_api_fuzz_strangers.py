"""The whole OpenAPI, asked by somebody who has nothing to do with ada: nothing of hers is told.

Three requests of each operation in the suite; with ``GREYLAG_FUZZ_EXAMPLES=50`` over 2,000 in all.
"""

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
import requests
from hypothesis import HealthCheck, Phase, settings
from tests.e2e.test_api_fuzz import ENDLESS, OPERATIONS, Server, check_problem, fuzz
from tests.harness import BEARER

from greylag.common import sse
from greylag.domain.users import Scope

if TYPE_CHECKING:
    from schemathesis import Case

EXAMPLES = int(os.environ.get("GREYLAG_FUZZ_EXAMPLES", "3"))
PHASES = [Phase.generate] if EXAMPLES < 10 else [Phase.explicit, Phase.generate]
MALLORY = "/api/users/mallory/projects"
ADA = "/api/users/ada/projects"
SECRET = f"{ADA}/canary-project"


@dataclass
class Site:
    """A site of two people; ``ids`` are ada's, and no answer to mallory may hold a canary."""

    address: str
    ids: dict[str, str] = field(default_factory=dict)
    canaries: set[str] = field(default_factory=set)
    asked: int = 0

    def ask(self, method: str, path: str, body: Any = None) -> requests.Response:
        answer = requests.request(
            method, self.address + path, json=body, headers=BEARER, timeout=60
        )
        assert answer.ok, answer.text
        return answer

    def token(self, user: str, name: str) -> dict[str, Any]:
        new = {"name": name, "scopes": list(Scope), "expires_in_days": 1, "user": user}
        made: dict[str, Any] = self.ask("POST", "/api/tokens", new).json()
        return made

    def plant(self) -> None:
        """Let ada have one of everything, each with what must not get out."""
        self.ask("PATCH", "/api/users/ada", {"display_name": "Canary Ada", "email": "canary@x.y"})
        body = {"name": "Canary name", "project_id": "canary-project", "metadata": {"a": "Canary"}}
        self.ask("POST", ADA, body)
        self.ask("POST", f"{SECRET}/activate")
        said = self.ask("POST", f"{SECRET}/messages", {"message": "Canary message"}).content
        frame = sse.parse(next(iter(sse.FrameSplitter().feed(said))))
        assert frame is not None
        turn = json.loads(frame.data)["content"]
        token = self.token("ada", "Canary token")
        self.ids = {
            "user": "ada",
            "project": "canary-project",
            "session": turn["session_id"],
            "turn": turn["turn_id"],
            "token": token["id"],
            "login": token["id"],
        }
        self.canaries = {"canary", token["token"], *(set(self.ids.values()) - {"ada"})}

    def of_ada(self) -> list[Any]:
        """Return all of hers that somebody could have changed."""
        paths = (
            "/api/users/ada",
            "/api/tokens?user=ada",
            ADA,
            f"{SECRET}/members",
            f"{SECRET}/sessions",
            f"{SECRET}/sessions/{self.ids['session']}/messages",
            f"{SECRET}/settings",
        )
        return [self.ask("GET", path).json() for path in paths]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Server() as address:
        one = Site(address)
        one.plant()
        before = one.of_ada()
        yield one
        assert one.of_ada() == before
        print(f"{one.asked} requests")  # noqa: T201 - the figure of a whole run


@pytest.fixture(scope="module")
def mallory(site: Site) -> Iterator[requests.Session]:
    """Return what asks by the token of somebody who has a project of their own, whatever a case
    says of who asks.
    """
    site.ask("POST", "/api/users", {"id": "mallory", "display_name": "Mallory"})
    made = site.token("mallory", "mine")
    site.ask("POST", MALLORY, {"name": "Mine", "project_id": "mine"})
    site.ask("POST", f"{MALLORY}/mine/activate")

    def signed(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["authorization"] = f"Bearer {made['token']}"
        return request

    with requests.Session() as session:
        session.auth = signed
        yield session


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stranger_learns_and_changes_nothing(
    operation: str, site: Site, mallory: requests.Session
) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    def told_nothing(case: "Case[Any]") -> None:
        aim(case, site)
        answer = case.call(base_url=site.address, session=mallory, timeout=20)
        site.asked += 1
        assert answer.status_code != 500, answer.text
        check_problem(answer)
        user = case.path_parameters.get("user")
        if user is not None and user != "mallory":
            assert answer.status_code in {404, 405, 422}, (case.method, case.path, answer.text)
        asked = unquote(f"{answer.request.url} {answer.request.body!r}").lower()
        told = f"{answer.text} {answer.headers}".lower()
        leaked = {one for one in site.canaries if one.lower() in told and one.lower() not in asked}
        assert not leaked, (case.method, case.path, told)

    fuzz(operation, told_nothing)


def aim(case: "Case[Any]", site: Site) -> None:
    """Let half of the cases name what is ada's, a quarter mallory's own, and none an endless
    stream.
    """
    given = case.path_parameters
    choice = zlib.crc32(repr((case.query, case.body, given)).encode(errors="replace")) % 4
    if choice < 2:
        given |= {name: site.ids[name] for name in given if name in site.ids}
    elif choice == 2:
        mine = {"user": "mallory", "project": "mine"}
        given |= {name: mine[name] for name in given if name in mine}
        if case.path.endswith(ENDLESS):
            given["project"] = "gone"
    if "user" in (case.query or {}) and choice < 2:
        case.query["user"] = "ada"
    if case.path == "/api/tokens" and isinstance(case.body, dict) and choice < 2:
        case.body["user"] = "ada"
