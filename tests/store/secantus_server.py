"""A MongoDB server for tests, as a program of its own: SecantusDB, which speaks the wire protocol.

Prints its port and serves until its standard input ends, so that it never outlives its parent.
``--single`` makes it a server without a replica set, ``--folder`` keeps its data there.
"""

import argparse
import sys

from secantus.server import SecantusDBServer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--single", action="store_true")
    parser.add_argument("--folder", default=":memory:")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    server = SecantusDBServer(
        host=given.host,
        port=given.port,
        storage_path=given.folder,
        replica_set_name=None if given.single else "secantus",
        cache_size="128M",
        # What a killed program had begun holds others up no longer than tests wait.
        transaction_lifetime_seconds=15.0,
    )
    server.start()
    print(server.address[1], flush=True)  # noqa: T201 - how the parent learns of it
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
