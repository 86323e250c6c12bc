"""An image's three layers: Debian's packages, goose, and Greylag with its Python packages."""

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tools.image.archive import Layer, write_layer
from tools.image.contents import ROOT, Contents

_EPOCH = "1735689600"  # a fixed time for every file: the same contents are the same bytes
_SITE = "usr/local/lib/{python}/dist-packages"
_PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014", "linux")


class BuildError(Exception):
    """The image cannot be built here; the message says why and what to do."""


def build_layers(contents: Contents, work: Path) -> list[Layer]:
    """Build all layers in the folder `work`, which keeps what the next build can use again.

    Raises:
        BuildError: a program is missing, this is not root, or a step failed.
    """
    if os.geteuid() != 0:
        raise BuildError("Root is needed (to make files of other owners). With docker: see README.")
    base = _base_archive(contents, work)
    layers = [write_layer(work / "base.tar.gz", lambda tar: _copy_base(base, contents, tar))]
    if contents.goose:
        goose = _goose()
        layers.append(
            write_layer(work / "goose.tar.gz", lambda tar: _add_program(tar, goose, "goose"))
        )
    with tempfile.TemporaryDirectory(prefix="greylag-image-") as folder:
        root = Path(folder)
        _run(["tar", "-xpf", str(base), "-C", folder, "--exclude=./dev/*"])
        site = _install(contents, root, work)
        layers.append(
            write_layer(work / "greylag.tar.gz", lambda tar: _add_folder(tar, root, site))
        )
    return layers


def _base_archive(contents: Contents, work: Path) -> Path:
    """Return the archive of Debian's files; made once for each list of packages."""
    key = hashlib.sha256(json.dumps([contents.suite, contents.packages]).encode()).hexdigest()
    path = work / f"debian-{key[:12]}.tar"
    if path.exists():
        return path
    program = shutil.which("mmdebstrap")
    if program is None:
        raise BuildError("mmdebstrap was not found: install Debian's package mmdebstrap.")
    part = path.with_suffix(".part")
    mirror = os.environ.get("GREYLAG_DEBIAN_MIRROR")
    _run(
        [
            program,
            "--quiet",
            "--format=tar",
            "--variant=essential",
            f"--include={','.join(contents.packages)}",
            contents.suite,
            str(part),
            *([mirror] if mirror else []),
        ]
    )
    part.replace(path)
    return path


def _copy_base(base: Path, contents: Contents, layer: tarfile.TarFile) -> None:
    with tarfile.open(base) as source:
        for info in source:
            name = info.name.removeprefix("./")
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in contents.exclude):
                continue
            info.name, info.uname, info.gname, info.mtime = name or ".", "", "", int(_EPOCH)
            layer.addfile(info, source.extractfile(info) if info.isreg() else None)
    folder = tarfile.TarInfo(contents.folder.lstrip("/"))
    folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o755, int(_EPOCH)
    folder.uid, folder.gid = (int(part) for part in contents.user.split(":"))
    layer.addfile(folder)


def _goose() -> Path:
    path = (ROOT / ".venv" / "bin" / "goose").resolve()
    if not path.is_file():
        raise BuildError("The real goose is not installed in .venv: run `make setup` with Node.js.")
    return path


def _install(contents: Contents, root: Path, work: Path) -> Path:
    """Install Greylag into the image's files, compiled; return where, from `root`."""
    python = next(iter(sorted((root / "usr/lib").glob("python3.*")))).name
    site = Path(_SITE.format(python=python))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    shutil.rmtree(work / "wheel", ignore_errors=True)
    _run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(work / "wheel"), str(ROOT)])
    machine = os.uname().machine
    target = [
        *("install", "--no-deps", "--no-compile", "--only-binary=:all:"),
        *("--python-version", python.removeprefix("python"), "--implementation=cp"),
        *(f"--platform={platform}_{machine}" for platform in _PLATFORMS),
        f"--target={root / site}",
    ]
    _run([*pip, *target, "--require-hashes", "-r", str(ROOT / contents.lock)])
    wheel = next((work / "wheel").glob("greylag-*.whl"))
    _run([*pip, *target, "--upgrade", str(wheel)])
    shutil.rmtree(root / site / "bin", ignore_errors=True)
    compiled = ["-m", "compileall", "-q", "--invalidation-mode=unchecked-hash", f"/{site}"]
    _run(["chroot", str(root), "/usr/bin/python3", *compiled])
    return site


def _add_folder(layer: tarfile.TarFile, root: Path, folder: Path) -> None:
    for path in sorted((root / folder).rglob("*")):
        info = layer.gettarinfo(path, arcname=str(path.relative_to(root)))
        _add(layer, info, path)


def _add_program(layer: tarfile.TarFile, program: Path, name: str) -> None:
    info = layer.gettarinfo(program, arcname=f"usr/local/bin/{name}")
    info.mode = 0o755
    _add(layer, info, program)


def _add(layer: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = int(_EPOCH)
    if info.isreg():
        with path.open("rb") as file:
            layer.addfile(info, file)
    else:
        layer.addfile(info)


def _run(command: list[str]) -> None:
    environ = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words and our own paths
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise BuildError(f"{Path(command[0]).name} failed:\n{tail}")
