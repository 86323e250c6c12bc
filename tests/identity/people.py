"""A certified provider of OpenID Connect in a process of its own, and people who sign in at it."""

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from greylag.common.clock import SystemClock

PROGRAM = Path(__file__).parent / "provider" / "provider.mjs"
INSTALLED = Path(__file__).parents[2] / "build" / "provider"
CLIENT, SECRET = "greylag", "a secret+of the/client"
PEOPLE: dict[str, dict[str, Any]] = {
    "ada": {
        "name": "Ada Lovelace",
        "email": "ada@example.org",
        "email_verified": True,
        "groups": ["staff", "admins"],
    },
    "bob": {
        "name": "Bob",
        "email": "bob@other.example",
        "email_verified": False,
        "groups": ["guests"],
    },
}
needs_provider = pytest.mark.skipif(
    not (INSTALLED / "node_modules").exists() or shutil.which("node") is None,
    reason="NO SIGN-IN AT A PROVIDER WAS TESTED: run tools/setup.sh dev where node and npm are",
)


class ShiftedClock(SystemClock):
    """The machine's clock, as far ahead as a test says."""

    ahead = 0.0

    def now(self) -> datetime:
        """Return the time, moved."""
        return super().now() + timedelta(seconds=self.ahead)

    def monotonic(self) -> float:
        """Return seconds that never go back, moved."""
        return super().monotonic() + self.ahead


@dataclass(frozen=True, slots=True)
class Provider:
    """A running provider, which does what it is told."""

    process: "subprocess.Popen[str]"
    issuer: str

    def tell(self, op: str, **given: Any) -> None:
        """Have an order carried out: ``set``, ``rotate``, ``down`` or ``up``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"op": op, **given}) + "\n")
        self.process.stdin.flush()
        assert json.loads(self.process.stdout.readline())["issuer"] == self.issuer

    def know(self, *bases: str, **given: Any) -> None:
        """Take the site at these addresses for the client; all that was set before is forgotten."""
        client = {
            "client_id": CLIENT,
            "client_secret": SECRET,
            "redirect_uris": [f"{base}/auth/callback" for base in bases],
            "post_logout_redirect_uris": [f"{base}/sign-in" for base in bases],
            "backchannel_logout_uri": f"{bases[0]}/auth/back-channel-logout",
            "backchannel_logout_session_required": True,
            **given.pop("client", {}),
        }
        plain = {"people": PEOPLE, "thin": False, "forge": None}
        self.tell("set", **{"clients": [client], **plain, **given})


@contextmanager
def running_provider() -> Iterator[Provider]:
    """Run a provider; it ends with its standard input, so also with a test run that was killed."""
    # Beside what it imports, whole at any moment: other test processes may start theirs now.
    program = INSTALLED / PROGRAM.name
    copy = program.with_name(f"{program.name}.{os.getpid()}")
    copy.write_bytes(PROGRAM.read_bytes())
    copy.replace(program)
    with subprocess.Popen(  # noqa: S603 - a fixed program of ours
        [str(shutil.which("node")), program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        issuer = json.loads(process.stdout.readline())["issuer"]
        try:
            yield Provider(process, issuer)
        finally:
            process.stdin.close()


@asynccontextmanager
async def visitor(base: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a client that keeps cookies as a browser does."""
    jar = aiohttp.CookieJar(unsafe=True)
    headers = {"accept": "text/html"}
    async with aiohttp.ClientSession(base, cookie_jar=jar, headers=headers) as http:
        yield http


async def sign_in_at(http: aiohttp.ClientSession, address: str, login: str) -> URL:
    """Sign in at the provider, and return the address to which it then sends the browser.

    Whoever has signed in there before is not asked again.

    ``login`` is empty for somebody who thinks better of it.
    """
    method, form, url = "GET", None, URL(address, encoded=True)
    while not url.path.endswith("/auth/callback"):
        async with http.request(method, url, data=form, allow_redirects=False) as answer:
            assert answer.status < 400, await answer.text()
            if (to := answer.headers.get("location")) is not None:
                method, form, url = "GET", None, answer.url.join(URL(to, encoded=True))
            else:
                assert "<title>Provider</title>" in await answer.text()
                method, form, url = "POST", {"login": login}, answer.url
    return url
