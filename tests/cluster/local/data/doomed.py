"""Does verbs on a local environment, each in a process that kills itself at its n-th change.

``doomed.py ROOT COMMAND...`` reads lines ``VERB N`` and answers each with two lines: the pid of the
process, and in the end its exit code, 0 when it made fewer than N changes. A change is whatever
alters files or starts a process, as Python's audit events tell (PEP 578). The processes are forked
from this one, which has imported everything and has no threads.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import structlog
from tests.cluster.environments import reaches
from tests.contract.store_adapters import make_project

from greylag.cluster.local.cluster import LocalCluster
from greylag.domain.lifecycle import Observed

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.posix_spawn"}
NO_CHANGE = ("/dev/", "__pycache__", "/.locks/")  # a lock is taken, nothing is written


class Doom:
    """Counts changes, and kills the process at the last one."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if not self.is_change(event, args):
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def is_change(event: str, args: tuple[object, ...]) -> bool:
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            return bool(writes) and not any(part in str(args[0]) for part in NO_CHANGE)
        return event in CHANGES


async def do(root: Path, verb: str, command: list[str], at: int) -> None:
    cluster = LocalCluster(root, agentd_command=command, sandbox="none", grace=0.3)
    project = make_project()
    sys.addaudithook(Doom(at))
    await getattr(cluster, verb)(project.environment)
    if verb == "stop":
        await reaches(cluster, project, Observed.STOPPED)


def serve(root: Path, command: list[str]) -> None:
    for line in sys.stdin:
        verb, at = line.split()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                asyncio.run(do(root, verb, command, int(at)))
                code = 0
            finally:
                os._exit(code)  # without closing what belongs to the parent too
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    # stdout is for our answers.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    serve(Path(sys.argv[1]), sys.argv[2:])
