"""What holds for every test."""

import asyncio
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import structlog
import uvloop
from hypothesis import settings
from tests.identity.people import Provider, running_provider

from greylag.common.loading import loading

CLUSTER_SECONDS = 420
# Whose subjects run in the tests' own process, and are parts of web, worker or agentd.
ON_UVLOOP = {
    *("agent", "agentd", "cluster", "common", "contract", "delivery", "identity", "reconcile"),
    *("services", "store", "web", "test_clusters.py", "test_programs.py", "test_wiring.py"),
}

# No test depends on how quick the machine is.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Its own way of telling a stack takes a second and more on a busy machine, in which a test's event
# loop does nothing else.
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback

# Started in the background of a script, this process may have inherited an ignored SIGINT, and
# programs that tests start would inherit it too; Ctrl-C tests need the ordinary state.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """All tests and what they import stay: nobody goes through them for garbage again and again."""
    with loading():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give cluster tests time: the first one may have to start the cluster and make the image."""
    for item in items:
        if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(CLUSTER_SECONDS))


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run a test on the loop that its subject has: a closed connection, say, refuses a write on one
    and drops it on the other. execd, the command line and serverless functions have Python's own.
    """
    place = item.path.relative_to(Path(__file__).parent).parts[0]
    if place in ON_UVLOOP and item.get_closest_marker("python_loop") is None:
        return {"uvloop": uvloop.new_event_loop}
    return {"python": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    """Give an OpenID Connect provider; a test tells it first whom it knows (``know``)."""
    with running_provider() as one:
        yield one
