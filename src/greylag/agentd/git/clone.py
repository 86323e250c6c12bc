"""What a workspace starts from: a repository that is cloned into it once, killable anywhere.

git clones into a folder of its own within the workspace, which lists and snapshots pass over. When
all of it is there the folder is renamed, once; from then on its content is moved into the
workspace, entry by entry, and a start after a kill goes on with that. Before the rename such a
start begins anew. It is done when agentd's own note says so: then nothing is ever cloned there
again, and nothing is cloned over what the workspace holds.
"""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import structlog

from greylag.agentd.files import WorkspaceFiles
from greylag.agentd.git.commands import GitCommands, failure, plain_line
from greylag.agentd.journal.journal import make_durable
from greylag.agentd.problems import RequestError
from greylag.common.git import CAUSES, CloneState, GitSetup

CLONE_SECONDS = 3600.0
SILENCE_SECONDS = 60.0
"""After so long a host that says nothing is given up."""
_FOLDER = ".greylag-00000000c104e000.part"  # of the form that lists and snapshots pass over
_NEW, _WHOLE = f"{_FOLDER}/new", f"{_FOLDER}/whole"
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PROGRESS = re.compile(
    r"(Counting objects|Compressing objects|Receiving objects|Resolving deltas|Updating files)"
    r":\s+(\d{1,3})%"
)
# They are fetched when all else is there: one that cannot be had would undo the whole clone.
_NO_LARGE_FILES = tuple(
    part
    for setting in ("smudge=", "process=", "required=false")
    for part in ("-c", f"filter.lfs.{setting}")
)
_OPENS = re.compile(r"-/[0-9a-f]{64}/|\?[^\s\"']*")
_STEP = 20  # percent
_AT_ONCE = 1000
_NOTHING = CloneState("none", "The workspace starts from nothing.")
_DONE = CloneState("done", "The repository is cloned.")

_log = structlog.get_logger(__name__)


class Clone:
    """Clones what a setup names, as often as is needed to have it once.

    Args:
        commands: run git.
        files: those of the workspace.
        note: the file of agentd's own that says that it is done.

    Attributes:
        state: how it stands.
    """

    def __init__(self, commands: GitCommands, files: WorkspaceFiles, note: Path) -> None:
        self._commands = commands
        self._files = files
        self._note = note
        self.state = _DONE if note.exists() else _NOTHING
        self._left = ""

    def begins(self, setup: GitSetup) -> bool:
        """Tell whether there is something to be cloned still; from then on it is ``cloning``."""
        if setup.url is None or self.state.status in {"done", "cloning"}:
            return False
        self.state = CloneState("cloning", f"Cloning {plain_line(setup.url)}.")
        return True

    async def run(self, setup: GitSetup) -> None:
        """Clone; how it went, ``state`` says."""
        try:
            await self._clone(setup)
        except RequestError as error:
            code = error.code if error.code in CAUSES else "git_failed"
            self.state = CloneState(
                "failed", f"The repository was not cloned. {error.message}", code, CAUSES[code]
            )
            _log.warning("clone_failed", code=code, reason=error.message)
        except BaseException:
            code = "git_interrupted"
            self.state = CloneState("failed", "Cloning was interrupted.", code, CAUSES[code])
            raise
        else:
            self.state = replace(_DONE, detail=f"{_DONE.detail} {self._left}".strip())
            _log.info("cloned", left=self._left)

    async def _clone(self, setup: GitSetup) -> None:
        if not await self._is_there(_WHOLE):
            await self._remove()
            if (await self._files.page("", "", 1)).entries:
                words = "The workspace is not empty, and nothing is cloned over what it holds."
                raise failure("git_workspace_not_empty", words)
            await self._files.make_folder(_FOLDER)
            await self._fetch(setup)
            await self._files.sync()  # the note must not outlast what git wrote
            await self._files.move(_NEW, _WHOLE, replace=False)
        await self._move_in()
        await asyncio.to_thread(_written, self._note)
        await self._remove()

    async def _fetch(self, setup: GitSetup) -> None:
        ref, depth = setup.ref, ["--depth", str(setup.depth)] if setup.depth else []
        commit = ref if ref is not None and _COMMIT.fullmatch(ref) else None
        chosen = ["--no-checkout"] if commit else ["--branch", ref] if ref else []
        patience = ["-c", "http.lowSpeedLimit=1", "-c", f"http.lowSpeedTime={SILENCE_SECONDS:.0f}"]
        first = [*patience, "-c", "core.hooksPath=/dev/null", *_NO_LARGE_FILES]
        try:
            async with asyncio.timeout(CLONE_SECONDS):
                await self._told(*first, "clone", *chosen, *depth, "--", str(setup.url), _NEW)
                if commit is not None:
                    await self._told(*first, "fetch", *depth, "origin", commit, folder=_NEW)
                    await self._told(*first, "checkout", "--detach", commit, folder=_NEW)
        except TimeoutError as error:
            words = f"Cloning took more than {CLONE_SECONDS:g} s."
            raise failure("git_timeout", words) from error
        # They have a time of their own: a clone is whole without them.
        self._left = await self._large_files()

    async def _large_files(self) -> str:
        """Fetch what Git LFS keeps elsewhere; return a sentence if something stays a pointer. That
        is no reason to have no clone.
        """
        listed = await self._commands.run(
            "ls-files", "-z", "--", ":(attr:filter=lfs)", folder=_NEW, literal=False
        )
        files = listed.out.count(b"\0")
        if listed.code or not files:
            return ""
        if (await self._commands.run("lfs", "version", folder=_NEW)).code:
            return f"Large files (Git LFS, {files}) stay pointers: the environment has no git-lfs."
        self.state = CloneState("cloning", f"Fetching large files (Git LFS, {files}).")
        try:
            await self._commands.must("lfs", "install", "--local", "--skip-repo", folder=_NEW)
            pulled = await self._commands.run("lfs", "pull", folder=_NEW, seconds=CLONE_SECONDS)
            if pulled.code == 0:
                return ""
            # The last line says less. What opens an object for whoever has its address is left out.
            said = plain_line(_OPENS.sub("", pulled.words.strip().partition("\n")[0]))
        except RequestError as error:
            said = error.message
        return (
            f"Not all large files (Git LFS, {files}) were fetched: those stay pointers until "
            f"`git lfs pull` has them. git-lfs said: {said}"
        )

    async def _told(self, *args: str, folder: str = "") -> None:
        """Run one of git's commands that tell how far they are."""
        place = next(n for n, one in enumerate(args) if one in {"clone", "fetch", "checkout"})
        args = (*args[: place + 1], "--progress", *args[place + 1 :])
        await self._commands.must(*args, folder=folder, seconds=CLONE_SECONDS, heard=self._heard)

    def _heard(self, words: str) -> None:
        if found := _PROGRESS.findall(words):
            phase, percent = found[-1]
            reached = min(int(percent), 100) // _STEP * _STEP
            self.state = CloneState("cloning", f"{phase}: {reached}%.")

    async def _move_in(self) -> None:
        while entries := (await self._files.page(_WHOLE, "", _AT_ONCE)).entries:
            for one in entries:
                await self._files.move(one.path, one.name, replace=False)

    async def _is_there(self, path: str) -> bool:
        try:
            await self._files.show(path)
        except RequestError as error:
            if error.code != "file_not_found":
                raise
            return False
        return True

    async def _remove(self) -> None:
        if await self._is_there(_FOLDER):
            await self._files.remove(_FOLDER, recursive=True)


def _written(note: Path) -> None:
    """Write the note so that a machine which loses its power has it."""
    with note.open("w", encoding="utf-8") as file:
        json.dump({"cloned": True}, file)
        file.flush()
        make_durable(file.fileno(), note.parent)
