"""`python -m tools.image NAME`: assemble an image, or write its Dockerfile.

python -m tools.image goose-api-server               build/goose-api-server.tar
python -m tools.image goose-api-server --dockerfile  images/goose-api-server/Dockerfile
"""

import argparse
import sys
import time
from importlib.metadata import version

from tools.image.archive import write_archive
from tools.image.contents import IMAGES, ROOT, read_contents
from tools.image.dockerfile import dockerfile
from tools.image.layers import BuildError, build_layers

_MEGABYTE = 1_000_000


def main() -> int:
    """Build what the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.image", description=__doc__)
    parser.add_argument("name", choices=sorted(path.name for path in IMAGES.iterdir()))
    parser.add_argument("--dockerfile", action="store_true", help="write the Dockerfile only")
    given = parser.parse_args()
    contents = read_contents(given.name)
    if given.dockerfile:
        (IMAGES / given.name / "Dockerfile").write_text(dockerfile(contents), "utf-8")
        return 0
    began = time.monotonic()
    work = ROOT / "build" / "image" / given.name
    work.mkdir(parents=True, exist_ok=True)
    archive = ROOT / "build" / f"{given.name}.tar"
    try:
        layers = build_layers(contents, work)
    except BuildError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    tag = version("greylag")
    write_archive(archive, contents, tag, layers)
    sizes = ", ".join(
        f"{layer.path.name.partition('.')[0]} {layer.path.stat().st_size // _MEGABYTE} MB"
        for layer in layers
    )
    print(
        f"{given.name}:{tag} is {archive.relative_to(ROOT)}, "
        f"{archive.stat().st_size // _MEGABYTE} MB ({sizes}), "
        f"made in {time.monotonic() - began:.0f} s."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
