import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tools.image.archive import Layer, write_archive, write_layer
from tools.image.contents import IMAGES, ROOT, read_contents
from tools.image.dockerfile import dockerfile

NAMES = sorted(path.name for path in IMAGES.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_the_dockerfile_is_written_from_the_same_list_of_contents(name: str) -> None:
    committed = (IMAGES / name / "Dockerfile").read_text("utf-8")
    assert committed == dockerfile(read_contents(name)), (
        f"run `python -m tools.image {name} --dockerfile`"
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_image_s_packages_are_locked_to_those_of_the_product(name: str) -> None:
    runtime = pins(ROOT / "requirements" / "runtime.lock")
    assert pins(ROOT / read_contents(name).lock) <= runtime


def test_an_archive_names_its_blobs_by_their_digests_and_is_the_same_each_time(
    tmp_path: Path,
) -> None:
    first, second = (archive(tmp_path, str(turn)) for turn in range(2))
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        blobs = {
            name.removeprefix("blobs/sha256/"): member(tar, name)
            for name in tar.getnames()
            if name.startswith("blobs/")
        }
        index = json.loads(member(tar, "index.json"))
    assert all(hashlib.sha256(data).hexdigest() == digest for digest, data in blobs.items())
    top = index["manifests"][0]
    assert top["annotations"]["io.containerd.image.name"].endswith("/goose-api-server:9.9")
    manifest = at(blobs, top)
    config = at(blobs, manifest["config"])
    assert config["config"]["User"] == "1000:1000"
    packed = io.BytesIO(blob(blobs, manifest["layers"][0]))
    with tarfile.open(fileobj=packed) as layer:
        assert member(layer, "hello") == b"world"


def archive(folder: Path, name: str) -> Path:
    path = folder / f"{name}.tar"
    layer = write_layer(folder / f"{name}.gz", _fill)
    assert isinstance(layer, Layer)
    write_archive(path, read_contents("goose-api-server"), "9.9", [layer])
    return path


def _fill(tar: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("hello")
    info.size = 5
    tar.addfile(info, io.BytesIO(b"world"))


def member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def blob(blobs: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    data = blobs[descriptor["digest"].removeprefix("sha256:")]
    assert len(data) == descriptor["size"]
    return data


def at(blobs: dict[str, bytes], descriptor: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(blob(blobs, descriptor))
    return value


def pins(lock: Path) -> set[str]:
    lines = lock.read_text("utf-8").splitlines()
    return {line.split(" ")[0] for line in lines if "==" in line and not line.startswith(" ")}
