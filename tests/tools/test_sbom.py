"""`make sbom`: what it wrote names all that the wheel and the images are made of."""

import json
from pathlib import Path

import pytest
from tests.cluster.real_cluster import ROOT

from greylag import __version__

FOLDER = ROOT / "build" / "sbom"
GOOSE = json.loads((ROOT / "tools/goose/package.json").read_text("utf-8"))["optionalDependencies"]


def components(name: str) -> set[str]:
    """Return what a bill of materials lists, as `name@version`."""
    file = FOLDER / f"{name}.cdx.json"
    if not file.is_file():
        pytest.skip(f"THERE IS NO BILL OF MATERIALS OF {name}: run `make sbom` first")
    bill = json.loads(file.read_text("utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    return {f"{one['name']}@{one.get('version')}" for one in bill["components"]}


def locked(name: str) -> set[str]:
    """Return the packages of a lock file for this kind of machine, as `name@version`."""
    lines = Path(ROOT, "requirements", f"{name}.lock").read_text("utf-8").splitlines()
    pins = [line.rstrip(" \\").partition(" ;") for line in lines if line[:1].isalnum()]
    ours = [pin for pin, _, condition in pins if "win32" not in condition or "!=" in condition]
    return {pin.replace("==", "@") for pin in ours}


def test_the_wheel_s_bill_names_each_locked_package() -> None:
    assert locked("runtime") <= components("wheel")


@pytest.mark.parametrize(
    ("image", "lock"), [("goose-api-server", "agentd"), ("greylag", "runtime")]
)
def test_an_image_s_bill_names_greylag_its_packages_and_the_system(image: str, lock: str) -> None:
    found = components(image)
    assert f"greylag@{__version__}" in found
    named = {one.lower().replace("_", "-") for one in found}
    assert {one.lower().replace("_", "-") for one in locked(lock)} <= named
    assert {"libc6", "python3"} <= {one.partition("@")[0] for one in found}


def test_the_environments_bill_names_goose() -> None:
    version = GOOSE["@aaif/goose-binary-linux-x64"]
    found = components("goose-api-server")
    assert f"@aaif/goose-binary-linux-x64@{version}" in found
