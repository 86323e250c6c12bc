"""What Lighthouse says of the pages, as a laptop and as a phone see them: `make lighthouse`.

By hand: it fetches Lighthouse by npx. Its runs are in a browser that is signed in, as theirs clear
cookies or send them with some requests only.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from benchmarks.support import bearer, console, greylag_up
from playwright.async_api import BrowserContext, async_playwright
from tests.browser.person import chromium
from tests.e2e.product import PROJECTS
from tests.ports import free_port

LIGHTHOUSE = "lighthouse@13.5.0"
LEAST = 0.95
_TRIES = 4  # on a busy machine it misses the beginning of a page's trace
_FORMS = {"desktop": ("--preset=desktop",), "mobile": ()}


async def judged(port: int, url: str, form: str, reports: Path) -> Mapping[str, float]:
    """Return the scores of one page by category, and print what it lost points for."""
    report = reports / f"{form}-{abs(hash(url))}.json"
    command = ("npx", "--yes", LIGHTHOUSE, url, f"--port={port}", "--disable-storage-reset")
    output = ("--quiet", "--output=json", f"--output-path={report}")
    for _ in range(_TRIES):
        process = await asyncio.create_subprocess_exec(*command, *output, *_FORMS[form])
        if await process.wait() == 0:
            break
    else:
        raise RuntimeError(f"Lighthouse failed at {url}.")
    told = json.loads(report.read_text())
    for category in told["categories"].values():
        for each in category["auditRefs"]:
            audit = told["audits"][each["id"]]
            if each["weight"] and audit["score"] is not None and audit["score"] < LEAST:
                shown = audit.get("displayValue", "")
                console.print(f"  {category['id']}: {audit['title']} {audit['score']} {shown}")
    return {name: one["score"] or 0.0 for name, one in told["categories"].items()}


async def browse(context: BrowserContext, port: int, address: str, data: Path) -> None:
    """Judge each page in each form."""
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder)

        async def row(name: str, path: str) -> None:
            for form in _FORMS:
                scores = await judged(port, address + path, form, reports)
                shown = ", ".join(f"{one} {score * 100:.0f}" for one, score in scores.items())
                console.print(f"{name}, {form}: {shown}")

        await row("sign-in", "/sign-in")
        token = (data / "token").read_text().strip()
        await context.request.post(f"{address}/sign-in", form={"token": token})
        await row("no projects", "/users/me")
        page = "/users/me/projects/judged"
        async with aiohttp.ClientSession(address, headers=bearer(data)) as http:
            about = {"name": "Judged", "project_id": "judged"}
            for path, body in ((PROJECTS, about), (f"{PROJECTS}/judged/activate", None)):
                async with http.post(path, json=body) as answer:
                    answer.raise_for_status()
            await row("list", "/users/me")
            await row("project, ready", page)
            async with http.post(f"{PROJECTS}/judged/deactivate") as answer:
                answer.raise_for_status()
            await row("project, asleep", page)
            async with http.delete(f"{PROJECTS}/judged") as answer:
                answer.raise_for_status()


async def main() -> None:
    """Judge all pages of a Greylag of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        async with greylag_up(data) as (_, address), async_playwright() as playwright:
            context = await playwright.chromium.launch_persistent_context(
                Path(folder) / "browser",
                executable_path=chromium(),
                args=[f"--remote-debugging-port={port}", "--no-sandbox", "--disable-gpu"],
            )
            await browse(context, port, address, data)
            await context.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
