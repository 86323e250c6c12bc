"""Fixtures of the contract suites."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.store_adapters import ADAPTERS, open_store

from greylag.ports import ProjectStore


@pytest.fixture(params=ADAPTERS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ProjectStore]:
    """Each store in turn, empty."""
    async with open_store(request.param, tmp_path) as opened:
        yield opened
