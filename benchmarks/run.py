"""Runs every benchmark, one after the other: `make bench`, on a quiet machine."""

import subprocess
import sys

from benchmarks.support import console

BENCHMARKS = (
    ("benchmarks.footprint",),
    ("benchmarks.first_chunk",),
    ("benchmarks.relay",),
    ("benchmarks.api",),
    ("benchmarks.people",),
    ("benchmarks.store", "--projects", "100000", "--users", "1000"),
    ("benchmarks.worker",),
    ("benchmarks.kubernetes",),
)


def main() -> int:
    """Run all; returns 1 when one of them failed."""
    failed = []
    for module, *arguments in BENCHMARKS:
        console.rule(module)
        done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)  # noqa: S603 - our own
        if done.returncode != 0:
            failed.append(module)
    if failed:
        console.print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
