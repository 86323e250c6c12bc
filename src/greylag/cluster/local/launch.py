"""What stands between us and agentd at its start: waits for leave, sets limits, becomes agentd.

Run as a file by a bare interpreter (``python -I -S launch.py FOLDER COMMAND...``), so it imports
nothing of ours. Why it exists:

- It starts agentd only after a byte has come on stdin. We send that byte once the pid is on record;
  if we are killed before, it reads end of file and exits. So there is never an agentd that no
  record tells of.
- Limits and a session of its own are set in a process that has one thread. Code between fork and
  exec (``preexec_fn``) is not safe in a program with threads, and ``prlimit`` afterwards is too
  late for what agentd has started by then.

FOLDER, where no tool can put a file, becomes the working directory.
"""

import os
import resource
import sys

NOT_FOUND = 127
"""The exit code when COMMAND cannot be run, as shells have it."""

_CLOSE_UP_TO = 4096
# Of each process. There is none for the number of them: the system counts those per account, so an
# environment would be charged for the user's browser.
_LIMITS = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 4096}


def main(folder: str, command: list[str]) -> None:
    """Become ``command``; return only when there is no leave, or exit when it cannot be run."""
    os.setsid()
    os.umask(0o077)
    if os.read(0, 1) == b"":
        return
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - pathlib is not worth its import here
        os.dup2(nothing.fileno(), 0)
    os.closerange(3, _CLOSE_UP_TO)
    for kind, most in _LIMITS.items():
        _limit(kind, most)
    try:
        os.chdir(folder)
        os.execvpe(command[0], command, os.environ)  # noqa: S606 - its whole purpose; no shell
    except OSError as error:
        sys.stderr.write(f"The environment could not be started: {error}\n")
        sys.exit(NOT_FOUND)


def _limit(kind: int, most: int) -> None:
    """Set soft and hard limit to ``most``, or to the present hard limit when that is lower."""
    _, hard = resource.getrlimit(kind)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
