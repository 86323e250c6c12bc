"""Room on the disk that is kept for ending turns, given up when the disk is full."""

import os
from pathlib import Path

import structlog

RESERVE_BYTES = 1024 * 1024

_log = structlog.get_logger()


class Reserve:
    """A file that takes up room until the room is needed. Its calls block for milliseconds.

    A full disk would otherwise leave no room to say, and to record, that it is full.

    Args:
        path: the file; one that a former agentd left is taken over.
        size: how many bytes it holds.
    """

    def __init__(self, path: Path, size: int = RESERVE_BYTES) -> None:
        self._path = path
        self._size = size
        self._held = False

    @property
    def held(self) -> bool:
        """Whether the room is there, as far as is known."""
        return self._held

    def hold(self) -> None:
        """Take up the room.

        Raises:
            OSError: there is too little of it; nothing is taken up.
        """
        try:
            self._take()
        except OSError:
            self.release()
            raise
        self._held = True

    def release(self) -> None:
        """Give the room up."""
        self._held = False
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            _log.error("reserve_not_released", reason=error.strerror)

    def _take(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path, flags, 0o600)
        try:
            if os.fstat(fd).st_size < self._size:
                # Not zeros, which some file systems take no room for.
                view = memoryview(os.urandom(self._size))
                while view:
                    view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
