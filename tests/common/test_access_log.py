"""The line that each request has in the log."""

from typing import Any

from structlog.testing import capture_logs

from greylag.common.access_log import AccessLog


async def test_a_line_is_short_however_long_the_path_is() -> None:
    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})

    async def sent(_message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/files/" + "\N{REPLACEMENT CHARACTER}" * 8000,
    }
    with capture_logs() as logged:
        await AccessLog(refuse)({**scope, "headers": []}, None, sent)  # type: ignore[arg-type]

    (line,) = logged
    assert line["path"].startswith("/files/")
    assert len(line["path"]) == 200
    assert line["status"] == 401
