"""A workspace with its states and a real execd, for tests of what turns change."""

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

from greylag.agentd.changes.capture import Capture
from greylag.agentd.changes.service import ChangeService
from greylag.agentd.changes.store import MOST_FILE, SnapshotStore
from greylag.agentd.execution import Execution
from greylag.agentd.records import HistoryCut
from greylag.common.agent_api import Changes, Undone, UndoWish
from greylag.execd import snapshots
from greylag.execd.files import PART, Place
from greylag.execd.server import ExecServer

LIMIT = 64 * 1024 * 1024
Look = dict[bytes, tuple[Any, ...]]


class Rig(SimpleNamespace):
    """One workspace; ``service`` may be made anew, as a start of agentd makes it."""

    folder: Path
    root: Path
    store: SnapshotStore
    service: ChangeService
    limit: int
    file_limit: int
    forgotten: list[HistoryCut]
    failure: Exception | None

    def restart(self) -> None:
        """Make the trusted side anew, on the same file."""
        self.store = SnapshotStore(self.folder / "snapshots.db", self.limit, self.file_limit)
        capture = Capture(Execution(self.folder / "execd"), self.root, self.store)
        self.service = ChangeService(self.store, capture, self.forget)

    async def forget(self, cut: HistoryCut) -> None:
        """Take what the agent is to forget, or fail as the disk does."""
        if self.failure is not None:
            raise self.failure
        self.forgotten.append(cut)

    async def again(self) -> None:
        """End the trusted side, and begin it anew."""
        await self.service.stop()
        await self.store.aclose()
        self.restart()

    @asynccontextmanager
    async def turn(self, name: str, session: str = "s") -> AsyncIterator[None]:
        """Let the block be a turn."""
        await self.service.begin(name, session)
        try:
            yield
        finally:
            await self.service.end(name)

    async def changed(self, name: str) -> dict[str, str]:
        """Return what a turn changed, by path."""
        found: Changes = await self.service.of_turn(name)
        return {one.path: one.change for one in found.changes}

    async def undo(self, name: str, *, cutting: Any = None, **wish: Any) -> Undone:
        """Undo a turn."""
        return await self.service.undo(name, UndoWish(**wish), cutting)


@asynccontextmanager
async def rig(folder: Path, limit: int = LIMIT, file_limit: int = MOST_FILE) -> AsyncIterator[Rig]:
    """Run an execd for a workspace of its own."""
    made = Rig(folder=folder, root=folder / "workspace", limit=limit, file_limit=file_limit)
    made.forgotten, made.failure = [], None
    made.root.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "execd"))
        listener.listen()
        execd = asyncio.create_task(ExecServer().serve(listener), name="execd")
        made.restart()
        try:
            yield made
        finally:
            await made.service.stop()
            await made.store.aclose()
            execd.cancel()
            await asyncio.wait({execd})


def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rights of 0 shut execd out also where it is root, who never is."""
    place_file, opened = Place.file, snapshots._entered

    def file(place: Place) -> BinaryIO:
        if not place.look().st_mode & 0o700:
            raise PermissionError(errno.EACCES, "denied")
        return place_file(place)

    def entered(above: Any, name: str, left_out: str) -> Any:
        if os.stat(name, dir_fd=above.folder, follow_symlinks=False).st_mode & 0o700:
            return opened(above, name, left_out)
        return snapshots._record(above.at(name), "unreadable"), None

    monkeypatch.setattr(Place, "file", file)
    monkeypatch.setattr(snapshots, "_entered", entered)


def look(root: Path) -> Look:
    """Return all that a workspace holds: kinds, modes, bytes and targets."""
    found: Look = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in (*folders, *files):
            if PART.fullmatch(name):  # of a killed writer: nobody is told of it, and it is swept
                continue
            path = os.path.join(folder, name)
            about = os.lstat(path)
            what: Any = None
            if stat.S_ISREG(about.st_mode):
                with open(path, "rb") as file:
                    what = file.read()
            elif stat.S_ISLNK(about.st_mode):
                what = os.readlink(path)
            mode = 0 if stat.S_ISLNK(about.st_mode) else about.st_mode
            found[os.path.relpath(path, os.fsencode(root))] = (mode, what)
    return found
