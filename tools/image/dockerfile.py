"""The same list of contents as a Dockerfile, for those who have a builder and a registry."""

import json
from pathlib import PurePosixPath

from tools.image.contents import Contents

_HEAD = """\
# {title}.
# Written by `python -m tools.image {name} --dockerfile` from image.json; change that, not this.
# Build it in the project's root:  docker build -f images/{name}/Dockerfile -t {name} .
"""

_GOOSE = """
FROM node:22-{suite}-slim AS goose
WORKDIR /goose
COPY tools/goose/package.json tools/goose/package-lock.json .npmrc ./
RUN npm ci --omit=dev --no-audit --no-fund \\
 && install -m 0755 node_modules/@aaif/goose-binary-linux-*/bin/goose /usr/local/bin/goose
"""

_BUILD = """
FROM debian:{suite}-slim AS build
RUN apt-get update \\
 && apt-get install -y --no-install-recommends python3 python3-pip python3-venv
WORKDIR /greylag
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY src src
RUN python3 -m venv /build \\
 && /build/bin/pip install --require-hashes -r requirements/build.lock \\
 && /build/bin/pip install --no-compile --target /site --require-hashes -r {lock} \\
 && /build/bin/pip install --no-compile --target /site --no-deps --no-build-isolation . \\
 && rm -rf /site/bin \\
 && python3 -m compileall -q --invalidation-mode unchecked-hash -s /site \\
      -p /usr/local/lib/dist-packages /site \\
 && mkdir -p /out/usr/local/lib/$(basename $(ls -d /usr/lib/python3.*)) \\
 && mv /site /out/usr/local/lib/$(basename $(ls -d /usr/lib/python3.*))/dist-packages
"""

_LAST = """
FROM debian:{suite}-slim
LABEL org.opencontainers.image.title="{title}" org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \\
 && apt-get install -y --no-install-recommends {packages} \\
 && rm -rf {excluded} \\
 && install -d -o {uid} -g {gid} {folder}
{goose}COPY --from=build /out /
ENV {env}
USER {user}
WORKDIR /
EXPOSE {port}
VOLUME {folder}
ENTRYPOINT {entrypoint}
"""


def dockerfile(contents: Contents) -> str:
    """Return the Dockerfile of `contents`."""
    uid, _, gid = contents.user.partition(":")
    excluded = [f"/{pattern}" for pattern in contents.exclude if pattern != "dev/*"]
    values = {
        "name": contents.name,
        "title": contents.title,
        "suite": contents.suite,
        "lock": contents.lock,
        "packages": " ".join(contents.packages),
        "excluded": " \\\n      ".join(excluded),
        "uid": uid,
        "gid": gid,
        "user": contents.user,
        "folder": PurePosixPath(contents.folder),
        "goose": "COPY --from=goose /usr/local/bin/goose /usr/local/bin/goose\n"
        if contents.goose
        else "",
        "env": " \\\n    ".join(f"{name}={value}" for name, value in contents.env.items()),
        "port": contents.port,
        "entrypoint": json.dumps(contents.entrypoint),
    }
    parts = (_HEAD, _GOOSE if contents.goose else "", _BUILD, _LAST)
    return "".join(parts).format(**values)
