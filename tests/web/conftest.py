"""What tests of the web are given."""

from collections.abc import AsyncIterator

import pytest
from tests.web.server import Site, site


@pytest.fixture
async def running() -> AsyncIterator[Site]:
    """Run the web with everything that has a default, and nothing in it."""
    async with site() as one:
        yield one
