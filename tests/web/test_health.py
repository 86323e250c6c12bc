"""What probes are told by a program that serves nothing else."""

import aiohttp
import pytest
from tests.web.server import served, site

from greylag.web.health import create_health_app

_OF_EACH_ANSWER = {"date", "x-request-id"}


async def _told(base: str, path: str) -> tuple[int, bytes, set[tuple[str, str]]]:
    headers = {"x-request-id": "probe"}
    async with aiohttp.ClientSession(base, headers=headers) as http, http.get(path) as answer:
        said = {(name.lower(), value) for name, value in answer.headers.items()}
        kept = {(name, value) for name, value in said if name not in _OF_EACH_ANSWER}
        body = await answer.read()
        return answer.status, body.replace(answer.headers["x-request-id"].encode(), b""), kept


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("away", [False, True])
async def test_probes_are_told_the_same_as_by_the_web(path: str, *, away: bool) -> None:
    async with site() as running:
        store = running.house.store
        async with served(create_health_app(store.ping)) as port:
            if away:
                await store.close()
            told = await _told(f"http://127.0.0.1:{port}", path)
            by_web = await _told(f"http://127.0.0.1:{running.port}", path)
    assert told == by_web
    assert told[0] == (503 if away and path == "/readyz" else 200)
