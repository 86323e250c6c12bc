"""agentd's start and end: what makes it end by itself."""

import asyncio
import shutil
from pathlib import Path

import pytest

from greylag.agentd import main
from greylag.agentd.records import Records


@pytest.mark.parametrize("moved", [False, True])
async def test_agentd_is_asked_to_end_once_its_volume_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, moved: bool
) -> None:
    monkeypatch.setattr(main, "_VOLUME_SECONDS", 0.0)
    state, stop = tmp_path / "state", asyncio.Event()
    records = await Records.open(state / "agentd.db")
    looking = asyncio.create_task(main.end_without_volume(records, stop))
    for _ in range(20):
        await records.execute("SELECT 1")
    assert not stop.is_set()
    if moved:
        state.rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(state)
    async with asyncio.timeout(10):
        await stop.wait()
        await looking
    await records.aclose()
