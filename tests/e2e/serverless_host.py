"""Runs deploy/vercel/api/index.py: as Vercel's Python runtime (vercel-runtime 0.24) does, or by it.

As a program it does what that runtime does: import the file by its path, look at what ``app`` is,
and give it to uvicorn on a socket of its own, with lifespan messages.
"""

import asyncio
import importlib.util
import inspect
import json
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

ENTRY = Path(__file__).parents[2] / "deploy/vercel/api/index.py"
RUNTIME_PYTHON = os.environ.get("GREYLAG_TEST_VERCEL_PYTHON")
START_SECONDS = 30
AS_IT_DOES = "as it does"
ITSELF = pytest.param(
    "itself",
    marks=pytest.mark.skipif(
        RUNTIME_PYTHON is None,
        reason="VERCEL'S RUNTIME ITSELF IS NOT TESTED: set GREYLAG_TEST_VERCEL_PYTHON to a Python "
        "3.12 or newer that has vercel-runtime and greylag",
    ),
)


def imported() -> Any:
    """Return the entry's ``app``, imported anew as the runtime imports it."""
    spec = importlib.util.spec_from_file_location("vc_entry", ENTRY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


def is_taken_for_asgi(app: object) -> bool:
    """Tell whether the runtime would: its ``__call__`` is async and takes three arguments."""
    call = type(app).__call__
    arguments = inspect.signature(call).parameters
    return inspect.iscoroutinefunction(call) and len(arguments) == 4 and not hasattr(app, "asgi")


@asynccontextmanager
async def hosted(
    kind: str, folder: Path, settings: Mapping[str, str]
) -> AsyncIterator[tuple[Process, int]]:
    """Run the entry in ``folder`` as the runtime does, or by it ``itself``; give its process, which
    whoever asked for it ends, and its port.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    if kind == "itself":
        async with _runtime(folder, {**kept, **settings}) as found:
            yield found
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__),
        env={**kept, **settings},
        cwd=folder,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    assert process.stdout is not None
    async with asyncio.timeout(START_SECONDS):
        port = int(await process.stdout.readline())
    yield process, port


@asynccontextmanager
async def _runtime(folder: Path, environment: dict[str, str]) -> AsyncIterator[tuple[Process, int]]:
    assert RUNTIME_PYTHON is not None
    ports: asyncio.Queue[int] = asyncio.Queue()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                message = json.loads((await reader.readuntil(b"\0"))[:-1])
                if message["type"] == "server-started":
                    ports.put_nowait(message["payload"]["httpPort"])
        except asyncio.IncompleteReadError:
            writer.close()

    path = folder.parent / "ipc.sock"
    platform = await asyncio.start_unix_server(hear, path)
    told = {
        "VERCEL_IPC_PATH": str(path),
        "__VC_HANDLER_ENTRYPOINT": "api/index.py",
        "__VC_HANDLER_ENTRYPOINT_ABS": str(ENTRY),
        "__VC_HANDLER_MODULE_NAME": "api.index",
        "__VC_HANDLER_VARIABLE_NAME": "app",
    }
    process = await asyncio.create_subprocess_exec(
        *(RUNTIME_PYTHON, "-c", "import vercel_runtime.vc_init"),
        env={**environment, **told},
        cwd=folder,
        stdout=DEVNULL,
    )
    async with asyncio.timeout(START_SECONDS):
        port = await ports.get()
    try:
        yield process, port
    finally:
        platform.close()


def main() -> None:
    app = imported()
    assert is_taken_for_asgi(app)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - how the parent learns of it
    config = uvicorn.Config(
        app, lifespan="auto", access_log=False, log_config=None, log_level="warning"
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
