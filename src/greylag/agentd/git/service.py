"""git for a whole environment: what it is set up with, its clone, and what people do with it."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog

from greylag.agentd.agent.types import GIT_CONFIG, AgentSetup
from greylag.agentd.execution import Execution, ExecutionError
from greylag.agentd.files import Touched, WorkspaceFiles, untold
from greylag.agentd.git.clone import Clone
from greylag.agentd.git.commands import GitAnswer, GitCommands, cause_of, failure, plain_line
from greylag.agentd.git.relay import GitRelay
from greylag.agentd.problems import RequestError
from greylag.common.agent_api import GitCommitted, GitPushed, GitStatus
from greylag.common.backoff import backoff
from greylag.common.concurrent import cancel_all, until_one_ends
from greylag.common.git import CloneState, GitSetup

_HERE = "127.0.0.1"
_GIT = ".git"  # of the workspace: what commits and pushes change
_COMMIT_SECONDS = 300.0
_PUSH_SECONDS = _FETCH_SECONDS = 1800.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_COUNTS = re.compile(r"\+(\d{1,9}) -(\d{1,9})")
_HASH = re.compile(r"[0-9a-f]{40,64}")
_LONGEST_NAME, _LONGEST_URL = 255, 1000
_QUOTED = {'"': '\\"', "\\": "\\\\"}

_log = structlog.get_logger(__name__)


class GitService:
    """Keeps git in the environment configured, clones once, and does what people ask.

    ``run`` must be running for anything else to work.

    Args:
        execution: the way to execd.
        setup: the folders of the other side.
        relay: the way to the hosts that there are secrets for.
        note: the file of agentd's own that says that the workspace has what it starts from.
        touched: is told what a person is about to change.
    """

    def __init__(
        self,
        execution: Execution,
        setup: AgentSetup,
        relay: GitRelay,
        note: Path,
        touched: Touched = untold,
    ) -> None:
        self._execution = execution
        self._home = setup.home
        self._touched = touched
        self._relay = relay
        self._commands = GitCommands(execution, setup)
        files = WorkspaceFiles(execution, setup.workspace, touched)
        self._clone = Clone(self._commands, files, note)
        self._given = GitSetup()
        self._configured = asyncio.Event()
        self._changed = asyncio.Event()
        self._cloning: asyncio.Task[None] | None = None

    @property
    def state(self) -> CloneState:
        """How it stands with what the workspace starts from."""
        return self._clone.state

    async def run(self) -> None:
        """Keep the relay reachable and git configured, until cancelled; then no clone goes on."""
        failed = 0
        try:
            async with self._relay.serving():
                while True:
                    try:
                        await self._reachable()
                        failed = 0
                    except (ExecutionError, RequestError) as error:
                        _log.warning("git_not_configured", error=str(error))
                        failed += 1
                    self._configured.clear()
                    await asyncio.sleep(backoff(failed, _FIRST_PAUSE, _LONGEST_PAUSE))
        finally:
            if self._cloning is not None:
                await cancel_all([self._cloning])

    async def set_up(self, setup: GitSetup) -> CloneState:
        """Take what the platform says from now on; return how the clone stands.

        A clone that failed is tried again only when what was said is another.
        """
        news, self._given = setup != self._given, setup
        if news:
            self._relay.use(setup.credentials)
            self._configured.clear()
            self._changed.set()
        if (news or self.state.status == "none") and self._clone.begins(setup):
            self._cloning = asyncio.create_task(self._cloned(setup), name="git clone")
        return self.state

    async def _cloned(self, setup: GitSetup) -> None:
        await self._configured.wait()
        await self._clone.run(setup)

    async def _reachable(self) -> None:
        """Write the configuration, and again when it changes, until execd goes away."""
        gone = asyncio.Event()
        async with self._execution.listening(_HERE, self._relay.port, gone) as port:
            self._commands.relay = f"http://{_HERE}:{port}/"
            while not gone.is_set():
                self._changed.clear()
                await self._write_config(port)
                if not self._changed.is_set():
                    self._configured.set()
                await until_one_ends(gone=gone.wait(), changed=self._changed.wait())

    async def _write_config(self, port: int) -> None:
        name, address = self._given.author
        user = f"[user]\n\tname = {_quoted(name)}\n\temail = {_quoted(address)}\n" if name else ""
        text = f"[include]\n\tpath = /etc/gitconfig\n{user}{self._relay.config(port)}"

        async def content() -> AsyncIterator[bytes]:
            yield text.encode()

        await self._execution.make_folders((self._home,))
        await WorkspaceFiles(self._execution, self._home).write(GIT_CONFIG, None, content())

    # What people ask for.

    async def status(self) -> GitStatus:
        """Return how the workspace's repository stands."""
        answer = await self._commands.run("status", "--porcelain=v2", "--branch", "-z")
        if answer.code:
            error = cause_of(answer)
            if error.code != "git_no_repository":
                raise error
            return GitStatus(repository=False)
        return _status(answer, await self._remote())

    async def fetch(self) -> GitStatus:
        """Fetch what ``origin`` has, and return how the repository stands then."""
        await self._repository()
        await self._origin()
        await self._touched(_GIT)
        await self._commands.must("fetch", "--quiet", "--prune", "origin", seconds=_FETCH_SECONDS)
        return await self.status()

    async def commit(self, message: str, paths: Sequence[str] | None) -> GitCommitted:
        """Commit all that changed, or these paths alone."""
        await self._repository()
        await self._touched(_GIT)
        said = f"--message={message}"
        if paths is None:
            await self._commands.must("add", "--all", seconds=_COMMIT_SECONDS)
            chosen, stdin = [], b""
        else:
            chosen = ["--pathspec-from-file=-", "--pathspec-file-nul"]
            stdin = b"\0".join(path.encode() for path in paths)
            await self._commands.must("add", "--all", *chosen, stdin=stdin, seconds=_COMMIT_SECONDS)
            chosen = ["--only", *chosen]
        answer = await self._commands.run(
            "commit", "--quiet", said, *chosen, stdin=stdin, seconds=_COMMIT_SECONDS
        )
        if answer.code:
            raise await self._not_committed(answer)
        head = await self._commands.must("rev-parse", "HEAD")
        commit = head.lines[0].strip() if head.lines else ""
        if not _HASH.fullmatch(commit):
            raise failure("git_failed", "git told no commit.")
        branch = await self._checked_out()
        return GitCommitted(commit, branch and plain_line(branch, _LONGEST_NAME))

    async def _not_committed(self, answer: GitAnswer) -> RequestError:
        staged = await self._commands.run("status", "--porcelain=v2", "-z")
        untouched = not staged.out or "nothing to commit" in f"{answer.lines}{answer.words}"
        if staged.code == 0 and untouched:
            return failure("git_nothing_to_commit", "Nothing has changed since the last commit.")
        return cause_of(answer)

    async def push(self, branch: str | None) -> GitPushed:
        """Push what is checked out to a branch of ``origin``, by default the one of its name."""
        await self._repository()
        await self._touched(_GIT)
        target = branch or await self._checked_out()
        if target is None:
            raise failure("git_no_branch", "No branch is checked out.")
        remote = await self._origin()
        # Without a name of theirs git knows it itself: it may hold bytes that no text has.
        refs = f"HEAD:refs/heads/{branch}" if branch else "HEAD"
        pushing = ("push", "--porcelain", "--set-upstream", "origin", refs)
        await self._commands.must(*pushing, seconds=_PUSH_SECONDS)
        return GitPushed(plain_line(target, _LONGEST_NAME), remote)

    async def _repository(self) -> None:
        await self._commands.must("rev-parse", "--git-dir")

    async def _remote(self) -> str | None:
        # Not by `git remote`, which would tell of the relay.
        answer = await self._commands.run("config", "--get", "remote.origin.url")
        return plain_line(answer.lines[0], _LONGEST_URL) if answer.lines else None

    async def _origin(self) -> str:
        remote = await self._remote()
        if remote is None:
            raise failure("git_no_remote", "The repository has no remote of the name origin.")
        return remote

    async def _checked_out(self) -> str | None:
        """Return the branch's own name, which may hold what is not shown."""
        answer = await self._commands.run("symbolic-ref", "--quiet", "--short", "HEAD")
        return answer.lines[0] if answer.lines else None


def _quoted(text: str) -> str:
    plain = "".join(_QUOTED.get(char, char) for char in plain_line(text))
    return f'"{plain}"'


def _status(answer: GitAnswer, remote: str | None) -> GitStatus:
    """Read ``git status --porcelain=v2 --branch -z``; what is no line of it counts for nothing."""
    about: dict[str, str] = {}
    counts = dict.fromkeys("12u?", 0)
    records = iter(answer.out.decode("utf-8", "replace").split("\0"))
    for one in records:
        if one.startswith("# branch."):
            name, _, value = one.removeprefix("# branch.").partition(" ")
            about[name] = plain_line(value, _LONGEST_NAME)
        elif one[:1] in counts:
            counts[one[:1]] += 1
            if one[0] == "2":
                next(records, None)  # the path before
    counted = _COUNTS.fullmatch(about.get("ab", ""))
    ahead, behind = (int(counted[1]), int(counted[2])) if counted else (0, 0)
    head, commit = about.get("head"), about.get("oid", "")
    return GitStatus(
        repository=True,
        branch=None if head in {None, "(detached)"} else head,
        commit=commit if _HASH.fullmatch(commit) else None,
        upstream=about.get("upstream"),
        ahead=ahead,
        behind=behind,
        changed=counts["1"] + counts["2"],
        untracked=counts["?"],
        conflicted=counts["u"],
        whole=answer.whole,
        remote=remote,
    )
