"""What holds for every test."""

import signal
from collections.abc import Generator, Iterator

import pytest
import structlog
from hypothesis import settings
from tests.identity.people import Provider, running_provider

from greylag.common.loading import loading

CLUSTER_SECONDS = 420

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


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    """Give an OpenID Connect provider; a test tells it first whom it knows (``know``)."""
    with running_provider() as one:
        yield one
