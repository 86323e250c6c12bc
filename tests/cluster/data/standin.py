"""Stands in for agentd in an environment, and misbehaves on request (see the flags)."""

import argparse
import http.server
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    flags = parse()
    print("stand-in: starting", flush=True)
    if flags.die is not None:
        print("stand-in: cannot\x1b[31m go on", flush=True)
        sys.exit(flags.die)
    folder = Path(os.environ["GREYLAG_AGENT_FOLDER"])
    (folder / "state").mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if flags.ignore_term else leave)
    if flags.shell:
        # A shell that leaves group and session; with "bare", without our mark too.
        shell = subprocess.Popen(
            ["/bin/sh", "-c", "while :; do sleep 1; done"],
            start_new_session=True,
            env={"PATH": os.environ["PATH"]} if flags.shell == "bare" else None,
        )
        (folder / "shell.pid").write_text(str(shell.pid))
    tried = {path: attempt(path) for path in flags.attempt}
    (folder / "facts.json").write_text(json.dumps(facts() | {"tried": tried}))
    while flags.never_listen:
        signal.pause()
    serve(folder, ready=not flags.never_ready)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--shell", choices=["marked", "bare"])
    parser.add_argument("--die", type=int)
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--never-listen", action="store_true")
    parser.add_argument("--attempt", action="append", default=[])
    return parser.parse_args()


def attempt(path: str) -> str:
    """Read the file, or make it when it is not there; say how that went."""
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        pass
    except OSError as error:
        return type(error).__name__
    try:
        Path(path).touch()
    except OSError as error:
        return type(error).__name__
    return "made"


def facts() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "environ": dict(os.environ),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "stdin": str(Path("/proc/self/fd/0").readlink()),
    }


def leave(*_: object) -> None:
    print("stand-in: leaving", flush=True)
    os._exit(0)


def serve(folder: Path, *, ready: bool) -> None:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"message": "The agent is\x07 still starting."}).encode()
            self.send_response(200 if ready else 503)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the log for what tests look for."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        listening = folder / "state" / "listening.json"
        staged = listening.with_suffix(".new")
        staged.write_text(json.dumps({"port": server.server_port, "pid": os.getpid()}))
        staged.replace(listening)
        server.serve_forever()


if __name__ == "__main__":
    main()
