"""What an image is made of: `images/NAME/image.json`, read alike by both ways to build it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGES = ROOT / "images"
NEVER_NEEDED = (
    "boot/*",
    "dev/*",
    "usr/lib/*-linux-gnu/gconv/*",
    "usr/lib/*-linux-gnu/perl/*",
    "usr/share/bash-completion/*",
    "usr/share/doc/*",
    "usr/share/info/*",
    "usr/share/lintian/*",
    "usr/share/locale/*",
    "usr/share/man/*",
    "usr/share/perl/*",
    "usr/share/perl5/*",
    "var/cache/*",
    "var/lib/apt/*",
    "var/log/*",
)


@dataclass(frozen=True, slots=True)
class Contents:
    """One image's list of contents.

    Attributes:
        name: the image's name, also of its folder under `images/`.
        title: what it is, for the label of the image.
        suite: Debian's release.
        packages: Debian packages, beside the essential ones.
        exclude: files that are left out, beside what no image needs: patterns of paths from the
            root, without the slash.
        lock: the lock file of its Python packages, from the project's root.
        goose: whether the real goose is in it.
        user: `UID:GID` that it runs as.
        entrypoint: the program and its arguments.
        env: environment variables.
        port: the TCP port that it listens on.
        folder: where a volume is expected.
    """

    name: str
    title: str
    suite: str
    packages: tuple[str, ...]
    exclude: tuple[str, ...]
    lock: str
    goose: bool
    user: str
    entrypoint: tuple[str, ...]
    env: dict[str, str]
    port: int
    folder: str


def read_contents(name: str) -> Contents:
    """Return the contents of the image `name`; raises `FileNotFoundError` when there is none."""
    fields: dict[str, Any] = json.loads((IMAGES / name / "image.json").read_text("utf-8"))
    for key in ("packages", "exclude", "entrypoint"):
        fields[key] = tuple(fields[key])
    fields["exclude"] = tuple(sorted((*NEVER_NEEDED, *fields["exclude"])))
    return Contents(name=name, **fields)
