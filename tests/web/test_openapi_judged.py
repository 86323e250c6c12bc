"""The OpenAPI document before judges that nobody here wrote: redocly and spectral, without a word.

schemathesis holds the web to it: tests/e2e/test_api_fuzz.py.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.web.server import settings, site

PROGRAMS = Path(__file__).parents[2] / "build" / "judges" / "node_modules" / ".bin"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PROGRAMS / "redocly").exists(),
        reason="THE OPENAPI DOCUMENT WAS NOT JUDGED: run tools/setup.sh dev where npm is",
    ),
]


def judged(folder: Path, program: str, *words: str) -> Any:
    """Return what a judge says of the document in ``folder``, as JSON."""
    named = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    quiet = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    done = subprocess.run(  # noqa: S603 - fixed words and paths of our own
        [PROGRAMS / program, "lint", "openapi.json", "--format=json", *words],
        cwd=folder,
        env=named | quiet,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout[done.stdout.index("{" if program == "redocly" else "[") :])


@pytest.mark.parametrize(
    "given", [{"root_path": "/tools/greylag"}, {"auth": "none"}], ids=["token", "open"]
)
async def test_the_document_is_clean(tmp_path: Path, given: dict[str, Any]) -> None:
    async with site(settings(**given)) as one, one.http.get("/openapi.json") as answer:
        document = await answer.json()
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / ".spectral.yaml").write_text("extends: [spectral:oas]\n")
    assert judged(tmp_path, "spectral", "--quiet") == []
    found = judged(tmp_path, "redocly")
    assert [(one["ruleId"], one["message"], one["location"]) for one in found["problems"]] == []


def test_the_judges_do_judge(tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text('{"openapi": "3.1.0", "paths": {}}')
    (tmp_path / ".spectral.yaml").write_text("extends: [spectral:oas]\n")
    assert judged(tmp_path, "spectral", "--quiet")
    assert judged(tmp_path, "redocly")["problems"]
