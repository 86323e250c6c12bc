"""What turns changed: states kept around each, told as changes and diffs, and taken back.

A turn and an undo are spans: each has the state before it and the one after it. Between two states
that follow each other, whoever's span went on may have changed what differs. Where two did, what
differs is shared, and no undo takes it away unasked.

One task at a time lists the workspace, keeps its state or brings one back. An undo that was cut
short, by whatever end of a process, is gone on with before anything else.
"""

import asyncio
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from greylag.agentd.changes import spans
from greylag.agentd.changes.capture import Capture
from greylag.agentd.changes.plan import (
    Differences,
    Extent,
    State,
    asked_of,
    rest_of,
    steps_of,
    undo_of,
)
from greylag.agentd.changes.report import TOTALS_SECONDS, diff_of, notes_of, report, totals
from greylag.agentd.changes.spans import Ends, Span
from greylag.agentd.changes.states import (
    RestoreStep,
    Snapshot,
    SnapshotError,
    StatesFileError,
    TreeEntry,
    split,
)
from greylag.agentd.changes.store import SnapshotStore, keep_on
from greylag.agentd.problems import RequestError
from greylag.agentd.records import HistoryCut, StorageError
from greylag.common.agent_api import Changes, FileDiff, Kept, TurnChanges, Undone, UndoWish
from greylag.common.backoff import backoff

_LISTED_WITHIN = 30.0
_READ_WITHIN = 5.0
_END_WITHIN = 1.0
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_MOST_KEPT = 1000

_log = structlog.get_logger(__name__)

T = TypeVar("T")
Forget = Callable[[HistoryCut], Awaitable[None]]
Cutting = AbstractAsyncContextManager[HistoryCut | None]


@dataclass(frozen=True, slots=True)
class _Done:
    """An undo that was done: the states around it, and what it kept as it is, with the reasons."""

    undo: Span
    before: Snapshot
    after: Snapshot
    kept: Mapping[str, str]


class ChangeService:
    """Owns the states of one workspace.

    Args:
        store: where they are kept.
        capture: how they are taken, and brought back.
        forget: makes the agent forget (``TurnRecords.forget``).
    """

    def __init__(self, store: SnapshotStore, capture: Capture, forget: Forget) -> None:
        self._store = store
        self._capture = capture
        self._forget = forget
        self._lock = asyncio.Lock()
        self._running: set[str] = set()
        self._ending: dict[str, asyncio.Task[TurnChanges | None]] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._asked: asyncio.Task[Snapshot | SnapshotError | RequestError] | None = None
        self._recovering: asyncio.Task[SnapshotError | RequestError | None] | None = None
        self._recovered = False
        self._stopped = False

    async def recover(self) -> None:
        """Go on with what an end of agentd or execd cut short, as soon as execd answers."""
        tried = 0
        while True:
            try:
                async with self._lock:
                    return await self._go_on()
            except SnapshotError:
                tried += 1
                await asyncio.sleep(backoff(tried, _FIRST_PAUSE, _LONGEST_PAUSE))

    async def cut_left(self) -> None:
        """Cut the histories that an end of agentd left uncut; to be called before a turn starts."""
        try:
            await self._cut_left()
        except SnapshotError as error:
            _log.warning("histories_not_cut", error=str(error))

    async def is_cut_left(self, cut: HistoryCut) -> bool:
        """Tell whether a history is to be cut still, or whether that is not known."""
        return await self._tried(
            lambda sql: any(one.cut == cut for one in spans.left_cuts(sql)), otherwise=True
        )

    async def stop(self) -> None:
        """End what still goes on, and keep no more states; the next start goes on with it."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Around a turn.

    async def begin(self, span_id: str, session_id: str) -> None:
        """Keep the state before a turn; return as soon as the agent may change it.

        If that takes too long, none is kept: it would hold what the agent has done by then. Whoever
        is cancelled meanwhile asks the agent nothing: then there is no turn to tell of, or to end.
        """
        if self._stopped:
            return
        self._running.add(span_id)
        listed = asyncio.Event()
        task = self._start(self._begin(span_id, session_id, listed), f"state before {span_id}")
        waiting = self._start(listed.wait(), "workspace listed")
        both = {task, waiting}
        try:
            await asyncio.wait(both, timeout=_LISTED_WITHIN, return_when="FIRST_COMPLETED")
            if not listed.is_set() and not task.done():
                _log.warning("snapshot_too_slow", span_id=span_id)
                task.cancel()
            await asyncio.wait({task}, timeout=_READ_WITHIN)
        except asyncio.CancelledError:
            task.cancel()
            self._running.discard(span_id)
            forgetting = self._tried(lambda sql: spans.remove(sql, span_id), otherwise=None)
            self._start(forgetting, f"no turn {span_id}")
            raise
        finally:
            waiting.cancel()

    async def _begin(self, span_id: str, session_id: str, listed: asyncio.Event) -> None:
        try:
            # Not behind the lock: a state that is being taken for another may hold what this one
            # does already, and is to be known as shared.
            newest = await self._store.run(spans.newest)
            span = Span(span_id, session_id, newest)
            await self._store.run(lambda sql: spans.add(sql, span))
            async with self._lock:
                await self._go_on()
                before = await self._capture.take(listed)
                await self._store.run(lambda sql: spans.set_before(sql, span_id, before.number))
        except SnapshotError as error:
            _log.warning("snapshot_failed", span_id=span_id, error=str(error))

    async def end(self, span_id: str) -> TurnChanges | None:
        """Keep the state after a turn; return how much changed, ``None`` if that takes longer."""
        if self._stopped or span_id not in self._running:
            return None
        self._running.discard(span_id)
        task = self._start(self._end(span_id), f"state after {span_id}")
        self._ending[span_id] = task
        await asyncio.wait({task}, timeout=_END_WITHIN)
        return task.result() if task.done() and not task.cancelled() else None

    async def _end(self, span_id: str) -> TurnChanges | None:
        try:
            async with self._lock:
                after = await self._capture.take()
                left = self._left()

                def ended(sql: sqlite3.Connection) -> set[str]:
                    found = left(sql)
                    spans.set_after(sql, after.number, span_id, *found)
                    return found

                others = await self._store.run(ended)
            # First: if its own count fails, nobody finds theirs again.
            self._start(self._count_all(others), "counting of left turns")
            return await self._count(span_id)
        except SnapshotError as error:
            # The next state that can be taken is its end: until then it would go on, for all that
            # is known, and share all that others change.
            self._recovered = False
            _log.warning("snapshot_failed", span_id=span_id, error=str(error))
            return None
        finally:
            del self._ending[span_id]

    async def _count(self, span_id: str) -> TurnChanges | None:
        """Remember how much a span changed, and return it; ``None`` if its states are gone."""

        def count(sql: sqlite3.Connection) -> TurnChanges | None:
            found = spans.ends(sql, span_id)
            return None if found is None else totals(report(sql, found, TOTALS_SECONDS))

        counted = await self._store.compare(count)
        if counted is not None:
            await self._store.run(lambda sql: spans.set_totals(sql, span_id, counted))
        return counted

    async def _count_all(self, span_ids: Collection[str]) -> None:
        for span_id in span_ids:
            try:
                await self._count(span_id)
            except SnapshotError as error:
                _log.warning("changes_not_counted", span_id=span_id, error=str(error))

    async def touched(self, *paths: str) -> None:
        """Remember that a person changed paths, or what is below them, before turns' ends."""
        going_on = self._going_on()

        def touch(sql: sqlite3.Connection) -> None:
            # A turn that has ended without a state before it is never told, nor undone.
            left = {one.span_id for one in spans.left_turns(sql) if one.before is not None}
            spans.touch(sql, going_on | left, paths)

        await self._tried(touch, otherwise=None)

    # What is told.

    async def of_turn(self, span_id: str) -> Changes:
        """Return what a turn or an undo changed."""
        ends = await self._ends(span_id)
        return await self._read(lambda sql: report(sql, ends))

    async def totals(self, span_ids: Collection[str]) -> Mapping[str, TurnChanges]:
        """Return how much turns changed, of those of which that is known."""
        return await self._tried(lambda sql: spans.totals(sql, span_ids), otherwise={})

    async def diff(self, span_id: str, path: str) -> FileDiff:
        """Return what a turn or an undo changed in a file."""
        return await self._diff(await self._ends(span_id), path)

    async def between(self, start: str | None, end: str | None) -> Changes:
        """Return what differs between two states, by default from the oldest one until now."""
        ends = await self._states(start, end)
        return await self._read(lambda sql: report(sql, ends))

    async def diff_between(self, start: str | None, end: str | None, path: str) -> FileDiff:
        """Return what differs in a file between two states."""
        return await self._diff(await self._states(start, end), path)

    async def _diff(self, ends: Ends, path: str) -> FileDiff:
        found = await self._read(lambda sql: diff_of(sql, ends, path))
        if found is None:
            raise RequestError("file_not_found", f"Nothing changed there: {path[:200]}")
        return found

    async def _states(self, start: str | None, end: str | None) -> Ends:
        if end is None:
            await self._now()
        first = await self._read(lambda sql: spans.state(sql, start, after=False))
        last = await self._read(lambda sql: spans.state(sql, end, after=True))
        if first is None or last is None:
            raise _gone()
        return Ends(first, last)

    async def notes(self, session_id: str) -> tuple[str, list[Span]]:
        """Return what a session's agent is to know of undos ("": nothing), and those that it tells.

        Once it has been told, hand them to ``told``.
        """

        def read(sql: sqlite3.Connection) -> tuple[str, list[Span]]:
            undos = spans.untold(sql, session_id)
            return notes_of(sql, undos), undos

        return await self._tried(read, otherwise=("", []))

    async def told(self, undos: list[Span]) -> None:
        """Remember that the agent was told of undos."""
        if undos:
            await self._tried(lambda sql: spans.set_told(sql, undos), otherwise=None)

    # Undoing.

    async def undo(self, span_id: str, wish: UndoWish, cutting: Cutting | None = None) -> Undone:
        """Put back what a turn, or an undo, changed.

        It goes on to its end when the caller leaves.

        Args:
            span_id: the turn, or the undo.
            wish: what of it, and how far.
            cutting: tells what the agent is to forget; no turn of its begins meanwhile.
        """
        ends = await self._ends(span_id)
        only = None if wish.paths is None else frozenset(wish.paths)
        extent = Extent(ends.before.root, ends.after.root, ends.shared, wish.override, only)
        asked = await self._read(lambda sql: asked_of(sql, extent))
        undoing = self._undo_cutting(span_id, extent, asked, cutting or nullcontext())
        return await self._settled(self._start(undoing, f"undo of {span_id}"))

    async def _undo_cutting(
        self, span_id: str, extent: Extent, asked: Differences, cutting: Cutting
    ) -> Undone | SnapshotError | RequestError:
        try:
            async with cutting as cut:
                done = await self._alone(lambda: self._undo(span_id, extent, asked, cut))
        except RequestError as error:
            return error
        # Beside all else: it takes its time, and nothing of it can change any more.
        return await self._undone(done) if isinstance(done, _Done) else done

    async def _undo(
        self, span_id: str, extent: Extent, asked: Differences, cut: HistoryCut | None
    ) -> "_Done":
        now = await self._capture.take()
        # Not behind what others compare: all that comes next waits for this.
        undo = await self._store.run(lambda sql: undo_of(sql, extent, asked, now.root))
        undone = await self._store.run(lambda sql: spans.find(sql, span_id))
        if undone is None:
            raise SnapshotError("The turn's states are no longer kept.")
        paths, session_id = sorted(undo.wanted), undone.session_id
        one = Span(uuid.uuid4().hex, session_id, now.number, now.number, None, span_id, paths, cut)
        await self._store.run(lambda sql: spans.add(sql, one))
        _log.info("undo_began", span_id=span_id, undo_id=one.span_id, paths=len(paths))
        try:
            await self._cut_left()
            after, refused = await self._bring_back(one, now, undo.wanted)
        except SnapshotError as error:
            self._start(self.recover(), f"rest of {one.span_id}")
            raise type(error)(f"{error} The undo goes on by itself.") from error
        _log.info("undo_ended", undo_id=one.span_id, kept=len(undo.kept | refused))
        return _Done(one, now, after, undo.kept | refused)

    async def _undone(self, done: "_Done") -> Undone:
        """Tell what an undo did, and remember how much that was."""
        undo_id, ends = done.undo.span_id, Ends(done.before, done.after)
        try:
            changes = await self._store.compare(lambda sql: report(sql, ends))
            await self._store.run(lambda sql: spans.set_totals(sql, undo_id, totals(changes)))
        except SnapshotError as error:  # the states have made room for others by now
            _log.warning("changes_not_counted", span_id=undo_id, error=str(error))
            numbers, count = (done.before.number, done.after.number), len(done.undo.paths)
            changes = Changes(*numbers, [], count, 0, 0, [], 0)
        kept = [Kept(path, reason) for path, reason in sorted(done.kept.items())]
        forgotten = 0 if done.undo.cut is None else done.undo.cut.turns
        return Undone(undo_id, changes, kept[:_MOST_KEPT], len(kept), forgotten)

    async def _cut_left(self) -> None:
        """Cut the histories that undos which have begun want cut."""
        for undo in await self._store.run(spans.left_cuts):
            if undo.cut is None:
                continue
            try:
                await self._forget(undo.cut)
            except StorageError as error:
                raise StatesFileError(str(error)) from error
            await self._store.run(partial(spans.set_cut, span_id=undo.span_id))
            _log.info("history_cut", undo_id=undo.span_id, turns=undo.cut.turns)

    async def _bring_back(
        self, undo: Span, now: Snapshot, wanted: Mapping[str, TreeEntry | None]
    ) -> tuple[Snapshot, dict[str, str]]:
        """Take all steps of an undo; return the state after it, and what could not be put back."""

        def prepared(sql: sqlite3.Connection) -> list[RestoreStep]:
            # What comes back is in the state after it though a rule names it, also when a kill
            # comes first: else this could not be undone, nor told.
            state = State(sql, now.root)
            back = (path for path, entry in wanted.items() if entry is not None)
            keep_on(sql, [split(path) for path in back if state.kept(path) is None])
            return steps_of(sql, now.root, wanted)

        steps = await self._store.run(prepared)
        refused = await self._capture.restore(steps) if steps else {}
        after = await self._capture.take() if steps else now

        def ended(sql: sqlite3.Connection) -> None:
            spans.touch(sql, {undo.span_id}, refused)  # no work of its, to be undone with it
            spans.set_after(sql, after.number, undo.span_id)
            # By this the turn is told to be undone; how much it was exactly is counted later.
            count = len(set(undo.paths) - refused.keys())
            spans.set_totals(sql, undo.span_id, TurnChanges(count, 0, 0))

        await self._store.run(ended)
        return after, refused

    async def _go_on(self) -> None:
        """Give turns their end that have none still, and take undos to theirs."""
        await self._cut_left()
        for undo in await self._store.run(spans.left_undos):
            await self._end_undo(undo)
        if not self._recovered:
            left = await self._store.run(self._left())
            if left:
                after = (await self._capture.take()).number
                await self._store.run(lambda sql: spans.set_after(sql, after, *left))
                self._start(self._count_all(left), "counting of left turns")
            self._recovered = True

    def _left(self) -> Callable[[sqlite3.Connection], set[str]]:
        """Return what finds the turns that have ended without a state after them.

        Those that go on are looked up at once: the file's thread would see them change.
        """
        going_on = self._going_on()
        return lambda sql: {one.span_id for one in spans.left_turns(sql)} - going_on

    def _going_on(self) -> set[str]:
        """Return the turns that run, and those whose end is being kept."""
        return self._running | self._ending.keys()

    async def _end_undo(self, undo: Span) -> None:
        def left(sql: sqlite3.Connection) -> tuple[Snapshot | None, Snapshot | None]:
            began = spans.state(sql, undo.span_id, after=False)
            return began, spans.state(sql, undo.undoes, after=False)

        began, target = await self._store.run(left)
        now = await self._capture.take()
        wanted: Mapping[str, TreeEntry | None] = {}
        if began is not None and target is not None:
            first, goal = began.root, target.root

            def rest(sql: sqlite3.Connection) -> Mapping[str, TreeEntry | None]:
                state = State(sql, goal)
                whole = {path: state.kept(path) for path in undo.paths}
                return rest_of(sql, first, now.root, whole).wanted

            wanted = await self._store.run(rest)
        await self._bring_back(undo, now, wanted)
        self._start(self._count_all([undo.span_id]), f"counting of {undo.span_id}")
        _log.warning("undo_ended_after_restart", undo_id=undo.span_id)

    # How things are done.

    async def _ends(self, span_id: str) -> Ends:
        """Return the states around a span.

        Raises:
            RequestError: turn_running, snapshot_gone, agent_unavailable.
        """
        if span_id in self._running:
            raise RequestError("turn_running", "The turn has not ended yet.")
        if span_id in self._ending:
            await asyncio.wait({self._ending[span_id]})

        def look(sql: sqlite3.Connection) -> tuple[Ends | None, Span | None]:
            return spans.ends(sql, span_id), spans.find(sql, span_id)

        failed: RequestError | None = None
        recovered = self._recovered  # before the look: a recovery may be done during it
        found, span = await self._read(look)
        left = span is not None and span.before is not None and span.after is None
        if left and not recovered:
            try:
                await self._recovery()
            except RequestError as error:
                failed = error
            found, span = await self._read(look)
        if found is None:
            raise failed or _gone(taken=span is None or None not in {span.before, span.after})
        return found

    async def _recovery(self) -> None:
        """Go on with what was cut short, once for all who ask before it is done.

        What they ask for was cut short before the one that goes on began, which had the lock since.
        """
        if self._recovering is None or self._recovering.done():
            self._recovering = self._start(self._alone(self._nothing), "recovery")
        await self._settled(self._recovering)

    async def _nothing(self) -> None:
        """Do nothing but what comes before anything else."""

    async def _now(self) -> None:
        """Keep the state as it is now, once for all who ask before it is begun.

        Else many who look would each list the workspace, and a turn that begins wait for them all.
        """
        if self._asked is None or self._asked.done():
            self._asked = self._start(self._alone(self._take), "state now")
        await self._settled(self._asked)

    async def _take(self) -> Snapshot:
        self._asked = None
        return await self._capture.take()

    async def _alone(self, work: Callable[[], Awaitable[T]]) -> T | SnapshotError | RequestError:
        async with self._lock:
            try:
                await self._go_on()
                return await work()
            except (SnapshotError, RequestError) as error:
                return error

    async def _settled(self, task: asyncio.Task[T | SnapshotError | RequestError]) -> T:
        """Wait for a task, which goes on to its end whoever waits for it; raise what it says."""
        await asyncio.wait({task})
        if task.cancelled():
            reason = "agentd is stopping; try again when it is back."
            raise RequestError("agent_unavailable", reason)
        found = task.result()
        if isinstance(found, SnapshotError):
            raise _failed(found) from found
        if isinstance(found, RequestError):
            raise found
        return found

    async def _tried(self, work: Callable[[sqlite3.Connection], T], *, otherwise: T) -> T:
        """Do work whose failure stops nobody: the log tells of it."""
        try:
            return await self._store.run(work)
        except SnapshotError as error:
            _log.warning("snapshot_failed", error=str(error))
            return otherwise

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._store.compare(work)
        except SnapshotError as error:
            raise _failed(error) from error

    def _start(self, work: Awaitable[T], name: str) -> asyncio.Task[T]:
        async def run() -> T:
            return await work

        task = asyncio.create_task(run(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _failed(error: SnapshotError) -> RequestError:
    on_disk = isinstance(error, StatesFileError)
    return RequestError("storage_failed" if on_disk else "agent_unavailable", str(error))


def _gone(*, taken: bool = True) -> RequestError:
    if taken:
        return RequestError("snapshot_gone", "What the workspace was then is not kept any longer.")
    return RequestError(
        "snapshot_gone",
        "What the workspace was before or after it could not be kept: it took too long, or failed.",
    )
