"""Writing an OCI image archive without a builder or a registry.

Source: the OCI image format (image-spec: layout, manifest, config, layer), and containerd's
annotation for the name that an import gives the image.
"""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tools.image.contents import Contents

_MEDIA = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True)
class Layer:
    """A finished layer: its file (gzip) and both of its digests."""

    path: Path
    digest: str
    content_digest: str

    def descriptor(self) -> dict[str, Any]:
        """Return how a manifest names it."""
        return {
            "mediaType": f"{_MEDIA}.layer.v1.tar+gzip",
            "digest": f"sha256:{self.digest}",
            "size": self.path.stat().st_size,
        }


class _Hashed(io.RawIOBase):
    """Passes bytes on and remembers their digest."""

    def __init__(self, target: IO[bytes] | gzip.GzipFile) -> None:
        self._target = target
        self._sum = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sum.update(data)
        return self._target.write(data)

    def digest(self) -> str:
        return self._sum.hexdigest()


def write_layer(path: Path, fill: Callable[[tarfile.TarFile], None]) -> Layer:
    """Write the layer that `fill` makes to `path`; the same files give the same bytes."""
    with path.open("wb") as file:
        packed = _Hashed(file)
        with gzip.GzipFile(
            fileobj=packed, mode="wb", compresslevel=6, mtime=0, filename=""
        ) as zipped:
            plain = _Hashed(zipped)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                fill(tar)
    return Layer(path, packed.digest(), plain.digest())


def write_archive(path: Path, contents: Contents, tag: str, layers: list[Layer]) -> None:
    """Write the whole image, named `NAME:TAG`, as one OCI archive that runtimes import."""
    config = _json(_config(contents, tag, layers))
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _described(config, "config"),
            "layers": [layer.descriptor() for layer in layers],
        }
    )
    top = _described(manifest, "manifest") | {
        "annotations": {
            "io.containerd.image.name": f"docker.io/library/{contents.name}:{tag}",
            "org.opencontainers.image.ref.name": tag,
        }
    }
    with _replaced(path) as part, tarfile.open(part, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [top]}))
        for blob in (config, manifest):
            _add(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        for layer in layers:
            info = tarfile.TarInfo(f"blobs/sha256/{layer.digest}")
            info.size = layer.path.stat().st_size
            with layer.path.open("rb") as file:
                tar.addfile(info, file)


def _config(contents: Contents, tag: str, layers: list[Layer]) -> dict[str, Any]:
    return {
        "architecture": _architecture(),
        "os": "linux",
        "config": {
            "User": contents.user,
            "Entrypoint": list(contents.entrypoint),
            "Env": [f"{name}={value}" for name, value in contents.env.items()],
            "ExposedPorts": {f"{contents.port}/tcp": {}},
            "WorkingDir": "/",
            "Volumes": {contents.folder: {}} if contents.folder else {},
            "Labels": {
                "org.opencontainers.image.title": contents.title,
                "org.opencontainers.image.version": tag,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{layer.content_digest}" for layer in layers],
        },
    }


def _architecture() -> str:
    """Return this machine's processor in the words of images (Go's GOARCH)."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _described(blob: bytes, kind: str) -> dict[str, Any]:
    return {
        "mediaType": f"{_MEDIA}.{kind}.v1+json",
        "digest": f"sha256:{hashlib.sha256(blob).hexdigest()}",
        "size": len(blob),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write; whole, it takes its place."""
    part = path.with_suffix(path.suffix + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
