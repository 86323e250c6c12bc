"""Who Greylag is to the API server, and TLS towards it.

A program that a kubeconfig names (``aws eks get-token``, ``kubelogin``, ...) is asked by the
protocol https://kubernetes.io/docs/reference/config-api/client-authentication.v1/. A client
certificate needs no header: it goes into the TLS context.
"""

import asyncio
import base64
import json
import os
import signal
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from greylag.common.clock import parse_rfc3339
from greylag.common.net import beginning
from greylag.domain.errors import ClusterUnavailableError

REREAD_SECONDS = 60.0
"""Kubernetes renews a pod's token long before it ends, so a minute old is new enough."""

API_VERSIONS = frozenset(
    {"client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"}
)
RUN_SECONDS = 20.0
"""Less than a call may take, so that it is the program that is named when it hangs."""

RENEW_BEFORE = timedelta(seconds=10)
LEAST = timedelta(seconds=10)
"""How long credentials are used, unless they are refused: by a clock of ours that is wrong they may
have ended before they came, and the program would run for each call."""
_LONGEST = 1024 * 1024
_END_SECONDS = 2.0
# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH
_OTHER_NAME = frozenset({62, 64})


class Credentials(Protocol):
    """Gives each request its credentials. Never prints them.

    Attributes:
        context: shows the client certificate that they are, where they are one.
    """

    context: ssl.SSLContext | None

    async def headers(self) -> Mapping[str, str]:
        """Return the headers to send. ``ClusterUnavailableError`` when there are none just now."""

    def refused(self, headers: Mapping[str, str]) -> bool:
        """Tell whether there may be better ones than these, which the API server did not take.

        ``headers`` is the very object that ``headers`` returned: only if these are still the ones
        in use are they forgotten, as others may have been refused at the same time.
        """


class Token:
    """A token that stays as it is; an empty one sends nothing. ``ValueError`` as ``bearer``."""

    context: ssl.SSLContext | None = None

    def __init__(self, token: str) -> None:
        self._headers = bearer(token)

    async def headers(self) -> Mapping[str, str]:
        """Return the token's header."""
        return self._headers

    def refused(self, headers: Mapping[str, str]) -> bool:  # noqa: ARG002 - there is one only
        """Tell that there is no other."""
        return False


class TokenFile:
    """A token in a file that Kubernetes renews."""

    context: ssl.SSLContext | None = None

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._headers: Mapping[str, str] = {}
        self._read_at: float | None = None

    async def headers(self) -> Mapping[str, str]:
        """Return the token's header; the file is read again once a minute."""
        if self._read_at is None or self._now() - self._read_at >= REREAD_SECONDS:
            try:
                token = await asyncio.to_thread(self._path.read_text)
                headers = bearer(token.strip())
            except (OSError, ValueError) as error:
                message = f"The token file {self._path} cannot be read."
                raise ClusterUnavailableError(message) from error
            if not headers:
                raise ClusterUnavailableError(f"The token file {self._path} is empty.")
            self._headers, self._read_at = headers, self._now()
        return self._headers

    def refused(self, headers: Mapping[str, str]) -> bool:
        """Read the file again next time: it may have been renewed."""
        if headers is self._headers:
            self._read_at = None
        return True


@dataclass(frozen=True, slots=True)
class ExecConfig:
    """What to run. ``env`` is added to our own; ``cluster`` is told to it, if it asked for that."""

    api_version: str
    command: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cluster: Mapping[str, Any] | None = None


class ExecPlugin:
    """Runs the program when credentials are needed and the last ones have ended or were refused.

    Args:
        program: what to run.
        trusting: makes a context that trusts what the API server's certificate comes from; ``None``
            where it is reached without TLS.

    Attributes:
        context: shows the client certificate that it gave last, if it has given one. Each has a
            context of its own: no connection that shows one of before is used any more.
    """

    def __init__(
        self,
        program: ExecConfig,
        trusting: Callable[[], ssl.SSLContext] | None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._program = program
        self._trusting = trusting
        self.context: ssl.SSLContext | None = None
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
            least = self._now() + RENEW_BEFORE + LEAST
            self._ends = max(parse_rfc3339(ends), least) if ends else None
            if certificate and key and self._trusting is not None:
                context = await asyncio.to_thread(self._trusting)
                await asyncio.to_thread(load_identity, context, certificate, key)
                self.context = context
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
                assert process.stdout is not None  # noqa: S101 - a pipe was asked for; tells mypy so
                answer = await beginning(process.stdout, _LONGEST + 1)
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


def bearer(token: str) -> Mapping[str, str]:
    """Return the header that carries ``token``, none for "".

    Raises:
        ValueError: it cannot be a token (RFC 6750), as a header could not carry it.
    """
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("a token has no blanks, line breaks or signs beyond ASCII")
    return {"Authorization": f"Bearer {token}"} if token else {}


def pem_of(raw: bytes) -> str | None:
    """Return ``raw`` as PEM, ``None`` when it is something else."""
    # Between the blocks there may be remarks in any language, which OpenSSL passes over.
    text = raw.decode("ascii", "ignore")
    return text if "-----BEGIN" in text else None


def of_base64(text: str) -> bytes:
    """Return what ``text`` holds in base64 (line breaks allowed); ``ValueError`` for other text."""
    return base64.b64decode("".join(text.split()), validate=True)


def pem_of_base64(text: str) -> str | None:
    """Return the PEM that ``text`` holds in base64 (line breaks allowed), ``None`` for none."""
    try:
        return pem_of(of_base64(text))
    except ValueError:
        return None


def client_context(ca: str | None, *, verify: bool = True) -> ssl.SSLContext:
    """Return a context that trusts ``ca`` (PEM), or the system's authorities when it is ``None``.

    Raises:
        ValueError, ssl.SSLError: ``ca`` holds no certificate.
    """
    context = ssl.create_default_context(cadata=ca)
    # Python 3.13 began to demand extensions that the authorities of many clusters lack.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def load_identity(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Make new connections of ``context`` show this client certificate (PEM, as is the key).

    Raises:
        ssl.SSLError: the two are not a pair, or the key is locked by a password.
    """
    # OpenSSL takes them from files only; these are ours alone and gone at once.
    with tempfile.TemporaryDirectory(prefix="greylag-") as folder:
        certificate_file, key_file = Path(folder, "crt"), Path(folder, "key")
        certificate_file.write_text(certificate)
        key_file.write_text(key)
        # Without `password` OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate_file, key_file, password="")


def is_other_name(error: aiohttp.ClientSSLError) -> bool:
    """Tell whether the certificate is sound, but that of another name or address."""
    return getattr(error.os_error, "verify_code", 0) in _OTHER_NAME


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
