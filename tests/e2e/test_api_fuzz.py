"""The whole OpenAPI, fuzzed over the wire: no 500, and every error is a problem document."""

import asyncio
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import load_all_checks
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.transport import Response
from schemathesis.generation.hypothesis.builder import (
    HypothesisTestConfig,
    HypothesisTestMode,
    create_test,
)
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
)
from tests.harness import BEARER
from tests.services.house import House
from tests.web.server import ADA, served
from tests.web.server import settings as web_settings

from greylag.web.app import create_app

EXAMPLES = 40
# Streams that last as long as their project does: tested elsewhere, and here only where it is gone.
ENDLESS = ("/events", "/logs")
OF_THE_AGENT = ("/sessions", "/turns", "/agent", "/extensions", "/settings")
OF_THE_WORKSPACE = ("/files", "/changes", "/diff", "/undo", "/extensions/", "/settings/")
OF_PEOPLE = frozenset(
    {"/api/users", "/api/tokens", "/api/device-logins", "/api/device-logins/token"}
)
# These may take a project away: for each of their cases it is made again.
TAKING = ("/projects/{project}", "/hand-over")
REPLACED = (ParameterLocation.PATH, ParameterLocation.HEADER)


class Server(threading.Thread):
    """The web over memory adapters on a loop of its own, as schemathesis blocks; within a block
    that is given its address.
    """

    def __init__(self) -> None:
        super().__init__(name="web")
        self._ready = threading.Event()
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    def run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        house = House(activation_timeout=0.5)
        app = create_app(house.use_cases, web_settings())
        async with house.working(), served(app) as self._port:
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> str:
        self.start()
        assert self._ready.wait(30), "the server did not start"
        return f"http://127.0.0.1:{self._port}"

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self.join()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with Server() as found:
        yield found


def document() -> dict[str, Any]:
    """Return the OpenAPI document that the web serves."""
    app = create_app(House().use_cases, web_settings())
    headers = {"host": "127.0.0.1", **BEARER}
    loaded = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    return dict(loaded.raw_schema)


SCHEMA = schemathesis.openapi.from_dict(document())
OPERATIONS = [
    f"{method.upper()} {path}"
    for path, methods in SCHEMA.raw_schema["paths"].items()
    for method in methods
]
# What changes a user would take the user away from all other cases; it has tests of its own.
CHANGES_A_USER = ("PATCH /api/users/{user}", "DELETE /api/users/{user}")


def fuzz(operation: str, test: Callable[["schemathesis.Case[Any]"], None]) -> None:
    """Run a test, which has its ``settings``, with cases of the operation.

    They are made here, as ``SCHEMA.parametrize`` has each process that is to run some tests make
    those of all operations first, which takes longer than the tests themselves.
    """
    found = SCHEMA.find_operation_by_label(operation)
    assert found is not None
    load_all_checks()
    config = HypothesisTestConfig(project=SCHEMA.config, modes=list(HypothesisTestMode))
    create_test(operation=found, test_func=test, config=config)()


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one not in CHANGES_A_USER])
def test_nothing_makes_a_500_and_every_error_is_a_problem_document(
    operation: str, address: str
) -> None:
    there: set[str] = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def answered_well(case: "schemathesis.Case[Any]") -> None:
        told = case.meta.components if case.meta else {}
        aimed = all(told[one].mode.is_positive for one in REPLACED if one in told)
        if aimed:
            aim(case, address, there)
        answer = case.call(base_url=address, headers=BEARER, timeout=20)
        # Twenty wrong tokens are followed by 429, which is tested with the sign-in.
        without = [ignored_auth] if aimed else [ignored_auth, negative_data_rejection]
        if case.path in OF_PEOPLE or any(one in case.path for one in OF_THE_WORKSPACE):
            # Which paths, states and values may be is agentd's to say, which is not behind this
            # web. What may be of a user is the service's: the operator has no tokens, and who has
            # projects stays.
            without += [negative_data_rejection, positive_data_acceptance]
        case.validate_response(answer, headers=BEARER, excluded_checks=without)
        check_problem(answer)

    fuzz(operation, answered_well)


def aim(case: "schemathesis.Case[Any]", address: str, there: set[str]) -> None:
    """Let most cases meet a user and a project that exist, and none an endless stream.

    ``there`` is kept for an operation's cases: the projects that exist, and are awake if need be.
    """
    parameters = case.path_parameters
    if not parameters:
        return
    choice = zlib.crc32(repr((case.query, case.body, parameters)).encode(errors="replace"))
    if choice % 4 and "user" in parameters:
        parameters["user"] = "ada"
    if choice % 4 and "project" in parameters:
        if "notes" not in there or case.path.endswith(TAKING):
            wake(address, active=any(part in case.path for part in OF_THE_AGENT))
            there.add("notes")
        parameters["project"] = "notes"
    if case.path.endswith(ENDLESS):
        parameters["project"] = "gone"


def wake(address: str, *, active: bool) -> None:
    """Make the project, unless it is there, and activate it."""
    projects = f"{address}/api/users/ada/projects"
    body = {"name": "Notes", "project_id": "notes"}
    made = requests.post(projects, json=body, headers=BEARER, timeout=20)
    assert made.status_code in {201, 409}, made.text
    if active:
        requests.post(f"{projects}/notes/activate", headers=BEARER, timeout=20)


def check_problem(answer: Response) -> None:
    if answer.status_code < 400:
        return
    assert answer.headers["content-type"] == ["application/problem+json"], answer.headers
    body = answer.json()
    assert {"type", "title", "status", "code", "detail", "hint", "request_id"} <= set(body)
    assert body["status"] == answer.status_code
    assert ADA not in str(body.get("code"))
