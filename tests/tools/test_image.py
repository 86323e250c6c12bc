"""The Dockerfiles, and the images that are really built of them: `tools/image.sh`."""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.real_cluster import ROOT, build_image

from greylag import __version__

NAMES = sorted(path.name for path in (ROOT / "images").iterdir())
SITE = "usr/local/lib/python3.13/dist-packages"
LOCKS = {"goose-api-server": "agentd", "greylag": "runtime"}
MODULES = {"goose-api-server": "greylag.agentd", "greylag": "greylag"}
PROGRAMS = {
    "goose-api-server": {"usr/local/bin/goose", "usr/bin/git", "usr/bin/curl", "usr/bin/tini"},
    "greylag": {"usr/bin/tini"},
}
VOLUMES = {"goose-api-server": "/environment", "greylag": "/data"}
PORTS = {"goose-api-server": "3001/tcp", "greylag": "8700/tcp"}
UNCHECKED = 0b01  # the flags of a compiled form that holds a hash which nobody asks for
# What tells of the machine that built it, of its registries, or of anyone's secrets.
PRIVATE = re.compile(
    r"etc/(apt|pip\.conf|npmrc|resolv\.conf|hosts|hostname)(/|$)|run/secrets|(^|/)\.(npmrc|env|netrc)$"
    r"|root/\.(npm|cache|config)|var/lib/apt/"
)


@dataclass(frozen=True)
class Image:
    """A built image: what its archive says of it, and the files of all its layers."""

    reference: str
    config: dict[str, Any]
    files: dict[str, tarfile.TarInfo]
    texts: dict[str, bytes]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_s_packages_are_locked_to_those_of_the_product(name: str) -> None:
    lock = f"requirements/{LOCKS[name]}.lock"
    assert f"-r {lock}" in (ROOT / "images" / name / "Dockerfile").read_text("utf-8")
    assert pins(ROOT / lock) <= pins(ROOT / "requirements" / "runtime.lock")


@pytest.mark.parametrize("name", NAMES)
def test_a_builder_is_sent_what_the_dockerfile_copies_and_nothing_else(name: str) -> None:
    text = (ROOT / "images" / name / "Dockerfile").read_text("utf-8")
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
        for word in line.split()
    }
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert all((ROOT / path).exists() for path in copied)
    assert all(any(path == top or path.startswith(f"{top}/") for top in sent) for path in copied)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_an_image_runs_restricted_under_its_name(name: str) -> None:
    image = built(name)
    assert image.reference.endswith(f"/{name}:{__version__}")
    assert image.config["User"] == "1000:1000"
    assert image.config["Entrypoint"] == [
        *("/usr/bin/tini", "--", "python3", "-I", "-m", MODULES[name])
    ]
    assert image.config["Volumes"] == {VOLUMES[name]: {}}
    assert image.config["ExposedPorts"] == {PORTS[name]: {}}
    assert image.config["Labels"]["org.opencontainers.image.version"] == __version__
    folder = image.files[VOLUMES[name].lstrip("/")]
    assert (folder.uid, folder.gid) == (1000, 1000)
    elevated = [path for path, info in image.files.items() if info.isreg() and info.mode & 0o6000]
    assert elevated == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_its_programs_and_greylag_compiled(name: str) -> None:
    files = built(name).files
    assert PROGRAMS[name] <= files.keys()
    assert all(files[path].mode & 0o111 for path in PROGRAMS[name])
    sources = {path for path in files if path.startswith(f"{SITE}/greylag/") and path[-3:] == ".py"}
    ours = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert {path.removeprefix(f"{SITE}/") for path in sources} == ours
    assert {compiled_form(path) for path in sources} <= files.keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_no_program_of_an_image_compiles_at_its_start_what_python_brings(name: str) -> None:
    image = built(name)
    library = {path for path in image.files if path.startswith("usr/lib/python3.13/")}
    sources = {path for path in library if path.endswith(".py")}
    assert "usr/lib/python3.13/asyncio/base_events.py" in sources
    stale = {path for path in sources if not is_fresh(image, path)}
    assert stale == set()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_machine_that_built_an_image_is_in_it(name: str) -> None:
    image = built(name)
    held = {path for path in image.files if PRIVATE.search(path)}
    # Builders leave empty files where a container's own are mounted.
    assert {path for path in held if image.files[path].size} == set()
    assert not [
        entry
        for entry in image.config["Env"]
        if re.search("PIP|NPM|CERT|proxy", entry, re.IGNORECASE)
    ]
    authorities = b"\n".join(
        data for path, data in image.texts.items() if path.startswith("usr/share/ca-certificates/")
    )
    bundle = image.texts["etc/ssl/certs/ca-certificates.crt"]
    assert certificates(bundle)
    assert certificates(bundle) <= certificates(authorities)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_unchanged_image_is_not_written_again() -> None:
    archive = build_image("greylag")
    before = archive.stat()
    assert build_image("greylag").stat() == before


@pytest.mark.parametrize("missing", ["buildah", "mmdebstrap"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root comes as far")
def test_a_missing_builder_is_named(missing: str, tmp_path: Path) -> None:
    for program in {"sh", "dirname", "id", "mkdir", "buildah", "mmdebstrap"} - {missing}:
        (tmp_path / program).symlink_to(shutil.which(program) or "/bin/true")
    done = run_tool("greylag", PATH=str(tmp_path))
    assert done.returncode == 1
    assert f"install Debian's package {missing}" in done.stderr


def test_an_image_that_is_none_is_refused() -> None:
    done = run_tool("nothing", PATH=os.environ["PATH"])
    assert done.returncode == 1
    assert "there is no images/nothing/Dockerfile" in done.stderr


def run_tool(name: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - our own tool
        ["/bin/sh", ROOT / "tools" / "image.sh", name],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@cache
def built(name: str) -> Image:
    with tarfile.open(build_image(name)) as archive:
        index = json.loads(read(archive, "index.json"))
        [top] = index["manifests"]
        manifest = json.loads(blob(archive, top))
        config = json.loads(blob(archive, manifest["config"]))
        image = Image(
            top["annotations"]["org.opencontainers.image.ref.name"], config["config"], {}, {}
        )
        for layer in manifest["layers"]:
            with opened(archive, layer) as files:
                collect(image, files)
    return image


def collect(image: Image, layer: tarfile.TarFile) -> None:
    for info in layer:
        path = info.name.strip("./") if info.name.startswith("./") else info.name.rstrip("/")
        image.files[path] = info
        if path.endswith((".crt", ".pyc")) and info.isreg():
            image.texts[path] = read(layer, info)


def is_fresh(image: Image, source: str) -> bool:
    """Tell whether Python takes a source's compiled form as it is.

    https://docs.python.org/3/reference/import.html#cached-bytecode-invalidation
    """
    code = image.texts.get(compiled_form(source), b"")
    checked, written = struct.unpack_from("<II", code.ljust(16, b"\0"), 4)
    return bool(code) and (checked == UNCHECKED or written == image.files[source].mtime)


def compiled_form(source: str) -> str:
    return re.sub(r"([^/]+)\.py$", r"__pycache__/\1.cpython-313.pyc", source)


@contextmanager
def opened(archive: tarfile.TarFile, descriptor: dict[str, Any]) -> Iterator[tarfile.TarFile]:
    packed = archive.extractfile(f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}")
    assert packed is not None
    with tarfile.open(fileobj=packed, mode="r:gz") as layer:
        yield layer


def read(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def blob(archive: tarfile.TarFile, descriptor: dict[str, Any]) -> bytes:
    digest = descriptor["digest"].removeprefix("sha256:")
    data = read(archive, f"blobs/sha256/{digest}")
    assert hashlib.sha256(data).hexdigest() == digest
    return data


def certificates(text: bytes) -> set[bytes]:
    found: list[bytes] = re.findall(rb"-----BEGIN CERT.+?-----END CERT", text, re.DOTALL)
    return set(found)


def pins(lock: Path) -> set[str]:
    lines = lock.read_text("utf-8").splitlines()
    return {line.split(" ")[0] for line in lines if "==" in line and not line.startswith(" ")}
