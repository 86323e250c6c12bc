"""Credentials from a program that the kubeconfig names (`aws eks get-token`, `kubelogin`, ...).

The protocol is https://kubernetes.io/docs/reference/config-api/client-authentication.v1/.
"""

import asyncio
import json
import os
import signal
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from greylag.cluster.kubernetes.credentials import bearer
from greylag.cluster.kubernetes.tls import load_identity
from greylag.domain.errors import ClusterUnavailableError

API_VERSIONS = frozenset(
    {"client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"}
)
RUN_SECONDS = 20.0
"""Less than a call may take, so that it is the program that is named when it hangs."""

RENEW_BEFORE = timedelta(seconds=10)
_LONGEST = 1024 * 1024
_END_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. ``env`` is added to our own; ``cluster`` is told to it, if it asked for that."""

    api_version: str
    command: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cluster: Mapping[str, Any] | None = None


class ExecPlugin:
    """Runs the program when credentials are needed and the last ones have ended or were refused.

    A client certificate that it gives goes into ``context`` and counts for new connections.
    """

    def __init__(
        self,
        program: Program,
        context: ssl.SSLContext | None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._program = program
        self._context = context
        self._now = now
        self._one_at_a_time = asyncio.Lock()
        self._headers: Mapping[str, str] | None = None
        self._ends: datetime | None = None

    async def headers(self) -> Mapping[str, str]:
        """Return the token's header, none when the program gives a certificate only."""
        async with self._one_at_a_time:
            ended = self._ends is not None and self._now() >= self._ends - RENEW_BEFORE
            if self._headers is None or ended:
                self._headers = await self._renewed()
            return self._headers

    def refused(self, headers: Mapping[str, str]) -> bool:
        """Run the program again next time."""
        if headers is self._headers:
            self._headers = None
        return True

    async def _renewed(self) -> Mapping[str, str]:
        answer = await self._run()
        try:
            status = json.loads(answer)["status"]
            token = str(status.get("token") or "")
            certificate, key = status.get("clientCertificateData"), status.get("clientKeyData")
            ends = status.get("expirationTimestamp")
            headers = bearer(token)
            self._ends = _moment(ends) if ends else None
            if certificate and key and self._context is not None:
                await asyncio.to_thread(load_identity, self._context, certificate, key)
            elif not token:
                raise self._failed("gave neither a token nor a certificate")
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            # Not chained: the answer, and so the cause's words, may hold the token.
            raise self._failed("gave no credentials in the form that it must") from None
        return headers

    async def _run(self) -> bytes:
        spec: dict[str, Any] = {"interactive": False}
        if self._program.cluster is not None:
            spec["cluster"] = self._program.cluster
        asked = {"apiVersion": self._program.api_version, "kind": "ExecCredential", "spec": spec}
        env = {**os.environ, **self._program.env, "KUBERNETES_EXEC_INFO": json.dumps(asked)}
        try:
            process = await asyncio.create_subprocess_exec(
                self._program.command,
                *self._program.args,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise self._failed("cannot be started") from error
        try:
            async with asyncio.timeout(RUN_SECONDS):
                answer = await _said(process.stdout)
                if len(answer) > _LONGEST:
                    raise self._failed("said far more than credentials")
                await process.wait()
        except TimeoutError as error:
            raise self._failed(f"did not end in {RUN_SECONDS:g} seconds") from error
        finally:
            await _end(process)
        if process.returncode:
            raise self._failed(f"ended with the exit code {process.returncode}")
        return answer

    def _failed(self, how: str) -> ClusterUnavailableError:
        return ClusterUnavailableError(
            f"The kubeconfig's credential program {self._program.command} {how}.",
            hint="Run it by hand, or `kubectl get namespaces`, to see what it says.",
        )


async def _said(stream: asyncio.StreamReader | None) -> bytes:
    """Return all that it says, or a little more than ``_LONGEST`` bytes of it."""
    if stream is None:
        return b""
    try:
        return await stream.readexactly(_LONGEST + 1)
    except asyncio.IncompleteReadError as error:
        return error.partial


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of it, and of what it started, which may hold its answer open."""
    if process.stdout is None or (process.returncode is not None and process.stdout.at_eof()):
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A child in a group of its own may hold the pipe for ever.
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            # asyncio tells its end only when all that it said has been read.
            while await process.stdout.read(_LONGEST):
                pass
            await process.wait()


def _moment(text: str) -> datetime:
    """Return what RFC 3339 text tells; ``ValueError`` for a time without its zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return moment
