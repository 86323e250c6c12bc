"""What goes on at once: beside a block, in one of some places, until one of it ends, to its end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

_S = TypeVar("_S")
_T = TypeVar("_T")


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and return when all have ended, however that was."""
    left = set(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, _T], name: str) -> AsyncIterator[asyncio.Task[_T]]:
    """Do ``work`` beside the block, at whose end it is cancelled, and has ended."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        await cancel_all([task])


@asynccontextmanager
async def place_among(
    places: asyncio.Semaphore, seconds: float, full: Exception
) -> AsyncIterator[None]:
    """Hold one of some places; raise ``full`` where none has become free for so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await places.acquire()
    except TimeoutError as error:
        raise full from error
    try:
        yield
    finally:
        places.release()


async def until_one_ends(**both: Coroutine[Any, Any, object]) -> None:
    """Run all at once until one of them has ended, by an error too; the others are cancelled."""
    tasks = [asyncio.create_task(one, name=name) for name, one in both.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_all(tasks)
    for task in done:
        task.result()


async def both(first: Awaitable[_S], second: Awaitable[_T]) -> tuple[_S, _T]:
    """Return what both return, once both have ended; an error of the first one comes first.

    Neither is cut off by an error of the other: a database's driver gives up the connection of what
    is cut off.
    """
    ended = await asyncio.gather(first, second, return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return cast("tuple[_S, _T]", ended)


async def to_its_end(work: Coroutine[Any, Any, _T], name: str) -> _T:
    """Return what ``work`` returns; who is cancelled meanwhile is so once it has ended.

    Args:
        work: what would be half done by a cancellation.
        name: its task's.
    """
    task = asyncio.create_task(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    failed = None if task.cancelled() else task.exception()
    raise cancelled from failed


async def merged(*sources: AsyncGenerator[_T]) -> AsyncGenerator[_T]:
    """Yield what any of ``sources`` yields, as it comes, until the first of them ends."""
    waits = {_next_of(one): one for one in sources}
    try:
        while True:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                source = waits.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    return
                yield item
                waits[_next_of(source)] = source
    finally:
        await cancel_all(waits)
        for source in sources:
            await source.aclose()


def _next_of(source: AsyncGenerator[_T]) -> asyncio.Task[_T]:
    async def wait() -> _T:
        return await anext(source)

    return asyncio.create_task(wait(), name="merged stream")
