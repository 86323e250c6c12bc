"""What tests of the pages in a browser are given."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.browser.dropping import DroppingProxy
from tests.browser.person import CHROMIUM, Person, at_browser, chromium
from tests.web.server import Site, site

from greylag.common.concurrent import cancel_all


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name != "browser":
            continue
        item.add_marker("browser")
        item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
        if chromium() is None:
            reason = "NO BROWSER WAS TESTED: install Chromium or set GREYLAG_TEST_CHROMIUM"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    CHROMIUM.suspected |= report.failed


@pytest_asyncio.fixture(scope="session", loop_scope="session", autouse=True)
async def kept_browser() -> AsyncIterator[None]:
    async with CHROMIUM.kept():
        yield


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def over(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """End a test that its time-out has broken off: the loop goes on with it."""
    yield
    name = request.node.originalname
    tasks = asyncio.all_tasks()
    await cancel_all(one for one in tasks if getattr(one.get_coro(), "__name__", "") == name)


@pytest_asyncio.fixture(loop_scope="session")
async def running() -> AsyncIterator[Site]:
    async with site() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def proxy(running: Site) -> AsyncIterator[DroppingProxy]:
    async with DroppingProxy(running.port).running() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def person(proxy: DroppingProxy) -> AsyncIterator[Person]:
    async with at_browser(proxy.address) as one:
        yield one
