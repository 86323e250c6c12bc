"""git as a command in the environment: run as the workspace's user, bounded, and its words read.

The workspace's own configuration and hooks count, as they do for whoever types ``git`` there, and
may do no more than that person may. So nothing that comes back is believed to be more than bytes.
"""

import asyncio
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from greylag.agentd.agent.types import AgentSetup, base_environment
from greylag.agentd.execution import (
    Execution,
    ExecutionError,
    ExecutionRefusedError,
    RemoteOutput,
    RemoteProcess,
)
from greylag.agentd.problems import RequestError
from greylag.common.concurrent import beside
from greylag.common.git import CAUSES

_READ = 64 * 1024
_MOST_OUTPUT = 1024 * 1024
_MOST_WORDS = 16 * 1024
_LONGEST_LINE = 300
_FIXED = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "GIT_EDITOR": ":",
    "GIT_ALLOW_PROTOCOL": "http:https",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
    "SSH_ASKPASS": "",
}
# It begins with a text, not with a class such as \w+: that would be gone through from each letter
# of a long word, and whoever writes the workspace's configuration chooses how long one is.
_CREDENTIALS = re.compile(r"://[^/\s@]*@")

# What git says, in the order in which it is looked for: the relay speaks the same words.
_SAYINGS: Sequence[tuple[str, str, str]] = (
    (r"No space left|Disk quota exceeded|file write error", "git_no_space", "The disk is full."),
    (r"Could not resolve (?:host|proxy)", "git_host_unknown", "The host is not known."),
    (
        r"SSL certificate|certificate verif|server verification failed|self.signed certificate",
        "git_untrusted",
        "The host's certificate is not trusted.",
    ),
    (
        r"Operation too slow|timed out|error: 504|Operation timed out",
        "git_timeout",
        "The host did not answer in time.",
    ),
    (
        (
            r"Failed to connect|Couldn't connect|Connection refused|Empty reply|error: 5\d\d"
            r"|Connection reset|early EOF|unexpected disconnect|hung up unexpectedly"
        ),
        "git_refused",
        "The host cannot be reached, or broke off.",
    ),
    (
        r"could not read Username",
        "git_denied",
        "The host asks who it is, and the project's owner has no secret for it.",
    ),
    (
        (
            r"Authentication failed|could not read Password"
            r"|error: 40[13]|refuses the secret|redirects to|[Pp]ermission .*denied"
            r"|There is no secret"
        ),
        "git_denied",
        "The host does not allow it.",
    ),
    (
        (
            r"Remote branch \S+ not found|couldn't find remote ref|not our ref|unadvertised object"
            r"|reference is not a tree|unable to read tree|upload-pack: not our"
        ),
        "git_ref_missing",
        "The repository has no such branch, tag or commit.",
    ),
    (
        (
            r"repository '.*' not found|error: 404|not valid: is this a git repository"
            r"|does not appear to be a git"
        ),
        "git_not_found",
        "There is no such repository, or it is not yours to see.",
    ),
    (
        r"\[rejected\]|\[remote rejected\]|fetch first|non-fast-forward",
        "git_rejected",
        "The host did not take it.",
    ),
    (r"not a git repository", "git_no_repository", "The workspace is no git repository."),
)


@dataclass(frozen=True, slots=True)
class GitAnswer:
    """What a command said.

    Attributes:
        code: its exit code.
        out: the beginning of its output.
        whole: whether that is all of it.
        words: the last of what it told people.
    """

    code: int
    out: bytes
    whole: bool
    words: str

    @property
    def lines(self) -> list[str]:
        """Its output, line by line; what else Unicode takes for a line's end may be in a name."""
        text = self.out.decode("utf-8", "replace").removesuffix("\n")
        return text.split("\n") if text else []


class GitCommands:
    """Runs git in the workspace.

    Args:
        execution: the way to execd.
        setup: the folders of the other side.

    Attributes:
        relay: the address by which git reaches the relay; people are shown the host's own.
    """

    def __init__(self, execution: Execution, setup: AgentSetup) -> None:
        self.relay = ""
        self._execution = execution
        self._setup = setup

    async def run(
        self,
        *args: str,
        folder: str = "",
        stdin: bytes = b"",
        seconds: float = 60.0,
        heard: Callable[[str], None] | None = None,
        literal: bool = True,
    ) -> GitAnswer:
        """Run git to its end.

        Args:
            args: what follows ``git``.
            folder: below the workspace.
            stdin: what it is given.
            seconds: that it may take.
            heard: is given the last of what it told people, whenever it tells more.
            literal: whether paths mean what they say, and no pattern.

        Raises:
            RequestError: git cannot be run (``git_not_installed``, ``agent_unavailable``), or takes
                too long (``git_timeout``).
        """
        setup = self._setup
        env = {
            **base_environment(setup, os.environ),
            # What lies around the workspace is no repository of its.
            "GIT_CEILING_DIRECTORIES": str(setup.workspace.parent),
            **_FIXED,
            "GIT_LITERAL_PATHSPECS": str(int(literal)),
        }
        try:
            await self._execution.make_folders(setup.folders)
            process = await self._execution.run(
                ("git", *args),
                env=env,
                cwd=setup.workspace / Path(folder),
                group=secrets.token_hex(8),
            )
            async with asyncio.timeout(seconds):
                answer = await _attended(process, stdin, heard)
        except ExecutionRefusedError as error:
            raise failure("git_not_installed", f"git cannot be run: {error}") from error
        except ExecutionError as error:
            raise RequestError("agent_unavailable", str(error)) from error
        except TimeoutError as error:
            raise failure("git_timeout", f"git took more than {seconds:g} s.") from error
        if not self.relay:
            return answer
        return replace(answer, words=answer.words.replace(self.relay, "https://"))

    async def must(self, *args: str, **how: object) -> GitAnswer:
        """Run git, which is to succeed; ``RequestError`` says in words why it did not."""
        answer = await self.run(*args, **how)  # type: ignore[arg-type]  # as run takes them
        if answer.code:
            raise cause_of(answer)
        return answer


async def _attended(
    process: RemoteProcess, stdin: bytes, heard: Callable[[str], None] | None
) -> GitAnswer:
    try:
        async with (
            beside(_given(process, stdin), "git stdin"),
            beside(_last(process.stderr, heard), "git stderr") as words,
        ):
            out, whole = await _first(process.stdout)
            said = await words
            return GitAnswer(await process.wait(), out, whole, said)
    finally:
        await process.end()


async def _given(process: RemoteProcess, stdin: bytes) -> None:
    with suppress(OSError):
        if stdin:
            process.write(stdin)
            await process.drain()
        process.end_input()


async def _first(output: RemoteOutput) -> tuple[bytes, bool]:
    kept, length = bytearray(), 0
    while data := await output.read(_READ):
        length += len(data)
        kept += data[: _MOST_OUTPUT - len(kept)]
    return bytes(kept), length <= _MOST_OUTPUT


async def _last(output: RemoteOutput, heard: Callable[[str], None] | None) -> str:
    kept = b""
    while data := await output.read(_READ):
        kept = (kept + data)[-_MOST_WORDS:]
        if heard is not None:
            heard(kept.decode("utf-8", "replace"))
    return kept.decode("utf-8", "replace")


# What a failure means.


def failure(code: str, message: str) -> RequestError:
    """Return the error of one of the ``CAUSES``."""
    return RequestError(code, message, hint=CAUSES[code])


def cause_of(answer: GitAnswer) -> RequestError:
    """Return why git failed, by what it said."""
    said = f"{answer.words}\n{answer.out[-_MOST_WORDS:].decode('utf-8', 'replace')}"
    line = _telling_line(said)
    for pattern, code, words in _SAYINGS:
        if re.search(pattern, said):
            told = line and "could not read" not in line
            return failure(code, f"{words} git said: {line}" if told else words)
    return failure("git_failed", f"git failed: {line or f'exit code {answer.code}'}")


def _telling_line(said: str) -> str:
    """Return the line that says most, without what may be a password."""
    lines = [plain_line(one) for one in re.split(r"[\r\n]+", said)]
    lines = [one for one in lines if one]
    for beginning in ("remote: ", "fatal: ", "error: ", "! "):
        for one in lines:
            if one.startswith(beginning):
                return one.removeprefix(beginning)
    return lines[-1] if lines else ""


def plain_line(text: str, most: int = _LONGEST_LINE) -> str:
    """Return foreign text as a line to be shown: nothing unprintable, no password in addresses."""
    clean = "".join(" " if unicodedata.category(char)[0] == "C" else char for char in text)
    return _CREDENTIALS.sub("://", clean).strip()[:most]
