"""Does one verb on a local environment, and kills itself at the n-th change that it makes.

``doomed.py ROOT VERB N COMMAND...``: a change is whatever alters files or starts a process, as
Python's audit events tell (PEP 578). It exits 0 when there were fewer than N.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.cluster.environments import reaches
from tests.contract.store_adapters import make_project

from greylag.cluster.local import LocalCluster
from greylag.domain.lifecycle import Observed

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.posix_spawn"}
FOREIGN = ("/dev/", "__pycache__")


class Doom:
    """Counts changes, from ``armed`` on."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.armed = False

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if not self.armed or not self.is_change(event, args):
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def is_change(event: str, args: tuple[object, ...]) -> bool:
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            return bool(writes) and not any(part in str(args[0]) for part in FOREIGN)
        return event in CHANGES


async def main(root: Path, verb: str, doom: Doom, command: list[str]) -> None:
    cluster = LocalCluster(root, agentd_command=command, sandbox="none", grace=0.3)
    project = make_project()
    doom.armed = True
    await getattr(cluster, verb)(project)
    if verb == "stop":
        await reaches(cluster, project, Observed.STOPPED)
    doom.armed = False
    await cluster.close()


if __name__ == "__main__":
    doom = Doom(int(sys.argv[3]))
    sys.addaudithook(doom)
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], doom, sys.argv[4:]))
